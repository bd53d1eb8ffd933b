"""The examples run as they are, in an empty folder."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest

from serve.bundle import Bundle
from tests.served import ROOT

EXAMPLES = ROOT / "examples"
COMPOSE = EXAMPLES / "compose"


def run_example(name, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PORT": port}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], cwd=folder, env=variables, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["from_dataframe.py", "from_shop_csvs.py", "from_rectools_implicit.py"])
def test_tables_of_every_origin_lead_to_recommendations(tmp_path, name):
    printed = run_example(name, tmp_path)
    assert re.search(r"^request  user_id  rank  name +item_id  score$", printed, re.MULTILINE)


@pytest.mark.slow
def test_production_goes_once_around(tmp_path):
    printed = run_example("production.py", tmp_path)
    versions = [Bundle.load(tmp_path / "runs" / name / "bundle").manifest.version for name in ("first", "second")]
    assert versions[0] != versions[1]
    assert all(version in printed for version in versions)
    events = (tmp_path / "events.csv").read_text().splitlines()
    assert len(events) == 1 + 600 + 1  # what was bought while it was served is in the second training


def test_every_example_is_run():
    there = {path.name for path in EXAMPLES.glob("*.py")}
    assert there == {"from_dataframe.py", "from_shop_csvs.py", "from_rectools_implicit.py", "production.py"}
