"""Two policies served the same shop by turns, uniform draws and Thompson sampling: each log tells what the other had.

`open_bandit.parquet` is the sample that the PyPI package obp 0.5.7 ships of the Open Bandit Dataset (Saito, Aihara,
Matsutani and Narita, NeurIPS 2021; CC BY 4.0): 10,000 slots of each policy in each of three campaigns.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluation.off_policy import Logged, estimate

from evaluation import off_policy

LOGS = dict(
    list(
        pd.read_parquet(Path(__file__).with_name("open_bandit.parquet")).groupby(
            ["campaign", "policy"], observed=True
        )
    )
)
CAMPAIGNS = ("all", "men", "women")


@pytest.fixture
def without_floors(monkeypatch):
    """Let estimates be made of a log that does not do for one: 38 to 69 clicks are few."""
    for name in ("MIN_REWARDED", "MIN_SHARE"):
        monkeypatch.setattr(off_policy, name, 0.0)
    monkeypatch.setattr(off_policy, "MAX_GAP", np.inf)


def estimate_from(log, target):
    """Estimate what a policy has that shows each logged item in its slot with probability `target`."""
    nothing = np.zeros(len(log))  # there is no model of the reward
    return estimate(
        Logged(
            np.arange(len(log)),
            log["click"].to_numpy(float),
            log["propensity_score"].to_numpy(),
            target,
            nothing,
            nothing,
        )
    )


@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_the_log_of_thompson_sampling_tells_what_uniform_draws_had(campaign, without_floors):
    log, truth = LOGS[campaign, "bts"], LOGS[campaign, "random"]
    found = estimate_from(log, np.full(len(log), 1 / truth["item_id"].nunique()))
    value = truth["click"].mean()
    assert found.snips.low <= value <= found.snips.high
    assert (found.ips.low <= value <= found.ips.high) == (
        campaign != "men"
    )  # there it is .0001 too low
    assert found.ips.value == pytest.approx(found.snips.value, rel=0.08)


@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_the_log_of_uniform_draws_tells_what_thompson_sampling_had(campaign, without_floors):
    """Its probabilities changed within the week; of the week as a whole they are its shares of each slot."""
    log, truth = LOGS[campaign, "random"], LOGS[campaign, "bts"]
    shares = truth.groupby("position")["item_id"].value_counts(normalize=True)
    target = (
        shares.reindex(pd.MultiIndex.from_frame(log[["position", "item_id"]])).fillna(0).to_numpy()
    )
    found, value = estimate_from(log, target), truth["click"].mean()
    for one in (found.ips, found.snips):
        assert one.low <= value <= one.high


@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_so_few_clicks_make_no_estimate(campaign):
    log, truth = LOGS[campaign, "bts"], LOGS[campaign, "random"]
    found = estimate_from(log, np.full(len(log), 1 / truth["item_id"].nunique()))
    assert found.rewarded < off_policy.MIN_REWARDED
    assert (found.ips, found.snips, found.dr) == (None, None, None)
