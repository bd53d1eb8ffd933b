"""Trainings that are killed, and go on as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(program, *words):
    """Return the report of a program that kills."""
    command = [sys.executable, "-m", f"tests.pipeline.{program}", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("protocol", "n_kills"),
    [
        ("ordered", 2),
        pytest.param("baskets", 2, marks=pytest.mark.slow),
        pytest.param("retrain", 8, marks=pytest.mark.slow),
        pytest.param("ordered", 20, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_in_a_chain_ends_with_the_same_bytes(tmp_path, protocol, n_kills):
    report = run("killed_runs", tmp_path / "runs", protocol, n_kills, 7)
    assert report["code"] == report["last"] == 0
    assert report["codes"].count(-9) >= n_kills - 1  # one may have come to its end before
    assert report["stopped"] in (143, 0)
    assert report["whole"].keys() == report["killed"].keys()
    expected = {
        "search": {"best"},
        "retrain": {"bundle manifest.json", "curve final", "log"},
    }
    assert expected.get(protocol, {"weights", "curve select"}) <= report["whole"].keys()
    assert report["killed"] == report["whole"]


@pytest.mark.slow
def test_a_version_takes_over_once_wherever_the_command_was_killed(tmp_path):
    report = run("killed_gate", tmp_path)
    whole, (*kills, last) = report["whole"], report["killed"].values()
    old, new = whole["history"][1], whole["loaded"]
    assert (report["code"], whole["steps"]) == (0, ["judged", "published", "activated"])
    assert [kill["code"] for kill in kills] == [-9] * len(kills)
    for kill in kills:
        assert (kill["loaded"], kill["reason"]) == (kill["history"][0], None)
        assert kill["history"] in ([old], [new, old])
        assert kill["log"] == whole["log"]
    assert last["steps"].count("activated") == 1
    assert [
        step for place, step in enumerate(last["steps"]) if step not in last["steps"][:place]
    ] == whole["steps"]
    assert {**last, "steps": whole["steps"]} == {"code": 0, **whole}
