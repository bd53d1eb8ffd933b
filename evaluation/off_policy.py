"""Off-policy estimates: what another policy would have had on the log of the one that was served.

A row is a slot that was shown: its reward, the probability with which the logging policy put that item into that slot,
and that of the policy to judge. IPS and SNIPS weigh rewards by the ratio of the two (Swaminathan and Joachims, NeurIPS
2015); DR adds a model of the reward and weighs what it misses (Dudik et al., ICML 2011). Slots count as independent
given the request. Intervals are of users: of their sums, since what one user does is not independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_WEIGHT = 100.0  # of a row: what is above is cut, which biases the estimate towards the log
MIN_EFFECTIVE = 100.0  # effective rows below which there is no estimate
Z = 1.959964  # of a two-sided interval of 95 %
_RIDGE = 1e-3  # of the reward model's coefficients, in rows


@dataclass(frozen=True)
class Logged:
    """Slots that were shown, R rows."""

    user: Ints  # (R,), any numbering
    reward: Floats  # (R,)
    propensity: Floats  # (R,), of the logging policy, above 0
    target: Floats  # (R,), of the policy to judge for the same item in the same slot
    predicted: Floats  # (R,), reward of the item that was shown, by a model that has not seen this user
    expected: Floats  # (R,), mean of that model's reward over what the policy to judge would show in this slot


@dataclass(frozen=True)
class Estimate:
    """Mean reward of a slot, with an interval of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimates:
    """The estimates of one policy; all of them None where too few rows count."""

    ips: Estimate | None
    snips: Estimate | None
    dr: Estimate | None
    effective: float  # rows
    clipped: int  # rows whose weight was cut


def estimate(log: Logged) -> Estimates:
    """Estimate the mean reward of a slot under the policy to judge."""
    raw = log.target / log.propensity
    weight = np.minimum(raw, MAX_WEIGHT)
    clipped, total = int((raw > MAX_WEIGHT).sum()), weight.sum()
    effective = float(total**2 / max((weight**2).sum(), 1e-300))
    if effective < MIN_EFFECTIVE:
        return Estimates(None, None, None, effective, clipped)
    ips = weight * log.reward
    value = float(ips.sum() / total)
    snips = value + weight * (log.reward - value) * (len(weight) / total)
    dr = log.expected + weight * (log.reward - log.predicted)
    described = [_describe(rows, log.user) for rows in (ips, snips, dr)]
    return Estimates(described[0], described[1], described[2], effective, clipped)


def _describe(rows: Floats, user: Ints) -> Estimate:
    """Return the mean of rows, and its interval by the spread of the sums of users (of the influence function)."""
    _, number = np.unique(user, return_inverse=True)
    mean = float(rows.mean())
    sums = np.bincount(number, rows - mean)
    n_users = len(sums)
    half = Z * np.sqrt((sums**2).sum() * n_users / max(n_users - 1, 1)) / len(rows)
    return Estimate(mean, float(mean - half), float(mean + half))


class RewardModel:
    """Logistic regression of a reward on the score of an item and the slot, the direct method of DR."""

    def __init__(self, score: Floats, position: Ints, reward: Floats) -> None:
        """Fit by maximum likelihood; rewards lie in 0 to 1, positions count from 1."""
        self._centre, self._scale = float(score.mean()), float(score.std()) or 1.0
        inputs = self._inputs(score, position)

        def loss(coefficients: Floats) -> tuple[float, Floats]:
            logits = inputs @ coefficients
            value = np.logaddexp(0, logits).sum() - reward @ logits + _RIDGE * coefficients @ coefficients
            return float(value), inputs.T @ (expit(logits) - reward) + 2 * _RIDGE * coefficients

        self._coefficients: Floats = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B").x

    def predict(self, score: Floats, position: Ints) -> Floats:
        """Return the expected reward, of the shape of the scores."""
        rewards: Floats = expit(self._inputs(score, position) @ self._coefficients)
        return rewards

    def _inputs(self, score: Floats, position: Ints) -> Floats:
        scaled = (score - self._centre) / self._scale
        columns = np.broadcast_arrays(np.ones_like(scaled), scaled, scaled**2, np.log(position), 1 / position)
        return np.stack(columns, axis=-1)
