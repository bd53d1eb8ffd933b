"""The command `bascule`: every command under one name, and quick to say what is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
from bascule.__main__ import main
from bascule.commands import main as main_of_serve
from tests.served import ROOT

import bascule

COMMANDS = (
    "train",
    "evaluate",
    "recommend",
    "similar",
    "export",
    "verify",
    "sign",
    "serve",
    "forget",
    "publish",
)
VERSIONS = ("activate", "rollback", "list")


@pytest.mark.parametrize("command", [*COMMANDS, *VERSIONS])
def test_every_command_explains_itself_without_a_library_of_training(command):
    code = (
        f"import sys; from bascule.__main__ import main\ntry: main([{command!r}, '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'pandas', 'scipy', 'onnxruntime'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: bascule {command} ")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--data.items.path", "nowhere.csv"], "nowhere.csv"),
        (["train", "--previous", "nowhere"], "nowhere"),
        (["train", "--seeds", "3"], "--seeds"),
        (
            [
                "evaluate",
                "--bundle",
                "nowhere",
                "--holdout",
                "pyproject.toml",
                "--train",
                "pyproject.toml",
            ],
            "nowhere",
        ),
        (
            [
                "evaluate",
                "--bundle",
                "tests",
                "--holdout",
                "nowhere.csv",
                "--train",
                "pyproject.toml",
            ],
            "nowhere.csv",
        ),
        (
            ["recommend", "--bundle", "nowhere", "--all-users", "--out", "x.csv"],
            "nowhere",
        ),
        (["serve", "--bundle", "nowhere"], "nowhere"),
        (["trian"], "bascule --help"),
        (["recommend"], "bascule recommend --help"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_before_anything_slow_is_imported(words, named):
    code = (
        f"import sys; from bascule.__main__ import main\nstatus = main({words!r})\n"
        "assert not {'torch', 'pandas', 'scipy'} & set(sys.modules)\nsys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert named in line


def test_a_command_does_what_its_other_form_does(bundle_paths, capsys):
    words = [
        "similar",
        "--bundle",
        str(bundle_paths["shop"]),
        "--item",
        "i107",
        "--k",
        "3",
    ]
    assert main(words) == main_of_serve(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[: len(printed) // 2] == printed[len(printed) // 2 :]
    assert len(printed) == 2 * 5


def test_an_install_that_only_answers_says_so(monkeypatch, capsys):
    for name in ("train", "pipeline.config"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["train"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(ModuleNotFoundError, match="install bascule"):
        bascule.fit("events.csv")
