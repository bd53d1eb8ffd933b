"""Filters of a request: the `where` language on item columns, allow lists, and at most n items that share a value.

    category in ['snacks', 'dairy'] and price <= 20 and in_stock and not brand = 'x'

A comparison with a missing value is false, `!=` and `not in` too; `not` reverses that. Letters: N items, T requests.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.arrays import Flags, Floats, Ints, to_numpy
from serve.catalogue import REPEAT_RATE, ItemIds
from serve.encode import split_cell, to_text
from serve.errors import SchemaError, name_nearest
from serve.index import ItemIndex, Pairs, Query
from serve.requests import MAX_SHOWN, Filters, parse_limit, show
from serve.schema import SEVERAL, Feature

Value = str | bool | int | float
Lists = tuple[Floats, Ints]  # scores and item rows
Where = Callable[
    ["Columns"], Flags
]  # tells of columns of N items which of them meet an expression, (N,)

WORDS = frozenset(
    {"and", "or", "not", "in", "true", "false", "(", ")", "[", "]", ","}
)  # messages may repeat them
_MAX_CHARACTERS = 10_000
_MAX_DEPTH = 32  # nots and brackets within each other
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
_SIGNS = {
    ast.Eq: "=",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
}
_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_EXAMPLE = "\"price <= 20 and not brand in ['x', 'y']\""


@lru_cache(maxsize=256)
def parse_where(text: str) -> Where:
    """Read an expression; Python parses it, but nothing is ever evaluated as code."""
    if len(text) > _MAX_CHARACTERS:
        raise SchemaError(
            f"where has {len(text)} characters; allowed: {_MAX_CHARACTERS}"
        )
    leaves: list[Value] = []
    python = " ".join(
        _translate(token, leaves) for token in _TOKEN.finditer(text)
    ).strip()
    try:
        return _compile(ast.parse(python, mode="eval").body, leaves, 0)
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise SchemaError(
            f"where is no expression; expected one such as {_EXAMPLE}"
        ) from error


def _translate(token: re.Match[str], leaves: list[Value]) -> str:
    """Write a token in Python: a column as `c0`, a value as `v1`, by its number among the leaves."""
    kind = str(token.lastgroup)
    word = token[kind]
    if kind in ("keyword", "space"):
        return word.lower().strip()
    if kind == "sign":
        return "==" if word == "=" else word
    if kind == "other" or (len(word) > MAX_SHOWN and kind == "number"):
        advice = (
            "a quote needs its end, and is doubled inside a text"
            if word in "'\"`"
            else "it has no meaning here"
        )
        raise SchemaError(
            f"where, character {token.start() + 1}: got {word[:MAX_SHOWN]!r}: {advice}"
        )
    read: dict[str, Callable[[], Value]] = {
        "flag": lambda: word.lower() == "true",
        "text": lambda: word[1:-1].replace(2 * word[0], word[0]),
        "number": lambda: int(word) if word.lstrip("+-").isdigit() else float(word),
    }
    leaves.append(read.get(kind, lambda: word)())
    return f"{'v' if kind in read else 'c'}{len(leaves) - 1}"


def _compile(node: ast.expr, leaves: Sequence[Value], depth: int) -> Where:
    """Read comparisons of a column with values, joined by and, or, not; refuse anything else."""
    if depth > _MAX_DEPTH:
        raise SchemaError(
            f"where has more than {_MAX_DEPTH} brackets and nots within each other"
        )
    match node:
        case ast.BoolOp(op=op, values=values):
            join = np.logical_and if isinstance(op, ast.And) else np.logical_or
            parts = [_compile(value, leaves, depth + 1) for value in values]
            return lambda columns: join.reduce([part(columns) for part in parts])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            part = _compile(operand, leaves, depth + 1)
            return lambda columns: ~part(columns)
        case ast.Name(id=name) if name[0] == "c":
            column = str(leaves[int(name[1:])])
            return lambda columns: columns.read(column).are_true()
        case ast.Compare(left=ast.Name(id=name), ops=[op], comparators=[right]) if (
            name[0] == "c"
        ):
            return _compile_comparison(str(leaves[int(name[1:])]), op, right, leaves)
    raise SchemaError(
        f"where: expected a column, which comes before its value, as in {_EXAMPLE}"
    )


def _compile_comparison(
    column: str, op: ast.cmpop, right: ast.expr, leaves: Sequence[Value]
) -> Where:
    nodes = right.elts if isinstance(right, ast.List) else [right]
    values = [
        leaves[int(node.id[1:])]
        for node in nodes
        if isinstance(node, ast.Name) and node.id[0] == "v"
    ]
    sign = "not in" if isinstance(op, ast.NotIn) else _SIGNS.get(type(op), "is")
    if (
        len(values) < len(nodes)
        or isinstance(right, ast.List) != (sign in ("in", "not in"))
        or sign == "is"
    ):
        expected = (
            "expected a value, or after 'in' a list in [ ]; texts stand in quotes"
        )
        raise SchemaError(
            f"where: {show(column)} is compared with something else; {expected}"
        )
    return lambda columns: columns.read(column).compare(sign, values)


@dataclass(frozen=True)
class Column:
    """N items by the distinct values of one column: one, several or, where it is missing, none an item."""

    name: str
    kind: str  # what it holds: `texts`, `numbers`, or `true or false`
    values: NDArray[Any]  # (V,) int64, float32, float64, bool, or object with texts
    cell: Ints  # (N,) which distinct cell an item has
    codes: Ints  # positions in `values`, of all cells one after another
    offsets: Ints  # cell c has the codes `offsets[c]:offsets[c + 1]`

    def are_true(self) -> Flags:
        """Tell which items are true, (N,)."""
        if self.kind != "true or false":
            raise SchemaError(
                f"where: column '{self.name}' holds {self.kind}: compare it with a value"
            )
        return self.have(self.values)

    def compare(self, sign: str, values: Sequence[Value]) -> Flags:
        """Tell which items meet a comparison, (N,)."""
        wanted = [self._check(value) for value in values]
        if sign in _ORDER:
            if self.kind != "numbers":
                raise SchemaError(
                    f"where: column '{self.name}' holds {self.kind}, which have no order; use = or in"
                )
            with np.errstate(
                over="ignore"
            ):  # 1e300 beside float32 is infinite, and is larger than all
                return self.have(_ORDER[sign](self.values, wanted[0]))
        found = self.have(self._are_among(wanted))
        return (
            found
            if sign in ("=", "in")
            else self.have(np.ones(len(self.values), np.bool_)) & ~found
        )

    def have(self, is_wanted: Flags) -> Flags:
        """Tell which items have a value that is wanted, given as (V,), (N,)."""
        is_found: Flags = (
            np.bincount(
                self._owner[is_wanted[self.codes]], minlength=len(self.offsets) - 1
            )
            > 0
        )
        return is_found[self.cell]

    @cached_property
    def _owner(self) -> Ints:
        return np.repeat(
            np.arange(len(self.offsets) - 1), np.diff(self.offsets)
        )  # the cell of each code

    def codes_of(self, row: int) -> list[int]:
        """Return the values of an item as positions in `values`."""
        start = self.offsets[self.cell[row]]
        stop = self.offsets[self.cell[row] + 1]
        return list(self.codes[start:stop].tolist())

    def _check(self, value: Value) -> Any:
        """Return a value as the column has them; a whole number as an integer, which compares exactly."""
        got = (
            "texts"
            if isinstance(value, str)
            else "true or false"
            if isinstance(value, bool)
            else "numbers"
        )
        if got != self.kind:
            hint = (
                f": give a text in quotes, '{to_text(value)}'"
                if self.kind == "texts"
                else ""
            )
            raise SchemaError(
                f"where: column '{self.name}' holds {self.kind}; got {show(value)}{hint}"
            )
        if isinstance(value, str):
            return to_text(value)
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def _are_among(self, wanted: Sequence[Any]) -> Flags:
        """Tell which distinct values are among those wanted, (V,)."""
        kind = self.values.dtype
        if kind == np.object_:
            return np.array(
                [*map(set(wanted).__contains__, self.values)], dtype=np.bool_
            )
        if kind == np.int64:
            wanted = [
                number
                for number in wanted
                if isinstance(number, int) and -(2**63) <= number < 2**63
            ]
        with np.errstate(over="ignore"):
            numbers = np.array(
                wanted, dtype=np.int64 if kind == np.int64 else np.float64
            ).astype(kind)
        return np.isin(self.values, numbers)


class Columns:
    """The columns of N items, each read when a filter first names it; they never change."""

    def __init__(
        self,
        items: pa.Table,
        features: tuple[Feature, ...],
        of_bundle: Columns | None = None,
    ) -> None:
        """Take N items; `of_bundle`: before some changed, since texts stay texts, or flags, for all callers."""
        self._items = items
        self._features = features
        self._of_bundle = of_bundle
        self._several = {one.column: one for one in features if one.kind in SEVERAL}
        self._columns: dict[str, Column] = {}
        self._masks: dict[str, Flags] = {}

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
        """Return a column."""
        if name not in self._columns:
            if name not in self.names:
                got = name[:MAX_SHOWN]
                raise SchemaError(
                    f"filters: unknown column {got!r}; {name_nearest(got, self.names)}"
                )
            kind = self._items.column(name).type
            is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            self._columns[name] = (
                self._read_texts(name)
                if is_text
                else _read_numbers(name, self._items.column(name))
            )
        return self._columns[name]

    def admit(self, where: str) -> Flags:
        """Return which items an expression admits, (N,)."""
        if where not in self._masks:
            if len(self._masks) >= _MAX_MASKS:
                self._masks = {}
            self._masks[where] = parse_where(where)(self)
        return self._masks[where]

    def _read_texts(self, name: str) -> Column:
        encoded = (
            self._items.column(name)
            .combine_chunks()
            .dictionary_encode(null_encoding="encode")
        )
        cell = to_numpy(pa.chunked_array([encoded.indices])).astype(np.int64)
        cells = encoded.dictionary.to_pylist()
        several = self._several.get(name)
        if several is not None:
            texts = [split_cell(several, one) for one in cells]
        else:
            texts = [
                [text] if (text := to_text(one)) is not None else [] for one in cells
            ]
        distinct = list(dict.fromkeys(chain.from_iterable(texts)))
        if several is None and self._is_flag(name, distinct):
            texts = [[text.lower() for text in of_cell] for of_cell in texts]
            values = np.array([False, True])
            kind = "true or false"
            code_of = {"false": 0, "true": 1}
        else:
            values = np.array(distinct, dtype=np.object_)
            kind = "texts"
            code_of = {text: code for code, text in enumerate(distinct)}
        codes = np.array(
            [code_of[text] for text in chain.from_iterable(texts)], dtype=np.int64
        )
        return Column(name, kind, values, cell, codes, np.cumsum([0, *map(len, texts)]))

    def _is_flag(self, name: str, texts: Sequence[str]) -> bool:
        """Tell a column whose texts are all true or false, as text files hold booleans."""
        if self._of_bundle is not None:
            return self._of_bundle.read(name).kind == "true or false"
        return bool(texts) and {text.lower() for text in texts} <= {"true", "false"}


def _read_numbers(name: str, column: pa.ChunkedArray) -> Column:
    is_flag = pa.types.is_boolean(column.type)
    kind = column.type
    if not (is_flag or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise SchemaError(
            f"filters: column '{name}' holds {kind}; allowed are numbers, texts, and true or false"
        )
    values = to_numpy(column.cast(pa.uint8()) if is_flag else column)
    if is_flag:
        values = values.astype(np.bool_)
    elif values.dtype.kind in "iu":
        values = values.astype(np.int64 if values.dtype != np.uint64 else np.float64)
    is_known = to_numpy(column.is_valid().cast(pa.uint8())).astype(
        np.bool_
    ) & ~np.isnan(values)
    distinct, index = np.unique(values[is_known], return_inverse=True)
    cell = np.full(
        len(values), len(distinct), dtype=np.int64
    )  # the last cell is that of missing values
    cell[is_known] = index
    offsets = np.append(np.arange(len(distinct) + 1), len(distinct))
    return Column(
        name,
        "true or false" if is_flag else "numbers",
        distinct,
        cell,
        np.arange(len(distinct)),
        offsets,
    )


@dataclass(frozen=True)
class Admission:
    """The items of a catalogue that filters admit: columns and ids of N items, and which are never listed, (N,)."""

    columns: Columns
    item_ids: ItemIds
    is_removed: Flags | None

    def check(self, filters: Filters | None) -> None:
        """Refuse filters that do not fit the columns."""
        if filters is not None:
            self.bar(filters)
            self.limits(filters)

    def bar(self, filters: Filters | None) -> Flags:
        """Return which items may not be listed: by `where` and `only`, or as removed ones, (N,)."""
        barred = np.zeros(len(self.columns), dtype=np.bool_)
        if filters is not None and filters.where is not None:
            barred |= ~self.columns.admit(filters.where)
        if filters is not None and filters.only is not None:
            barred |= ~np.isin(np.arange(len(barred)), self.item_ids.find(filters.only))
        return barred if self.is_removed is None else barred | self.is_removed

    def limits(self, filters: Filters) -> list[tuple[Column, int]]:
        """Return each column of `at_most`, and how many items may share a value of it."""
        return [
            (self.columns.read(column), parse_limit(column, most))
            for column, most in filters.at_most
        ]


def rank_filtered(
    index: ItemIndex,
    admission: Admission,
    filters: Sequence[Filters | None],
    query: Query,
    k: int,
) -> Lists:
    """Rank T requests, those that share filters together; return scores and rows, (T, k) each."""
    scores = np.full((len(query), k), -np.inf, np.float32)
    rows = np.full((len(query), k), -1, np.int64)
    for one in dict.fromkeys(filters):
        places = np.flatnonzero([other == one for other in filters])
        part = query if len(places) == len(query) else query.take(places)
        barred = admission.bar(one)
        limits = [] if one is None else admission.limits(one)
        if not limits:
            scores[places], rows[places] = index.search(part, k, barred)
            continue
        found = index.search(part, min(_DEPTH * k, len(barred)), barred)
        for number, place in enumerate(places.tolist()):
            single = part.take(np.array([number]))
            taken = _walk(
                index,
                single,
                limits,
                barred.copy(),
                k,
                (found[0][number], found[1][number]),
            )
            for position, (score, row) in enumerate(taken):
                scores[place, position] = score
                rows[place, position] = row
    return scores, rows


def _walk(
    index: ItemIndex,
    query: Query,
    limits: Sequence[tuple[Column, int]],
    barred: Flags,
    k: int,
    found: Lists,
) -> list[tuple[float, int]]:
    """Walk down the complete ranking of one request and take k items, but none of which a value is full.

    Once a value is full no later item of it is taken, so the rest is searched again without these: each search but the
    last fills a value, and the list is exact. An item without a value is not limited; one with many counts for each.
    """
    taken: list[tuple[float, int]] = []
    counts: list[Counter[int]] = [Counter() for _ in limits]
    while True:
        for score, row in zip(found[0].tolist(), found[1].tolist(), strict=True):
            if row < 0 or len(taken) == k:
                return taken
            codes = [column.codes_of(row) for column, _ in limits]
            counted = zip(limits, counts, codes, strict=True)
            if not any(
                count[code] >= most
                for (_, most), count, of_item in counted
                for code in of_item
            ):
                taken.append((score, row))
                for count, of_item in zip(counts, codes, strict=True):
                    count.update(of_item)
        if len(taken) == k:
            return taken
        barred[[row for _, row in taken]] = True
        for (column, most), count in zip(limits, counts, strict=True):
            barred |= column.have(
                np.array(
                    [count[code] >= most for code in range(len(column.values))],
                    np.bool_,
                )
            )
        scores, rows = index.search(query, len(found[1]), barred)
        found = scores[0], rows[0]


def explain_short(
    admission: Admission,
    filters: Sequence[Filters | None],
    left_out: Mapping[str, Pairs],
    rows: Ints,
    k: int,
) -> dict[int, str]:
    """Return request -> why its list has fewer than k items; `left_out`: reason -> requests and rows not listed."""
    reasons = {}
    for place, length in enumerate((rows >= 0).sum(axis=1).tolist()):
        if length < k:
            of_request = {
                name: pairs[1][pairs[0] == place] for name, pairs in left_out.items()
            }
            reasons[place] = _explain(
                admission, filters[place] or Filters(), of_request, length
            )
    return reasons


def _explain(
    admission: Admission, filters: Filters, left_out: Mapping[str, Ints], length: int
) -> str:
    """Count from the catalogue down to the list of one request."""
    barred = admission.bar(filters)
    n_items = int((~admission.bar(None)).sum())
    text = " ".join((filters.where or "").split())
    names = [f"where '{text[:_MAX_SHOWN]}{'...' * (len(text) > _MAX_SHOWN)}'"] * (
        filters.where is not None
    )
    names += ["'only'"] * (filters.only is not None)
    leaves = f"{' and '.join(names)} {'leaves' if len(names) == 1 else 'leave'} {(~barred).sum()} of {n_items}"
    parts = [leaves if names else f"the catalogue has {n_items}"]
    for name, rows in left_out.items():
        n_left_out = int((~barred[np.unique(rows)]).sum())
        barred[rows] = True
        if n_left_out:
            parts.append(
                f"{n_left_out} of them {'is' if n_left_out == 1 else 'are'} {name}"
            )
    parts += [f"at most {most} per {column}" for column, most in filters.at_most]
    heads = {0: "no item is admissible", 1: "only 1 item is admissible"}
    return f"{heads.get(length, f'only {length} items are admissible')}: {', '.join(parts)}"
