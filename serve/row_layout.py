"""How rows lie in a file whose columns or delimiter are not as ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from serve.errors import SchemaError, name_nearest
from serve.packed_files import kind_suffix

TEXT_SUFFIXES = (".csv", ".tsv")
_DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"[^"]*"')
Value = TypeVar("Value")


@dataclass(frozen=True)
class RowLayout:
    """What is said about a file; without a word, columns are called as ours, and the delimiter shows."""

    delimiter: str | None = None
    """Between the cells of a text file: one character."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name -> the column it is in. Columns of the file that are called as one of our names here are hidden."""

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise SchemaError(
                f"delimiter is {self.delimiter!r}; allowed: one character that is no quote and no line end; leave it "
                "out to have it told from the first line"
            )

    def check_suffix(self, path: Path) -> None:
        """Refuse a delimiter for a file that has none."""
        if self.delimiter is not None and kind_suffix(path) not in TEXT_SUFFIXES:
            raise SchemaError(
                f"{path.name}: a delimiter is given; allowed for {' and '.join(TEXT_SUFFIXES)} alone: leave it out"
            )

    def delimiter_of(self, path: Path, header: str) -> str:
        """Return the delimiter: as said, by suffix, or the one that splits the header most often."""
        if self.delimiter is not None:
            return self.delimiter
        bare = _QUOTED.sub("", header)
        return "\t" if kind_suffix(path) == ".tsv" else max(_DELIMITERS, key=bare.count)

    def rename(self, fields: Mapping[str, Value]) -> dict[str, Value]:
        """Put fields of the file under our names; a column that is not there is not given."""
        taken = {ours: fields[theirs] for ours, theirs in self.columns.items() if theirs in fields}
        hidden = {*self.columns, *self.columns.values()}
        return taken | {name: value for name, value in fields.items() if name not in hidden}

    def check_columns(self, names: Iterable[str], place: str) -> None:
        """Refuse names of a file that lack a column that one of ours is said to be in."""
        there = list(names)
        for ours, theirs in self.columns.items():
            if theirs not in there:
                raise SchemaError(
                    f"{place}: no column '{theirs}', where {ours} should be; {name_nearest(theirs, there)}"
                )

    def identity(self) -> dict[str, Any]:
        """Return what is said, for telling two readings of a file apart; nothing where nothing is said."""
        said = {"delimiter": self.delimiter, "columns": dict(self.columns)}
        return {name: value for name, value in said.items() if value}


AS_OURS = RowLayout()


def read_layout(delimiter: str | None, columns: str | None) -> RowLayout:
    r"""Read the two options of a command line: a tab may be written as \t, columns as "item_id=sku,price=cost".

    Raises:
        SchemaError: the delimiter is not one character; a part that is no pair, or a name twice.
    """
    return RowLayout("\t" if delimiter == r"\t" else delimiter, _parse_pairs(columns))


def _parse_pairs(text: str | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in text.split(",") if text else ():
        ours, _, theirs = map(str.strip, part.partition("="))
        if not ours or not theirs or ours in pairs:
            raise SchemaError(f"columns: got '{part}'; expected NAME=COLUMN, each name once, with commas between")
        pairs[ours] = theirs
    return pairs
