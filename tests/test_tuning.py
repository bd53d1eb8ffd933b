from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import evaluation.tuning
from evaluation.baselines import choose_baselines, declare_baselines
from evaluation.ease import fit_ease
from evaluation.events import Events, as_binary, as_counts, as_logs
from evaluation.itemknn import fit_itemknn
from evaluation.tuning import FittedBaseline, SkippedBaseline, fit_baselines, read_free_bytes
from serve.errors import SchemaError

U, N = 13, 7
TRAIN_EVENTS, VALIDATION_EVENTS = 60, 17
REPEATING = ["popularity", "popularity-recent", "personal", "personal-decayed", "itemknn", "ease"]
EXCLUDING = ["popularity", "popularity-recent", "itemknn", "ease"]


def make(n_events: int) -> Events:
    rng = np.random.default_rng(n_events)
    time = rng.integers(0, 10**7, n_events)
    return Events(rng.integers(U, size=n_events), rng.integers(N, size=n_events), time, U, N)


TRAIN, VALIDATION = make(TRAIN_EVENTS), make(VALIDATION_EVENTS)


class Asked:
    """A criterion that likes the model it is asked about as `wanted`, counted from 0, best."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.answers: list[np.ndarray] = []

    def __call__(self, score) -> float:
        self.answers.append(score(np.arange(U)))
        return 1.0 if len(self.answers) == self.wanted + 1 else 0.0


@pytest.mark.parametrize(("repeats", "names"), [("allow", REPEATING), ("exclude", EXCLUDING)])
def test_every_baseline_scores_the_catalogue(repeats, names):
    fitted = list(fit_baselines(declare_baselines(repeats), TRAIN, VALIDATION, lambda score: 0.0))
    assert [baseline.name for baseline in fitted] == names
    for baseline in fitted:
        scores = baseline.score(np.array([3, 0, 12, 5]))
        assert scores.shape == (4, N)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("names", "chosen"), [(None, EXCLUDING), ([], []), (["ease", "popularity"], ["popularity", "ease"])]
)
def test_baselines_are_chosen_by_name(names, chosen):
    assert [baseline.name for baseline in choose_baselines("exclude", names)] == chosen


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eas", r"'eas' is no baseline where repeats is exclude; did you mean 'ease'\?"),
        ("personal", r"'personal' is no baseline where repeats is exclude; allowed: ease, itemknn, popularity"),
    ],
)
def test_a_baseline_that_the_protocol_has_not(name, message):
    with pytest.raises(SchemaError, match=message):
        choose_baselines("exclude", ["popularity", name])


@pytest.mark.parametrize("repeats", ["allow", "exclude"])
def test_at_most_five_values_are_tried(repeats):
    for baseline in declare_baselines(repeats):
        assert len(set(baseline.values)) == len(baseline.values) <= 5


def find(name: str):
    return next(baseline for baseline in declare_baselines("allow") if baseline.name == name)


@pytest.mark.parametrize("name", ["popularity-recent", "personal-decayed", "itemknn", "ease"])
def test_the_best_value_is_fitted_again_on_everything(name):
    baseline, criterion = find(name), Asked(wanted=2)
    (got,) = fit_baselines([baseline], TRAIN, VALIDATION, criterion)
    assert isinstance(got, FittedBaseline)
    assert got.parameter == {baseline.parameter: baseline.values[2]}
    assert got.validation == {value: float(at == 2) for at, value in enumerate(baseline.values)}
    assert len(criterion.answers) == 5
    whole = Events(*(np.concatenate(parts) for parts in zip(columns(TRAIN), columns(VALIDATION), strict=True)), U, N)
    (expected,) = baseline.fit(whole, [baseline.values[2]])
    assert (got.score(np.arange(U)) == expected.score(np.arange(U))).all()
    for answer, scorer in zip(criterion.answers, baseline.fit(TRAIN, baseline.values), strict=True):
        assert (answer == scorer.score(np.arange(U))).all()


def columns(events: Events):
    return events.user_row, events.item_row, events.time


def test_without_a_parameter_validation_is_not_asked():
    criterion = Asked(wanted=0)
    (got,) = fit_baselines([find("personal")], TRAIN, VALIDATION, criterion)
    assert (got.parameter, got.validation, criterion.answers) == ({}, {}, [])


def test_without_validation_the_middle_value_is_taken():
    (got,) = fit_baselines([find("itemknn")], TRAIN, VALIDATION, None)
    assert (got.parameter, got.validation) == ({"neighbours": 20}, {})


def test_what_does_not_fit_in_memory_is_skipped_without_figures(monkeypatch):
    monkeypatch.setattr(evaluation.tuning, "read_free_bytes", lambda: 3 * 2**30)
    large = replace(find("ease"), estimate_bytes=lambda events: 2 * 2**30)
    small = replace(find("itemknn"), estimate_bytes=lambda events: 2**30)
    skipped, fitted = fit_baselines([large, small], TRAIN, VALIDATION, lambda score: 0.0)
    assert skipped == SkippedBaseline("ease", "needs more than half of the free memory")
    assert fitted.name == "itemknn"


@pytest.mark.parametrize("name", ["itemknn", "ease"])
def test_memory_is_estimated_from_sizes(name):
    estimate = find(name).estimate_bytes
    every_item = Events(np.zeros(10**6, np.int64), np.arange(10**6), None, 10**6, 10**6)
    assert estimate(every_item) > 4 * 10**9
    assert estimate(replace(every_item, n_users=1000)) < 2**34
    assert estimate(TRAIN) < 2**20


@pytest.mark.parametrize("name", ["itemknn", "ease"])
def test_memory_is_estimated_for_the_items_that_have_events(name):
    estimate = find(name).estimate_bytes
    listed = replace(TRAIN, item_row=TRAIN.item_row * 10**5, n_items=10**6)
    assert len(np.unique(TRAIN.item_row)) == N
    assert estimate(listed) == estimate(TRAIN)


@pytest.mark.parametrize("n_users", [U, 3 * N])
@pytest.mark.parametrize("repeats", ["allow", "exclude"])
@pytest.mark.parametrize(("name", "fit"), [("itemknn", fit_itemknn), ("ease", fit_ease)])
def test_items_without_events_change_no_score(name, fit, repeats, n_users):
    baseline = next(one for one in declare_baselines(repeats) if one.name == name)
    rows = np.array([2, 3, 5, 11, 12, 16, 18])  # (N,), ascending
    listed = replace(TRAIN, item_row=rows[TRAIN.item_row], n_users=n_users, n_items=19)
    strength = strength_of(name, repeats)
    users = np.arange(n_users)  # those from U on have no event
    for value, scorer in zip(baseline.values, baseline.fit(listed, baseline.values), strict=True):
        (over_all,) = fit(listed, [value], strength)
        (over_taken,) = fit(replace(TRAIN, n_users=n_users), [value], strength)
        scores = scorer.score(users)
        assert scores == pytest.approx(over_all.score(users), abs=1e-6)
        assert (scores[:, rows] == over_taken.score(users)).all()
        assert (np.delete(scores, rows, axis=1) == (-1 if name == "itemknn" else 0)).all()


def strength_of(name: str, repeats: str):
    if repeats == "exclude":
        return as_binary
    return as_counts if name == "itemknn" else as_logs


@pytest.mark.parametrize("name", ["itemknn", "ease"])
def test_without_any_event_every_item_scores_alike(name, capfd):
    nothing = TRAIN.keep(np.zeros(TRAIN_EVENTS, bool))
    (scorer,) = find(name).fit(nothing, [3])
    assert len(np.unique(scorer.score(np.arange(U)))) == 1
    assert capfd.readouterr() == ("", "")  # LAPACK says on the console what it will not take


def test_baselines_that_need_times_are_skipped_without():
    train, validation = replace(TRAIN, time=None), replace(VALIDATION, time=None)
    got = fit_baselines(declare_baselines("allow"), train, validation, lambda score: 0.0)
    skipped = {baseline.name: baseline.reason for baseline in got if isinstance(baseline, SkippedBaseline)}
    assert set(skipped) == {"popularity-recent", "personal-decayed"}
    assert set(skipped.values()) == {"the interactions have no times"}


def test_free_memory_is_what_the_kernel_says(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation.tuning, "_CGROUP", tmp_path)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  97 kB\nMemAvailable:  53 kB\n")
    monkeypatch.setattr(evaluation.tuning, "_MEMINFO", meminfo)
    assert read_free_bytes() == 53 * 1024


def test_free_memory_without_the_kernels_estimate(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation.tuning, "_CGROUP", tmp_path)
    monkeypatch.setattr(evaluation.tuning, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(evaluation.tuning.os, "sysconf", {"SC_PHYS_PAGES": 11, "SC_PAGE_SIZE": 7}.get)
    monkeypatch.setattr(evaluation.tuning.os, "sysconf_names", {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 2})
    assert read_free_bytes() == 77


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("5000", "1300", 3700), ("5000", "5003", 0), ("max", "1300", 53 * 1024), ("5000", "", 53 * 1024)],
)
def test_a_containers_limit_counts(monkeypatch, tmp_path, limit, used, expected):
    for name, text in {"meminfo": "MemAvailable: 53 kB", "memory.max": limit, "memory.current": used}.items():
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(evaluation.tuning, "_CGROUP", tmp_path)
    monkeypatch.setattr(evaluation.tuning, "_MEMINFO", tmp_path / "meminfo")
    assert read_free_bytes() == expected
