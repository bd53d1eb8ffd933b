from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from functools import cache

import numpy as np
import pandas as pd
import pytest

from evaluation.evaluate import evaluate
from evaluation.holdout import contextual_requests
from evaluation.progress import UNWATCHED
from evaluation.validation import sample_users
from serve.errors import SchemaError
from serve.schema import Feature
from tests.fake_recommender import FakeRecommender

N, U = 31, 13
ITEMS = [f"item-{row:02d}" for row in np.random.default_rng(9).permutation(N)]  # the catalogue is in no order
USERS = [f"user-{row}" for row in range(U)]
NEW_USER, NEW_ITEM = "user-new", "item-new"
AT = 1_600_000_000
DAY = 86_400
KEEP = {
    "all": lambda item, owned: True,
    "repeat": lambda item, owned: item in owned,
    "novel": lambda item, owned: item not in owned,
}
MODELS_ALLOW = [
    "bascule",
    "popularity",
    "popularity-recent",
    "personal",
    "personal-decayed",
    "itemknn",
    "ease",
]
MODELS_EXCLUDE = ["bascule", "popularity", "popularity-recent", "itemknn", "ease"]


def make_rows(n, first, last, seed) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user_id": rng.choice(USERS, n),
            "item_id": rng.choice(ITEMS, n),
            "datetime": rng.integers(first, last, n),
            "device": rng.choice(np.array(["web", "phone", None], object), n),
        }
    )


TRAIN = make_rows(150, AT - 90 * DAY, AT - 20 * DAY, 1)
VALIDATION = make_rows(47, AT - 20 * DAY, AT, 2)
HOLDOUT = pd.concat(
    [
        make_rows(59, AT, AT + 20 * DAY, 3),
        pd.DataFrame(
            {
                "user_id": [NEW_USER, NEW_USER, USERS[0], USERS[0]],
                "item_id": [ITEMS[4], NEW_ITEM, "item-other", NEW_ITEM],
                "datetime": [AT + 5] * 4,
            }
        ),
    ],
    ignore_index=True,
)
DEMOGRAPHICS = pd.DataFrame({"user_id": USERS[:7], "gender": ["f", "m", "f", None, "m", "f", "f"]})


def owned_items() -> dict[str, set[str]]:
    past = pd.concat([TRAIN, VALIDATION])
    return {user: set(items) for user, items in past.groupby("user_id")["item_id"]}


def make_recommender(**schema) -> FakeRecommender:
    return FakeRecommender(ITEMS, [*USERS, NEW_USER], owned_items(), **schema)


def run(recommender, at, holdout=HOLDOUT, validation=VALIDATION, progress=UNWATCHED, baselines=None):
    return evaluate(recommender, holdout, TRAIN, validation, DEMOGRAPHICS, at, ["gender"], 3, progress, baselines)


@cache
def run_allowing() -> tuple[FakeRecommender, dict]:
    recommender = make_recommender(repeats="allow")
    return recommender, run(recommender, AT)


def naive_metrics(ranked: list, wanted: set) -> dict[str, float]:
    """Loop over one list, as the benchmark's scorer defines the metrics."""

    def ndcg(k):
        gained = sum(1 / math.log2(place + 2) for place, item in enumerate(ranked[:k]) if item in wanted)
        return gained / sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))

    hits = [place + 1 for place, item in enumerate(ranked[:10]) if item in wanted]
    return {
        "HR@10": 1.0 if hits else 0.0,
        "Recall@20": len(wanted & set(ranked[:20])) / len(wanted),
        "NDCG@10": ndcg(10),
        "NDCG@20": ndcg(20),
        "MRR@10": 1 / hits[0] if hits else 0.0,
    }


def naive_evaluation(recommender, targets, keep_list, keep_target, extra=lambda key: {}) -> dict[str, float]:
    """Average over requests within a user, then over users.

    `targets`: (user, anything) -> set of items.
    """
    by_user: dict[str, list[dict[str, float]]] = {}
    for key, items in targets.items():
        owned = recommender.owned.get(key[0], set())
        wanted = {item for item in items if keep_target(item, owned)}
        if wanted:
            request = {"user_id": key[0]} | extra(key)
            ranked = [ITEMS[row] for row in recommender.rank(request, 20, keep_list)]
            by_user.setdefault(key[0], []).append(naive_metrics(ranked, wanted))
    means = [{name: np.mean([one[name] for one in some]) for name in some[0]} for some in by_user.values()]
    return {"users": len(means)} | {name: np.mean([mean[name] for mean in means]) for name in means[0]}


