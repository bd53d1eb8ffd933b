"""The walk-through runs as it stands, from any folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "walkthrough.py"


def test_the_walk_through_runs_to_its_map(tmp_path):
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(NOTEBOOK)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "walkthrough" / "map.svg").stat().st_size > 10_000
    answers = re.findall(r"^\d\. (.*)$", done.stdout, flags=re.MULTILINE)
    assert [len(answer.split(" | ")) for answer in answers] == [5, 5, 5, 5]
    assert answers[0] != answers[1]  # with and without what the household has
    assert answers[2] != answers[3]  # without and with a basket
    assert "SOFT DRINKS" in done.stdout.rsplit("cosine", 1)[1]
