"""Every command and block of the README runs as printed, in its order, on a clean copy with a run of the demo."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.served import ROOT, Server

pytestmark = [pytest.mark.service, pytest.mark.timeout(1800)]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^```(\w*)\n(.*?)^```$|^    (?! )((?:[^\n]*\\\n)*[^\n]+)$",
    re.DOTALL | re.MULTILINE,
)
ELSEWHERE = (
    "make test",
    "make lint",
    "pip install",
    "docker",
)  # CI runs them, in steps of their own
SERVICE = re.compile(r"(-m serve http|bascule serve)\b")
PREAMBLE = 'set -euo pipefail; curl() { command curl --fail-with-body "$@"; echo; }\n'


def list_steps():
    """Return (kind, text) of every fenced block and indented line, in their order."""
    found = [
        ("bash", line) if line else (kind, block) for kind, block, line in BLOCK.findall(README)
    ]
    return [(kind, text) for kind, text in found if kind in ("bash", "sh", "python", "yaml")]


def list_tabled():
    """Return the commands of the table, which name their options."""
    return [
        line.replace("\\|", "|")
        for line in re.findall(r"^\| `((?:python|bascule)[^`]*)`", README, re.MULTILINE)
    ]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Copy what a clone would hold, with an environment in which everything is installed already."""
    folder = tmp_path_factory.mktemp("readme") / "bascule"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(
        listed, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")[:-1]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    binaries, installed = folder / ".venv" / "bin", Path(sys.prefix)
    binaries.mkdir(parents=True)
    (folder / ".venv" / "lib").symlink_to(installed / "lib")
    shutil.copy2(installed / "pyvenv.cfg", folder / ".venv")
    for path in (installed / "bin").iterdir():
        (binaries / path.name).symlink_to(path)
    for name in (".train", ".dev"):  # make has nothing to install
        (folder / ".venv" / name).touch()
    if not (binaries / "bascule").exists():
        (binaries / "bascule").write_text(
            f'#!/bin/sh\nexec "{binaries}/python" -m bascule "$@"\n', encoding="utf-8"
        )
        (binaries / "bascule").chmod(0o755)
    write_shop(folder)
    return folder


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


def choose_port():
    """Return the port that the README prints if it is free, else another one."""
    for port in (8080, 0):
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return one.getsockname()[1]
    raise AssertionError


def run(clone, words, **options):
    variables = {
        "PYTHONPATH": str(clone),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{clone}/.venv/bin:{os.environ['PATH']}",
    }
    environment = os.environ | variables
    return subprocess.run(
        words,
        cwd=clone,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
        **options,
    )


def serve(clone, command, port):
    """Start the service as the README does and return its process once it is ready."""
    words = [
        *shlex.split(command, comments=True),
        *(["--port", str(port)] if port != 8080 else []),
    ]
    with (clone / "service.event_log").open("a") as log:
        variables = {"PYTHONPATH": str(clone), "PATH": f"{clone}/.venv/bin:{os.environ['PATH']}"}
        process = subprocess.Popen(words, cwd=clone, env=os.environ | variables, stderr=log)
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.1)
    process.kill()
    process.wait()
    raise AssertionError((clone / "service.event_log").read_text())


def check_answers(text):
    """Let no answer be of nobody, hold items that are not there, or be short."""
    for line in filter(lambda line: line.startswith("{"), text.splitlines()):
        for answer in json.loads(line).get("answers", ()):
            assert (len(answer["items"]), answer["unknown_items"]) == (5, 0), line
            assert answer.get("user_known", True), line
            assert "unknown_values" not in answer, line


def wait_for_item(port, item_id):
    """Wait until the service knows an item."""
    until, n_unknown = time.monotonic() + 10, 1
    while n_unknown and time.monotonic() < until:
        reply = Server(None, port).ask("POST", "/v1/recommend", {"history": [{"item_id": item_id}]})
        n_unknown = reply.json["answers"][0]["unknown_items"]
    assert n_unknown == 0


def test_every_command_and_block_runs_as_printed(clone):
    port, services, answered = choose_port(), [], 0
    try:
        for kind, printed in list_steps():
            text, begun = printed.replace("8080", str(port)), time.monotonic()
            if any(text.startswith(one) for one in ELSEWHERE):
                continue
            if kind == "yaml":
                (clone / "my.yaml").write_text(text, encoding="utf-8")
                continue
            if SERVICE.search(text):
                services.append(serve(clone, text, port))
                continue
            words = (
                [".venv/bin/python", "-c", text]
                if kind == "python"
                else ["bash", "-c", PREAMBLE + text]
            )
            done = run(clone, words)
            assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            check_answers(done.stdout)
            answered += done.stdout.count('"answers"')
            print(f"{time.monotonic() - begun:5.1f} s  {text.splitlines()[0][:90]}")
        assert answered > 0
        assert services
        for item_id in re.findall(r"live\.put\((\d+)", README):  # by a process beside the service
            wait_for_item(port, int(item_id))
        for service in services:
            service.send_signal(signal.SIGTERM)
            assert service.wait(20) == 0
        assert "ERROR" not in (clone / "service.event_log").read_text()
    finally:
        for service in services:
            service.kill()
            service.wait()


@pytest.mark.parametrize("command", list_tabled(), ids=lambda command: command[:40])
def test_every_option_of_the_table_of_commands_exists(clone, command):
    words = re.split(r" [\[(]?--", command)[0].split()
    known = run(clone, [*words, "--help"])
    assert known.returncode == 0, known.stderr
    options = re.findall(r"--[a-z-]+", command)
    assert not [one for one in options if one not in known.stdout]
