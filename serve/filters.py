"""Filters of a request: the `where` language, allow lists, and at most n items that share a value.

    category in ['snacks', 'dairy'] and price <= 20 and in_stock and not brand = 'x'

    condition = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation = "not" negation | "(" condition ")" | comparison
    comparison = column [ sign value | [ "not" ] "in" "[" values "]" ]

A comparison with a missing value is false, that of `!=` and `not in` too; `not` reverses that.
Items that a user has just taken are held back until they may be due again.
Letters: N items, V distinct values of a column, T requests, E events.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from serve.arrays import Flags, Floats, Ints, Objects
from serve.catalogue import Column, Columns, ItemIds, Value
from serve.clock import DAY, Rhythms
from serve.errors import SchemaError
from serve.index import UNKNOWN_ROW, ItemIndex, Pairs, Query
from serve.profiles import Profiles
from serve.requests import Filters, History, Request
from serve.schema import Schema

_MAX_WAITING = 33  # brackets and operators that wait for their right side at once
_MAX_MASKS = 32  # conditions whose items are kept between requests
_DEPTH = 4  # a search under limits is this many lists deep

# Share of its typical gap for which an item is held back, or its regularity if that is more.
EARLIEST = 0.25
DEFAULT_GAP = 30 * DAY  # between two takings of an item, where no profile tells
_MAX_SAMPLE = 50_000  # events of the first profiles, which tell the usual gap
# Events that take nothing, unless training had their type. Who clicks and collects has bought.
_NO_TAKING = re.compile(
    "remove|cancel|return|refund|dislike|wish"
    "|^(?!.*(purchase|buy|bought|order|sale|checkout)).*(view|visit|detail|click|open)",
    re.IGNORECASE,
)

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
            barred |= ~np.isin(np.arange(len(barred)), rows)

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


# ---- items that were just taken


@dataclass(frozen=True)
class Takings:
    """What the user of a request took.

    Attributes:
        events: those of the history that took an item of the catalogue.
        rows: (E,) their items.
        rhythms: of these items; no time is later than the moment of the request.
        held_back: rows of the items that were just taken and may not be due again yet.
    """

    events: History
    rows: Ints
    rhythms: Rhythms
    held_back: list[int]


class JustTaken:
    """What counts as taken, and how long it is held back, for a bundle and its profiles."""

    def __init__(
        self, schema: Schema, targets: Collection[str] | None, profiles: Profiles
    ) -> None:
        """Read nothing yet.

        Args:
            schema: of the bundle.
            targets: types of the events that training predicted; None: all.
            profiles: tell the usual gap between two takings of an item.
        """
        self._schema = schema
        self._targets = targets
        self._profiles = profiles

    def hold_back(
        self, requests: Sequence[Request], moments: Ints, admission: Admission
    ) -> Pairs:
        """Return the requests and rows of the items that would be listed if not held back.

        Args:
            requests: T requests with what is known of their users.
            moments: (T,) UTC seconds.
            admission: of the catalogue.
        """
        numbers: list[int] = []
        rows: list[int] = []
        for number, request in enumerate(requests):
            if request.again == "due" and request.n_fresh != 0 and request.history:
                takings = self.find(request, int(moments[number]), admission)
                numbers += [number] * len(takings.held_back)
                rows += takings.held_back

        return np.array(numbers, np.int64), np.array(rows, np.int64)

    def find(self, request: Request, moment: int, admission: Admission) -> Takings:
        """Find what was taken, in the history of a request with what is known of its user.

        What the filters of the request bar is not held back besides.

        Args:
            request: with or without a history.
            moment: of the request, in UTC seconds.
            admission: of the catalogue.
        """
        item_ids = admission.item_ids
        history = request.history or History(item_ids.ids[:0])
        rows = item_ids.find(history.item_id)
        is_taking = (rows != UNKNOWN_ROW) & self._are_takings(history)

        times = np.full(len(history), moment)
        if history.datetime is not None and self._schema.has_datetime:
            times = np.minimum(history.datetime, moment)
        is_fresh = times > moment - DAY
        if request.n_fresh is not None:
            is_fresh = np.arange(len(history)) >= len(history) - request.n_fresh
        if request.again == "any":
            is_fresh = np.zeros(len(history), np.bool_)
        is_fresh &= ~admission.bar(request.filters)[rows]

        rhythms = Rhythms(rows[is_taking], times[is_taking])
        events = history.take(is_taking)
        held_back = []
        for row in set(rows[is_taking & is_fresh].tolist()):
            if self._is_waiting(rhythms, row, moment):
                held_back.append(row)

        return Takings(events, rows[is_taking], rhythms, held_back)

    def _are_takings(self, history: History) -> Flags:
        names = [None] * len(history) if history.event is None else history.event
        return np.array([*map(self._is_taking, names)], np.bool_)

    def _is_taking(self, name: str | None) -> bool:
        """Tell whether an event of a type takes an item; one without a type does."""
        if name is None:
            return True
        if self._targets is not None:
            return name in self._targets
        return name in self._schema.event_types or not _NO_TAKING.search(name)

    def _is_waiting(self, rhythms: Rhythms, row: int, moment: int) -> bool:
        """Tell whether an item that was just taken may not be due yet.

        The more regular its gaps, the nearer to its typical gap it is due. An item that was taken
        on one day alone waits for the usual gap of its user, or else of all users. Where items
        usually come again within a day, all wait for that usual gap.
        """
        rhythm = rhythms.of(row)
        wait = rhythms.usual_gap or self._usual_gap
        if rhythm.gap and wait >= DAY:
            wait = rhythm.gap * max(EARLIEST, 1 - rhythm.irregularity)
        return moment - rhythm.days[-1] < wait

    @cached_property
    def _usual_gap(self) -> float:
        """The median of the seconds between two takings of an item by a user, of the first ones."""
        profiles = self._profiles
        history = profiles.history.take(slice(_MAX_SAMPLE))
        if history.datetime is None:
            return DEFAULT_GAP

        owners = np.arange(len(profiles)).repeat(np.diff(profiles.offsets))
        ids, items = np.unique(history.item_id, return_inverse=True)
        pairs = owners[:_MAX_SAMPLE] * len(ids) + items
        is_taking = self._are_takings(history)
        rhythms = Rhythms(pairs[is_taking], history.datetime[is_taking])
        return rhythms.usual_gap or DEFAULT_GAP
