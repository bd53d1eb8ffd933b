"""Filters of a request: the `where` language on item columns, allow lists, and at most n items that share a value.

    category in ['snacks', 'dairy'] and price <= 20 and in_stock and not brand = 'x'

A comparison with a missing value is false, `!=` and `not in` too; `not` reverses that. Letters: N items, T requests.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.encode import split_cell, to_numpy, to_text
from serve.errors import SchemaError, name_nearest
from serve.index import REPEAT_RATE, ItemIds, ItemIndex, Pairs, Query
from serve.requests import MAX_SHOWN, Filters, parse_limit, show
from serve.schema import Feature

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Value = str | bool | int | float

WORDS = frozenset({"and", "or", "not", "in", "true", "false", "(", ")", "[", "]", ","})
"""The words of the language, which messages may repeat."""
_MAX_CHARACTERS = 10_000
_MAX_DEPTH = 32  # brackets and nots within each other
_MAX_MASKS = 32  # of expressions, kept between requests
_MAX_SHOWN = 80  # characters of an expression in a reason
_DEPTH = 4  # a search under limits is this many lists deep
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
_SIGNS: dict[type[ast.cmpop], str] = {
    ast.Eq: "=",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
}
_ORDER: dict[str, Callable[[Any, Any], Mask]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EXAMPLE = "\"price <= 20 and not brand in ['x', 'y']\""


@dataclass(frozen=True)
class Where:
    """An expression: its text, and what tells of columns of N items which of them meet it, (N,)."""

    text: str
    meets: Callable[[Columns], Mask] = field(compare=False)


def join_filters(one: Filters, other: Filters | None) -> Filters:
    """Return the filters that admit what both admit."""
    if other is None:
        return one
    limits = dict(one.at_most)
    for column, most in other.at_most:
        limits[column] = min(most, limits.get(column, most))
    where, only = one.where or other.where, other.only if one.only is None else one.only
    if one.where and other.where:
        where = f"({one.where}) and ({other.where})"
    if one.only is not None and other.only is not None:
        others = set(other.only)
        only = tuple(item_id for item_id in one.only if item_id in others)
    return Filters(where, only, tuple(sorted(limits.items())))


@lru_cache(maxsize=256)
def parse_where(text: str) -> Where:
    """Read an expression; Python parses it, but nothing is ever evaluated as code.

    Raises:
        SchemaError: the text is no expression.
    """
    if len(text) > _MAX_CHARACTERS:
        allowed = f"allowed: {_MAX_CHARACTERS}; a long list of items goes in 'only'"
        raise SchemaError(f"where has {len(text)} characters; {allowed}")
    leaves: list[Value] = []
    python = " ".join(_translate(token, leaves) for token in _TOKEN.finditer(text)).strip()
    _check_depth(python)
    try:
        return Where(text, _compile(ast.parse(python, mode="eval").body, leaves))
    except SyntaxError as error:
        n_before = len(re.findall(r"[cv]\d+", python[: error.offset]))
        near = f" near {show(leaves[n_before - 1])}" if n_before else ""
        raise SchemaError(f"where is no expression{near}; expected one such as {_EXAMPLE}") from error


def _translate(token: re.Match[str], leaves: list[Value]) -> str:
    """Write a token in Python: a column as `c0`, a value as `v1`, by its number among the leaves."""
    kind = str(token.lastgroup)
    word, start = token[kind], f"where, character {token.start() + 1}"
    match kind:
        case "keyword" | "space":
            return word.lower().strip()
        case "sign":
            return "==" if word == "=" else word
        case "name" | "quoted":
            leaves.append(word)
            return f"c{len(leaves) - 1}"
        case "flag":
            leaves.append(word.lower() == "true")
        case "text":
            leaves.append(word[1:-1].replace(2 * word[0], word[0]))
        case "number":
            leaves.append(_parse_number(word, start))
        case _ if word in "'\"`":
            raise SchemaError(f"{start}: the quote {word} has no end; a quote inside a text is doubled")
        case _:
            raise SchemaError(f"{start}: {word!r} has no meaning here; allowed: and or not in = != < <= > >= ( ) [ ]")
    return f"v{len(leaves) - 1}"


def _parse_number(word: str, start: str) -> int | float:
    if len(word) > MAX_SHOWN or not math.isfinite(float(word)):
        raise SchemaError(f"{start}: the number is too large or too long; allowed: {MAX_SHOWN} characters")
    return int(word) if word.lstrip("+-").isdigit() else float(word)


def _check_depth(python: str) -> None:
    """Refuse deep nesting before Python parses it."""
    brackets = nots = 0
    for word in python.split():
        brackets += {"(": 1, ")": -1}.get(word, 0)
        nots = nots + 1 if word in ("not", "(") else 0
        if max(brackets, nots) > _MAX_DEPTH:
            raise SchemaError(f"where has more than {_MAX_DEPTH} brackets and nots within each other")


def _compile(node: ast.expr, leaves: Sequence[Value]) -> Callable[[Columns], Mask]:
    """Read comparisons of a column with values, joined by and, or, not; refuse anything else."""
    match node:
        case ast.BoolOp(op=op, values=values):
            join = np.logical_and if isinstance(op, ast.And) else np.logical_or
            parts = [_compile(value, leaves) for value in values]
            return lambda columns: join.reduce([part(columns) for part in parts])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            part = _compile(operand, leaves)
            return lambda columns: ~part(columns)
        case ast.Name(id=name) if name[0] == "c":
            return partial(_test, str(leaves[int(name[1:])]), "is", ())
        case ast.Compare(left=ast.Name(id=name), ops=[op], comparators=[right]) if name[0] == "c":
            column, sign = str(leaves[int(name[1:])]), _SIGNS.get(type(op), "is")
            values = right.elts if isinstance(right, ast.List) else [right]
            numbers = [int(value.id[1:]) for value in values if isinstance(value, ast.Name) and value.id[0] == "v"]
            if len(numbers) < len(values) or isinstance(right, ast.List) != (sign in ("in", "not in")):
                expected = "expected a value, or after 'in' a list in [ ]; texts stand in quotes"
                raise SchemaError(f"where: {show(column)} is compared with something else; {expected}")
            return partial(_test, column, sign, [leaves[number] for number in numbers])
    raise SchemaError(f"where: expected a column, which comes before its value, as in {_EXAMPLE}")


def _test(column: str, sign: str, values: Sequence[Value], columns: Columns) -> Mask:
    return columns.read(column).test(sign, values)


@dataclass(frozen=True)
class Column:
    """N items by the distinct values of one column: one, several or, where it is missing, none an item."""

    name: str
    kind: str
    """What it holds: `texts`, `numbers`, or `true or false`."""
    values: NDArray[Any]
    """(V,) int64, float32, float64, bool, or object with texts."""
    cell: Ints
    """(N,) which distinct cell an item has."""
    codes: Ints
    """Positions in `values`, of all cells one after another."""
    offsets: Ints
    """Cell c has the codes `offsets[c]:offsets[c + 1]`."""

    def test(self, sign: str, values: Sequence[Value]) -> Mask:
        """Tell which items meet a comparison, or are true where the sign is `is`, (N,).

        Raises:
            SchemaError: a comparison that the kind of the column does not allow.
        """
        if sign == "is":
            if self.kind != "true or false":
                raise SchemaError(f"where: column '{self.name}' holds {self.kind}: compare it with a value")
            return self.have(self.values)
        if sign in _ORDER and self.kind != "numbers":
            allowed = "allowed are = != in, not in"
            raise SchemaError(f"where: column '{self.name}' holds {self.kind}, which have no order; {allowed}")
        wanted = [self._check(value) for value in values]
        if sign in _ORDER:
            with np.errstate(over="ignore"):  # 1e300 beside float32 is infinite, and is larger than all
                return self.have(_ORDER[sign](self.values, wanted[0]))
        found = self.have(self._are_among(wanted))
        return found if sign in ("=", "in") else self.have(np.ones(len(self.values), np.bool_)) & ~found

    def have(self, is_wanted: Mask) -> Mask:
        """Tell which items have a value that is wanted, given as (V,), (N,)."""
        n_cells = len(self.offsets) - 1
        owner = np.repeat(np.arange(n_cells), np.diff(self.offsets))
        found: Mask = np.bincount(owner[is_wanted[self.codes]], minlength=n_cells)[self.cell] > 0
        return found

    def codes_of(self, row: int) -> list[int]:
        """Return the values of an item as positions in `values`."""
        start, stop = self.offsets[self.cell[row]], self.offsets[self.cell[row] + 1]
        codes: list[int] = self.codes[start:stop].tolist()
        return codes

    def _check(self, value: Value) -> Any:
        """Return a value as the column has them; a whole number as an integer, which compares exactly."""
        got = "texts" if isinstance(value, str) else "true or false" if isinstance(value, bool) else "numbers"
        if got != self.kind:
            hint = f": give a text in quotes, '{to_text(value)}'" if self.kind == "texts" else ""
            raise SchemaError(f"where: column '{self.name}' holds {self.kind}; got {show(value)}{hint}")
        if isinstance(value, str):
            return to_text(value)
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def _are_among(self, wanted: Sequence[Any]) -> Mask:
        """Tell which distinct values are among those wanted, (V,)."""
        kind = self.values.dtype
        if kind == np.object_:
            texts = set(wanted)
            return np.fromiter((text in texts for text in self.values), np.bool_, len(self.values))
        if kind == np.int64:
            wanted = [number for number in wanted if isinstance(number, int) and -(2**63) <= number < 2**63]
        with np.errstate(over="ignore"):
            numbers = np.array(wanted, dtype=np.int64 if kind == np.int64 else np.float64).astype(kind)
        return np.isin(self.values, numbers)


class Columns:
    """The columns of N items, each read when a filter first names it; they never change."""

    def __init__(self, items: pa.Table, features: tuple[Feature, ...], of_bundle: Columns | None = None) -> None:
        """Take the table of a catalogue.

        Args:
            items: N rows.
            features: of items; a column that a `multi_categorical` feature reads has many values a cell.
            of_bundle: as they were before items changed: texts stay texts, or true and false, for all callers.
        """
        self._items = items
        self._features = features
        self._of_bundle = of_bundle
        self._separators = {one.column: one.separator for one in features if one.kind == "multi_categorical"}
        self._lock = Lock()
        self._columns: dict[str, Column] = {}
        self._masks: dict[Where, Mask] = {}

    def __len__(self) -> int:
        return int(self._items.num_rows)

    @property
    def names(self) -> list[str]:
        """The columns that a caller may name."""
        return [name for name in self._items.column_names if name != REPEAT_RATE]

    def changed(self, items: pa.Table) -> Columns:
        """Return the columns of the same catalogue after some items changed."""
        return Columns(items, self._features, self._of_bundle or self)

    def read(self, name: str) -> Column:
        """Return a column.

        Raises:
            SchemaError: there is none of this name, or its values cannot be compared.
        """
        if name not in self._columns:
            if name not in self.names:
                got = name[:MAX_SHOWN]
                raise SchemaError(f"filters: unknown column {got!r}; {name_nearest(got, self.names)}")
            self._columns[name] = self._read(name)
        return self._columns[name]

    def admit(self, where: Where) -> Mask:
        """Return which items an expression admits, (N,).

        Raises:
            SchemaError: an unknown column, or a value that is not of its column's kind.
        """
        mask = self._masks.get(where)
        if mask is None:
            mask = where.meets(self)
            mask.setflags(write=False)
            with self._lock:
                self._masks[where] = mask
                if len(self._masks) > _MAX_MASKS:
                    del self._masks[next(iter(self._masks))]
        return mask

    def _read(self, name: str) -> Column:
        column, separator = self._items.column(name), self._separators.get(name)
        kind = column.type
        if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return _read_numbers(name, column)
        cells, cell = read_cells(name, column)
        texts = [texts_of(one) if separator is None else split_cell(one, separator) for one in cells]
        distinct = list(dict.fromkeys(chain.from_iterable(texts)))
        if separator is None and self._is_flag(name, distinct):
            texts = [[text.lower() for text in of_cell] for of_cell in texts]
            values, kind = np.array([False, True]), "true or false"
            code_of = {"false": 0, "true": 1}
        else:
            values, kind = np.array(distinct, dtype=np.object_), "texts"
            code_of = {text: code for code, text in enumerate(distinct)}
        codes = np.array([code_of[text] for text in chain.from_iterable(texts)], dtype=np.int64)
        return Column(name, kind, values, cell, codes, np.cumsum([0, *map(len, texts)]))

    def _is_flag(self, name: str, texts: Sequence[str]) -> bool:
        return holds_flags(texts) if self._of_bundle is None else self._of_bundle.read(name).kind == "true or false"


def holds_flags(texts: Iterable[str]) -> bool:
    """Tell whether texts are all true or false, in any letters, as text files hold booleans; no text is no flag."""
    distinct = {text.lower() for text in texts}
    return bool(distinct) and distinct <= {"true", "false"}


def _read_numbers(name: str, column: pa.ChunkedArray) -> Column:
    is_flag = pa.types.is_boolean(column.type)
    values = to_numpy(column.cast(pa.uint8()) if is_flag else column)
    if is_flag:
        values = values.astype(np.bool_)
    elif values.dtype.kind in "iu":
        values = values.astype(np.int64 if values.dtype != np.uint64 else np.float64)
    is_known = to_numpy(column.is_valid().cast(pa.uint8())).astype(np.bool_) & ~np.isnan(values)
    distinct, index = np.unique(values[is_known], return_inverse=True)
    cell = np.full(len(values), len(distinct), dtype=np.int64)  # the last cell is that of missing values
    cell[is_known] = index
    offsets = np.append(np.arange(len(distinct) + 1), len(distinct))
    return Column(name, "true or false" if is_flag else "numbers", distinct, cell, np.arange(len(distinct)), offsets)


def read_cells(name: str, column: pa.ChunkedArray) -> tuple[list[Any], Ints]:
    """Return distinct cells, and which of them each item has."""
    kind = column.type
    if _is_text(kind):
        encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
        return encoded.dictionary.to_pylist(), to_numpy(pa.chunked_array([encoded.indices])).astype(np.int64)
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type):
        return column.to_pylist(), np.arange(len(column))
    raise SchemaError(f"filters: column '{name}' holds {kind}; allowed are numbers, texts, and true or false")


def texts_of(cell: Any) -> list[str]:
    """Return the distinct values of a cell that nothing separates, as the vocabularies know them."""
    texts = map(to_text, cell if isinstance(cell, list) else [cell])
    return list(dict.fromkeys(text for text in texts if text is not None))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


class Admission:
    """The items of a catalogue that filters admit."""

    def __init__(self, columns: Columns, item_ids: ItemIds, is_removed: Mask | None) -> None:
        """Take the columns and ids of N items, and which of them are never listed, (N,); None if there are none."""
        self.columns = columns
        self._item_ids = item_ids
        self._is_removed = is_removed

    def check(self, filters: Filters | None) -> None:
        """Refuse filters that do not fit the columns.

        Raises:
            SchemaError: an unknown column, or a value that is not of its column's kind.
        """
        if filters is not None:
            self.bar(filters)
            self.limits(filters)

    def bar(self, filters: Filters | None) -> Mask:
        """Return which items may not be listed: by `where` and `only`, or as removed ones, (N,)."""
        barred = np.zeros(len(self.columns), dtype=np.bool_)
        if filters is not None and filters.where is not None:
            barred |= ~self.columns.admit(parse_where(filters.where))
        if filters is not None and filters.only is not None:
            rows = self._item_ids.find(filters.only)
            is_among = np.zeros(len(barred), dtype=np.bool_)
            is_among[rows[rows >= 0]] = True
            barred |= ~is_among
        if self._is_removed is not None:
            barred |= self._is_removed
        return barred

    def limits(self, filters: Filters) -> list[tuple[Column, int]]:
        """Return each column of `at_most`, and how many items may share a value of it."""
        return [(self.columns.read(column), parse_limit(column, most)) for column, most in filters.at_most]


def rank_filtered(
    index: ItemIndex, admission: Admission, filters: Sequence[Filters | None], query: Query, k: int
) -> tuple[NDArray[np.float32], Ints]:
    """Rank T requests, those that share filters together.

    Args:
        index: of the catalogue.
        admission: of the catalogue.
        filters: of each request.
        query: the requests.
        k: length of a list, at most N.
    """
    scores, rows = np.empty((len(query), k), np.float32), np.empty((len(query), k), np.int64)
    for one in dict.fromkeys(filters):
        places = np.array([place for place, other in enumerate(filters) if other == one], dtype=np.int64)
        part = query if len(places) == len(query) else query.take(places)
        limits = [] if one is None else admission.limits(one)
        if one is None or not limits:
            scores[places], rows[places] = index.search(part, k, None if one is None else admission.bar(one))
        else:
            scores[places], rows[places] = _rank_limited(index, part, limits, admission.bar(one), k)
    return scores, rows


def _rank_limited(
    index: ItemIndex, query: Query, limits: Sequence[tuple[Column, int]], barred: Mask, k: int
) -> tuple[NDArray[np.float32], Ints]:
    """Search once for all requests, then on for each whose list is not complete."""
    depth = min(_DEPTH * k, len(barred))
    found = index.search(query, depth, barred)
    scores, rows = np.full((len(query), k), -np.inf, np.float32), np.full((len(query), k), -1, np.int64)
    for place in range(len(query)):
        walk, one = Walk(limits, k), query.take(np.array([place]))
        is_more = walk.go_on(found[0][place], found[1][place])
        while is_more:
            more = index.search(one, depth, walk.bar(barred))
            is_more = walk.go_on(more[0][0], more[1][0])
        scores[place, : len(walk.rows)], rows[place, : len(walk.rows)] = walk.scores, walk.rows
    return scores, rows


class Walk:
    """A walk down the complete ranking of one request that takes an item unless one of its values is full.

    Once a value is full no later item of it is taken, so the rest is searched again without these: each search but the
    last fills a value, and the list is exact. An item without a value is not limited; one with many counts for each.
    """

    def __init__(self, limits: Sequence[tuple[Column, int]], k: int) -> None:
        self.scores: list[float] = []
        self.rows: list[int] = []
        self._limits = [(column, most, Counter[int]()) for column, most in limits]
        self._k = k

    def go_on(self, scores: NDArray[np.float32], rows: Ints) -> bool:
        """Take items of the next ones, best first, of which -1 is none; say whether to search on."""
        for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
            if row < 0:
                return False
            codes = [column.codes_of(row) for column, _, _ in self._limits]
            pairs = list(zip(self._limits, codes, strict=True))
            if any(counts[code] >= most for (_, most, counts), of_item in pairs for code in of_item):
                continue
            for (_, _, counts), of_item in pairs:
                counts.update(of_item)
            self.scores.append(score)
            self.rows.append(row)
            if len(self.rows) == self._k:
                return False
        return len(rows) > 0

    def bar(self, barred: Mask) -> Mask:
        """Return which items are barred, taken, or of a value that is full, (N,)."""
        mask = barred.copy()
        mask[self.rows] = True
        for column, most, counts in self._limits:
            is_full = np.zeros(len(column.values), dtype=np.bool_)
            is_full[[code for code, count in counts.items() if count >= most]] = True
            mask |= column.have(is_full)
        return mask


def explain_short(
    admission: Admission, filters: Sequence[Filters | None], left_out: Mapping[str, Pairs], rows: Ints, k: int
) -> dict[int, str]:
    """Return request -> why its list has fewer than k items.

    Args:
        admission: of the catalogue.
        filters: of T requests.
        left_out: reason -> requests and rows of the items that are not listed.
        rows: (T, k or fewer) their lists, -1 where there is no item.
        k: the length that was asked for.
    """
    lengths = (rows >= 0).sum(axis=1)
    return {
        place: _explain(
            admission,
            filters[place],
            {name: pairs[1][pairs[0] == place] for name, pairs in left_out.items()},
            int(lengths[place]),
        )
        for place in np.flatnonzero(lengths < k).tolist()
    }


def _explain(admission: Admission, filters: Filters | None, left_out: Mapping[str, Ints], length: int) -> str:
    """Count from the catalogue down to the list of one request."""
    barred = admission.bar(filters)
    parts = [_describe_source(filters, int((~barred).sum()), int((~admission.bar(None)).sum()))]
    for name, rows in left_out.items():
        n_left_out = int((~barred[np.unique(rows)]).sum())
        barred[rows] = True
        if n_left_out:
            parts.append(f"{n_left_out} of them {'is' if n_left_out == 1 else 'are'} {name}")
    parts += [f"at most {most} per {column}" for column, most in (filters.at_most if filters else ())]
    heads = {0: "no item is admissible", 1: "only 1 item is admissible"}
    return f"{heads.get(length, f'only {length} items are admissible')}: {', '.join(parts)}"


def _describe_source(filters: Filters | None, n_left: int, n_items: int) -> str:
    names = []
    if filters is not None and filters.where is not None:
        text = " ".join(filters.where.split())
        names.append(f"where '{text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + '...'}'")
    if filters is not None and filters.only is not None:
        names.append("'only'")
    if not names:
        return f"the catalogue has {n_items}"
    return f"{' and '.join(names)} {'leaves' if len(names) == 1 else 'leave'} {n_left} of {n_items}"
