import io
import sys
from pathlib import Path

from rich.console import Console

from evaluation.report.plain_words import say_test
from evaluation.summary import print_summary
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
    _, said, path, *_ = text.getvalue().splitlines()
    assert said == say_test({}, [], FILMS) != ""
    assert path.startswith("metrics ")
