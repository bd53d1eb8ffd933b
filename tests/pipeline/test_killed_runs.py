"""Trainings and searches that are killed, and go on as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("protocol", "n_kills"),
    [
        ("ordered", 2),
        pytest.param("baskets", 2, marks=pytest.mark.slow),
        pytest.param("search", 3, marks=pytest.mark.slow),
        pytest.param("retrain", 8, marks=pytest.mark.slow),
        pytest.param("ordered", 20, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_in_a_chain_ends_with_the_same_bytes(tmp_path, protocol, n_kills):
    command = [sys.executable, "-m", "tests.pipeline.killed_runs", str(tmp_path / "runs"), protocol, str(n_kills), "7"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["code"] == report["last"] == 0
    assert report["codes"].count(-9) >= n_kills - 1  # one may have come to its end before
    assert report["stopped"] in (143, 0)
    assert report["whole"].keys() == report["killed"].keys()
    expected = {"search": {"best"}, "retrain": {"bundle manifest.json", "curve final", "log"}}
    assert expected.get(protocol, {"weights", "curve select"}) <= report["whole"].keys()
    assert report["killed"] == report["whole"]
