"""The account of noise is exact: checked by integration, and by the accountants of others."""

import math

import numpy as np
import pytest
from privacy.gaussian import Account, find_deviation, find_epsilon, measure_delta
from scipy.integrate import quad
from scipy.stats import norm

DELTA = 1e-5


def integrate_delta(deviation, epsilon):
    """The mass by which one outcome's density exceeds e^epsilon times the neighbour's."""

    def excess(point):
        here = norm.pdf(point, 1, deviation)
        return max(here - math.exp(epsilon) * norm.pdf(point, 0, deviation), 0.0)

    border = epsilon * deviation**2 + 0.5
    return quad(excess, border, border + 40 * deviation, limit=500)[0]


def make_account(epsilon=2.0):
    return Account(epsilon, DELTA, np.random.default_rng(0))


@pytest.mark.parametrize(("deviation", "epsilon"), [(0.7, 2.0), (1.3, 1.0), (3.0, 0.5)])
def test_delta_is_the_mass_above_the_bound(deviation, epsilon):
    expected = integrate_delta(deviation, epsilon)
    assert measure_delta(deviation, epsilon) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 1.0, 8.0, 100.0])
def test_noise_is_as_small_as_the_bound_allows(epsilon):
    deviation = find_deviation(epsilon, DELTA)
    assert measure_delta(deviation, epsilon) == pytest.approx(DELTA, rel=1e-4)
    assert measure_delta(0.99 * deviation, epsilon) > DELTA
    assert find_epsilon(deviation, DELTA) == pytest.approx(epsilon, rel=1e-6)


def test_releases_that_share_a_budget_spend_it():
    account = make_account()
    shares = (0.2, 0.3, 0.5)
    for share in shares:
        account.release(f"{share}", np.zeros(3), share)
    assert account.spent() == pytest.approx(2.0)
    precisions = [1 / account.find_share(share) ** 2 for share in shares]
    assert sum(precisions) == pytest.approx(1 / find_deviation(2.0, DELTA) ** 2)


def test_the_account_states_more_than_the_bound_if_more_is_released():
    account = make_account()
    account.release("all of it", np.zeros(3), 1.0)
    account.release("more", np.zeros(3), 0.5)
    assert account.spent() > 2.3
    assert account.describe()["epsilon"] == pytest.approx(account.spent())


def test_noise_has_the_deviation_that_is_stated():
    account = make_account()
    noised = account.release("zeros", np.zeros(200_000), 0.25)
    assert noised.std() == pytest.approx(2 * find_deviation(2.0, DELTA), rel=0.01)
    assert account.describe()["releases"]["zeros"]["noise"] == pytest.approx(noised.std(), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_other_accountants_agree(epsilon):
    pld = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    opacus = pytest.importorskip("opacus.accountants")
    account = make_account(epsilon)
    account.release("popularity", np.zeros(3), 0.1)
    account.release("Gram matrix", np.zeros(3), 0.9)
    first, second = (release.deviation for release in account.releases)

    composed = pld.from_gaussian_mechanism(first).compose(pld.from_gaussian_mechanism(second))
    assert composed.get_epsilon_for_delta(DELTA) == pytest.approx(epsilon, rel=1e-3)

    # Rényi's bound is looser, never lower.
    renyi = opacus.RDPAccountant()
    renyi.history = [(first, 1.0, 1), (second, 1.0, 1)]
    assert epsilon <= renyi.get_epsilon(DELTA) < 1.2 * epsilon
