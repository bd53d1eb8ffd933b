"""The Ray engine makes the lists and vectors of one process, the same bits, whatever dies meanwhile."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serve.profiles import Profiles
from tests.linear_bundle import UNTIL
from tests.served import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # of these clusters alone
}
# parts of 256 rows, so that there are many
SMALL = "import service.remote.ray_engine as engine; engine.ROWS = 256; "
RUN = "import sys; from bascule.commands import main; sys.exit(main(sys.argv[1:]))"


def begin(*words):
    return subprocess.Popen(
        [sys.executable, "-c", SMALL + RUN, *map(str, words)],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*words):
    process = begin(*words)
    printed, errors = process.communicate(timeout=300)
    return process.returncode, printed, errors


def read(path):
    return pq.read_table(path)


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    """Write requests of known, unknown and anonymous users, with histories, in uneven row groups."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(1500):
        user = ["u0", "u1", "u3", "nobody", None][int(rng.integers(5))]
        history = [f"i{int(item)}" for item in rng.integers(100, 123, rng.integers(4))]
        rows.append(
            {
                "user_id": user if number % 5 else f"new{number}",
                "history": history if number % 3 == 0 else None,
                "datetime": UNTIL + int(rng.integers(10**6)),
            }
        )
    path = tmp_path_factory.mktemp("requests") / "requests.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    return path


def test_ray_gives_the_bits_of_one_process_and_goes_on_where_it_stopped(
    bundle_paths, tmp_path, requests
):
    bundle = bundle_paths["shop"]
    asked = ["recommend", "--bundle", bundle, "--requests", requests, "--k", 4]
    assert run(*asked, "--out", tmp_path / "one.parquet")[0] == 0
    out = tmp_path / "lists"

    code, _, errors = run(*asked, "--engine", "ray", "--out", out)
    assert code == 0, errors
    assert len(errors.splitlines()) <= 3
    assert read(out).equals(read(tmp_path / "one.parquet"))
    assert json.loads((out / "_SUCCESS").read_text()) == {"shards": 6, "rows": len(read(out))}

    # as if it had been killed
    parts = sorted(out.glob("part-*"))
    kept = {path: path.stat().st_ino for path in parts[::2]}
    for path in (*parts[1::2], out / "_SUCCESS"):
        path.unlink()
    assert run(*asked, "--k", 5, "--engine", "ray", "--out", out)[0] == 2
    assert run(*asked, "--engine", "ray", "--out", out)[0] == 0
    assert read(out).equals(read(tmp_path / "one.parquet"))
    assert {path: path.stat().st_ino for path in kept} == kept
