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
    tables = [
        [line.split() for line in table.splitlines() if line[:1].isdigit()]
        for table in re.split(r"^request .*$", done.stdout, flags=re.MULTILINE)[1:]
    ]
    assert [len(rows) for rows in tables] == [5, 5, 5, 10, 5]
    household, novel, _, newcomer, launch = tables
    assert household != novel  # with and without what the household has
    items = [row[-2] for row in newcomer]
    assert items[:5] != items[5:]  # without and with a basket
    assert "DRINKS" in {word for row in launch for word in row}
