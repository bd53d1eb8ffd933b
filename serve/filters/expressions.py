"""What a `where` says, as data: comparisons of item columns with values, joined by and, or, not.

A comparison with a missing value is false, `!=` and `not in` too. `not` turns that round: `not price > 20` lets
items in whose price is not known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Value = str | bool | int | float
Operator = Literal["=", "!=", "<", "<=", ">", ">="]
Containment = Literal["in", "not in"]


@dataclass(frozen=True)
class Comparison:
    """`price <= 20`."""

    column: str
    operator: Operator
    value: Value


@dataclass(frozen=True)
class Membership:
    """`category in ['snacks', 'dairy']`."""

    column: str
    operator: Containment
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Flag:
    """`in_stock`: a column of true and false by itself."""

    column: str


@dataclass(frozen=True)
class Not:
    operand: Expression


@dataclass(frozen=True)
class And:
    operands: tuple[Expression, ...]


@dataclass(frozen=True)
class Or:
    operands: tuple[Expression, ...]


Expression = Comparison | Membership | Flag | Not | And | Or


@dataclass(frozen=True)
class Where:
    """An expression and the text it was read from; equal texts are equal."""

    text: str
    expression: Expression = field(compare=False)
