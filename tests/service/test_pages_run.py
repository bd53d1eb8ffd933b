"""The commands and blocks of the README and of docs run as printed, in their order, on a run of the demo.

What a page prints as the answer of a block is what the block prints.

In the checkout it is a clean copy after `make demo`. With an installed wheel (`make wheel`) those of the README run in
an empty folder after a short training. docs/loop.md and docs/operations.md have tests of their own.
"""

import json
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.served import ROOT, Server
from tests.service.pages import (
    IS_WHEEL,
    check_printed,
    list_answers,
    list_blocks,
    list_indented,
    list_steps,
    make_environment,
    read_page,
)

pytestmark = [pytest.mark.service, pytest.mark.timeout(1800)]
ELSEWHERE = ("make ", "pip install", "uv ", "docker", "source ")  # CI runs them, or the fixture
PAGES = [f"docs/{name}.md" for name in ("index", "serving", "discovery", "training", "ray")]
ANSWERS = {
    text: answer for page in ("README.md", *PAGES) for text, answer in list_answers(page).items()
}
SERVE = "bascule serve --bundle runs/demo/bundle"
QUICKLY = shlex.split("--model.max_epochs 1 --model.dim 8 --evaluation.baselines []")
PREAMBLE = 'set -euo pipefail; curl() { command curl --fail-with-body "$@"; echo; }\n'


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Make a folder with a run of the demo and the tables that pages name."""
    folder = tmp_path_factory.mktemp("pages") / "bascule"
    folder.mkdir()
    if IS_WHEEL:
        words = ["bascule", "train", "--out", "runs/demo", *QUICKLY]
    else:
        copy_clone(folder)
        words = ["make", "demo"]
    write_shop(folder)
    done = run(folder, words)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def copy_clone(folder):
    """Copy what a clone would hold, with an environment in which everything is installed already."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.split("\0")[:-1]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    binaries, installed = folder / ".venv" / "bin", Path(sys.prefix)
    binaries.mkdir(parents=True)
    (folder / ".venv" / "lib").symlink_to(installed / "lib")
    shutil.copy2(installed / "pyvenv.cfg", folder / ".venv")
    for path in (installed / "bin").iterdir():
        if path.name != "bascule":
            (binaries / path.name).symlink_to(path)
    for name in (".train", ".dev"):  # make has nothing to install
        (folder / ".venv" / name).touch()
    (binaries / "bascule").write_text(
        f'#!/bin/sh\nexec "{binaries}/python" -m bascule "$@"\n', encoding="utf-8"
    )
    (binaries / "bascule").chmod(0o755)


def write_shop(folder):
    """Write the tables that the configuration to begin with names."""
    rng = np.random.default_rng(0)
    customers = rng.integers(80, size=1500)
    skus = customers % 4 * 10 + rng.integers(10, size=1500)
    events = pd.DataFrame(
        {
            "customer": customers,
            "sku": skus,
            "ts": 1_700_000_000 + rng.integers(10**7, size=1500),
        }
    )
    events.to_csv(folder / "events.csv", index=False)
    items = pd.DataFrame(
        {
            "sku": range(40),
            "category": [f"k{one // 10}" for one in range(40)],
            "price": range(40),
        }
    )
    items.assign(title="thing").to_csv(folder / "items.csv", index=False)


def environment_of(folder):
    variables = make_environment(folder / ".venv" / "bin")
    return variables if IS_WHEEL else variables | {"PYTHONPATH": str(folder)}


def choose_port():
    """Return the port that pages print if it is free, else another one."""
    for port in (8080, 0):
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return one.getsockname()[1]
    raise AssertionError


def run(folder, words, **options):
    return subprocess.run(
        words,
        cwd=folder,
        env=environment_of(folder),
        text=True,
        capture_output=True,
        check=False,
        **options,
    )


