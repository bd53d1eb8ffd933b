"""Export of a million item rows of a Parquet file through the item tower: speed beside the tower alone, and memory.

    OMP_NUM_THREADS=1 python tests/benchmarks/export.py [--rows 1000000]
    OMP_NUM_THREADS=1 python tests/benchmarks/export.py --engine ray [--rows 1000000]

The tower alone runs in the same process on a part of the same rows, encoded already, in batches as large as the
export's. Peak memory is that of this process at the end of the export, everything it loaded included.

With `--engine ray`, as many requests of users unknown and known are answered by one process and by Ray with an
actor per core, from start to end of the command; then it is checked that the lists are the same, bit for bit, and
that the users of the lists are those of the requests, once each.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from serve.recommender import Recommender  # noqa: E402
from service.export import export_items  # noqa: E402
from service.request_files import ITEM_ID, read_items  # noqa: E402

N_ITEMS, HISTORY, DIM, N_TIMED = 12_000, 50, 64, 65_536


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    args = parser.parse_args()
    if args.engine == "ray":
        compare_engines(args.rows)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make("bundle", folder / "run", "exclude", N_ITEMS, HISTORY, DIM)
        make("items", folder / "items.parquet", args.rows)
        recommender = Recommender.load(folder / "run" / "bundle")
        rate = time_export(recommender, folder, args.rows)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        alone = time_tower(recommender, folder / "items.parquet")
    width = recommender.bundle.vectors.shape[1]
    print(f"{args.rows} rows x {width}: {rate:,.0f} rows a second, peak {peak:,.0f} MB")
    print(f"the tower alone: {alone:,.0f} rows a second; export / tower {rate / alone:.2f}")


def make(what: str, *arguments: object) -> None:
    """Make bundle or rows in another process, whose memory is not counted."""
    command = [
        sys.executable,
        str(ROOT / "tests" / "benchmarks" / "synthetic.py"),
        what,
        *map(str, arguments),
    ]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def time_export(recommender: Recommender, folder: Path, n_rows: int) -> float:
    """Return rows a second, from opening the file to the last rename."""
    start = time.perf_counter()
    export_items(recommender, folder / "items.parquet", folder / "out", overwrite=False)
    return n_rows / (time.perf_counter() - start)


def compare_engines(n_requests: int) -> None:
    """Answer the same requests by both engines."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make("bundle", folder / "run", "exclude", N_ITEMS, HISTORY, DIM)
        requests = folder / "requests.parquet"
        rng = np.random.default_rng(2)
        # the synthetic users are 0 to 399; each other id is a stranger with a device
        devices = rng.choice(np.array(["phone", "web"]), n_requests)
        context = pa.StructArray.from_arrays([pa.array(devices)], ["device"])
        pq.write_table(pa.table({"user_id": np.arange(n_requests), "context": context}), requests)
        for engine, out in (("local", folder / "one.parquet"), ("ray", folder / "parts")):
            command = [sys.executable, "-m", "bascule", "recommend", "--engine", engine]
            command += ["--bundle", str(folder / "run" / "bundle"), "--requests", str(requests)]
            start = time.perf_counter()
            subprocess.run([*command, "--out", str(out)], check=True, cwd=ROOT)
            seconds = time.perf_counter() - start
            print(f"{engine}: {seconds:,.1f} s, {n_requests / seconds:,.0f} lists a second")
        one = pq.read_table(folder / "one.parquet")
        parts = pq.read_table(folder / "parts")
        first = parts.filter(pc.equal(parts["rank"], 1))["user_id"]
        once = len(first) == n_requests == pc.count_distinct(first).as_py()
        print(f"the same rows and bits: {parts.equals(one)}; each user once: {once}")


def time_tower(recommender: Recommender, path: Path) -> float:
    """Return rows a second of the session on the arrays that the export makes of the first rows."""
    rows = [row for _, row in islice(read_items(path, recommender.bundle.schema), N_TIMED)]
    features = [{name: value for name, value in row.items() if name != ITEM_ID} for row in rows]
    tower = recommender.bundle.item_tower
    with mock.patch.object(tower, "run", wraps=tower.run) as run:
        recommender.encode_items(features)
    feeds = [call.args[0] for call in run.call_args_list]
    start = time.perf_counter()
    for feed in feeds:
        tower._session.run(None, feed)
    return len(rows) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
