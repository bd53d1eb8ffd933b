"""95 % bootstrap intervals over users, also of the difference of two models on the same users."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evaluation.metrics import Floats

RESAMPLES = 1000
SEED = 20260101
LEVELS = (0.025, 0.975)
BLOCK_BYTES = 2**26
FEWEST_TO_TELL = 20
"""Users below which the interval of a difference tells nothing: of one user it is a point, and of three it is on one
side of 0 wherever chance favours all of them alike, which is one time in four."""

Summary = dict[str, float | list[float]]


def summarise(values: Mapping[str, Floats]) -> Summary:
    """Return per metric its mean over users and `<metric>_ci95` = [low, high]; and the number of `users`.

    Args:
        values: metric -> (U,), the same users in each. Without users, only their number comes back.
    """
    names = list(values)
    matrix = np.stack([values[name] for name in names], axis=1)  # (U, M)
    summary: Summary = {"users": len(matrix)}
    if not len(matrix):
        return summary
    low, high = np.quantile(resample_means(matrix), LEVELS, axis=0)  # (M,) each
    for column, name in enumerate(names):
        summary[name] = float(matrix[:, column].mean())
        summary[f"{name}_ci95"] = [float(low[column]), float(high[column])]
    return summary


def summarise_difference(values: Mapping[str, Floats], others: Mapping[str, Floats]) -> Summary:
    """Summarise values minus others, paired user by user: both in the same order of the same users."""
    return summarise({name: values[name] - others[name] for name in values})


def resample_means(values: Floats) -> Floats:
    """Return the column means of `RESAMPLES` bootstrap samples of the rows (U, M), (RESAMPLES, M).

    A sample is drawn as how often each user is in it, so its means are one row of a matrix product.
    """
    rng = np.random.default_rng(SEED)
    n_users = len(values)
    block = max(1, BLOCK_BYTES // (8 * n_users))
    means = []
    for start in range(0, RESAMPLES, block):
        draws = range(start, min(start + block, RESAMPLES))
        counts = [np.bincount(rng.integers(n_users, size=n_users), minlength=n_users) for _ in draws]
        means.append(np.stack(counts).astype(np.float64) @ values / n_users)
    return np.concatenate(means)
