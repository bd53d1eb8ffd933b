"""A CSV file of good and bad records, written without any reader, with all that reading it should give."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

NAMES = ("user_id", "item_id", "datetime", "weight", "note", "price")
NOTES = ("plain", None, "two\nlines", 'say "hi"', "a, b", '"', "ends in\n", "größe", "\n\n", "semi;colon", '","')
N_NOTES_AFTER_A_STRAY_QUOTE = 6
"""Of these a stray quote before them leaves no doubt where it is."""
START = 1_500_000_000

Fault = tuple[str | None, str]
Cells = list[bytes]


@dataclass(frozen=True)
class Written:
    """A file and what is in it."""

    content: bytes
    rows: list[tuple]
    """user_id, item_id, datetime in seconds, weight, note, price; None where missing."""
    rejects: list[tuple[int, str | None, str]]
    """Line, column and reason."""
    lines: list[int]
    """First line of each row."""


def quote(text: str | None) -> bytes:
    if text is None:
        return b""
    needs = any(letter in text for letter in '",\n\r')
    return ('"' + text.replace('"', '""') + '"' if needs else text).encode()


def put(column: str, cell: bytes, reason: str):
    """Make a fault of one cell."""

    def spoil(cells: Cells) -> tuple[Cells, Fault]:
        return [cell if name == column else old for name, old in zip(NAMES, cells, strict=True)], (column, reason)

    return spoil


def both(*spoilers, fault: Fault):
    """Make several faults of one record, of which one is reported."""

    def spoil(cells: Cells) -> tuple[Cells, Fault]:
        for one in spoilers:
            cells, _ = one(cells)
        return cells, fault

    return spoil


SPOILERS = [
    lambda cells: (cells[:5], ("price", "too few columns")),
    lambda cells: (cells[:2], ("datetime", "too few columns")),
    lambda cells: ([*cells, b"9"], (None, "too many columns")),
    lambda cells: ([*cells, b""], (None, "too many columns")),
    lambda cells: ([*cells, b"", b"", b""], (None, "too many columns")),
    put("user_id", b"", "missing"),
    put("user_id", b"  ", "missing"),
    put("item_id", b'"  "', "missing"),
    put("item_id", b"\xff\xfe", "not UTF-8"),
    both(  # on one line: with a line end inside it would be told from an open quote by nobody
        put("note", b"", ""), put("item_id", b'"7"7', ""), fault=("item_id", "a quote is not closed properly")
    ),
    put("datetime", b"", "missing"),
    put("datetime", b"2017-13-01", "not a time"),
    put("datetime", b"yesterday", "not a time"),
    put("weight", b"many", "not a number"),
    put("weight", b"1_5", "not a number"),
    put("weight", b"", "missing"),
    put("weight", b"nan", "missing"),
    put("weight", b"inf", "not finite"),
    put("price", b"-Infinity", "not finite"),
    put("price", b"1e999", "not finite"),
    put("price", b"cheap", "not a number"),
    put("price", b"-0.5", "below the minimum 0"),
    put("price", b"100.5", "above the maximum 100"),
    put("note", b"caf\xe9", "not UTF-8"),
    both(put("user_id", b"", ""), put("weight", b"many", ""), fault=("user_id", "missing")),
    both(put("datetime", b"x", ""), put("price", b"999", ""), fault=("datetime", "not a time")),
    both(put("user_id", b"\xc3", ""), lambda cells: ([*cells, b"9"], (None, "")), fault=("user_id", "not UTF-8")),
    both(put("note", b"\xe9", ""), put("price", b"x", ""), fault=("note", "not UTF-8")),
]


REASONS = {reason for spoil in SPOILERS for _, (_, reason) in [spoil([b"1"] * len(NAMES))]}


def draw_rows(rng: np.random.Generator, n: int) -> list[tuple]:
    users, weights = rng.integers(1, 5000, n).tolist(), (rng.integers(1, 9, n) / 2).tolist()
    n_notes = np.where(3 * np.arange(n) > 2 * n, N_NOTES_AFTER_A_STRAY_QUOTE, len(NOTES))
    notes, prices = (rng.random(n) * n_notes).astype(int).tolist(), (rng.integers(-40, 401, n) / 4).tolist()
    return [
        (user, f"i{at % 997}", START + at * 60, weight, NOTES[note], None if price < 0 else price)
        for at, (user, weight, note, price) in enumerate(zip(users, weights, notes, prices, strict=True))
    ]


def write_row(row: tuple) -> Cells:
    user, item, seconds, weight, note, price = row
    time = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S").encode()
    price_cell = b"" if price is None else str(price).encode()
    return [str(user).encode(), item.encode(), time, str(weight).encode(), quote(note), price_cell]


def write_records(seed: int, n_good: int, n_bad: int, end: bytes = b"\n", mark: bytes = b"") -> Written:
    """Write good and bad records in random order."""
    pieces, line = [mark + ",".join(NAMES).encode() + end], 2
    rng = np.random.default_rng(seed)
    is_bad = rng.permutation(np.repeat([False, True], [n_good, n_bad]))
    rows, rejects, lines = [], [], []
    for row, bad in zip(draw_rows(rng, n_good + n_bad), is_bad.tolist(), strict=True):
        cells = write_row(row)
        if bad:
            cells, fault = SPOILERS[len(rejects) % len(SPOILERS)](cells)
            rejects.append((line, *fault))
        else:
            rows.append(row)
            lines.append(line)
        record = b",".join(cells)
        pieces.append(record + end)
        line += 1 + record.count(b"\n")
    return Written(b"".join(pieces), rows, rejects, lines)


def open_a_quote(written: Written) -> tuple[bytes, int]:
    """Open a quote in a row of the last third that is never closed; return the file and the line."""
    late = range(5 * len(written.rows) // 6, len(written.rows))
    line = next(written.lines[at] for at in late if written.rows[at][4] == "plain")
    content = written.content.split(b"\n")
    content[line - 1] = content[line - 1].replace(b",plain,", b',"plain,')
    return b"\n".join(content), line