def assert_figures(got, expected):
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    for name in expected.keys() - {"users"}:
        low, high = got[f"{name}_ci95"]
        assert low <= got[name] <= high


def targets_by(keys) -> dict[tuple, set[str]]:
    return {
        key if isinstance(key, tuple) else (key,): set(items)
        for key, items in HOLDOUT.groupby(keys if len(keys) > 1 else keys[0])["item_id"]
    }


@pytest.mark.parametrize("view", ["all", "repeat", "novel"])
def test_time_split_asks_each_user_once(view):
    recommender, metrics = run_allowing()
    assert all(
        request == {"user_id": request["user_id"], "datetime": datetime.fromtimestamp(AT, UTC)}
        for requests in recommender.asked
        for request in requests
    )
    assert {len(requests) for requests in recommender.asked} == {HOLDOUT["user_id"].nunique()}
    expected = naive_evaluation(recommender, targets_by(["user_id"]), KEEP[view], KEEP[view])
    assert_figures(metrics["test"]["bascule"][view], expected)


def test_time_split_with_repeats_has_all_parts():
    _, metrics = run_allowing()
    assert json.loads(json.dumps(metrics)) == metrics
    assert list(metrics["test"]) == MODELS_ALLOW
    assert all(list(views) == ["all", "repeat", "novel"] for views in metrics["test"].values())
    assert list(metrics["paired"]) == list(metrics["baselines"]) == MODELS_ALLOW[1:]
    assert list(metrics["beyond_accuracy"]) == MODELS_ALLOW
    assert "with_context" not in metrics
    assert metrics["protocol"]["n_requests"] == HOLDOUT["user_id"].nunique()
    figures = metrics["test"]["bascule"]
    pairs = HOLDOUT.drop_duplicates(["user_id", "item_id"])
    assert {view: figures[view]["targets_outside_catalogue"] for view in figures} == {
        "all": 3,
        "repeat": 0,
        "novel": 3,
    }
    assert figures["all"]["targets"] == len(pairs)
    assert figures["repeat"]["targets"] + figures["novel"]["targets"] == len(pairs)
    assert {figures[view]["unreachable_targets"] for view in figures} == {0}


@pytest.mark.parametrize("ties", ["ordered", "simultaneous"])
def test_without_a_moment_each_user_is_asked_once_for_the_items_of_all_times(ties):
    recommender = make_recommender(repeats="exclude", ties=ties)
    metrics = run(recommender, at=None)
    targets = targets_by(["user_id"])
    assert list(metrics["test"]) == MODELS_EXCLUDE
    assert recommender.asked[0] == [{"user_id": user} for (user,) in sorted(targets)]
    assert metrics["protocol"]["requests"].startswith("one per user of the holdout, for all her items there, without")
    everything = KEEP["all"]
    assert_figures(
        metrics["test"]["bascule"]["novel"], naive_evaluation(recommender, targets, KEEP["novel"], everything)
    )
    owned = recommender.owned
    unreachable = sum(item in owned.get(user, ()) for (user,), items in targets.items() for item in items)
    assert metrics["test"]["bascule"]["novel"]["unreachable_targets"] == unreachable > 0


def test_context_is_a_second_block():
    recommender = make_recommender(repeats="exclude")
    metrics = run(recommender, at=None)
    (plain, contextual), first = recommender.asked, HOLDOUT.groupby(["user_id", "datetime"]).nth(0)
    assert (len(plain), len(contextual)) == (HOLDOUT["user_id"].nunique(), len(first))
    devices = {(row.user_id, row.datetime): row.device for row in first.itertuples()}
    assert {type(request["context"]["device"]) for request in contextual} == {str, type(None)}
    for request in contextual:
        device = devices[request["user_id"], int(request["datetime"].timestamp())]
        assert request["context"] == {"device": None if pd.isna(device) else device}
    targets = targets_by(["user_id", "datetime"])
    for model, extra in (("bascule", {"context": {}}), ("bascule without context", {})):
        expected = naive_evaluation(recommender, targets, KEEP["novel"], KEEP["all"], lambda key, extra=extra: extra)
        assert_figures(metrics["with_context"][model]["novel"], expected)
    informed, uninformed = (metrics["with_context"][name]["novel"] for name in metrics["with_context"])
    (gain,) = metrics["paired_with_context"].values()
    assert list(metrics["paired_with_context"]) == ["bascule without context"]
    assert gain["novel"]["NDCG@10"] == pytest.approx(informed["NDCG@10"] - uninformed["NDCG@10"]) != 0


