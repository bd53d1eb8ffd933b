"""Lists of 100 items out of many: recall beside an exact search, and time, beside other libraries in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/retrieval.py [--items 10000 100000 1000000] [--site DIR]
    OMP_NUM_THREADS=1 python tests/benchmarks/retrieval.py --bundle runs/big/bundle [--multiply 10000000 --whole]

Without a bundle, vectors are trained on a world with planted tastes. Items belong to categories, a few of which are
large, and fall off in popularity. A user has three home categories, takes from near ones too, and one event in seven
is of what is popular with all. Items with events get the factors of a truncated SVD of the matrix of users and items,
each divided by the root of its popularity, drawn towards the mean of their category the fewer events they have, as
content does; the last column is the popularity. Users who are asked took no part in that: their vectors are weighted
means of the items they took. A bundle brings its own vectors and users; `--multiply` adds items to it: each has the
vector of one that is drawn, with noise of half of the spread of each column, and is less popular.

Every engine is tuned on half of these users to the recall, and measured on the other half, request by request in one
thread. Times are medians of processor time. `--site` is a folder with hnswlib and usearch; they are left out where
they cannot be imported. Then: the whole score, with terms and items that are left out, and filters.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import scipy.sparse as sp

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from serve.index import ItemIndex, Query  # noqa: E402
from serve.nearest import CoarseIndex  # noqa: E402
from serve.recommender import Recommender  # noqa: E402

from pipeline import coarse_index  # noqa: E402

K, TARGET, N_TUNED, N_ASKED, N_TIMED = 100, 0.98, 200, 200, 100
N_TERMS, N_LEFT_OUT, EVENTS, DIM = 1000, 50, 24, 63
PASSING = (0.01, 0.1, 0.5)


class World(NamedTuple):
    vectors: np.ndarray  # (N, W)
    users: np.ndarray  # (U, W)
    category: np.ndarray  # (N,)


def train_world(n_items: int, seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    n_categories = int(2 * n_items**0.5)
    category = rng.zipf(1.3, n_items) % n_categories
    order = np.argsort(category, kind="stable")
    starts = np.searchsorted(category[order], np.arange(n_categories + 1))
    popularity = (10 + rng.permutation(n_items)) ** -0.8
    ends = np.append(0, np.cumsum(popularity[order]))

    def draw(n_users: int) -> sp.csr_matrix:
        homes = rng.integers(n_categories, size=(n_users, 3))
        chosen = homes[np.arange(n_users)[:, None], rng.integers(3, size=(n_users, EVENTS))]
        chosen = (chosen + np.rint(rng.normal(0, 1.5, chosen.shape)).astype(int)) % n_categories
        low, high = ends[starts[chosen]], ends[starts[chosen + 1]]
        of_all = (rng.random(chosen.shape) < 0.15) | (low == high)
        low, high = np.where(of_all, 0, low), np.where(of_all, ends[-1], high)
        places = ends.searchsorted(low + rng.random(low.shape) * (high - low)) - 1
        items = order[places.clip(0, n_items - 1)].ravel()
        owners = np.repeat(np.arange(n_users), EVENTS)
        taken = sp.csr_matrix(
            (np.ones(len(items), np.float32), (owners, items)), (n_users, n_items)
        )
        taken.data[:] = 1
        return taken

    taken, held_out = draw(max(4000, n_items // 8)), draw(N_TUNED + N_ASKED)
    n_events = np.asarray(taken.sum(axis=0)).ravel()
    weight = (1 / np.sqrt(n_events + 1)).astype(np.float32)
    weighed = taken @ sp.diags(weight)
    basis = rng.standard_normal((n_items, DIM + 8)).astype(np.float32)
    for _ in range(3):  # subspace iteration (Halko et al., 2011)
        basis = np.linalg.qr(weighed.T @ np.linalg.qr(weighed @ basis)[0])[0]
    _, _, rotation = np.linalg.svd(weighed @ basis, full_matrices=False)
    factors = basis @ rotation[:DIM].T
    sums = np.zeros((n_categories, DIM))
    np.add.at(sums, category, factors * n_events[:, None])
    means = sums / np.maximum(np.bincount(category, n_events, n_categories), 1)[:, None]
    share = (n_events / (n_events + 8))[:, None]
    factors = share * factors + (1 - share) * means[category]
    factors /= np.sqrt((factors**2).sum(axis=1).mean())
    factors += rng.normal(0, 0.15 / DIM**0.5, factors.shape)
    bias = np.log1p(n_events)
    bias = (bias - bias.mean()) / bias.std()
    vectors = np.column_stack([factors, bias]).astype(np.float32)
    tastes = (held_out @ sp.diags(weight)) @ factors
    tastes *= 8 / np.maximum(np.linalg.norm(tastes, axis=1, keepdims=True), 1e-9)
    users = np.column_stack([tastes, np.full(len(tastes), 0.5)]).astype(np.float32)
    return World(vectors, users, category)


def multiply(vectors: np.ndarray, n_items: int, popularity_dims: int) -> np.ndarray:
    """Return `n_items` vectors, of which these are the first."""
    rng = np.random.default_rng(0)
    spread = vectors.std(axis=0)
    grown = np.empty((n_items, vectors.shape[1]), np.float32)
    grown[: len(vectors)] = vectors
    for start in range(len(vectors), n_items, 100_000):
        part = grown[start : start + 100_000]
        noise = rng.standard_normal(part.shape, np.float32) * spread
        part[:] = vectors[rng.integers(len(vectors), size=len(part))] + noise / 2
        fall = rng.standard_normal((len(part), popularity_dims), np.float32)
        part[:, part.shape[1] - popularity_dims :] -= np.abs(fall) * spread[-1:]
    return grown


def read_world(bundle: Path, n_items: int | None) -> tuple[World, list[Query]]:
    """Return a bundle's vectors and users, and their whole searches."""
    recommender = Recommender.load(bundle)
    ids = np.random.default_rng(0).permutation(recommender.profiles.user_ids)
    requests = [{"user_id": user} for user in ids[: N_TUNED + N_ASKED].tolist()]
    queries = list(recommender.queries(requests, "all"))
    users = np.concatenate([query.users for query in queries])
    vectors = np.array(recommender.bundle.vectors)
    if n_items is not None:
        vectors = multiply(vectors, n_items, recommender.bundle.manifest.facts.popularity_dims)
    category = np.random.default_rng(1).integers(0, 200, len(vectors))
    single = [q.take(np.array([row])) for q in queries for row in range(len(q))]
    return World(vectors, users, category), single


