"""The Ray engine makes the lists and vectors of one process, the same bits, whatever dies meanwhile."""

import json
import os
import secrets
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serve.recommender import Recommender
from service.export import fingerprint
from tests.linear_bundle import UNTIL
from tests.served import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SECURED = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
PATIENT = {"RAY_agent_register_timeout_ms": "60000"}  # of a busy machine
ENVIRONMENT = os.environ | SECURED | QUIET | PATIENT | {"PYTHONPATH": str(ROOT)}
ON_RAY = ["--engine", "ray"]
RUN = """
import sys
from service.remote import ray_engine
from bascule.commands import main
ray_engine.ROWS = 256
sys.exit(main(sys.argv[1:]))
"""


def begin(*words, address=""):
    """Start a command that makes many small parts."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, words)],
        env=ENVIRONMENT | {"RAY_ADDRESS": address},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*words, address=""):
    """Return the exit status and the lines of errors of a command."""
    process = begin(*words, address=address)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors.splitlines()


def list_left():
    """Return the processes of Ray that know the token of these tests."""
    left = []
    for path in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{path}/environ", "rb") as file:
                if SECURED["RAY_AUTH_TOKEN"].encode() in file.read():
                    left.append(path)
        except OSError:
            continue
    return left


def wait_until(condition):
    until = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def write_requests(path, n_requests):
    """Write requests of known, unknown and anonymous users, with histories, in uneven row groups."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(n_requests):
        history = [f"i{int(item)}" for item in rng.integers(100, 123, rng.integers(4))]
        rows.append(
            {
                "user_id": f"u{int(rng.integers(5))}" if number % 5 else f"new{number}",
                "history": history if number % 3 == 0 else None,
                "datetime": UNTIL + int(rng.integers(10**6)),
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    return path


@pytest.fixture(scope="module")
def cluster():
    """Start a cluster of two nodes, and see that nothing of it stays."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SECURED | QUIET | PATIENT).items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            started.add_node(num_cpus=1)
            yield started
        finally:
            started.shutdown()
    wait_until(lambda: not list_left())


def test_ray_gives_the_bits_of_one_process_and_goes_on_where_it_stopped(
    cluster, bundle_paths, tmp_path
):
    requests = write_requests(tmp_path / "requests.parquet", 1500)
    asked = ["recommend", "--bundle", bundle_paths["shop"], "--requests", requests, "--k", 4]
    assert run(*asked, "--out", tmp_path / "one.parquet")[0] == 0
    expected = pq.read_table(tmp_path / "one.parquet")
    out = tmp_path / "lists"

    status, errors = run(*asked, *ON_RAY, "--out", out, address=cluster.address)
    assert status == 0, errors
    assert len(errors) <= 2
    assert pq.read_table(out).equals(expected)
    assert json.loads((out / "_SUCCESS").read_text()) == {"shards": 6, "rows": len(expected)}

    # as if it had been killed
    parts = sorted(out.glob("part-*"))
    kept = {path: path.stat().st_ino for path in parts[::2]}
    for path in (*parts[1::2], out / "_SUCCESS"):
        path.unlink()
    status, errors = run(*asked, "--names", *ON_RAY, "--out", out, address=cluster.address)
    assert (status, len(errors)) == (2, 1)
    plan = json.loads((out / "_plan.json").read_text())
    other = {**plan, "profiles": "of before somebody was forgotten"}
    assert plan["profiles"] == fingerprint(Recommender.load(bundle_paths["shop"]).profiles)
    (out / "_plan.json").write_text(json.dumps(other))
    assert run(*asked, *ON_RAY, "--out", out, address=cluster.address)[0] == 2
    (out / "_plan.json").write_text(json.dumps(plan))
    assert run(*asked, *ON_RAY, "--out", out, address=cluster.address)[0] == 0
    assert pq.read_table(out).equals(expected)
    assert {path: path.stat().st_ino for path in kept} == kept


def test_a_bad_row_is_one_line_that_names_it(cluster, bundle_paths, tmp_path):
    requests = tmp_path / "requests.parquet"
    times = ["2017-05-01"] * 600
    times[300] = "never"
    pq.write_table(pa.table({"user_id": ["u1"] * 600, "datetime": times}), requests)
    words = ["export", "--side", "user", "--bundle", bundle_paths["shop"], "--rows", requests]
    status, errors = run(*words, *ON_RAY, "--out", tmp_path / "out", address=cluster.address)
    assert status == 2, errors
    assert "rows after 256" in errors[-1]
    assert "row 45" in errors[-1]
    assert len(errors) <= 2
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_nothing_is_lost_or_twice_when_a_node_is_killed(cluster, bundle_paths, tmp_path):
    requests = write_requests(tmp_path / "requests.parquet", 6000)
    asked = ["recommend", "--bundle", bundle_paths["shop"], "--requests", requests, "--k", 4]
    out = tmp_path / "lists"
    process = begin(*asked, *ON_RAY, "--out", out, address=cluster.address)
    wait_until(lambda: (out / "part-00001.parquet").exists() or process.poll() is not None)
    assert not (out / "_SUCCESS").exists()
    (node,) = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert run(*asked, "--out", tmp_path / "one.parquet")[0] == 0
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "one.parquet"))
