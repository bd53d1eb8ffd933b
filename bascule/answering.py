"""The commands that answer from a bundle: recommend, similar, export, verify and sign."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from textwrap import shorten
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.read import read_columns
from serve.arrays import Id, to_arrow
from serve.bundle import MANIFEST, Bundle
from serve.errors import SchemaError, show
from serve.recommendations import Recommendations
from serve.recommender import Recommender, replay
from serve.requests import Filters, Request, join_filters
from service.answers import find_unknown, show_items
from service.command_line import align
from service.export import export_items, export_users, list_users, write_tables
from service.publish import sign
from service.request_files import read_filters, read_requests

_BATCH = 4096  # requests whose answers are in memory at a time
_HELD = "held back"
_MAX_CELL = 40  # characters


def recommend(options: Namespace) -> None:
    """Answer requests into a file, which stays as it was until all answers are in it."""
    if (options.requests is None) is not options.all_users:
        raise SchemaError("give either --requests or --all-users")
    if options.out in (options.requests, options.only):
        raise SchemaError(f"--out {options.out} would replace a file that is read")

    recommender = Recommender.load(
        options.bundle, options.profiles, options.trusted_keys
    )
    requests = _list_requests(recommender, options)
    if options.again is not None:
        requests = (replace(request, again=options.again) for request in requests)
    filter_viewed = None if options.repeats is None else options.repeats == "exclude"
    unknown = Counter[str]()
    known_users = {None, *recommender.profiles.positions}
    unknown_users: dict[Id | None, None] = {}
    reasons: list[str | None] = []  # why lists are short
    to_table: Callable[[Recommendations], pa.Table] = Recommendations.to_table
    if options.names:
        to_table = partial(_to_named_table, recommender)

    def answer() -> Iterator[pa.Table]:
        while batch := list(islice(requests, _BATCH)):
            lists = recommender.recommend(batch, options.k, filter_viewed)
            for request in batch:
                unknown.update(find_unknown(recommender.bundle.schema, request))
                if request.user_id not in known_users:
                    unknown_users[request.user_id] = None
            unknown["history"] += int(lists.unknown_items.sum())
            reasons.extend(lists.reason.tolist())
            unknown[_HELD] += lists.held_back.sum()
            yield to_table(lists)

    empty = to_table(recommender.recommend([], options.k, filter_viewed))
    write_tables(answer(), empty.schema, options.out)
    print(f"{len(reasons)} requests answered: {options.out}")
    for note in _note(unknown, list(unknown_users), reasons):
        print(f"note: {note}", file=sys.stderr)


def _to_named_table(recommender: Recommender, lists: Recommendations) -> pa.Table:
    features = recommender.bundle.schema.item_features
    names = recommender.catalogue.name(lists.item_id.tolist(), features)
    return lists.to_table().append_column("name", to_arrow(np.array(names, np.object_)))


def _list_requests(recommender: Recommender, options: Namespace) -> Iterator[Request]:
    schema = recommender.bundle.schema
    admission = recommender.admission
    requests: Iterator[Request]
    if options.requests is not None:
        requests = read_requests(
            options.requests,
            schema,
            check=lambda request: admission.check(request.filters),
        )
    else:
        requests = list_users(recommender.profiles, "--requests")

    filters = read_filters(
        options.where, options.only, options.at_most, schema.item_id_type
    )
    if filters is None:
        return requests

    admission.check(filters)
    return (
        replace(request, filters=join_filters(filters, request.filters or Filters()))
        for request in requests
    )


def _note(
    unknown: Counter[str], unknown_users: Sequence[Any], reasons: Sequence[str | None]
) -> Iterator[str]:
    """Yield sentences about unknown values and users, short lists and what is held back."""
    n_held_back = unknown.pop(_HELD, 0)
    if unknown_users:
        yield f"unknown users: {len(unknown_users)}, the first {show(unknown_users[0])}"

    counts = [
        f"{name} ({count} times)" for name, count in sorted(unknown.items()) if count
    ]
    if counts:
        names = ", ".join(counts)
        yield f"training has not seen some values and items; they count as missing: {names}"

    short = [reason for reason in reasons if reason is not None]
    if short:
        yield f"{len(short)} of {len(reasons)} lists are short; the first because {short[0]}"
    if n_held_back:
        yield f"held back: {n_held_back}, just taken"


def similar(options: Namespace) -> None:
    """Print an item and the items nearest to it."""
    recommender = Recommender(Bundle.load(options.bundle, trusted=options.trusted_keys))
    ids, cosines = recommender.similar_items(options.item, options.k)
    item_ids = [options.item, *ids.tolist()]
    rows = recommender.catalogue.item_ids.require(item_ids)

    columns = show_items(recommender.bundle.items, rows)
    shown_cosines = ["", *(f"{cosine:.3f}" for cosine in cosines)]

    lines = [["cosine", "item_id", *columns[0]]]
    for cosine, item_id, cells in zip(shown_cosines, item_ids, columns, strict=True):
        lines.append([cosine, *map(_shorten, (item_id, *cells.values()))])
    print("\n".join(align(lines)))


def _shorten(cell: object) -> str:
    text = "" if cell is None else str(cell)
    return shorten(text, _MAX_CELL, placeholder="…")


def export(options: Namespace) -> None:
    """Write the vectors of users or items."""
    columns = read_columns(options.columns)
    if options.rows is None and columns:
        raise SchemaError("columns describe a file of rows: give the file with --rows")

    recommender = Recommender.load(
        options.bundle, options.profiles, options.trusted_keys
    )
    write = export_users if options.side == "user" else export_items
    print(write(recommender, options.rows, options.out, options.overwrite, columns))


def verify(options: Namespace) -> None:
    """Load a bundle, replay its golden requests, and print what was checked."""
    bundle = Bundle.load(options.bundle, trusted=options.trusted_keys)
    n_requests = replay(bundle.golden, Recommender(bundle).recommend)

    sizes = [entry.size for entry in bundle.manifest.files.values()]
    print(f"files: {len(sizes)} with {sum(sizes)} bytes as {MANIFEST} says")
    print(f"space_id: {bundle.manifest.space_id} in towers, index and schema")
    print(f"golden: {n_requests} requests answered as when exported")
    print(f"version: {bundle.manifest.version}")
    if options.trusted_keys is not None:
        print(f"signature: by a key of {options.trusted_keys}")


def sign_bundle(options: Namespace) -> None:
    """Sign a bundle."""
    print(f"signed by the key {sign(options.bundle, options.key)}")