@contextmanager
def serving(folder, command):
    """Start the service as a page does, give its port once it is ready, and let it end without a fault."""
    port = choose_port()
    words = [*shlex.split(command), *(["--port", str(port)] if port != 8080 else [])]
    log = folder / "service.event_log"
    with log.open("w") as file:
        process = subprocess.Popen(words, cwd=folder, env=environment_of(folder), stderr=file)
    try:
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        assert process.poll() is None, log.read_text()
        yield port
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "ERROR" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def follow(folder, steps, port):
    """Run steps in their order and return what they printed."""
    printed = []
    for kind, text in steps:
        begun = time.monotonic()
        words = ["python" if kind == "python" else "bash", "-c", text.replace("8080", str(port))]
        if kind != "python":
            words[-1] = PREAMBLE + words[-1]
        done = run(folder, words)
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert check_answers(done.stdout) == count_requests(text)
        if text in ANSWERS:
            # the short training of the wheel gives other figures
            n_lines = 1 if IS_WHEEL else None
            compared = [each.splitlines()[:n_lines] for each in (done.stdout, ANSWERS[text])]
            check_printed(*map("\n".join, compared))
        printed.append(done.stdout)
        print(f"{time.monotonic() - begun:5.1f} s  {text.splitlines()[0][:90]}")
    return "\n".join(printed)


def check_answers(text):
    """Let no answer be of nobody, hold items that are not there, or be short; give how many each reply has."""
    counts = []
    for line in filter(lambda line: line.startswith("{"), text.splitlines()):
        answers = json.loads(line).get("answers", [])
        counts += [len(answers)] if answers else []
        for answer in answers:
            assert (len(answer["items"]), answer["unknown_items"]) == (5, 0), line
            assert answer.get("user_known", True), line
            assert "unknown_values" not in answer, line
    return counts


def count_requests(text):
    """Return how many requests each body that asks for lists has."""
    bodies = map(json.loads, re.findall(r"/v1/recommend -d '(.*)'", text))
    return [len(body.get("requests", [body])) for body in bodies]


def wait_for_item(port, item_id):
    """Wait until the service knows an item."""
    until, n_unknown = time.monotonic() + 10, 1
    while n_unknown and time.monotonic() < until:
        reply = Server(None, port).ask("POST", "/v1/recommend", {"history": [{"item_id": item_id}]})
        n_unknown = reply.json["answers"][0]["unknown_items"]
    assert n_unknown == 0


def test_every_command_and_block_of_the_readme_runs_as_printed(home):
    steps = [step for step in list_steps("README.md") if not step[1].startswith(ELSEWHERE)]
    (tables,) = [text for kind, text in steps if kind == "yaml"]
    (home / "my.yaml").write_text(tables, encoding="utf-8")
    steps = [(kind, text) for kind, text in steps if kind != "yaml"]
    (begin,) = [place for place, (_, text) in enumerate(steps) if text.startswith(SERVE)]
    follow(home, steps[:begin], None)
    with serving(home, steps[begin][1]) as port:
        assert follow(home, steps[begin + 1 :], port).count('"answers"') > 2


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_docs_runs_as_printed(home, page):
    steps = [step for step in list_blocks(page) if step[0] in ("bash", "python")]
    assert steps
    with serving(home, SERVE) as port:
        follow(home, steps, port)
        for item_id in re.findall(r"live\.put\((\d+)", read_page(page)):  # by another process
            wait_for_item(port, int(item_id))


def test_every_query_of_docs_runs_on_what_a_service_logged(home):
    with serving(home, SERVE) as port:
        Server(None, port).ask("POST", "/v1/recommend", {"user_id": 1})
    with closing(sqlite3.connect(home / "runs" / "demo" / "state" / "state.db")) as state:
        for kind, text in list_blocks("docs/serving.md"):
            if kind == "sql":
                for query in filter(str.strip, text.split(";")):
                    assert state.execute(query).description
        assert state.execute("SELECT count(*) FROM feedback").fetchone() > (0,)


def list_forms():
    """Return the commands of the table and of indented lines, which name their options."""
    tabled = re.findall(r"^\| `(bascule[^`]*)`", read_page("docs/serving.md"), re.MULTILINE)
    forms = [line.replace("\\|", "|") for line in tabled]
    for path in sorted((ROOT / "docs").glob("*.md")):
        lines = list_indented(f"docs/{path.name}")
        forms += [text.split("#")[0] for text in lines if text.startswith("bascule")]
    return forms


@cache
def explain(folder, *words):
    """Return what a command says of itself; several forms are of one."""
    return run(folder, [*words, "--help"])


@pytest.mark.parametrize("command", list_forms(), ids=lambda command: command[:40])
def test_every_option_of_a_form_exists(home, command):
    # of words that may stand in one place the first
    words = [word.split("|")[0] for word in re.split(r" [\[(]?--|`", command)[0].split()]
    known = explain(home, *words)
    assert known.returncode == 0, known.stderr
    options = re.findall(r"--[a-z_.-]+", command)
    assert not [one for one in options if one not in known.stdout]
