"""From the text of a `where` to its expression, by recursive descent; nothing is ever evaluated as code.

    category in ['snacks', 'dairy'] and price <= 20 and in_stock and not brand = 'x'

    either     = both {"or" both}
    both       = negation {"and" negation}
    negation   = "not" negation | "(" either ")" | test
    test       = column [sign value | ["not"] "in" "[" [value {"," value}] "]"]
    sign       = "=" | "==" | "!=" | "<" | "<=" | ">" | ">="
    value      = 'text' | "text" | number | "true" | "false"

A column whose name is more than letters, digits, _ and . stands in backticks. Keywords may be in capitals.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NoReturn, cast

from serve.errors import SchemaError
from serve.filters.expressions import (
    And,
    Comparison,
    Containment,
    Expression,
    Flag,
    Membership,
    Not,
    Operator,
    Or,
    Value,
    Where,
)
from serve.filters.tokens import Token, read_number, read_text, split_tokens

_DEEPEST = 32  # brackets and nots within each other
_KEYWORDS = frozenset({"and", "or", "not", "in", "true", "false"})
WORDS = _KEYWORDS | {"(", ")", "[", "]", ","}
"""What messages say in quotes of the language itself: nobody's value."""
_SIGNS = ("=", "==", "!=", "<", "<=", ">", ">=")
_BOOLEANS = {"true": True, "false": False}


@lru_cache(maxsize=256)
def parse_where(text: str) -> Where:
    """Read an expression.

    Raises:
        SchemaError: the text is none; says at which character, what is there and what is expected.
    """
    parser = _Parser(split_tokens(text))
    expression = parser.read_either()
    if parser.token.kind != "end":
        parser.refuse("'and', 'or' or the end")
    return Where(text, expression)


class _Parser:
    """Tokens and the place among them."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._place = 0
        self._depth = 0

    @property
    def token(self) -> Token:
        return self._tokens[self._place]

    def read_either(self) -> Expression:
        return self._read_chain(self._read_both, "or", Or)

    def refuse(self, expected: str) -> NoReturn:
        token = self.token
        raise SchemaError(f"where, character {token.start + 1}: expected {expected}; got {token.describe()}")

    def _read_both(self) -> Expression:
        return self._read_chain(self._read_negation, "and", And)

    def _read_chain(self, read: Callable[[], Expression], keyword: str, join: type[And] | type[Or]) -> Expression:
        operands = [read()]
        while self.token.keyword == keyword:
            self._next()
            operands.append(read())
        return operands[0] if len(operands) == 1 else join(tuple(operands))

    def _read_negation(self) -> Expression:
        if self.token.keyword == "not":
            self._next()
            return Not(self._descend(self._read_negation))
        if self.token.is_sign("("):
            self._next()
            inner = self._descend(self.read_either)
            self._expect(")")
            return inner
        return self._read_test()

    def _descend(self, read: Callable[[], Expression]) -> Expression:
        self._depth += 1
        if self._depth > _DEEPEST:
            place = self.token.start + 1
            raise SchemaError(f"where, character {place}: more than {_DEEPEST} brackets and nots within each other")
        expression = read()
        self._depth -= 1
        return expression

    def _read_test(self) -> Expression:
        column = self._read_column()
        if self.token.is_sign(*_SIGNS):
            sign = self._next().word
            return Comparison(column, cast(Operator, "=" if sign == "==" else sign), self._read_value(f"after {sign}"))
        if self.token.keyword == "in":
            return self._read_membership(column, "in")
        if self.token.keyword == "not":
            self._next()
            if self.token.keyword != "in":
                self.refuse("'in' after 'not'")
            return self._read_membership(column, "not in")
        return Flag(column)

    def _read_column(self) -> str:
        token = self.token
        if token.kind == "quoted" or (token.kind == "name" and token.keyword not in _KEYWORDS):
            return self._next().word
        if token.kind in ("text", "number"):
            self.refuse("a column, which comes before its value, as in price <= 20")
        self.refuse("a column")

    def _read_membership(self, column: str, operator: Containment) -> Membership:
        self._next()
        self._expect("[")
        values: list[Value] = []
        while not self.token.is_sign("]"):
            values.append(self._read_value("in the list"))
            if not self.token.is_sign("]"):
                self._expect(",")
        self._next()
        return Membership(column, operator, tuple(values))

    def _read_value(self, where: str) -> Value:
        token = self.token
        if token.kind == "text":
            return read_text(self._next())
        if token.kind == "number":
            return read_number(self._next())
        if token.keyword in _BOOLEANS:
            return _BOOLEANS[self._next().keyword]
        hint = ": texts stand in quotes" if token.kind == "name" else ""
        self.refuse(f"a text, a number, true or false {where}{hint}")

    def _expect(self, sign: str) -> None:
        if not self.token.is_sign(sign):
            self.refuse(f"'{sign}'")
        self._next()

    def _next(self) -> Token:
        """Return the token here and go on to the next."""
        token = self.token
        self._place += 1
        return token
