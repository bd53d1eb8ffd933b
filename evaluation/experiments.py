"""Experiments: users in arms, a check of their shares, and intervals of a difference that one may look at every day.

The interval is that of a normal mixture (Robbins 1970; Johari et al., KDD 2017, equation 9 turned round): with
probability 1 - `level` it holds the true difference at all looks together, not only at one. It is wider for that than
an interval that is looked at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chisquare

from serve.arrays import Doubles

MIN_USERS = 50  # of an arm: below, a mean of users is not yet normal
MISMATCH_LEVEL = (
    0.001  # of the check of shares: it is looked at every day, and a fault shows soon
)


@dataclass(frozen=True)
class Difference:
    """An arm compared with the control: a difference of means over users, and the interval of all looks together."""

    control: float
    arm: float
    difference: float
    low: float
    high: float
    users: tuple[int, int]

    @property
    def verdict(self) -> str:
        """Say on which side of 0 the interval lies."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "undecided"


def compare(
    control: Doubles, arm: Doubles, sensible_lift: float = 0.1, level: float = 0.05
) -> Difference | None:
    """Compare what users of two arms did, a value per user; return None while there are too few of them.

    `sensible_lift` is the difference, as a share of the mean, at which the interval is to be narrowest: a guess that
    costs width where it is wrong, never truth.
    """
    if min(len(control), len(arm)) < MIN_USERS:
        return None
    difference = float(arm.mean() - control.mean())
    variance = float(control.var(ddof=1) / len(control) + arm.var(ddof=1) / len(arm))
    mean = float(np.concatenate([control, arm]).mean())
    half = half_width(variance, (sensible_lift * mean) ** 2, level)
    users = len(control), len(arm)
    return Difference(
        float(control.mean()),
        float(arm.mean()),
        difference,
        difference - half,
        difference + half,
        users,
    )


def half_width(variance: float, prior: float, level: float) -> float:
    """Return half of the interval's width: `variance` is of the estimate, `prior` of the mixture of differences."""
    if variance == 0 or prior == 0:
        return float("inf")
    total = variance + prior
    return float(
        np.sqrt(
            variance * total / prior * (np.log(total / variance) - 2 * np.log(level))
        )
    )


def check_shares(
    users: Mapping[str, int], shares: Mapping[str, float]
) -> dict[str, Any]:
    """Test whether arms have as many users as their shares say (chi-squared); if not, nothing else may be believed."""
    names = [name for name, share in shares.items() if share > 0]
    seen = np.array([users.get(name, 0) for name in names], float)
    expected = (
        seen.sum()
        * np.array([shares[name] for name in names])
        / sum(shares[name] for name in names)
    )
    p_value = (
        float(chisquare(seen, expected).pvalue)
        if len(names) > 1 and seen.any()
        else 1.0
    )
    return {
        "p_value": p_value,
        "is_mismatch": p_value < MISMATCH_LEVEL,
        "users": dict(zip(names, seen, strict=True)),
    }