# ---- engines: (n fetched, effort) -> a search of one user


Search = Callable[[np.ndarray], np.ndarray]


def faiss_search(index: Any, set_effort: Callable[[int], None]) -> Callable[[int], Search]:
    def prepare(effort: int) -> Search:
        set_effort(effort)
        return lambda user: index.search(user[None], K)[1][0]

    return prepare


def engines(
    vectors: np.ndarray,
) -> Iterator[tuple[str, Callable[[], Callable[[int], Search]], list[int]]]:
    n, width = vectors.shape
    n_lists = int(2 ** round(np.log2(4 * n**0.5)))
    efforts = [int(K * 1.25**step) for step in range(16)]
    probes = sorted({int(np.ceil(4 * K * n_lists / n * 1.2**step)) for step in range(30)})

    def ours() -> Callable[[int], Search]:
        index = ItemIndex(vectors, None, CoarseIndex.build(vectors, n_lists))
        return faiss_like(index)

    def faiss_like(index: ItemIndex) -> Callable[[int], Search]:
        def prepare(effort: int) -> Search:
            index.coarse.n_probes = effort
            return lambda user: index.search(Query(user[None]), K)[1][0]

        return prepare

    def ivf_flat() -> Callable[[int], Search]:
        index = faiss.index_factory(width, f"IVF{n_lists},Flat", faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = 32
        index.train(vectors)
        index.add(vectors)
        return faiss_search(index, lambda effort: setattr(index, "nprobe", effort))

    def hnsw_flat() -> Callable[[int], Search]:
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 100
        index.add(vectors)
        return faiss_search(index, lambda effort: setattr(index.hnsw, "efSearch", effort))

    def hnswlib() -> Callable[[int], Search]:
        index = importlib.import_module("hnswlib").Index("ip", width)
        index.init_index(n, M=32, ef_construction=100)
        index.add_items(vectors, num_threads=1)

        def prepare(effort: int) -> Search:
            index.set_ef(effort)
            return lambda user: index.knn_query(user, K, num_threads=1)[0][0].astype(np.int64)

        return prepare

    def usearch() -> Callable[[int], Search]:
        module = importlib.import_module("usearch.index")
        index = module.Index(ndim=width, metric="ip", connectivity=32, expansion_add=100)
        index.add(np.arange(n), vectors, threads=1)

        def prepare(effort: int) -> Search:
            index.expansion_search = effort
            return lambda user: index.search(user, K, threads=1).keys.astype(np.int64)

        return prepare

    yield "ours", ours, probes
    yield "IndexIVFFlat", ivf_flat, probes
    yield "IndexHNSWFlat", hnsw_flat, efforts
    yield "hnswlib", hnswlib, efforts
    yield "usearch", usearch, efforts


def find_exact(world: World) -> np.ndarray:
    flat = faiss.IndexFlatIP(world.vectors.shape[1])
    flat.add(world.vectors)
    return flat.search(world.users, K)[1]


def recall_of(search: Search, users: np.ndarray, exact: np.ndarray) -> float:
    return float(
        np.mean(
            [np.isin(best, search(user)).mean() for user, best in zip(users, exact, strict=True)]
        )
    )


def time_of(calls: list[Callable[[], Any]]) -> float:
    seconds = []
    for call in calls:
        begun = time.thread_time()
        call()
        seconds.append(time.thread_time() - begun)
    return float(np.median(seconds)) * 1e3


def compare(world: World) -> None:
    exact = find_exact(world)
    tuned, asked = world.users[:N_TUNED], world.users[N_TUNED:]
    flat = faiss.IndexFlatIP(world.vectors.shape[1])
    flat.add(world.vectors)
    base = time_of([lambda user=user: flat.search(user[None], K) for user in asked[:30]])
    print(f"  {'IndexFlatIP':14s} recall 1.0000  p50 {base:8.3f} ms")
    for name, build, efforts in engines(world.vectors):
        begun = time.process_time()
        try:
            prepare = build()
        except ImportError:
            print(f"  {name:14s} cannot be imported")
            continue
        seconds = time.process_time() - begun
        for effort in efforts:
            search = prepare(effort)
            if recall_of(search, tuned, exact[:N_TUNED]) >= TARGET + 0.2 * (1 - TARGET):
                break
        recall = recall_of(search, asked, exact[N_TUNED:])
        took = time_of([lambda user=user, search=search: search(user) for user in asked[:N_TIMED]])
        print(
            f"  {name:14s} recall {recall:.4f}  p50 {took:8.3f} ms, x {base / took:5.1f}"
            f"  effort {effort}, built in {seconds:.0f} s of one core",
            flush=True,
        )


# ---- whole scores and filters


def draw_query(world: World, user: np.ndarray, rng: np.random.Generator) -> Query:
    """Add terms to items of the categories that a user likes best, and leave some of them out."""
    n_items = len(world.vectors)
    likely = rng.integers(n_items, size=20 * N_TERMS)
    likely = likely[np.argsort(-world.vectors[likely] @ user)[:N_TERMS]]
    values = rng.exponential(0.3, N_TERMS).astype(np.float32) * rng.choice([1, 1, 1, -1], N_TERMS)
    zeros = np.zeros(N_TERMS, np.int64)
    return Query(user[None], (zeros[:N_LEFT_OUT], likely[:N_LEFT_OUT]), (zeros, likely, values))


def measure_whole(world: World, queries: list[Query], fitted: Any) -> None:
    facts, coarse = fitted
    index, exact = ItemIndex(world.vectors, None, coarse), ItemIndex(world.vectors)
    print(f"  whole score: {facts}")
    rng = np.random.default_rng(3)
    shares: list[tuple[str, np.ndarray | None]] = [("all items", None)]
    for share in PASSING:
        shares.append((f"{share:.0%} pass by chance", rng.random(len(world.vectors)) >= share))
        categories = rng.permutation(world.category.max() + 1)
        sizes = np.bincount(world.category, minlength=len(categories))[categories]
        kept = categories[: 1 + np.searchsorted(np.cumsum(sizes), share * sizes.sum())]
        shares.append((f"{share:.0%} pass, by category", ~np.isin(world.category, kept)))
    for name, barred in shares:
        lists = [
            (exact.search(q, K, barred)[1][0], index.search(q, K, barred)[1][0]) for q in queries
        ]
        recall = np.mean([np.isin(best[best >= 0], rows).mean() for best, rows in lists])
        n_short = sum((rows < 0).sum() - (best < 0).sum() for best, rows in lists)
        slow = time_of([lambda q=q, b=barred: exact.search(q, K, b) for q in queries[:30]])
        quick = time_of([lambda q=q, b=barred: index.search(q, K, b) for q in queries[:N_TIMED]])
        print(
            f"    {name:24s} recall {recall:.4f}, {n_short} items missing;"
            f" exact {slow:.3f} ms, with the index {quick:.3f} ms, x {slow / quick:.1f}",
            flush=True,
        )


class _Users(NamedTuple):
    user_ids: np.ndarray


class _Shop:
    """Stands for a recommender whose users are rows of queries."""

    def __init__(self, world: World, queries: list[Query]) -> None:
        self.bundle: Any = self
        self.vectors = world.vectors
        self.index = ItemIndex(world.vectors)
        self.profiles = np.zeros(0)
        self.profiles = _Users(np.arange(len(queries)))
        self._queries = queries

    def queries(self, requests: list[dict[str, int]], view: str) -> Iterator[Query]:
        chosen = [self._queries[request["user_id"]] for request in requests]
        parts = []
        for part in ("left_out", "added"):
            columns = [getattr(query, part) for query in chosen]
            owners = np.repeat(np.arange(len(chosen)), [len(one[0]) for one in columns])
            rest = [np.concatenate(column) for column in list(zip(*columns, strict=True))[1:]]
            parts.append((owners, *rest))
        yield Query(np.concatenate([query.users for query in chosen]), *parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--site", type=Path, help="folder of packages with hnswlib and usearch")
    parser.add_argument("--bundle", type=Path, help="measure this one, with the profiles beside it")
    parser.add_argument("--multiply", type=int, help="items that the bundle is made to have")
    parser.add_argument("--whole", action="store_true", help="leave out the other engines")
    args = parser.parse_args()
    if args.site:
        sys.path.append(str(args.site))
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(5)
    for n_items in [0] if args.bundle else args.items:
        if args.bundle:
            world, queries = read_world(args.bundle, args.multiply)
        else:
            world = train_world(n_items)
            queries = [draw_query(world, user, rng) for user in world.users]
        print(f"{len(world.vectors):,} items x {world.vectors.shape[1]}, k = {K}", flush=True)
        coarse_index.MIN_ITEMS = 1
        fitted = coarse_index.fit_coarse(_Shop(world, queries), TARGET)  # type: ignore[arg-type]
        if fitted is None:
            print("  whole score: an exact search is as good")
        else:
            measure_whole(world, queries[N_TUNED:], fitted)
        if not args.whole:
            compare(world)


if __name__ == "__main__":
    main()
