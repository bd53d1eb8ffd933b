from dataclasses import replace

import evaluation.baselines
import numpy as np
import pytest
from evaluation.baselines import choose_baselines, fit_baselines
from evaluation.holdout import Events
from serve.errors import SchemaError

U, N = 13, 7


def make(n_events: int) -> Events:
    rng = np.random.default_rng(n_events)
    time = rng.integers(0, 10**7, n_events)
    return Events(rng.integers(U, size=n_events), rng.integers(N, size=n_events), time, U, N)


TRAIN, LATER = make(60), make(17)


def fit(chosen, criterion=lambda score: 0.0, log=lambda line: None):
    return list(fit_baselines(chosen, TRAIN, LATER, criterion, log))


def find(name: str, repeats="allow"):
    (baseline,) = choose_baselines(repeats, [name])
    return baseline


def test_baselines_are_chosen_by_name_and_unknown_ones_refused():
    assert choose_baselines("exclude", []) == []
    assert [one.name for one in choose_baselines("exclude", ["ease", "popularity"])] == [
        "popularity",
        "ease",
    ]
    with pytest.raises(
        SchemaError,
        match=r"'eas' is no baseline where repeats is exclude; did you mean 'ease'\?",
    ):
        choose_baselines("exclude", ["popularity", "eas"])
    with pytest.raises(SchemaError, match="allowed: ease, itemknn, popularity, popularity-recent"):
        choose_baselines("exclude", ["personal"])


@pytest.mark.parametrize("name", ["popularity-recent", "personal-decayed", "itemknn", "ease"])
def test_the_best_value_is_fitted_again_on_everything(name):
    baseline, answers, users = find(name), [], np.arange(U)

    def criterion(score):
        answers.append(score(users))
        return float(len(answers) == 3)

    ((_, record, score),) = fit([baseline], criterion)
    assert record["parameter"] == {baseline.parameter: baseline.values[2]}
    assert record["validation"] == {
        f"{value:g}": float(at == 2) for at, value in enumerate(baseline.values)
    }
    (expected,) = baseline.fit(TRAIN.join(LATER), [baseline.values[2]])
    assert (score(users) == expected(users)).all()
    for answer, tried in zip(answers, baseline.fit(TRAIN, baseline.values), strict=True):
        assert (answer == tried(users)).all()


N_PAIRS = int(((2 * np.bincount(TRAIN.user_row)) ** 2).sum())  # train and later events


@pytest.mark.parametrize(("name", "n_bytes"), [("itemknn", 24 * N_PAIRS), ("ease", 20 * N * N)])
def test_baselines_that_do_not_fit_in_half_of_the_memory_are_skipped(monkeypatch, name, n_bytes):
    """Counted for the items that have events."""
    listed = replace(TRAIN, item_row=TRAIN.item_row * 10**4, n_items=10**5)
    reason, lines = "needs more than half of the free memory", []
    for free, is_skipped in ((2 * n_bytes - 2, True), (2 * n_bytes, False)):
        monkeypatch.setattr(evaluation.baselines, "read_free_bytes", lambda free=free: free)
        ((_, record, score),) = fit_baselines([find(name)], listed, listed, None, lines.append)
        assert (score is None) == is_skipped == (record.get("skipped") == reason)
    assert [line.split(", ")[0] for line in lines[:2]] == [
        f"{name}: 100,000 items",
        f"{name}: {reason}",
    ]
