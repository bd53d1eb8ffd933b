"""Whole runs on events on disk: the bundle of a run in memory, after any kill, in less memory."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from datamodules.on_disk import FOLDER
from pipeline.config import parse
from pipeline.run import run
from tests.data.test_on_disk import write_shop
from tests.pipeline.small_runs import QUIET, trace_exports

ROOT = Path(__file__).parents[2]
NAMED_BY_RUN = ("manifest.json", "MODEL_CARD.md")  # they have the hashes of the checkpoints' data


def hash_files(out):
    paths = [*(out / "bundle").iterdir(), *(out / "profiles").iterdir()]
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.name not in NAMED_BY_RUN
    }


def write_config(folder):
    table = {"path": str(folder / "events-*.csv")}
    content = {
        "data": {
            "interactions": table,
            "users": {"path": str(folder / "users.csv")},
            "features": {"user": {"town": "categorical"}},
            "on_disk": True,
        },
        "model": {"dim": 8, "max_epochs": 2, "n_blocks": 1, "neighbours": 8},
        "evaluation": {"baselines": []},
        "trainer": QUIET,
    }
    path = folder / "shop.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train(path, out, *more):
    """Run in this process, or go on with what another one began; return the metrics."""
    words = [f"--config={path}", f"--out={out}", "--ckpt_path=last", *more]
    config, text = parse(words, "bascule train")
    return run(config, text=text).metrics["test"]


@pytest.fixture(scope="module", autouse=True)
def _traced():
    with pytest.MonkeyPatch.context() as patch:
        trace_exports(patch)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A configuration, and a whole run of it with its metrics."""
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    path = write_config(folder)
    return path, folder / "whole", train(path, folder / "whole")


@pytest.mark.slow
def test_a_run_on_disk_gives_the_bundle_of_one_in_memory(whole, tmp_path):
    path, out, metrics = whole
    assert train(path, tmp_path / "memory", "--data.on_disk=false") == metrics
    assert len(hash_files(out)) >= 10
    assert hash_files(out) == hash_files(tmp_path / "memory")
    assert not (out / FOLDER).exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(whole, tmp_path):
    path, finished, _ = whole
    out = tmp_path / "killed"
    words = [sys.executable, "-m", "bascule", "train", "--config", str(path), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (out / "checkpoints/select/last.ckpt").exists() and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (out / FOLDER).exists()
    assert not (out / "bundle").exists()

    train(path, out)
    assert hash_files(out) == hash_files(finished)
    assert not (out / FOLDER).exists()


READ = """
import json, sys
from pathlib import Path
import datamodules.on_disk as on_disk_module
from datamodules.config import DataConfig, SplitConfig, TableConfig
from pipeline import tables
from pipeline.config import Config
on_disk_module.MEMORY_LIMIT = "100MB"
on_disk_module.MAX_SAMPLE = 100_000
on_disk_module.ROWS = on_disk_module.SORTED_ROWS = 50_000
folder, on_disk = Path(sys.argv[1]), sys.argv[2] == "True"
table = TableConfig(str(folder / "*.parquet"))
data = DataConfig(table, split=SplitConfig("time", at="2024-11-01"), on_disk=on_disk)
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
at_start = peak()
out = folder / sys.argv[2]
out.mkdir()
work = tables.prepare(Config(data=data, out=out), None, out)
counts = work.on_disk.counts["refit"] if on_disk else [len(work.split.refit)]
print(json.dumps({"megabytes": peak() - at_start, "events": int(sum(counts))}))
"""


@pytest.mark.slow
def test_preparation_on_disk_takes_less_memory(tmp_path):
    from tests.benchmarks.beyond_memory import generate

    generate(tmp_path, 2_000_000, 40_000, 10_000)
    read = {}
    for on_disk in ("False", "True"):
        words = [sys.executable, "-c", READ, str(tmp_path), on_disk]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        read[on_disk] = json.loads(done.stdout.splitlines()[-1])
    assert read["True"]["events"] == read["False"]["events"] > 1_800_000
    assert read["True"]["megabytes"] < 0.7 * read["False"]["megabytes"]
