"""The commands that answer from a bundle: recommend, similar, export, verify and sign."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from textwrap import shorten

import pyarrow as pa

from bascule.forms import list_unknown, write_notes
from datamodules.read import read_columns
from serve import rerank
from serve.bundle import MANIFEST, Bundle
from serve.errors import BundleError, SchemaError
from serve.recommendations import Recommendations
from serve.recommender import Recommender, replay
from serve.requests import Filters, Request, join_filters
from serve.rerank import Dials
from serve.schema import MIN_USERS
from service.answers import show_items
from service.command_line import align
from service.export import export_items, export_users, list_users, write_tables
from service.known_users import hide, load_known
from service.publish import sign
from service.remote.ray_engine import run_on_ray
from service.request_files import read_filters, read_requests

_BATCH = 4096  # requests whose answers are in memory at a time
_MAX_CELL = 40  # characters


def recommend(options: Namespace, recommender: Recommender | None = None) -> None:
    """Answer requests into a file, which stays as it was until all answers are in it.

    Args:
        options: of the command.
        recommender: that of the options, if it is loaded.
    """
    if (options.requests is None) is not options.all_users:
        raise SchemaError("give either --requests or --all-users")
    if options.out in (options.requests, options.only):
        raise SchemaError(f"--out {options.out} would replace a file that is read")

    recommender = recommender or _load(options)
    if options.engine == "ray":
        run_on_ray(recommend, options, recommender)
        return

    requests = _list_requests(recommender, options)
    chosen = {"again": options.again, "variants": options.variants}
    told = {name: value for name, value in chosen.items() if value is not None}
    requests = (replace(request, **told) for request in requests)
    unknown: dict[tuple[str, str], None] = {}  # kinds and names, each once
    reasons: list[str | None] = []  # why lists are short
    held_back: list[int] = []  # items of each batch

    def to_table(lists: Recommendations) -> pa.Table:
        table = lists.to_table()
        if not options.names:
            return table
        names = recommender.name(lists.item_id.tolist())
        return table.append_column("name", pa.array(names, pa.string()))

    def answer() -> Iterator[pa.Table]:
        while batch := list(islice(requests, _BATCH)):
            lists = rerank.recommend(
                recommender, batch, options.k, options.repeats, Dials()
            )
            unknown.update(dict.fromkeys(list_unknown(recommender, batch)))
            reasons.extend(lists.reason.tolist())
            held_back.append(int(lists.held_back.sum()))
            yield to_table(lists)

    empty = to_table(recommender.recommend([], options.k))
    write_tables(answer(), empty.schema, options.out)
    print(f"{len(reasons)} requests answered: {options.out}")
    for note in write_notes(unknown, reasons, sum(held_back)):
        print(f"note: {note}", file=sys.stderr)


def _load(options: Namespace) -> Recommender:
    return load_known(options.bundle, options.profiles, options.trusted_keys)


def _list_requests(recommender: Recommender, options: Namespace) -> Iterator[Request]:
    schema = recommender.bundle.schema
    admission = recommender.admission
    requests: Iterator[Request]
    if options.requests is not None:
        checked = read_requests(
            options.requests,
            schema,
            check=lambda request: admission.check(request.filters),
        )
        requests = hide(checked, options.profiles or options.bundle)
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


def export(options: Namespace, recommender: Recommender | None = None) -> None:
    """Write the vectors of users or items, with the recommender of the options if it is loaded."""
    columns = read_columns(options.columns)
    if options.rows is None and columns:
        raise SchemaError("columns describe a file of rows: give the file with --rows")

    recommender = recommender or _load(options)
    if options.engine == "ray":
        run_on_ray(export, options, recommender)
        return

    write = export_users if options.side == "user" else export_items
    print(write(recommender, options.rows, options.out, options.overwrite, columns))


def verify(options: Namespace) -> None:
    """Load a bundle, replay its golden requests, and print what was checked."""
    bundle = Bundle.load(options.bundle, trusted=options.trusted_keys)
    n_requests = replay(bundle.golden, Recommender(bundle).recommend)

    segments = bundle.segments.segments if bundle.segments else ()
    fewest = min((segment.size for segment in segments), default=MIN_USERS)
    if fewest < MIN_USERS or b'"user_id"' in bundle.golden:
        raise BundleError("the bundle tells of few people, or names one; train again")

    sizes = [entry.size for entry in bundle.manifest.files.values()]
    print(f"files: {len(sizes)} with {sum(sizes)} bytes as {MANIFEST} says")
    print(f"space_id: {bundle.manifest.space_id} in towers, index and schema")
    print(f"golden: {n_requests} requests answered as when exported")
    smallest = f"{fewest} or more in a segment" if segments else "no segments"
    print(f"people: {smallest}, and none in a request")
    print(f"version: {bundle.manifest.version}")
    if options.trusted_keys is not None:
        print(f"signature: by a key of {options.trusted_keys}")


def sign_bundle(options: Namespace) -> None:
    """Sign a bundle."""
    print(f"signed by the key {sign(options.bundle, options.key)}")
