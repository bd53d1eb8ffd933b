"""The commands that answer from a bundle: recommend, similar, export, verify and sign."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from datamodules.read import read_columns
from serve.bundle import MANIFEST, Bundle
from serve.errors import SchemaError
from serve.golden import replay
from serve.recommender import Recommender, golden_answer
from serve.requests import Request
from service.answers import find_unknown, show_items
from service.command_line import align
from service.export import export_items, export_users, write_tables
from service.publish import sign
from service.request_files import add_filters, read_filters, read_requests

_BATCH = 4096  # requests whose answers are in memory at a time
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
    filter_viewed = None if options.repeats is None else options.repeats == "exclude"
    lists = _Lists(recommender, options.k, filter_viewed)
    empty = recommender.recommend([], options.k, filter_viewed).to_table()
    write_tables(lists.answer(requests), empty.schema, options.out)
    print(f"{lists.n_requests} requests answered: {options.out}")
    for note in lists.notes():
        print(f"note: {note}", file=sys.stderr)


def _list_requests(recommender: Recommender, options: Namespace) -> Iterable[Request]:
    schema = recommender.bundle.schema
    admission = recommender.admission
    requests: Iterable[Request]
    if options.requests is not None:
        requests = read_requests(
            options.requests,
            schema,
            check=lambda request: admission.check(request.filters),
        )
    elif len(recommender.profiles):
        user_ids = recommender.profiles.user_ids.tolist()
        requests = (Request(user_id=user_id) for user_id in user_ids)
    else:
        raise SchemaError(
            "there are no profiles: give their folder with --profiles, or requests with --requests"
        )
    filters = read_filters(
        options.where, options.only, options.at_most, schema.item_id_type
    )
    if filters is None:
        return requests
    admission.check(filters)
    return add_filters(requests, filters)


class _Lists:
    """Answers requests in batches, and counts what the user should know of them."""

    def __init__(
        self, recommender: Recommender, k: int, filter_viewed: bool | None
    ) -> None:
        self.n_requests = 0
        self._recommender = recommender
        self._k = k
        self._filter_viewed = filter_viewed
        self._unknown = Counter[str]()
        self._short: list[str] = []

    def answer(self, requests: Iterable[Request]) -> Iterator[pa.Table]:
        """Yield a table of lists for each batch."""
        schema = self._recommender.bundle.schema
        remaining = iter(requests)
        while batch := list(islice(remaining, _BATCH)):
            lists = self._recommender.recommend(batch, self._k, self._filter_viewed)
            for request in batch:
                self._unknown.update(find_unknown(schema, request))
            self._unknown["history"] += int(lists.unknown_items.sum())
            self._short += [text for text in lists.reason.tolist() if text is not None]
            self.n_requests += len(batch)
            yield lists.to_table()

    def notes(self) -> Iterator[str]:
        """Yield sentences about unknown values and short lists."""
        counts = [
            f"{name} ({count} times)"
            for name, count in sorted(self._unknown.items())
            if count
        ]
        if counts:
            names = ", ".join(counts)
            yield f"training has not seen some values and items; they count as missing: {names}"
        if self._short:
            share = f"{len(self._short)} of {self.n_requests} requests"
            yield f"{share} got fewer than {self._k} items; the first because {self._short[0]}"


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
    text = "" if cell is None else " ".join(str(cell).split())
    return text[:_MAX_CELL]


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


def print_verification(options: Namespace) -> None:
    """Check a bundle, and print what was checked."""
    print("\n".join(verify_bundle(options.bundle, options.trusted_keys)))


def verify_bundle(path: Path, trusted: Path | None = None) -> list[str]:
    """Load a bundle, replay its golden requests and return lines to print.

    Raises:
        BundleError: the bundle is damaged, not signed by a trusted key, or answers differently.
    """
    bundle = Bundle.load(path, trusted=trusted)
    n_requests = replay(bundle.golden, golden_answer(Recommender(bundle)))
    sizes = [entry.size for entry in bundle.manifest.files.values()]
    lines = [
        f"files: {len(sizes)} with {sum(sizes)} bytes as {MANIFEST} says",
        f"space_id: {bundle.manifest.space_id} in towers, index and schema",
        f"golden: {n_requests} requests answered as when exported",
        f"version: {bundle.manifest.version}",
    ]
    if trusted is not None:
        lines.append(f"signature: by a key of {trusted}")
    return lines


def sign_bundle(options: Namespace) -> None:
    """Sign a bundle."""
    print(f"signed by the key {sign(options.bundle, options.key)}")
