"""What the README says works, works."""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pipeline.config import parse
from pipeline.tables import read
from tests.linear_bundle import FILMS, N, publish_linear
from tests.models.tiny_towers import one_thread
from tests.pipeline.small_runs import trace_exports
from tests.service.pages import SHOWN, check_printed, list_answers, list_blocks, read_page
from tests.service.test_pages_run import PAGES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def find_code(page, text):
    """Return the example of a page that contains a text."""
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if text in code]
    return code


def test_the_quickstart_recommends_the_taste_of_the_history(tmp_path, monkeypatch):
    """It runs as printed, in an interpreter of its own, in tests/service/test_pages_run.py."""
    code = find_code(README, "bascule.fit")
    assert code.count("\n") <= 12
    monkeypatch.chdir(tmp_path)
    trace_exports(monkeypatch)
    names: dict[str, Any] = {}
    with one_thread():
        exec(code, names)
    assert len(names["answers"]) == 1
    items = [row["item_id"] for row in names["answers"][0]]
    assert len(set(items)) == 5
    assert {item // 20 for item in items} == {0}


def test_the_configuration_to_begin_with_trains_on_tables_that_are_called_so(tmp_path, monkeypatch):
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my.yaml").write_text(block, encoding="utf-8")
    rows = [
        (f"c{user}", f"s{(user + place) % 11}", 1_700_000_000 + place)
        for user in range(30)
        for place in range(4)
    ]
    pd.DataFrame(rows, columns=["customer", "sku", "ts"]).to_csv(
        tmp_path / "events.csv", index=False
    )
    items = [(f"s{item}", f"k{item % 3}", item / 2, f"thing {item}") for item in range(11)]
    pd.DataFrame(items, columns=["sku", "category", "price", "title"]).to_csv(
        tmp_path / "items.csv", index=False
    )
    monkeypatch.chdir(tmp_path)
    config, _ = parse(["--config", "my.yaml"])
    tables, _ = read(config, None, tmp_path)
    assert len(tables.interactions) == 120
    assert sorted(tables.items.columns) == ["category", "item_id", "price", "title"]


def test_items_come_and_go_as_it_says(tmp_path, monkeypatch):
    publish_linear(tmp_path / "runs" / "demo", FILMS, seed=3)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(find_code(SERVING, "LiveItems"), names)
    names["live"].close()
    names["store"].close()
    assert len(names["answers"].item_id) == 5
    assert names["request"].history.item_id == (90001,)
    assert names["live"].recommender.catalogue.item_ids.ids.tolist()[N:] == [
        90001,
        28897,
    ]


def test_the_readme_is_short_and_shows_an_answer():
    assert 1000 < len(README.split()) <= 2200
    assert re.search(r"```python\n[^`]*bascule.load[^`]*```\n\n```text\nrequest ", README[:2000])


def list_documents():
    return ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def test_every_block_that_could_run_is_on_a_page_that_a_test_follows():
    kinds_by_page = {page: {kind for kind, _ in list_blocks(page)} for page in list_documents()}
    guides = {
        "docs/loop.md": {"sh"},
        "docs/operations.md": {"sh", "yaml"},
    }  # the yaml is Prometheus's
    followed = {page: {"bash", "python"} for page in PAGES} | guides
    followed["README.md"] = {"bash", "python", "yaml"}
    followed["docs/serving.md"] = {"bash", "python", "sql"}
    assert len(kinds_by_page) > 10
    for page, kinds in kinds_by_page.items():
        assert kinds <= followed.get(page, set()), page
        shown = set(re.findall(r"^```(\w+)$", (ROOT / page).read_text(), re.MULTILINE)) - kinds
        assert shown <= set(SHOWN), page
        if page in ("README.md", *PAGES):
            assert read_page(page).count("```text\n") == len(list_answers(page)), page
    assert len(list_answers("README.md")) == 1


@pytest.mark.parametrize(
    ("fresh", "is_alike"),
    [
        ("826249  5.173\nnote: 2", True),
        ("826249   5.176 note: 2", True),
        ("826249  5.184\nnote: 2", False),
        ("826248  5.173\nnote: 2", False),
        ("826249  5.173\nnote: 3", False),
        ("826249  5.173", False),
    ],
)
def test_printed_answers_may_differ_in_the_last_digits_of_figures_alone(fresh, is_alike):
    with nullcontext() if is_alike else pytest.raises(AssertionError):
        check_printed(fresh, "826249  5.173\nnote: 2\n")


def test_no_page_asks_for_modules_that_a_wheel_does_not_have():
    for page in list_documents():
        if page not in ("docs/decisions.md", "docs/api-inside.md"):
            text = (ROOT / page).read_text(encoding="utf-8")
            assert not re.search(
                r"python -m (?!venv)|from (serve|service|models|datamodules)", text
            ), page


def test_every_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"make (\w+)", README)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def list_pages():
    return [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def name_anchors(page):
    """Return the names that headings of a page have in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def find_links(page):
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8"))


def test_pages_have_links():
    assert sum(len(find_links(page)) for page in list_pages()) > 50


@pytest.mark.parametrize("page", list_pages(), ids=lambda page: page.name)
def test_every_link_leads_to_a_page_and_a_heading_that_there_are(page):
    for link in find_links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in name_anchors(target), link
