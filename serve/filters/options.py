"""Filters as options of a command: `--where TEXT --only FILE --at-most COLUMN=N`, which hold for all its requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from serve.errors import SchemaError
from serve.filters.filters import Filters, parse_filters
from serve.item_files import read_item_ids
from serve.recommendations import Recommendations
from serve.requests import Request
from serve.schema import IdType


def read_filters(where: str | None, only: Path | None, at_most: Sequence[str], id_type: IdType) -> Filters | None:
    """Read what the options say; None if none is given.

    Args:
        where: an expression.
        only: a file of items, of which `item_id` is read.
        at_most: `COLUMN=N` each.
        id_type: of the items of the bundle.

    Raises:
        SchemaError: an option that cannot be read.
    """
    ids = None if only is None else read_item_ids(only)
    return parse_filters({"where": where, "only": ids, "at_most": _read_limits(at_most)}, id_type)


def add_filters(requests: Iterable[Request], filters: Filters) -> Iterator[Request]:
    """Give each request filters beside its own, as it is needed."""
    return (replace(request, filters=filters.join(request.filters)) for request in requests)


class ShortLists:
    """The answers that are shorter than was asked for."""

    def __init__(self) -> None:
        self._n_requests = self._n_short = 0
        self._first = ""

    def count(self, answers: Recommendations) -> None:
        """Add some answers."""
        reasons = [reason for reason in answers.reason.tolist() if reason is not None]
        self._n_requests += len(answers)
        self._n_short += len(reasons)
        self._first = self._first or next(iter(reasons), "")

    def notes(self, k: int) -> list[str]:
        """Return a line if there are any, with the reason of the first."""
        if not self._n_short:
            return []
        counts = f"{self._n_short} of {self._n_requests} requests got fewer than {k} items"
        return [f"note: {counts}; the first since {self._first}"]


def _read_limits(options: Sequence[str]) -> dict[str, int]:
    limits: dict[str, int] = {}
    for option in options:
        column, sign, number = option.rpartition("=")
        if not (sign and column and number.strip().isdecimal()):
            raise SchemaError(f"--at-most is '{option[:40]}'; expected COLUMN=N, as in category=2")
        if column in limits:
            raise SchemaError(f"--at-most names '{column[:40]}' twice")
        limits[column] = int(number.strip()[:18])
    return limits
