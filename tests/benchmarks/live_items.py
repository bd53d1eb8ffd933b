"""How long an item takes from the call that puts it to the first answer that lists it, and what that call holds up.

    OMP_NUM_THREADS=1 python tests/benchmarks/live_items.py [--items 100000] [--puts 200] [--kept FOLDER]

The trained bundle of `latency.py` with repeats, its items repeated under other ids until there are enough. A new item
counts as listed when a user who owns nothing else is recommended items and it ranks among her own. Wall clock, with
the wait for the disk.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from serve.bundle import Bundle  # noqa: E402
from serve.columns import to_arrow
from serve.index import ItemIndex  # noqa: E402
from serve.live_items import LiveItems
from serve.profiles import Profiles  # noqa: E402
from serve.recommender import Recommender  # noqa: E402
from tests.benchmarks.latency import make_bundle  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--puts", type=int, default=200)
    parser.add_argument(
        "--kept", type=Path, help="folder to keep the bundle in, and to find it in again, as of latency.py"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recommender = grow(make_bundle(args.kept or Path(folder), "allow"), args.items)
        with closing(LiveItems(Path(folder) / "items.db", recommender)) as live:
            for name, seconds in measure(live, args.puts).items():
                shown = f"median {np.median(seconds) * 1e3:7.1f} ms, worst {np.max(seconds) * 1e3:7.1f} ms"
                print(f"{name:34s} {shown}")


def grow(path: Path, n_items: int) -> Recommender:
    """Load a bundle and repeat its items under other ids, each a little elsewhere."""
    bundle = Bundle.load(path)
    sources = np.arange(n_items) % len(bundle.vectors)
    vectors = bundle.vectors[sources]
    vectors += 0.01 * np.random.default_rng(0).standard_normal(vectors.shape, dtype=np.float32)
    items = bundle.items.take(to_arrow(sources))
    ids = to_arrow(np.arange(n_items) + int(bundle.items.column("item_id")[0].as_py()))
    items = items.set_column(0, "item_id", ids)
    grown = replace(bundle, vectors=vectors, items=items, index=ItemIndex.build(vectors))
    return Recommender(grown, Profiles.load(path.parent / "profiles"))


def measure(live: LiveItems, n_puts: int) -> dict[str, list[float]]:
    """Put, change and remove items one by one; return the seconds of each."""
    seconds: dict[str, list[float]] = {"put a new item, until it is listed": [], "change an item of the bundle": []}
    seconds |= {"change an item that was put": [], "remove an item": [], "put 1,000 items at once": []}
    first = int(live.recommender.catalogue.item_ids.ids.max()) + 1
    bundled = live.recommender.catalogue.item_ids.ids[:n_puts].tolist()
    for number in range(n_puts):
        new, item = first + number, {"category": f"c{number % 40}", "tags": "t1|t2", "price": 1.5 + number}
        steps = (
            lambda new=new, item=item: put_until_listed(live, new, item),
            lambda number=number: live.put(bundled[number], {"price": 2.5, "in_stock": False}),
            lambda new=new: live.put(new, {"price": 3.5}),
            lambda number=number: live.remove(bundled[number]),
        )
        for times, step in zip(seconds.values(), steps, strict=False):
            times.append(take_time(step))
    many = {10 * first + number: {"category": "c1", "price": float(number)} for number in range(1000)}
    seconds["put 1,000 items at once"].append(take_time(lambda: live.put_many(many)))
    return seconds


def put_until_listed(live: LiveItems, item_id: int, item: dict[str, object]) -> None:
    live.put(item_id, item)
    request, recommender = {"history": [{"item_id": item_id}]}, live.recommender
    recommender.recommend([request], 10)
    if item_id not in recommender.rank_owned([request], 1).item_id:
        raise RuntimeError(f"item {item_id} is not listed")


def take_time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
