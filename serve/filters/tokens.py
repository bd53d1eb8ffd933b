"""The words of a `where`: names, texts, numbers and signs, each with its place in the text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from serve.errors import SchemaError
from serve.request_values import MOST_SHOWN

_MOST_CHARACTERS = 10_000
_LONGEST_NUMBER = 40
_TOKEN = re.compile(
    r"""(?P<name>[^\W\d][\w.]*)
      | `(?P<quoted>[^`]+)`
      | (?P<text>'[^']*(?:''[^']*)*'|"[^"]*(?:""[^"]*)*")
      | (?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
      | (?P<sign><=|>=|!=|==|[=<>()\[\],])""",
    re.VERBOSE,
)
_QUOTES = "'\"`"


@dataclass(frozen=True)
class Token:
    """A word of the text."""

    kind: str
    """`name`, `quoted` (a name in backticks), `text`, `number`, `sign` or `end`."""
    word: str
    """As it is written, a name without its backticks."""
    start: int
    """Its first character, from 0."""

    @property
    def keyword(self) -> str:
        """The word in small letters where it may be a keyword, else nothing."""
        return self.word.lower() if self.kind == "name" else ""

    def is_sign(self, *signs: str) -> bool:
        return self.kind == "sign" and self.word in signs

    def describe(self) -> str:
        """Name the word for a message: in quotes, unless it is a sign, and cut so that nothing long is echoed."""
        if self.kind in ("end", "sign"):
            return self.word or "the end"
        word = read_text(self) if self.kind == "text" else self.word
        return repr(word if len(word) <= MOST_SHOWN else f"{word[:MOST_SHOWN]}...")


def split_tokens(text: str) -> list[Token]:
    """Split a text into its tokens, and one for its end.

    Raises:
        SchemaError: a character without a meaning, a quote without its end, or a text that is too long.
    """
    if len(text) > _MOST_CHARACTERS:
        allowed = f"allowed: {_MOST_CHARACTERS}; a long list of items goes in 'only'"
        raise SchemaError(f"where has {len(text)} characters; {allowed}")
    tokens, place = [], 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        found = _TOKEN.match(text, place)
        if found is None:
            raise SchemaError(_explain_character(text, place))
        kind = str(found.lastgroup)
        tokens.append(Token(kind, found[kind], place))
        place = found.end()
    return [*tokens, Token("end", "", len(text))]


def read_number(token: Token) -> int | float:
    """Return the number that a token writes.

    Raises:
        SchemaError: a number of too many digits, or one that float64 does not hold.
    """
    if len(token.word) > _LONGEST_NUMBER:
        raise SchemaError(f"where, character {token.start + 1}: a number has more than {_LONGEST_NUMBER} characters")
    if token.word.lstrip("+-").isdigit():
        return int(token.word)
    number = float(token.word)
    if not math.isfinite(number):
        raise SchemaError(f"where, character {token.start + 1}: {token.describe()} is too large for a number")
    return number


def read_text(token: Token) -> str:
    """Return the text that a token quotes; a quote that is doubled in it is one."""
    quote = token.word[0]
    return token.word[1:-1].replace(2 * quote, quote)


def _explain_character(text: str, place: int) -> str:
    got, where = text[place], f"where, character {place + 1}"
    if got in _QUOTES:
        return f"{where}: the quote {got} has no end; a quote inside a text is doubled"
    return f"{where}: {got!r} has no meaning here; allowed: and or not in, = != < <= > >=, ( ) [ ]"
