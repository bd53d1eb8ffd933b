"""Filters of a request: the `where` language, allow lists, and at most n items that share a value.

    category in ['snacks', 'dairy'] and price <= 20 and in_stock and not brand = 'x'

    condition = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation = "not" negation | "(" condition ")" | comparison
    comparison = column [ sign value | [ "not" ] "in" "[" values "]" ]

A comparison with a missing value is false, that of `!=` and `not in` too; `not` reverses that.
Letters: N items, V distinct values of a column, T requests, E events.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from serve.arrays import Flags, Floats, Ints, Objects
from serve.catalogue import Column, Columns, ItemIds, Value
from serve.errors import SchemaError
from serve.index import ItemIndex, Pairs, Query
from serve.requests import Filters

_MAX_WAITING = 33  # brackets and operators that wait for their right side at once
_MAX_MASKS = 32  # conditions whose items are kept between requests
_DEPTH = 4  # a search under limits is this many lists deep

# ---- the language

# A whole number has at most 40 digits.
_VALUE = r"""(?:'[^']*(?:''[^']*)*'|"[^"]*(?:""[^"]*)*"
    |[+-]?(?:[0-9]{1,40}(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?
    |\b(?:true|false)\b(?!\.))"""
_FLAGS = re.VERBOSE | re.IGNORECASE
_VALUES = re.compile(_VALUE, _FLAGS)
_TOKENS = re.compile(
    rf"""(?P<operator>\b(?:and|or|not)\b(?!\.)|[()])
      | (?P<column>(?!(?:in|true|false)\b(?!\.))[^\W\d][\w.]*|`[^`]+`)
        (?: \s*(?P<sign><=|>=|!=|==?|<|>)\s*(?P<value>{_VALUE})
          | \s*\b(?P<not>not\s+)?in\s*
            \[\s*(?P<list>(?:{_VALUE}\s*(?:,\s*{_VALUE}\s*)*,?)?)\s*\] )?
      | (?P<other>\S)""",
    _FLAGS,
)
_RANKS = {"(": 0, ")": 1, "or": 2, "and": 3, "not": 4}  # what binds more is higher


def parse_where(text: str) -> list[str | re.Match[str]]:
    """Read a condition on the columns of items by the shunting-yard algorithm (Dijkstra, 1961).

    Returns:
        Comparisons, and `and`, `or` and `not` behind what they join or reverse.

    Raises:
        SchemaError: if the text is no condition; the message names the character.
    """
    steps: list[str | re.Match[str]] = []
    waiting: list[str] = []
    is_open = True  # a comparison must come before the next `and`, `or` or bracket
    text = f"({text})"

    for token in _TOKENS.finditer(text):
        operator = (token["operator"] or "").lower()
        is_behind_end = token.start() > 0 and not waiting
        if token["other"] or is_behind_end or (operator in ("", "not", "(")) != is_open:
            raise _make_error(token.start())
        if not operator:
            steps.append(token)
        elif operator not in ("not", "("):
            while _RANKS[waiting[-1]] >= _RANKS[operator]:
                steps.append(waiting.pop())

        if operator == ")":
            waiting.pop()
        elif operator:
            waiting.append(operator)

        is_open = operator not in ("", ")")
        if len(waiting) > _MAX_WAITING:
            raise SchemaError("where has more than 32 brackets and nots in each other")

    if waiting:
        raise _make_error(len(text) - 1)
    return steps


def _make_error(character: int) -> SchemaError:
    return SchemaError(
        f"where, character {character}: expected comparisons of columns with values, joined by "
        "and, or, not and brackets; texts stand in quotes: price <= 20 and brand = 'x'"
    )


def _compare(columns: Columns, comparison: re.Match[str]) -> Flags:
    column = columns.read(comparison["column"].strip("`"))
    if comparison["sign"]:
        return column.compare(comparison["sign"], [_read_value(comparison["value"])])
    if comparison["list"] is None:
        return column.are_true()
    values = [_read_value(text) for text in _VALUES.findall(comparison["list"])]
    return column.compare("!=" if comparison["not"] else "=", values)


def _read_value(text: str) -> Value:
    quote = text[0]
    if quote in "'\"":
        return text[1:-1].replace(2 * quote, quote)
    if text.isalpha():
        return text.lower() == "true"
    return int(text) if text.lstrip("+-").isdigit() else float(text)


# ---- lists under filters


def admit(columns: Columns, where: str) -> Flags:
    """Return which items meet a condition, (N,)."""
    masks = columns.masks
    if where not in masks:
        if len(masks) >= _MAX_MASKS:
            masks.clear()
        operands: list[Flags] = []
        for step in parse_where(where):
            if isinstance(step, re.Match):
                operands.append(_compare(columns, step))
            elif step == "not":
                operands[-1] = ~operands[-1]
            else:
                join = np.logical_and if step == "and" else np.logical_or
                operands[-2:] = [join(*operands[-2:])]
        masks[where] = operands[0]

    return masks[where]


@dataclass(frozen=True)
class Admission:
    """The items of a catalogue that filters admit.

    Attributes:
        columns: the columns of N items.
        item_ids: their ids.
        is_removed: (N,) the items that are never listed; None if there are none.
    """

    columns: Columns
    item_ids: ItemIds
    is_removed: Flags | None

    def check(self, filters: Filters | None) -> None:
        """Refuse filters that do not fit the columns by a `SchemaError`."""
        if filters is not None:
            self.bar(filters)
            self.limits(filters)

    def bar(self, filters: Filters | None) -> Flags:
        """Return which items may not be listed, (N,): by `where` and `only`, or as removed ones."""
        filters = filters or Filters()
        barred = np.zeros(len(self.columns), dtype=np.bool_)
        if filters.where is not None:
            barred |= ~admit(self.columns, filters.where)
        if filters.only is not None:
            rows = self.item_ids.find(filters.only)
            is_other = np.ones_like(barred)
            is_other[rows[rows >= 0]] = False
            barred |= is_other

        if self.is_removed is not None:
            barred |= self.is_removed
        return barred

    def limits(self, filters: Filters | None) -> list[tuple[Column, int]]:
        """Return each column of `at_most`, and how many items may share a value of it."""
        at_most = (filters or Filters()).at_most
        return [(self.columns.read(column), most) for column, most in at_most]


def rank_filtered(
    index: ItemIndex,
    admission: Admission,
    filters: Sequence[Filters | None],
    query: Query,
    k: int,
) -> tuple[Floats, Ints]:
    """Rank the items that filters admit, for requests that share filters together.

    Args:
        index: the items of the catalogue.
        admission: the columns that filters name.
        filters: those of each of T requests.
        query: the T requests.
        k: length of the lists, at most that of the catalogue.

    Returns:
        Scores and item rows, (T, k) each; -inf and -1 fill the end of short lists.
    """
    scores = np.full((len(query), k), -np.inf, np.float32)
    rows = np.full((len(query), k), -1, np.int64)
    for shared in dict.fromkeys(filters):
        requests = np.flatnonzero([other == shared for other in filters])
        barred = admission.bar(shared)
        limits = admission.limits(shared)
        if not limits:
            lists = index.search(query.take(requests), k, barred)
            scores[requests], rows[requests] = lists
            continue

        for request in requests:
            part = query.take(np.array([request]))
            items = _walk(index, part, limits, barred.copy(), _DEPTH * k)
            for position, item in enumerate(islice(items, k)):
                scores[request, position], rows[request, position] = item

    return scores, rows


def _walk(
    index: ItemIndex,
    query: Query,
    limits: Sequence[tuple[Column, int]],
    barred: Flags,
    depth: int,
) -> Iterator[tuple[float, int]]:
    """Walk down the ranking of one request: scores and rows, but none with a value that is full.

    Once a value is full, all items with it are barred. Each search takes an item unless none is
    left, and the list is exact. An item without a value is not limited; one with several counts
    for each.
    """
    n_by_value = [np.zeros(len(column.values), np.int64) for column, _ in limits]
    while not barred.all():
        scores, rows = index.search(query, depth, barred)
        for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True):
            if row < 0:
                return
            if barred[row]:
                continue

            yield score, row
            barred[row] = True
            for (column, most), n in zip(limits, n_by_value, strict=True):
                codes = column.codes_of(row)
                n[codes] += 1
                if (n[codes] >= most).any():
                    barred |= column.have(n >= most)


def explain_short(
    admission: Admission,
    filters: Sequence[Filters | None],
    left_out: Mapping[str, Pairs],
    rows: Ints,
    k: int,
) -> Objects:
    """Say why lists have fewer than k items.

    Args:
        admission: the columns that filters name.
        filters: those of each of T requests.
        left_out: reason -> requests and rows that are not listed for it.
        rows: (T, at most k) listed item rows, -1 at the end of short lists.
        k: the length that was asked for.

    Returns:
        (T,) reasons, None for full lists.
    """
    reasons = np.full(len(rows), None)
    lengths = (rows >= 0).sum(axis=1)
    for request in np.flatnonzero(lengths < k).tolist():
        parts = _count_down(admission, filters[request] or Filters(), left_out, request)
        reasons[request] = f"{lengths[request]} of {k} items: {', '.join(parts)}"

    return reasons


def _count_down(
    admission: Admission, filters: Filters, left_out: Mapping[str, Pairs], request: int
) -> Iterator[str]:
    """Count from the catalogue down to the list of one request."""
    barred = admission.bar(filters)
    n_items = np.count_nonzero(~admission.bar(None))
    n_left = np.count_nonzero(~barred)
    yield f"the filters leave {n_left} of {n_items}"

    for reason, (requests, rows) in left_out.items():
        rows_of_request = np.unique(rows[requests == request])
        n_left_out = np.count_nonzero(~barred[rows_of_request])
        barred[rows_of_request] = True
        if n_left_out:
            yield f"{n_left_out} of them {reason}"

    for column, most in filters.at_most:
        yield f"at most {most} per {column}"
