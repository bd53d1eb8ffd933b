"""Experiments: arms of users compared, by intervals that one may look at every day.

The interval is that of a normal mixture (Robbins 1970; Johari et al., KDD 2017, equation 9 solved
for the difference): with probability 1 - `level` it holds the true difference at all looks
together, not only at one. It is wider for that than an interval that is looked at once, least so
after `PLANNED_DAYS`. What is known of users from before narrows it (CUPED).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chisquare

from serve.arrays import Doubles

MIN_USERS = 50  # of an arm: below, a mean of users is not yet normal
NEW_DAYS = 7  # of an experiment do not count: what is only new fades
PLANNED_DAYS = 28  # after which the interval is narrowest
# variance of the mixture by that of the estimate, where the interval of 95 % is narrowest
NARROWEST = 8.2
MISMATCH_LEVEL = 0.001  # of the check of shares, which is looked at every day


@dataclass(frozen=True)
class Difference:
    """An arm compared with the control: means over users, and the interval of all looks."""

    control: float
    arm: float
    difference: float
    low: float
    high: float
    users: tuple[int, int]

    @property
    def verdict(self) -> str:
        """Say on which side of 0 the interval lies."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "undecided"


def compare(
    control: Doubles, arm: Doubles, days: float = PLANNED_DAYS, level: float = 0.05
) -> Difference | None:
    """Compare what users of two arms did.

    Args:
        control: (U,) a value per user.
        arm: (V,) the same of the other arm.
        days: that count.
        level: 1 - the probability that the interval holds the truth at all looks.

    Returns:
        The difference, or None while an arm has fewer than `MIN_USERS`.
    """
    users = (len(control), len(arm))
    if min(users) < MIN_USERS:
        return None

    mean_of_control = float(control.mean())
    mean_of_arm = float(arm.mean())
    difference = mean_of_arm - mean_of_control
    variance = float(control.var(ddof=1) / len(control) + arm.var(ddof=1) / len(arm))
    # The variance falls as one by the days, so that this is the same at all looks.
    prior = NARROWEST * variance * days / PLANNED_DAYS
    half = half_width(variance, prior, level)

    return Difference(
        control=mean_of_control,
        arm=mean_of_arm,
        difference=difference,
        low=difference - half,
        high=difference + half,
        users=users,
    )


def adjust(values: Doubles, known: Doubles) -> Doubles:
    """Take out of values what is known of users from before (CUPED, Deng et al., WSDM 2013).

    Args:
        values: (U,) a value per user, of all arms.
        known: (U, C) numbers that no arm can have changed.

    Returns:
        (U,) values with the same mean, less what a linear regression predicts.
    """
    centred = known - known.mean(axis=0)
    slopes = np.linalg.lstsq(centred, values)[0]
    return np.asarray(values - centred @ slopes)


def half_width(variance: float, prior: float, level: float) -> float:
    """Return half of the interval's width.

    Args:
        variance: of the estimate.
        prior: variance of the mixture of differences.
        level: as in `compare`.
    """
    if variance == 0 or prior == 0:
        return float("inf")
    total = variance + prior
    logarithm = np.log(total / variance) - 2 * np.log(level)
    return float(np.sqrt(variance * total / prior * logarithm))


def check_shares(
    users: Mapping[str, int], shares: Mapping[str, float]
) -> dict[str, Any]:
    """Test by chi-squared whether arms have as many users as their shares say.

    If not, nothing else may be believed.
    """
    declared = {arm: share for arm, share in shares.items() if share > 0}
    counts = np.array([users.get(arm, 0) for arm in declared], float)
    expected = counts.sum() * np.array([*declared.values()]) / sum(declared.values())

    p_value = 1.0
    if len(declared) > 1 and counts.any():
        p_value = float(chisquare(counts, expected).pvalue)
    return {
        "p_value": p_value,
        "is_mismatch": p_value < MISMATCH_LEVEL,
        "users": dict(zip(declared, counts, strict=True)),
    }
