"""The Gaussian mechanism, and an account of all that a bundle releases.

Two tables are neighbours if one has all events of one user that the other lacks: the unit is a
user. A release f has sensitivity 1 if f differs by at most 1 in Euclidean length between
neighbours. Gaussian noise of deviation s makes it s^-1-Gaussian private, and releases of
deviations s_k, each chosen after the earlier ones, are together as private as one of deviation

    s = (sum over k of s_k^-2)^(-1/2)                     (Dong, Roth, Su, 2022, corollary 3.3)

One of deviation s is (epsilon, delta) private if and only if

    Phi(1 / 2s - epsilon s) - e^epsilon Phi(-1 / 2s - epsilon s) <= delta   (Balle, Wang, 2018)

So the account is exact. Both calculate with real numbers: floating-point noise is very nearly, not
exactly, of this kind (Mironov, 2012). What is computed from releases alone costs nothing more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from serve.arrays import Doubles

LOWEST_DEVIATION = 1e-2
HIGHEST_DEVIATION = 1e5
HIGHEST_EPSILON = 1e4


def measure_delta(deviation: float, epsilon: float) -> float:
    """Return the smallest delta of noise for a release of sensitivity 1.

    Source: Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018,
    theorem 8.
    """
    middle = epsilon * deviation
    half = 0.5 / deviation
    # The product is e^epsilon Phi(...), whose first factor may be too large for a float.
    product = math.exp(min(epsilon + float(log_ndtr(-half - middle)), 0.0))
    return float(ndtr(half - middle)) - product


def find_deviation(epsilon: float, delta: float) -> float:
    """Return the least deviation of noise that makes sensitivity 1 (epsilon, delta) private."""
    return float(
        brentq(
            lambda deviation: measure_delta(deviation, epsilon) - delta,
            LOWEST_DEVIATION,
            HIGHEST_DEVIATION,
        )
    )


def find_epsilon(deviation: float, delta: float) -> float:
    """Return the least epsilon of noise for a release of sensitivity 1."""
    return float(
        brentq(
            lambda epsilon: measure_delta(deviation, epsilon) - delta,
            0.0,
            HIGHEST_EPSILON,
        )
    )


@dataclass(frozen=True)
class Release:
    """A noised array."""

    name: str
    n_numbers: int
    deviation: float  # of the noise, for a sensitivity of 1


@dataclass
class Account:
    """Noises what leaves the people's data, and counts it.

    Attributes:
        epsilon: for everything released.
        delta: for everything released.
        rng: the noise. Whoever knows its seed can take the noise away again, so that a run never
            takes it from the seed of its configuration, which is published.
    """

    epsilon: float
    delta: float
    rng: np.random.Generator
    releases: list[Release] = field(default_factory=list)

    def find_share(self, share: float) -> float:
        """Return the deviation of a release that gets a share of the budget."""
        return find_deviation(self.epsilon, self.delta) / math.sqrt(share)

    def spent(self) -> float:
        """Return the epsilon of all releases so far."""
        precisions = [release.deviation**-2 for release in self.releases]
        return find_epsilon(math.fsum(precisions) ** -0.5, self.delta)

    def release(self, name: str, values: Doubles, share: float) -> Doubles:
        """Return values with noise.

        Args:
            name: of the release, for the account.
            values: a vector in which a user changes at most a length of 1.
            share: of the budget; `spent` says what all of them took.
        """
        deviation = self.find_share(share)
        self.releases.append(Release(name, values.size, deviation))
        return values + deviation * self.rng.standard_normal(values.shape)

    def describe(self) -> dict[str, Any]:
        """Return what a run states of its privacy, as JSON values."""
        releases = {
            release.name: {
                "numbers": release.n_numbers,
                "noise": round(release.deviation, 6),
            }
            for release in self.releases
        }
        return {
            "epsilon": round(self.spent(), 6),
            "delta": self.delta,
            "unit": "a user: all events of a person, added or removed",
            "mechanism": "Gaussian noise on counts of rows of length 1, composed exactly",
            "releases": releases,
        }
