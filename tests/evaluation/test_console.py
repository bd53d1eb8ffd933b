import io
import re
import shlex
from pathlib import Path

import pytest
from evaluation.console import print_commands, print_metrics, print_results
from rich.console import Console


def figures(value: float, users: int = 1234) -> dict:
    return {
        "users": users,
        "NDCG@20": value,
        "NDCG@20_ci95": [value - 0.01, value + 0.02],
        "HR@10": 2 * value,
    }


TEST = {
    "bascule": {"all": figures(0.31), "novel": figures(0.05)},
    "popularity-recent": {"all": figures(0.35), "novel": figures(0.04)},
    "popularity": {"novel": figures(0.03), "all": {"users": 0}},
}


def show(metrics, width=80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_metrics(console, metrics, "NDCG@20", ("HR@10",))
    return console.file.getvalue()


def test_models_stand_in_order_with_intervals_and_differences_in_80_columns():
    paired = {
        "popularity-recent": {
            "all": {"users": 1234, "NDCG@20": -0.04, "NDCG@20_ci95": [-0.06, -0.02]}
        }
    }
    text = show({"test": TEST, "paired": paired})
    cells = [re.findall(r"[^ ]+ \(.*?\)|[^ ]+", line) for line in text.splitlines() if "(" in line]
    assert cells[:2] == [
        [
            "popularity-recent",
            "0.3500 (.340, .370)",
            "-0.0400 (-.060, -.020)",
            "0.7000",
        ],
        ["bascule", "0.3100 (.300, .330)", "0.6200"],
    ]
    assert (
        text.index("view 'all', users: 1,234")
        < text.index("bascule minus it")
        < text.index("view 'novel'")
    )
    assert len(re.findall(r"(?m)^popularity ", text)) == 1  # no figure of it in `all`
    assert "'all', users: 1, " in show(
        {"test": {"bascule": {"all": figures(0.5, users=1)}}, "paired": {}}
    )


def test_figures_with_context_have_tables_of_their_own():
    metrics = {"test": {"bascule": {"novel": figures(0.31)}}, "paired": {}}
    assert "context" not in show(metrics)
    asked = {
        "bascule": {"novel": figures(0.21)},
        "bascule without context": {"novel": figures(0.18)},
    }
    gain = {
        "bascule without context": {
            "novel": {"users": 1234, "NDCG@20": 0.03, "NDCG@20_ci95": [0.01, 0.05]}
        }
    }
    text = show(metrics | {"with_context": asked, "paired_with_context": gain})
    text = text.split("view 'novel', with request context, users: 1,234")[1]
    assert re.search(r"bascule +0\.2100", text)
    assert re.search(r"(?m)^without context +0\.1800 .* \+0\.0300 \(\+\.010, \+\.050\)", text)


@pytest.mark.parametrize("item_id", ["red [xl] shoes", "a[/b]", "-7x", "it's", 7])
def test_commands_to_try_next_are_printed_as_they_run(item_id):
    out, text = Path("my runs/[a]"), io.StringIO()
    print_results(Console(file=text, width=40), {}, "NDCG@10")
    seen = {"weights": {"events": 1234, "until": "2024-05-31T00:00:00Z"}}
    print_commands(Console(file=text, width=40), out, item_id, seen)
    assert "weights  1,234 events, up to 2024-05-31T00:00:00Z" in text.getvalue().splitlines()
    recommend, similar, verify = (
        shlex.split(line)[1:] for line in text.getvalue().splitlines()[-3:]
    )
    assert recommend == [
        "recommend",
        "--bundle",
        f"{out}/bundle",
        "--all-users",
        "--k",
        "10",
        *recommend[-2:],
    ]
    assert similar == [
        "similar",
        "--bundle",
        f"{out}/bundle",
        f"--item={item_id}",
        "--k",
        "5",
    ]
    assert verify == ["verify", "--bundle", f"{out}/bundle"]
    assert "Nothing was held out" in text.getvalue().replace("\n", " ")
