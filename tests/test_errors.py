import os
import signal
import sqlite3

import pytest

import evaluation.__main__
import evaluation.report
import train
from serve.__main__ import main as serve
from serve.errors import SchemaError, say
from tests.linear_bundle import SHOP, publish_linear


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "runs/a b.csv"), "runs/a b.csv: No space left on device"),
        (OSError(18, "Invalid link", "from", None, "to"), "from: to: Invalid link"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (BlockingIOError(11, "another process\n has it", b"x"), "b'x': another process has it"),
        (OSError("a word\nalone"), "a word alone"),
        (SchemaError("two\n  lines"), "two lines"),
        (sqlite3.Error(), ""),
    ],
)
def test_an_error_is_one_line_without_numbers_of_the_system(error, line):
    assert say(error) == line


def test_a_command_of_serve_names_the_file_and_no_number(tmp_path, capsys):
    bundle, file = publish_linear(tmp_path, SHOP, seed=3), tmp_path / "file"
    file.touch()
    assert serve(f"publish --bundle {bundle} --registry {file}/registry".split()) == 2
    assert capsys.readouterr().err == f"error: {file}/registry: Not a directory\n"


@pytest.mark.parametrize(
    ("module", "options", "name"),
    [
        (evaluation.__main__, "--bundle b --holdout h.csv --train t.csv", "error"),
        (evaluation.report.__main__, "--run r", "error"),
        (train, "--out {file}", "train.py"),
    ],
)
def test_a_full_disk_is_one_line(module, options, name, tmp_path, monkeypatch, capsys):
    def fail(*_given, **_named):
        raise OSError(28, "No space left on device", "out.csv")

    monkeypatch.setattr(module, "run", fail)
    assert module.main(options.format(file=tmp_path / "out").split()) == 2
    assert capsys.readouterr().err == f"{name}: out.csv: No space left on device\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    ("module", "options"),
    [(evaluation.__main__, "--bundle b --holdout h.csv --train t.csv"), (evaluation.report.__main__, "--run r")],
)
def test_an_evaluation_that_is_told_to_stop_ends_with_the_status_of_it(module, options, number, code, monkeypatch):
    """Whoever lost patience in the minutes of the baselines got a traceback."""
    monkeypatch.setattr(module, "run", lambda *_: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as end:
        module.main(options.split())
    assert end.value.code == code
