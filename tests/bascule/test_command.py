"""The command `bascule`: every command under one name, and quick to say what is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from threading import Thread
from urllib.error import URLError
from urllib.request import urlopen

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from bascule.commands import COMMANDS, TRAINING, main
from pipeline.config import SAMPLES
from tests.served import ROOT

import bascule
from bascule import commands, demo


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


def test_an_install_that_only_answers_says_so(monkeypatch, capsys):
    for name in ("train", "pipeline.config"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["train"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(ModuleNotFoundError, match="install bascule"):
        bascule.fit("events.csv")


@contextmanager
def running_demo(folder, *words, prelude=""):
    """Run `bascule demo` in a folder, and yield the address that it prints."""
    words = ["demo", "--no-browser", "--port", "0", *words]
    code = f"{prelude}import sys; from bascule.commands import main; sys.exit(main({words!r}))"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        said = (re.search(r"the page is at (http://\S+);", line) for line in process.stdout)
        yield next(filter(None, said))[1]
        process.terminate()
    assert process.returncode == 0


def read_page(address):
    """Read the page once the service answers."""
    for _ in range(600):
        try:
            with urlopen(address, timeout=60) as answer:
                return answer.read().decode()
        except URLError:
            time.sleep(0.1)
    pytest.fail("nobody answers")


@pytest.mark.parametrize(("name", "words"), [("demo", []), ("library", ["--sample", "library"])])
def test_the_demo_serves_the_run_of_a_sample_that_is_there(bundle_paths, tmp_path, name, words):
    shutil.copytree(bundle_paths["shop"], tmp_path / "runs" / name / "bundle")
    with running_demo(tmp_path, *words) as address:
        assert "<title>" in read_page(address)


def test_the_demo_offers_every_sample():
    assert commands._OPTIONS["--sample"]["choices"] == tuple(SAMPLES)


@pytest.mark.slow
def test_the_demo_trains_on_the_sample_and_serves_it(tmp_path):
    sample = ROOT / "datamodules" / "sample"
    for name in ("users", "items"):
        shutil.copy(sample / f"{name}.parquet", tmp_path)
    events = pq.read_table(sample / "interactions.parquet")
    some_users = pc.is_in(events["user_id"], pc.unique(events["user_id"])[:150])
    pq.write_table(events.filter(some_users), tmp_path / "interactions.parquet")
    prelude = (
        "from pathlib import Path; import pipeline.config as config\n"
        f"config.SAMPLES['grocery'] = Path({str(tmp_path)!r})\n"
    )
    with running_demo(tmp_path, "--quick", prelude=prelude) as address:
        assert "<title>" in read_page(address)
    metrics = json.loads((tmp_path / "runs" / "demo" / "metrics.json").read_text())
    assert metrics["quick"] is True


def test_the_demo_opens_its_page_once_it_is_there(monkeypatch):
    opened = []
    monkeypatch.setattr(demo.webbrowser, "open", opened.append)
    monkeypatch.setattr(demo, "_LOOK_SECONDS", 0.01)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        opening = Thread(target=demo._open_page, args=("127.0.0.1", port))
        opening.start()
        assert not opened  # nobody listens yet
        listener.listen()
        opening.join(timeout=30)
    assert opened == [f"http://127.0.0.1:{port}/"]


@pytest.mark.parametrize(("word", "meant"), [("tran", "train"), ("simlar", "similar")])
def test_the_nearest_command_is_proposed(capsys, word, meant):
    assert commands.main([word]) == 2
    error = capsys.readouterr().err
    assert f"did you mean '{meant}'" in error
    assert len(error.splitlines()) == 1
