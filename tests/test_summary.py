import io
import shlex
import sys
from pathlib import Path

import pytest
from rich.console import Console

from evaluation.report.plain_words import say_test
from evaluation.summary import print_summary
from serve.__main__ import _commands
from serve.command_line import parse_options
from tests.linear_bundle import FILMS


def test_what_to_try_next_names_the_python_that_ran(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env" / "bin" / "python3"))
    text = io.StringIO()
    print_summary(Console(file=text, width=40), Path("r/a"), {}, "NDCG@10", "i7")
    assert text.getvalue().splitlines()[-3:] == [
        "  env/bin/python3 -m serve recommend --bundle r/a/bundle --all-users --k 10 --out r/a/recommendations.csv",
        "  env/bin/python3 -m serve similar --bundle r/a/bundle --item i7 --k 5",
        "  env/bin/python3 -m serve verify --bundle r/a/bundle",
    ]


def test_a_run_that_held_out_nothing_says_so_as_the_report_does():
    text = io.StringIO()
    print_summary(Console(file=text, width=120), Path("r"), {"protocol": {}}, "NDCG@10", 7)
    _, said, path, bundle, *_ = text.getvalue().splitlines()
    assert said == say_test({}, [], FILMS) != ""
    assert path.split() == ["metrics", "r/metrics.json"]
    assert bundle.split() == ["bundle", "r/bundle"]


@pytest.mark.parametrize("item_id", ["red [xl] shoes", "a[/b]", "-7x", "--k", "it's", 7])
def test_what_to_try_next_runs_as_it_is_printed(item_id):
    out, text = Path("my runs/[a]"), io.StringIO()
    print_summary(Console(file=text, width=40), out, {}, "NDCG@10", item_id)
    recommend, similar, verify = (shlex.split(line)[1:] for line in text.getvalue().splitlines()[-3:])
    for words in (recommend, similar, verify):
        assert words[:2] == ["-m", "serve"]
    commands = _commands()
    given = parse_options(commands["similar"], similar[3:])
    assert (given.item, given.bundle, given.k) == (str(item_id), out / "bundle", 5)
    given = parse_options(commands["recommend"], recommend[3:])
    assert (given.bundle, given.out) == (out / "bundle", out / "recommendations.csv")
    assert parse_options(commands["verify"], verify[3:]).bundle == out / "bundle"
