"""Watching a version: the same users before it and since, so that nobody is compared with others.

Who comes often is seen first after a change. If they convert otherwise than the rest, versions that
are compared over all who came differ though they are equal.
"""

from __future__ import annotations

import pandas as pd

from evaluation.experiments import MIN_USERS, Difference, half_width
from evaluation.online import WINDOW
from serve.clock import DAY

DAYS_BEFORE = 28  # up to the first list of a version: what it is compared with
DAYS_AFTER = 7  # of a version, before it is judged: each day of the week counts
SENSIBLE_LOSS = 0.2  # as a share of the figure, at which the interval is narrowest
LEVEL = 0.05  # 1 - the probability that the interval holds the truth at all looks


def compare_versions(
    slots: pd.DataFrame, before: str, current: str, figure: str
) -> Difference | None:
    """Compare the share of lists with an outcome, of the same users before and after.

    A user of n lists before and m after weighs nm / (n + m), as the strata of Cochran (1954) do.

    Args:
        slots: of the log, with outcomes. Those in an arm are left out: experiments compare them,
            and a version may be in a small arm long before it serves.
        before: the version before, whose last `DAYS_BEFORE` days count.
        current: the version that serves.
        figure: `conversions` or `clicks`.

    Returns:
        The difference; None while there are fewer than `DAYS_AFTER` days or `MIN_USERS` users with
        lists of both. Lists of the last day are left out: what follows them is still to come.
    """
    end = slots["datetime"].max() - WINDOW
    served = slots[slots["user_id"].notna() & slots["arm"].isna()]
    ripe = served[served["datetime"] <= end]
    begin = ripe["datetime"][ripe["version"] == current].min()
    if not end - begin >= DAYS_AFTER * DAY:  # also where there is no list yet
        return None

    recent = ripe[ripe["datetime"] >= begin - DAYS_BEFORE * DAY]

    outcomes = recent.groupby(["version", "user_id", "list"])[figure].sum() > 0
    lists = outcomes.groupby(["version", "user_id"]).agg(["mean", "size"])
    of_version = [
        lists[lists.index.get_level_values(0) == v] for v in (before, current)
    ]
    earlier, later = (rows.droplevel(0) for rows in of_version)
    pairs = earlier.merge(
        later, left_index=True, right_index=True, suffixes=("_before", "_after")
    )
    if len(pairs) < MIN_USERS:
        return None

    n_before = pairs["size_before"]
    n_after = pairs["size_after"]
    weights = n_before * n_after / (n_before + n_after)
    weights /= weights.sum()
    means = pairs[["mean_before", "mean_after"]].mul(weights, axis=0).sum()
    control, arm = means.tolist()
    difference = arm - control
    gains = pairs["mean_after"] - pairs["mean_before"]
    variance = float((weights**2 * (gains - difference) ** 2).sum())
    half = half_width(variance, (SENSIBLE_LOSS * control) ** 2, LEVEL)
    users = (len(pairs), len(pairs))
    low = difference - half
    high = difference + half
    return Difference(control, arm, difference, low, high, users)
