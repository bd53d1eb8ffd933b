"""What the commands of `python -m serve` do."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from serve.bundle import Bundle, verify
from serve.errors import SchemaError
from serve.export import export_items, export_users
from serve.filters.options import ShortLists, add_filters, read_filters
from serve.item_facts import REPEAT_RATE
from serve.recommendations import to_arrow, write_tables
from serve.recommender import Recommender, golden_answer
from serve.request_files import read_requests
from serve.requests import Request
from serve.row_layout import AS_OURS, RowLayout
from serve.schema import Repeats
from serve.shards import Side
from serve.text_table import align
from serve.unseen import Unseen

_REQUESTS_AT_ONCE = 4096  # of whose answers a table is made: memory does not grow with the file
_MOST_SHOWN = 40


def recommend_file(
    recommender: Recommender, requests: Iterable[Request], k: int, repeats: Repeats | None, out: Path
) -> tuple[int, list[str]]:
    """Answer requests into a CSV or Parquet file.

    Args:
        recommender: what answers.
        requests: read as they are needed.
        k: length of a list.
        repeats: may owned items be listed; None: as in the data of the bundle.
        out: the file; as it was until all answers are in it.

    Returns:
        How many requests were answered, and notes on what the bundle does not know of them and on short lists.

    Raises:
        SchemaError: a request that cannot be read, or another suffix.
    """
    filter_viewed = None if repeats is None else repeats == "exclude"
    schema = recommender.recommend([], k, filter_viewed).to_table().schema
    n_answered, unseen, short = 0, Unseen(recommender.bundle.schema, recommender.profiles), ShortLists()

    def answer() -> Iterator[pa.Table]:
        nonlocal n_answered
        for some in _in_batches(unseen.watch(requests)):
            answers = recommender.recommend(some, k, filter_viewed)
            n_answered += len(some)
            unseen.count_items(answers.unknown_items)
            short.count(answers)
            yield answers.to_table()

    write_tables(answer(), schema, out)
    return n_answered, [*unseen.notes(), *short.notes(k)]


def check_apart(out: Path, sources: Iterable[Path | None]) -> None:
    """Refuse to write over a file that is read.

    Raises:
        SchemaError: it is one of the sources.
    """
    for source in filter(None, sources):
        if out.exists() and source.exists() and out.samefile(source):
            raise SchemaError(f"--out {out} is a file that is read, and the answers would replace it: give another one")


def file_requests(recommender: Recommender, path: Path) -> Iterator[Request]:
    """Read the requests of a file as they are needed."""
    admission = recommender.admission
    return read_requests(path, recommender.bundle.schema, check=lambda request: admission.check(request.filters))


def user_requests(recommender: Recommender) -> Iterator[Request]:
    """Make a request of each user that has a profile, in the order of the profiles.

    Raises:
        SchemaError: there are none.
    """
    if not len(recommender.profiles):
        raise SchemaError("there are no profiles: give their folder with --profiles, or requests with --requests")
    return (Request(user_id=user_id) for user_id in recommender.profiles.user_ids.tolist())


def filter_requests(
    recommender: Recommender, requests: Iterator[Request], where: str | None, only: Path | None, at_most: Sequence[str]
) -> Iterator[Request]:
    """Give all requests the filters that options say, beside their own.

    Raises:
        SchemaError: an option that cannot be read, or filters that do not fit the columns of the items.
    """
    filters = read_filters(where, only, at_most, recommender.bundle.schema.item_id_type)
    if filters is None:
        return requests
    recommender.admission.check(filters)
    return add_filters(requests, filters)


def export_file(
    bundle: Path, profiles: Path | None, side: Side, rows: Path | None, layout: RowLayout, out: Path, overwrite: bool
) -> list[str]:
    """Export vectors with a progress bar on stderr; see `serve.export`. Returns lines to say."""
    if rows is None and layout != AS_OURS:
        raise SchemaError("a delimiter and columns describe a file of rows: give the file with --rows")
    recommender = Recommender.load(bundle, profiles)
    export = export_users if side == "user" else export_items
    return export(recommender, rows, out, overwrite, sys.stderr, layout)


def describe_similar(path: Path, item_id: str, k: int) -> list[str]:
    """Return the lines of a table: the item, then those nearest to it, with cosine and the item's columns."""
    recommender = Recommender(Bundle.load(path))
    ids, cosines = recommender.similar_items(item_id, k)
    rows = recommender.item_rows([item_id, *ids.tolist()])
    items = recommender.bundle.items
    names = [name for name in items.column_names if name != REPEAT_RATE]
    shown = items.select(names).take(to_arrow(rows)).to_pylist()
    scores = ["", *(f"{cosine:.3f}" for cosine in cosines.tolist())]
    cells = [[score, *map(_show, item.values())] for score, item in zip(scores, shown, strict=True)]
    return align([["cosine", *names], *cells])


def verify_bundle(path: Path) -> list[str]:
    """Check a bundle: hashes, space, golden requests. Returns lines to say."""
    return verify(path, lambda bundle: golden_answer(Recommender(bundle)))


def _in_batches(requests: Iterable[Request]) -> Iterator[list[Request]]:
    remaining = iter(requests)
    while some := list(islice(remaining, _REQUESTS_AT_ONCE)):
        yield some


def _show(value: Any) -> str:
    text = "" if value is None else " ".join(str(value).split())
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + "…"
