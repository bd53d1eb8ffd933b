"""One request in this process, as a ratio to the tower's session and the filtered search it cannot do without.

    OMP_NUM_THREADS=1 python tests/benchmarks/latency.py [--rounds 9] [--calls 400] [--bundle DIR]

A request of a user with a profile, and one with an inline history of 50 events with ISO times, 12,000 items,
k = 10, dims 64. The two sides alternate call by call; a figure is the median over rounds of the ratio of the two
percentiles of a round. The search of both leaves out the items of the history. Time is CPU time of this thread,
which does all the work: what else the machine does hardly counts. `--bundle` measures one with its own users in place
of the random ones; what items add to their neighbours, where they do, is a part of its own side alone.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from serve.pairs import to_ragged  # noqa: E402
from serve.recommender import Recommender  # noqa: E402
from serve.requests import parse_request  # noqa: E402
from serve.schema import Repeats  # noqa: E402

N_ITEMS, K, HISTORY, DIM = 12_000, 10, 50, 64
MOST_USERS = 400
PERCENTILES = (50, 99)

Call = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=400, help="of each side in a round")
    parser.add_argument("--kept", type=Path, help="folder to keep the bundles in, and to find them in again")
    parser.add_argument("--bundle", type=Path, help="measure this one, with the profiles beside it")
    args = parser.parse_args()
    if args.bundle:
        show(args.bundle.name, Recommender.load(args.bundle), args.rounds, args.calls)
        return
    with tempfile.TemporaryDirectory() as folder:
        for repeats in ("exclude", "allow"):
            recommender = Recommender.load(make_bundle(args.kept or Path(folder), repeats))
            show(f"repeats {repeats:7s}", recommender, args.rounds, args.calls)


def show(title: str, recommender: Recommender, n_rounds: int, n_calls: int) -> None:
    for name, requests in draw_requests(recommender).items():
        print(f"{title} {name:7s} {compare(recommender, requests, n_rounds, n_calls)}")


def make_bundle(folder: Path, repeats: Repeats) -> Path:
    """Train a bundle in another process: torch stays out of the one that is measured."""
    path = folder / repeats
    if not (path / "bundle").exists():
        sizes = [str(size) for size in (N_ITEMS, HISTORY, DIM)]
        command = [
            sys.executable,
            str(ROOT / "tests" / "benchmarks" / "synthetic.py"),
            "bundle",
            str(path),
            repeats,
            *sizes,
        ]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return path / "bundle"


def draw_requests(recommender: Recommender) -> dict[str, list[dict[str, Any]]]:
    """Return requests of known users, and the same as strangers who bring their histories."""
    users = recommender.profiles.user_ids[:MOST_USERS].tolist()
    reads_device = any(feature.column == "device" for feature in recommender.bundle.schema.context_features)
    context = {"context": {"device": "web"}} if reads_device else {}
    return {
        "profile": [{"user_id": user, **context} for user in users],
        "inline": [{"history": write_history(recommender, user), **context} for user in users],
    }


def write_history(recommender: Recommender, user: int) -> list[dict[str, Any]]:
    profile = recommender.profiles.get(user)
    if not recommender.bundle.schema.has_datetime:
        return [{"item_id": item} for item in profile.history.item_id.tolist()[-HISTORY:]]
    pairs = zip(profile.history.item_id.tolist(), profile.history.datetime.tolist(), strict=True)
    return [{"item_id": item, "datetime": write_time(seconds)} for item, seconds in list(pairs)[-HISTORY:]]


def write_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def compare(recommender: Recommender, requests: list[dict[str, Any]], n_rounds: int, n_calls: int) -> str:
    """Measure both sides in rounds and describe them."""
    sides = ([serve_one(recommender, request) for request in requests], [raw_one(recommender, r) for r in requests])
    time_pairs(*sides, len(requests))  # warm
    measured = [np.percentile(time_pairs(*sides, n_calls), PERCENTILES, axis=1) for _ in range(n_rounds)]
    ours, raw = np.median(measured, axis=0).T * 1e6  # microseconds (percentiles,)
    ratios = np.median([percentiles[:, 0] / percentiles[:, 1] for percentiles in measured], axis=0)
    return "  ".join(
        f"p{percentile}: {ours[i]:5.0f} us, raw {raw[i]:5.0f} us, x {ratios[i]:.2f}"
        for i, percentile in enumerate(PERCENTILES)
    )


def time_pairs(ours: list[Call], raw: list[Call], n_calls: int) -> np.ndarray:
    """Return the seconds of alternating calls, (2, calls)."""
    seconds = np.empty((2, n_calls))
    gc.collect()
    for call in range(n_calls):
        for side, calls in enumerate((ours, raw)):
            one = calls[call % len(calls)]
            start = time.thread_time()
            one()
            seconds[side, call] = time.thread_time() - start
    return seconds


def serve_one(recommender: Recommender, request: dict[str, Any]) -> Call:
    return lambda: recommender.recommend([request], k=K)


def raw_one(recommender: Recommender, request: dict[str, Any]) -> Call:
    """Return what runs the session on arrays that are encoded already, then searches."""
    bundle = recommender.bundle
    encoded = recommender._encoder.encode([parse_request(request, bundle.schema)])
    taste = recommender._towers.taste_dim
    arrays = encoded.tower.arrays | {
        "history_vectors": bundle.vectors[:, :taste][encoded.tower.history_rows],
        "owned_vectors": bundle.vectors[encoded.tower.owned_rows],
    }
    session, index = bundle.user_tower._session, bundle.index
    feeds = {entry.name: arrays[entry.name] for entry in session.get_inputs()}
    excluded = to_ragged(encoded.items.owned, 1)

    def run() -> object:
        return index.search(session.run(None, feeds)[0], K, excluded)

    return run


if __name__ == "__main__":
    main()
