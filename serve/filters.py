"""Filters of a request: the `where` language, allow lists, and at most n items that share a value.

    category in ['snacks', 'dairy'] and price <= 20 and in_stock and not brand = 'x'

    condition = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation = "not" negation | "(" condition ")" | comparison
    comparison = column [ sign value | [ "not" ] "in" "[" values "]" ]

A comparison with a missing value is false, that of `!=` and `not in` too; `not` reverses that.
Letters: N items, V distinct values of a column, T requests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serve.arrays import Flags, Floats, Ints
from serve.catalogue import ORDER, Column, Columns, ItemIds, Value
from serve.errors import MAX_SHOWN, SchemaError
from serve.index import ItemIndex, Pairs, Query
from serve.requests import Filters

Lists = tuple[Floats, Ints]  # scores and item rows

# A condition tells which of N items meet it, (N,).
Where = Callable[[Columns], Flags]

# Messages may repeat these.
WORDS = frozenset({"and", "or", "not", "in", "true", "false", *"()[],"})

_MAX_DEPTH = 32  # of brackets and nots within each other
_MAX_MASKS = 32  # conditions whose items are kept between requests
_DEPTH = 4  # a search under limits is this many lists deep
_SIGNS = ("=", "==", "!=", *ORDER)
_END = "end"

# ---- the language

_TOKEN = re.compile(
    r"""(?P<keyword>\b(?:and|or|not|in)\b(?!\.))
      | (?P<flag>\b(?:true|false)\b(?!\.))
      | (?P<name>[^\W\d][\w.]*)
      | `(?P<quoted>[^`]+)`
      | (?P<text>'[^']*(?:''[^']*)*'|"[^"]*(?:""[^"]*)*")
      | (?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
      | (?P<sign><=|>=|!=|==|[=<>()\[\],])
      | (?P<space>\s+)
      | (?P<other>.)""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class _Token:
    kind: str  # `column`, `value`, `other`, `end`, or the keyword or sign itself
    content: Value
    start: int  # of its first character in the text


def _read_tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        group = str(match.lastgroup)
        word = match[group]
        kind = "value"
        content: Value = word
        if group in ("keyword", "sign"):
            kind = word.lower()
        elif group in ("name", "quoted"):
            kind = "column"
        elif group == "flag":
            content = word.lower() == "true"
        elif group == "text":
            content = word[1:-1].replace(2 * word[0], word[0])
        elif group == "number" and len(word) <= MAX_SHOWN:
            content = int(word) if word.lstrip("+-").isdigit() else float(word)
        else:
            kind = "other"
        if group != "space":
            yield _Token(kind, content, match.start())
    yield _Token(_END, "", len(text))


def parse_where(text: str) -> Where:
    """Read a condition on the columns of items.

    Raises:
        SchemaError: if the text is no condition; the message names the character.
    """
    parser = _Parser([*_read_tokens(text)])
    where = parser.read_condition()
    parser.expect(_END)
    return where


class _Parser:
    """Reads the tokens of a condition by recursive descent."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._position = 0
        self._depth = 0

    def skip(self, kind: str) -> bool:
        """Move behind the next token if it is of this kind."""
        is_next = self._tokens[self._position].kind == kind
        self._position += is_next
        return is_next

    def expect(self, kind: str) -> Value:
        """Return the content of the next token, which must be of this kind."""
        token = self._tokens[self._position]
        if not self.skip(kind):
            raise SchemaError(
                f'where, character {token.start + 1}: expected {kind}, as in "price <= '
                "20 and not brand in ['x', 'y']\"; texts stand in quotes"
            )
        return token.content

    def read_condition(self) -> Where:
        parts = [self._read_conjunction()]
        while self.skip("or"):
            parts.append(self._read_conjunction())
        return _join(np.logical_or, parts)

    def _read_conjunction(self) -> Where:
        parts = [self._read_negation()]
        while self.skip("and"):
            parts.append(self._read_negation())
        return _join(np.logical_and, parts)

    def _read_negation(self) -> Where:
        if self.skip("not"):
            part = self._read_nested(self._read_negation)
            return lambda columns: ~part(columns)
        if self.skip("("):
            part = self._read_nested(self.read_condition)
            self.expect(")")
            return part
        return self._read_comparison(str(self.expect("column")))

    def _read_nested(self, read: Callable[[], Where]) -> Where:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise SchemaError(
                f"where has more than {_MAX_DEPTH} brackets and nots within each other"
            )
        part = read()
        self._depth -= 1
        return part

    def _read_comparison(self, name: str) -> Where:
        for sign in _SIGNS:
            if self.skip(sign):
                value = self.expect("value")
                return lambda columns: columns.read(name).compare(sign, [value])
        if self.skip("not"):
            self.expect("in")
            excluded = self._read_list()
            return lambda columns: columns.read(name).compare("!=", excluded)
        if self.skip("in"):
            included = self._read_list()
            return lambda columns: columns.read(name).compare("=", included)
        return lambda columns: columns.read(name).are_true()

    def _read_list(self) -> list[Value]:
        """Read values in [ ], which a comma parts and may end."""
        self.expect("[")
        values: list[Value] = []
        while not self.skip("]"):
            values.append(self.expect("value"))
            if not self.skip(","):
                self.expect("]")
                break
        return values


def _join(operation: np.ufunc, parts: Sequence[Where]) -> Where:
    def where(columns: Columns) -> Flags:
        is_met: Flags = operation.reduce([part(columns) for part in parts])
        return is_met

    return where


# ---- lists under filters


def admit(columns: Columns, where: str) -> Flags:
    """Return which items meet a condition, (N,)."""
    masks = columns.masks
    if where not in masks:
        if len(masks) >= _MAX_MASKS:
            masks.clear()
        masks[where] = parse_where(where)(columns)
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
        barred = np.zeros(len(self.columns), dtype=np.bool_)
        if filters is not None and filters.where is not None:
            barred |= ~admit(self.columns, filters.where)
        if filters is not None and filters.only is not None:
            rows = self.item_ids.find(filters.only)
            barred |= ~np.isin(np.arange(len(barred)), rows)
        if self.is_removed is not None:
            barred |= self.is_removed
        return barred

    def limits(self, filters: Filters | None) -> list[tuple[Column, int]]:
        """Return each column of `at_most`, and how many items may share a value of it."""
        limits = []
        for column, most in filters.at_most if filters is not None else ():
            limits.append((self.columns.read(column), most))
        return limits


def rank_filtered(
    index: ItemIndex,
    admission: Admission,
    filters: Sequence[Filters | None],
    query: Query,
    k: int,
) -> Lists:
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
        for request in requests.tolist():
            part = query.take(np.array([request]))
            taken = _walk(index, part, limits, barred.copy(), k)
            for position, (score, row) in enumerate(taken):
                scores[request, position] = score
                rows[request, position] = row
    return scores, rows


def _walk(
    index: ItemIndex,
    query: Query,
    limits: Sequence[tuple[Column, int]],
    barred: Flags,
    k: int,
) -> list[tuple[float, int]]:
    """Walk down the ranking of one request and take k items, but none with a value that is full.

    Once a value is full, all items with it are barred. Each search but the last takes an item, and
    the list is exact. An item without a value is not limited; one with several counts for each.
    """
    taken: list[tuple[float, int]] = []
    n_by_value = [np.zeros(len(column.values), np.int64) for column, _ in limits]
    depth = min(_DEPTH * k, len(barred))
    while len(taken) < k:
        scores, rows = index.search(query, depth, barred)
        for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True):
            if row < 0:
                return taken
            if barred[row] or len(taken) == k:
                continue
            taken.append((score, row))
            barred[row] = True
            for (column, most), n in zip(limits, n_by_value, strict=True):
                codes = column.codes_of(row)
                n[codes] += 1
                if (n[codes] >= most).any():
                    barred |= column.have(n >= most)
    return taken


def explain_short(
    admission: Admission,
    filters: Sequence[Filters | None],
    left_out: Mapping[str, Pairs],
    rows: Ints,
    k: int,
) -> dict[int, str]:
    """Say why lists have fewer than k items.

    Args:
        admission: the columns that filters name.
        filters: those of each of T requests.
        left_out: reason -> requests and rows that are not listed for it.
        rows: (T, at most k) listed item rows, -1 at the end of short lists.
        k: the length that was asked for.

    Returns:
        Request -> reason, for the short lists alone.
    """
    reasons = {}
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
            yield f"{n_left_out} of them are {reason}"
    for column, most in filters.at_most:
        yield f"at most {most} per {column}"