def test_without_times_context_is_asked_for_each_user_and_item():
    recommender = make_recommender(repeats="exclude", has_datetime=False)
    holdout = pd.concat([HOLDOUT, HOLDOUT.head(3).assign(device="tv")]).drop(columns="datetime")
    metrics = run(recommender, at=None, holdout=holdout, baselines=[])
    first = holdout.drop_duplicates(["user_id", "item_id"]).sort_values(["user_id", "item_id"])
    assert len(first) < len(holdout)
    assert metrics["protocol"]["with_context"].startswith(f"{len(first)} requests, one per user and item of the")
    devices = [None if pd.isna(device) else device for device in first["device"]]
    asked = [
        {"user_id": user, "context": {"device": device}} for user, device in zip(first["user_id"], devices, strict=True)
    ]
    assert recommender.asked[1] == asked
    targets = targets_by(["user_id", "item_id"])
    for model, extra in (("bascule", {"context": {}}), ("bascule without context", {})):
        expected = naive_evaluation(recommender, targets, KEEP["novel"], KEEP["all"], lambda key, extra=extra: extra)
        assert_figures(metrics["with_context"][model]["novel"], expected)


@pytest.mark.parametrize("ties", ["ordered", "simultaneous"])
def test_of_one_last_event_or_basket_each_both_blocks_ask_the_same(ties):
    last = HOLDOUT["datetime"] == HOLDOUT.groupby("user_id")["datetime"].transform("max")
    holdout = HOLDOUT[last] if ties == "simultaneous" else HOLDOUT[last].drop_duplicates("user_id")
    metrics = run(make_recommender(repeats="exclude", ties=ties), at=None, holdout=holdout)
    assert metrics["with_context"]["bascule without context"] == metrics["test"]["bascule"]
    assert metrics["with_context"]["bascule"] != metrics["test"]["bascule"]


def test_a_list_that_begins_with_all_held_out_items_is_perfect():
    recommender = make_recommender(repeats="exclude")
    wanted = [row for row, item in enumerate(ITEMS) if item not in recommender.owned[USERS[0]]][:5]
    recommender.scores[USERS[0]][wanted] = 2
    times = AT + DAY * np.arange(5)
    holdout = pd.DataFrame({"user_id": USERS[0], "item_id": [ITEMS[row] for row in wanted], "datetime": times})
    assert run(recommender, at=None, holdout=holdout)["test"]["bascule"]["novel"]["NDCG@10"] == 1


@pytest.mark.parametrize("unread", [["datetime", "device"], ["device"], []])
def test_where_the_bundle_reads_neither_times_nor_context_there_is_no_second_block(unread):
    recommender = make_recommender(repeats="exclude", has_datetime=False, context_features=())
    holdout = HOLDOUT.drop(columns=unread)
    metrics = run(recommender, at=None, holdout=holdout)
    assert "with_context" not in metrics
    assert recommender.asked == [[{"user_id": user} for user in sorted(holdout["user_id"].unique())]]


def test_paired_differences_are_of_the_same_users():
    _, metrics = run_allowing()
    for name, views in metrics["paired"].items():
        for view, difference in views.items():
            model, baseline = metrics["test"]["bascule"][view], metrics["test"][name][view]
            assert difference["users"] == model["users"] == baseline["users"]
            assert difference["NDCG@20"] == pytest.approx(model["NDCG@20"] - baseline["NDCG@20"])


