from __future__ import annotations

import numpy as np
import pytest

import evaluation.intervals
from evaluation.intervals import RESAMPLES, SEED, resample_means, summarise, summarise_difference

U, M = 13, 3


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def test_samples_are_means_of_drawn_rows():
    values, rng = draw(0, U, M), np.random.default_rng(SEED)
    got = resample_means(values)
    assert got.shape == (RESAMPLES, M)
    for row in range(5):
        assert got[row] == pytest.approx(values[rng.integers(U, size=U)].mean(axis=0))


def test_blocks_do_not_change_samples(monkeypatch):
    values = draw(1, U, M)
    whole = resample_means(values)
    monkeypatch.setattr(evaluation.intervals, "BLOCK_BYTES", 8 * U * 7)
    assert resample_means(values) == pytest.approx(whole)


def test_interval_is_about_two_standard_errors():
    values = draw(2, 2000)
    got = summarise({"NDCG@10": values})
    error = values.std() / len(values) ** 0.5
    low, high = got["NDCG@10_ci95"]
    assert got["users"] == 2000
    assert got["NDCG@10"] == pytest.approx(values.mean())
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_pairing_removes_what_users_share():
    users = draw(3, 500)
    ours, theirs = users + 0.01 + 1e-4 * draw(4, 500), users
    got = summarise_difference({"HR@10": ours}, {"HR@10": theirs})
    assert got["HR@10"] == pytest.approx(np.mean(ours - theirs))
    assert 0.01 < got["HR@10_ci95"][0] <= got["HR@10_ci95"][1] < 0.0101


def test_without_users_there_is_no_figure():
    assert summarise({"HR@10": np.zeros(0)}) == {"users": 0}
