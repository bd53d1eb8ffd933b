"""The parent of workers: it starts them, ends with them, and passes on why the first cannot start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.http.services import publish_served
from tests.linear_bundle import SHOP
from tests.served import ROOT, serving

from bascule import commands as cli


@pytest.fixture
def bundle(tmp_path):
    return publish_served(tmp_path, SHOP)


def workers_of(server):
    return [
        *map(
            int,
            Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
            .read_text()
            .split(),
        )
    ]


def test_of_a_bundle_that_cannot_be_served_the_first_worker_says_why(bundle, capsys):
    (bundle / "items.faiss").write_bytes(b"other")
    command = [
        sys.executable,
        "-m",
        "bascule",
        "serve",
        "--bundle",
        bundle,
        "--port",
        "0",
        "--workers",
        "3",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "items.faiss" in done.stderr
    assert cli.main(["serve", "--bundle", str(bundle), "--workers", "0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_workers_end_with_a_parent_that_was_killed(bundle):
    with serving("--bundle", bundle, "--workers", "1") as server:
        (worker,) = workers_of(server)
        server.process.kill()
        server.process.wait(20)
        until = time.monotonic() + 20
        while Path(f"/proc/{worker}").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_a_bundle_that_cannot_be_served_renews_nobody(bundle):
    with serving("--bundle", bundle, "--workers", "1") as server:
        before = workers_of(server)
        (bundle / "items.faiss").rename(bundle / "gone.faiss")
        server.process.send_signal(signal.SIGHUP)
        while "keeping the old ones" not in (line := server.process.stderr.readline()):
            assert line
        assert before[0] in workers_of(server)
        assert server.ask("POST", "/v1/recommend", {}).status == 200
        (bundle / "gone.faiss").rename(bundle / "items.faiss")
        os.kill(before[0], signal.SIGKILL)
        while "at http" not in (line := server.process.stderr.readline()):
            assert line
        assert before[0] not in workers_of(server)
        assert server.ask("POST", "/v1/recommend", {}).status == 200
        assert server.end() == 0


def test_a_signal_in_the_instant_of_the_first_answer_ends_the_service(bundle):
    code = (
        "import os, signal, sys; from bascule.commands import main; from service.http import server\n"
        "server.say_ready = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"sys.exit(main(['serve', '--bundle', {str(bundle)!r}, '--port', '0']))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=20).returncode == 0


def test_a_worker_that_starts_ends_with_the_service_even_if_it_takes_no_signal(bundle, tmp_path):
    code = (
        "import os, pathlib, signal, time\n"
        f"if 'BASCULE_WORKER' in os.environ and pathlib.Path({str(tmp_path / 'deaf')!r}).exists():\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"    pathlib.Path({str(tmp_path / 'deaf')!r}).write_text('begun')\n"
        "    time.sleep(60)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(code)
    with serving(
        "--bundle",
        bundle,
        "--workers",
        "1",
        variables={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    ) as server:
        assert server.ask("POST", "/v1/recommend", {}).status == 200
        (tmp_path / "deaf").touch()
        os.kill(workers_of(server)[0], signal.SIGKILL)
        until = time.monotonic() + 20
        while (tmp_path / "deaf").read_text() != "begun":
            assert time.monotonic() < until
            time.sleep(0.05)
        began = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - began < 10  # it was killed at once