def assert_popularity(figures, past: list[str], keep_target) -> None:
    """Compare with the ranking of how often each item is in `past`."""
    ranked = sorted(range(N), key=lambda row: (-past.count(ITEMS[row]), row))
    popular = FakeRecommender(ITEMS, [*USERS, NEW_USER], owned_items())
    popular.rank = lambda request, k, keep: [
        row for row in ranked if keep(ITEMS[row], popular.owned.get(request["user_id"], set()))
    ][:k]
    for view in figures:
        assert_figures(figures[view], naive_evaluation(popular, targets_by(["user_id"]), KEEP[view], keep_target(view)))


def test_popularity_is_the_ranking_of_counts():
    _, metrics = run_allowing()
    assert_popularity(metrics["test"]["popularity"], pd.concat([TRAIN, VALIDATION])["item_id"].tolist(), KEEP.get)


def test_popularity_counts_a_user_once_where_nothing_is_taken_again():
    pairs = pd.concat([TRAIN, VALIDATION]).drop_duplicates(["user_id", "item_id"])
    assert len(pairs) < len(TRAIN) + len(VALIDATION)
    metrics = run(make_recommender(repeats="exclude"), AT, baselines=["popularity"])
    assert_popularity(metrics["test"]["popularity"], pairs["item_id"].tolist(), lambda _: KEEP["all"])


def test_beyond_accuracy_is_of_the_headline_lists():
    recommender, metrics = run_allowing()
    users = HOLDOUT["user_id"].unique()
    shown = {row for user in users for row in recommender.rank({"user_id": user}, 10, KEEP["all"])}
    assert metrics["beyond_accuracy"]["bascule"]["coverage@10"] == len(shown) / N


def test_slices_are_parts_of_the_targets():
    recommender, metrics = run_allowing()
    slices = metrics["slices"]
    assert list(slices) == ["all", "repeat", "novel"]
    assert set(slices["all"]) == {"history", "item_events", "popularity", "gender"}
    gender = DEMOGRAPHICS.dropna().set_index("user_id")["gender"].to_dict()
    for value in ("f", "m", "missing"):
        some = {key: items for key, items in targets_by(["user_id"]).items() if gender.get(key[0], "missing") == value}
        assert_figures(slices["all"]["gender"][value], naive_evaluation(recommender, some, KEEP["all"], KEEP["all"]))
    n_events = pd.concat([TRAIN, VALIDATION])["user_id"].value_counts()
    n_events = n_events.reindex(HOLDOUT["user_id"].unique(), fill_value=0)  # of one user each: the new one has none
    groups = pd.cut(n_events, [-1, 0, 4, 19, 999], labels=["0", "1-4", "5-19", "20+"]).value_counts()
    assert {value: slices["all"]["history"][value]["users"] for value in slices["all"]["history"]} == dict(
        groups[groups > 0]
    )


def test_parameters_are_chosen_on_validation():
    baselines = run_allowing()[1]["baselines"]
    tried = baselines["personal-decayed"]["validation"]
    assert list(tried) == ["15", "30", "60", "120", "240"]
    best = baselines["personal-decayed"]["parameter"]["days"]
    assert tried[f"{best:g}"] == max(tried.values())
    assert baselines["popularity"]["parameter"] == {}


@pytest.mark.parametrize(
    ("repeats", "metric", "views"), [("allow", "NDCG@20", ["all", "novel"]), ("exclude", "NDCG@10", ["novel"])]
)
def test_criterion_is_the_mean_of_the_views_on_validation(monkeypatch, repeats, metric, views):
    """Personal frequency by a naive loop, on the validation window, from training events alone."""
    naive, wanted = rank_by_frequency(), wanted_of(VALIDATION)
    kept = KEEP if repeats == "allow" else dict.fromkeys(KEEP, KEEP["all"])  # what she has is a miss there
    expected = [naive_evaluation(naive, wanted, KEEP[view], kept[view])[metric] for view in views]
    assert validate_personal(monkeypatch, repeats, VALIDATION) == pytest.approx(np.mean(expected))


def test_a_view_without_targets_says_nothing_of_a_value(monkeypatch):
    """Where all of the validation are items that their users have, none is novel."""
    pairs = pd.MultiIndex.from_frame(TRAIN[["user_id", "item_id"]])
    owned = VALIDATION[pd.MultiIndex.from_frame(VALIDATION[["user_id", "item_id"]]).isin(pairs)]
    expected = naive_evaluation(rank_by_frequency(), wanted_of(owned), KEEP["all"], KEEP["all"])["NDCG@20"]
    assert validate_personal(monkeypatch, "allow", owned) == pytest.approx(expected)


