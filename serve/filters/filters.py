"""The `filters` of a request: `{where?: text, only?: [item_id], at_most?: {column: n}}`, all of which hold at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.errors import SchemaError, name_nearest
from serve.filters.expressions import And, Where
from serve.filters.parsing import parse_where
from serve.request_values import MOST_SHOWN, Id, parse_distinct_ids, show, to_plain
from serve.schema import IdType

FIELDS = ("where", "only", "at_most")


@dataclass(frozen=True)
class Filters:
    """What may be listed. It is checked against the columns of the catalogue when it is applied."""

    where: Where | None = None
    """An expression on item columns."""
    only: tuple[Id, ...] | None = None
    """The items that may be listed; those that the catalogue does not have are passed over."""
    at_most: tuple[tuple[str, int], ...] = ()
    """Column -> how many items of one list may share a value of it, ordered by column."""

    def join(self, other: Filters | None) -> Filters:
        """Return the filters that let in what both let in."""
        if other is None:
            return self
        limits = dict(self.at_most)
        for column, most in other.at_most:
            limits[column] = min(most, limits.get(column, most))
        return Filters(_join_where(self.where, other.where), _join_only(self.only, other.only), _order(limits))


def parse_filters(raw: Any, item_id_type: IdType) -> Filters | None:
    """Check the filters of a request; None if they filter nothing.

    Raises:
        SchemaError: an unknown name, an expression that cannot be read, or a value of the wrong type.
    """
    fields = _check_mapping(raw, "filters", "'where', 'only' and 'at_most'")
    for name in fields:
        if name not in FIELDS:
            raise SchemaError(f"filters: unknown name {show(name)}; {name_nearest(str(name)[:MOST_SHOWN], FIELDS)}")
    where, only, limits = (fields.get(name) for name in FIELDS)
    filters = Filters(
        where=None if where is None else _parse_where(where),
        only=None if only is None else parse_distinct_ids(only, item_id_type, "filters.only"),
        at_most=() if limits is None else _parse_limits(limits),
    )
    return None if filters == Filters() else filters


def _parse_where(raw: Any) -> Where:
    if not isinstance(raw, str):
        raise SchemaError(f"filters.where is {show(raw)}; expected a text, as in \"price <= 20 and brand = 'x'\"")
    return parse_where(raw)


def _parse_limits(raw: Any) -> tuple[tuple[str, int], ...]:
    limits = _check_mapping(raw, "filters.at_most", "a column with a number")
    return _order({column: parse_limit(column, most) for column, most in limits.items() if most is not None})


def parse_limit(column: Any, most: Any) -> int:
    """Return how many items of one list may share a value of a column.

    Raises:
        SchemaError: no name of a column, or no whole number above 0: with 0 no search for what may be listed would end.
    """
    if not isinstance(column, str):
        raise SchemaError(f"filters.at_most names {show(column)}; expected a column")
    most = to_plain(most)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        where = f"filters.at_most of {column[:MOST_SHOWN]!r}"
        raise SchemaError(f"{where} is {show(most)}; expected a whole number, 1 or more")
    return most


def _check_mapping(raw: Any, where: str, expected: str) -> Mapping[Any, Any]:
    if not isinstance(raw, Mapping):
        raise SchemaError(f"{where} is {show(raw)}; expected a mapping: {expected}")
    return raw


def _order(limits: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(limits.items()))


def _join_where(one: Where | None, other: Where | None) -> Where | None:
    if one is None or other is None:
        return one or other
    return Where(f"({one.text}) and ({other.text})", And((one.expression, other.expression)))


def _join_only(one: tuple[Id, ...] | None, other: tuple[Id, ...] | None) -> tuple[Id, ...] | None:
    if one is None or other is None:
        return other if one is None else one
    others = set(other)
    return tuple(item_id for item_id in one if item_id in others)
