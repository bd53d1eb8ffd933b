"""The command `bascule`: every command under one name, and quick to say what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError

import pytest
import yaml
from bascule.commands import COMMANDS, TRAINING, main
from tests.served import ROOT

import bascule
from bascule import commands


@pytest.mark.parametrize("command", [*TRAINING, *COMMANDS])
def test_every_command_explains_itself_and_most_without_a_library_of_training(command):
    needless = ["torch"]
    if command in ("train", "evaluate", *COMMANDS):
        needless += ["pandas", "scipy", "onnxruntime"]
    code = (
        f"import sys; from bascule.commands import main\ntry: main([{command!r}, '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        f"assert not {set(needless)} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: bascule {command} ")
    assert not re.search(r"python -m|python train\.py|train\.py", done.stdout)


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
        f"import sys; from bascule.commands import main\nstatus = main({words!r})\n"
        "assert not {'torch', 'pandas', 'scipy'} & set(sys.modules)\nsys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert named in line


def run_module(*words):
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_help_lists_every_command():
    done = run_module("bascule", "--help")
    listed = set(re.findall(r"^    (\w+)", done.stdout, re.MULTILINE))
    assert listed == {*COMMANDS, *TRAINING}
    assert not re.search(r"python -m|train\.py", done.stdout)
    assert {"serve", "recommend", "gate"} <= listed


def test_the_version_is_one_everywhere(monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert bascule.__version__ == project["version"] == citation["version"]
    assert run_module("bascule", "--version").stdout == f"bascule {project['version']}\n"

    def find_nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(commands, "version", find_nothing)  # a clone that is not installed
    assert bascule.__version__ == project["version"]


def test_python_m_serve_is_another_door_to_the_same_commands(bundle_paths):
    bundle = str(bundle_paths["shop"])
    words = ["similar", "--bundle", bundle, "--item", "i107", "--k", "3"]
    by_door = run_module("serve", *words)
    assert by_door.stdout == run_module("bascule", *words).stdout
    assert len(by_door.stdout.splitlines()) == 1 + 1 + 3
    help_by_door = run_module("serve", "http", "--help").stdout
    assert help_by_door == run_module("bascule", "serve", "--help").stdout
    assert help_by_door.startswith("usage: bascule serve ")


def test_an_install_that_only_answers_says_so(monkeypatch, capsys):
    for name in ("train", "pipeline.config"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["train"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(ModuleNotFoundError, match="install bascule"):
        bascule.fit("events.csv")