def test_values_are_chosen_by_users_that_the_seed_draws(monkeypatch):
    monkeypatch.setattr("evaluation.validation.MOST_USERS", 4)
    drawn, others = (sample_users(VALIDATION, seed) for seed in (3, 0))
    assert set(drawn["user_id"]) != set(others["user_id"])
    naive, wanted = rank_by_frequency(), wanted_of(drawn)
    expected = [naive_evaluation(naive, wanted, KEEP[view], KEEP[view])["NDCG@20"] for view in ("all", "novel")]
    assert validate_personal(monkeypatch, "allow", VALIDATION) == pytest.approx(np.mean(expected))


def rank_by_frequency() -> FakeRecommender:
    history = {user: items.tolist() for user, items in TRAIN.groupby("user_id")["item_id"]}
    counts = TRAIN["item_id"].tolist()

    def rank(request, k, keep):
        mine = history.get(request["user_id"], [])
        places = [(-mine.count(item), -counts.count(item), row) for row, item in enumerate(ITEMS)]
        return [row for *_, row in sorted(places) if keep(ITEMS[row], set(mine))][:k]

    naive = FakeRecommender(ITEMS, USERS, {user: set(items) for user, items in history.items()})
    naive.rank = rank
    return naive


def wanted_of(rows: pd.DataFrame) -> dict[tuple, set[str]]:
    return {(user,): set(items) for user, items in rows.groupby("user_id")["item_id"]}


def validate_personal(monkeypatch, repeats, validation) -> float:
    monkeypatch.setattr("evaluation.evaluate.choose_baselines", lambda *_: [personal_with_a_parameter()])
    baselines = run(make_recommender(repeats=repeats), AT, validation=validation)["baselines"]
    return baselines["personal"]["validation"]["1"]


def personal_with_a_parameter():
    from evaluation.baselines import Baseline
    from evaluation.popularity import fit_personal

    return Baseline("personal", lambda events, values: iter([fit_personal(events)]), "nothing", (1,))


def test_without_validation_the_middle_value_is_taken():
    metrics = run(make_recommender(repeats="allow"), AT, validation=VALIDATION[:0])
    assert metrics["baselines"]["itemknn"]["parameter"] == {"neighbours": 20}
    assert metrics["baselines"]["itemknn"]["validation"] == {}


def test_events_on_items_outside_the_catalogue_tell_baselines_nothing():
    gone, names = TRAIN.head(5).assign(item_id="item-gone"), ["popularity", "personal-decayed", "itemknn", "ease"]
    recommender, train = make_recommender(repeats="allow"), pd.concat([gone, TRAIN])
    metrics = evaluate(recommender, HOLDOUT, train, VALIDATION, DEMOGRAPHICS, AT, ["gender"], 3, baselines=names)
    _, expected = run_allowing()
    assert {name: metrics["test"][name] for name in names} == {name: expected["test"][name] for name in names}


def test_order_of_rows_does_not_matter():
    _, first = run_allowing()
    second = run(make_recommender(repeats="allow"), AT, holdout=HOLDOUT.sample(frac=1.0, random_state=5))
    assert first["test"] == second["test"]
    assert first["slices"] == second["slices"]


def test_nothing_held_out_is_refused():
    with pytest.raises(SchemaError, match="holdout has no interactions"):
        run(make_recommender(repeats="allow"), AT, holdout=HOLDOUT[:0])


def test_a_group_may_be_named_twice_and_hold_numbers():
    users = DEMOGRAPHICS.assign(age=[30, 31, 30, 30, 31, 31, 30])
    metrics = evaluate(make_recommender(), HOLDOUT, TRAIN, VALIDATION, users, AT, ["age", "gender", "age"], seed=3)
    assert set(metrics["slices"]["all"]) == {"history", "item_events", "popularity", "gender", "age"}
    assert set(metrics["slices"]["all"]["age"]) == {"30", "31", "missing"}


