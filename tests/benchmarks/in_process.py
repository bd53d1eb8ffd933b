"""Requests in this process, as a ratio to FAISS's flat index over the same vectors: one request, and a batch.

    OMP_NUM_THREADS=1 python tests/benchmarks/in_process.py [--items 12500] [--rounds 7] [--bundle DIR]

Both sides alternate; figures are medians of CPU time over rounds. A request includes reading, encoding, the user tower
and the search with what is left out; FAISS only searches.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faiss
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from serve.recommender import Recommender  # noqa: E402

K, HISTORY, DIM, N_USERS, BATCH, CALLS = 10, 50, 64, 256, 256, 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=12_500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bundle", type=Path, help="measure this one, with the profiles beside it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recommender = Recommender.load(args.bundle or make_bundle(Path(folder), args.items))
        vectors = np.array(recommender.bundle.vectors)
        flat = faiss.IndexFlatIP(vectors.shape[1])
        flat.add(vectors)
        users = np.random.default_rng(0).normal(size=(BATCH, vectors.shape[1])).astype(np.float32)
        for name, requests in draw_requests(recommender).items():
            one = compare(
                [
                    lambda request=request: recommender.recommend([request], k=K)
                    for request in requests
                ],
                [lambda user=user: flat.search(user[None], K) for user in users],
                args.rounds,
                CALLS,
            )
            batch = compare(
                [lambda requests=requests: recommender.recommend(requests[:BATCH], k=K)],
                [lambda: flat.search(users, K)],
                args.rounds,
                1,
            )
            print(f"{name:8s} one request {one}; {BATCH} requests {batch}")


def make_bundle(folder: Path, n_items: int) -> Path:
    """Train a bundle in another process: torch stays out of the one that is measured."""
    script = ROOT / "tests" / "benchmarks" / "synthetic.py"
    sizes = [str(size) for size in (n_items, HISTORY, DIM)]
    command = [
        sys.executable,
        str(script),
        "bundle",
        str(folder / "run"),
        "exclude",
        *sizes,
    ]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return folder / "run" / "bundle"


def draw_requests(recommender: Recommender) -> dict[str, list[dict[str, Any]]]:
    """Return requests of known users, and the same as strangers who bring their histories."""
    users = recommender.profiles.user_ids[:N_USERS].tolist()
    return {
        "profile": [{"user_id": user} for user in users],
        "inline": [{"history": write_history(recommender, user)} for user in users],
    }


def write_history(recommender: Recommender, user: int) -> list[dict[str, Any]]:
    history = recommender.profiles.get(user).history
    if not recommender.bundle.schema.has_datetime:
        return [{"item_id": item} for item in history.item_id.tolist()[-HISTORY:]]
    pairs = list(zip(history.item_id.tolist(), history.datetime.tolist(), strict=True))[-HISTORY:]
    return [
        {"item_id": item, "datetime": datetime.fromtimestamp(at, UTC).isoformat()}
        for item, at in pairs
    ]


def compare(
    ours: list[Callable[[], object]],
    theirs: list[Callable[[], object]],
    n_rounds: int,
    n_calls: int,
) -> str:
    """Alternate both sides and describe them; the first round warms up."""
    rounds = np.empty((n_rounds + 1, 2))
    for number in range(n_rounds + 1):
        seconds = np.empty((2, n_calls))
        for call in range(n_calls):
            for side, calls in enumerate((ours, theirs)):
                started = time.process_time()
                calls[call % len(calls)]()
                seconds[side, call] = time.process_time() - started
        rounds[number] = np.median(seconds, axis=1)
    mine, faiss_alone = np.median(rounds[1:], axis=0) * 1e3
    return f"{mine:.2f} ms, FAISS alone {faiss_alone:.2f}, x {np.median(rounds[1:, 0] / rounds[1:, 1]):.2f}"


if __name__ == "__main__":
    main()