def test_context_is_stated_as_vocabularies_know_it():
    days = pd.to_datetime(["2020-02-03", None, "2020-02-05"]).date
    features = tuple(
        Feature(name, kind, name)
        for name, kind in (("day", "categorical"), ("tags", "multi_categorical"), ("load", "numeric"))
    )
    rows = pd.DataFrame({"user_id": ["a", "b", "c"], "day": days, "tags": ["x|y", None, " z "], "datetime": AT})
    rows["load"] = [1.5, np.nan, 2.0]
    schema = make_recommender(has_datetime=False, context_features=features).bundle.schema
    assert contextual_requests(rows, schema) == [
        {"user_id": "a", "context": {"day": "2020-02-03", "tags": ["x", "y"], "load": 1.5}},
        {"user_id": "b", "context": {"day": None, "tags": None, "load": None}},
        {"user_id": "c", "context": {"day": "2020-02-05", "tags": ["z"], "load": 2.0}},
    ]


def test_protocol_says_where_derived_context_comes_from():
    hour = Feature("hour", "hour_of_day", "datetime")
    metrics = run(make_recommender(context_features=(hour,)), AT)
    assert metrics["protocol"]["requests"].endswith("+00:00, hour of that moment, no other context")
    assert run(make_recommender(context_features=()), AT)["protocol"]["requests"].endswith(", without context")


@pytest.mark.parametrize(
    ("repeats", "at", "said"),
    [
        (
            "allow",
            AT,
            {
                "split": "time",
                "tuning": "baselines: NDCG@20, mean of the views all and novel, on validation",
                "beyond_accuracy": "lists of the view all",
            },
        ),
        (
            "exclude",
            None,
            {
                "split": "held-out interactions",
                "tuning": "baselines: NDCG@10, view novel, on validation",
                "beyond_accuracy": "lists of the view novel",
                "requests": "one per user of the holdout, for all her items there, without datetime and context",
            },
        ),
    ],
)
def test_the_protocol_says_what_was_done(repeats, at, said):
    protocol = run(make_recommender(repeats=repeats), at, baselines=[])["protocol"]
    n_users = HOLDOUT["user_id"].nunique()
    counts = {"n_requests": n_users, "n_users": n_users, "n_items": N, "k": 20, "repeats": repeats}
    assert {name: protocol[name] for name in said | counts} == said | counts
    assert list(protocol["views"]) == (["all", "repeat", "novel"] if repeats == "allow" else ["novel"])
    assert ("out of reach" in protocol["views"]["novel"]) == (repeats == "exclude")
    assert ("with_context" in protocol) == (at is None)


def test_an_unknown_group_is_refused():
    with pytest.raises(SchemaError, match=r"'gendre' .* did you mean 'gender'"):
        evaluate(make_recommender(), HOLDOUT, TRAIN, VALIDATION, DEMOGRAPHICS, AT, ["gendre"], seed=3)


def test_without_baselines_the_bundle_stands_alone():
    metrics = run(make_recommender(repeats="allow"), AT, baselines=[])
    assert list(metrics["test"]) == ["bascule"]
    assert metrics["paired"] == metrics["baselines"] == {}
    assert metrics["test"]["bascule"] == run(make_recommender(repeats="allow"), AT)["test"]["bascule"]


def test_evidence_is_known_at_the_test_and_not_where_baselines_are_chosen():
    """Among it are events later than what the baselines are to predict."""
    recommender, evidence = make_recommender(repeats="allow"), make_rows(61, AT - 20 * DAY, AT, 5)
    evidence = pd.concat([evidence, evidence.head(1).assign(user_id="user-of-evidence-alone")])
    informed = evaluate(recommender, HOLDOUT, TRAIN, VALIDATION, DEMOGRAPHICS, AT, ["gender"], 3, evidence=evidence)
    early = pd.concat([TRAIN, evidence])
    too_early = evaluate(recommender, HOLDOUT, early, VALIDATION, DEMOGRAPHICS, AT, ["gender"], 3)
    expected = run(recommender, AT)
    for name, record in expected["baselines"].items():
        assert informed["baselines"][name]["validation"] == pytest.approx(record["validation"]), name
    assert informed["slices"] == too_early["slices"] != expected["slices"]
    for name in ("bascule", "popularity", "personal"):  # of the others another parameter is chosen
        for part in ("test", "beyond_accuracy"):
            assert informed[part][name] == too_early[part][name] != expected[part][name], (part, name)
