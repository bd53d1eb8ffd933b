"""The figures of an evaluation equal plain loops over requests, lists and users."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

import numpy as np
import pandas as pd
import pytest
from evaluation.evaluate import Examination, Parts, evaluate
from evaluation.holdout import Ids, contextual_requests, group_requests
from serve.errors import SchemaError
from serve.kinds import Feature
from tests.evaluation.fake_recommender import FakeRecommender
from tests.evaluation.naive import measure_naively

N, U, AT, DAY = 31, 13, 1_600_000_000, 86_400
ITEMS = [
    f"item-{row:02d}" for row in np.random.default_rng(9).permutation(N)
]  # the catalogue is in no order
USERS = [f"user-{row}" for row in range(U)]
KEEP = {
    "all": lambda item, owned: True,
    "repeat": lambda item, owned: item in owned,
    "novel": lambda item, owned: item not in owned,
}
MODELS = [
    "bascule",
    "popularity",
    "popularity-recent",
    "personal",
    "personal-decayed",
    "transitions",
    "itemknn",
    "ease",
]


@pytest.fixture(autouse=True)
def every_slice(monkeypatch):
    monkeypatch.setattr("evaluation.metrics.MIN_USERS", 1)


def make_rows(n, first, last, seed) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    columns = {
        "user_id": rng.choice(USERS, n),
        "item_id": rng.choice(ITEMS, n),
        "datetime": rng.integers(first, last, n),
    }
    return pd.DataFrame(
        columns | {"device": rng.choice(np.array(["web", "phone", None], object), n)}
    )


TRAIN = make_rows(150, AT - 90 * DAY, AT - 20 * DAY, 1)
VALIDATION = make_rows(47, AT - 20 * DAY, AT, 2)
NEW = {
    "user_id": ["user-new", "user-new", USERS[0], USERS[0]],
    "item_id": [ITEMS[4], "new", "other", "new"],
}
HOLDOUT = pd.concat(
    [make_rows(59, AT, AT + 20 * DAY, 3), pd.DataFrame(NEW | {"datetime": AT + 5})],
    ignore_index=True,
)
PEOPLE = pd.DataFrame({"user_id": USERS[:7], "gender": ["f", "m", "f", None, "m", "f", "f"]})
PARTS = Parts(HOLDOUT, TRAIN, VALIDATION, PEOPLE, ["gender"], AT)
OWNED = {
    user: set(items) for user, items in pd.concat([TRAIN, VALIDATION]).groupby("user_id")["item_id"]
}


def make_recommender(**schema) -> FakeRecommender:
    return FakeRecommender(ITEMS, [*USERS, "user-new"], OWNED, **schema)


def run(recommender, baselines=None, **changes):
    return evaluate(recommender, replace(PARTS, **changes), 3, baselines)


@cache
def run_allowing() -> tuple[FakeRecommender, dict]:
    recommender = make_recommender(repeats="allow")
    return recommender, run(recommender)


def average_naively(recommender, targets, keep_list, keep_target, extra=None) -> dict[str, float]:
    """Average over requests within a user, then over users; `targets` are (user, anything) -> set of items."""
    by_user: dict[str, list[dict[str, float]]] = {}
    for key, items in targets.items():
        wanted = {item for item in items if keep_target(item, recommender.owned.get(key[0], set()))}
        if wanted:
            ranked = [
                ITEMS[row]
                for row in recommender.rank({"user_id": key[0]} | (extra or {}), 20, keep_list)
            ]
            by_user.setdefault(key[0], []).append(
                measure_naively(ranked, wanted, 10) | measure_naively(ranked, wanted, 20)
            )
    means = [
        {name: np.mean([one[name] for one in some]) for name in some[0]}
        for some in by_user.values()
    ]
    return {"users": len(means)} | {
        name: np.mean([mean[name] for mean in means]) for name in means[0]
    }


def assert_figures(got, expected):
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    for name in expected.keys() - {"users"}:
        assert got[f"{name}_ci95"][0] <= got[name] <= got[f"{name}_ci95"][1]


def targets_by(*keys, rows=HOLDOUT) -> dict[tuple, set[str]]:
    return {key: set(items) for key, items in rows.groupby(list(keys))["item_id"]}


def test_ones_own_metrics_stand_beside_the_usual_ones_of_each_model():
    def first_row(hits, n_targets):
        assert hits.dtype == bool
        assert (n_targets > 0).all()
        return hits[:, 0]

    def recall_of_5(hits, n_targets):
        return hits[:, :5].sum(axis=1) / n_targets

    recommender = make_recommender(repeats="exclude")
    figures = evaluate(recommender, PARTS, 3, ["popularity"], own=[first_row, recall_of_5])
    usual = run(make_recommender(repeats="exclude"), ["popularity"])
    for model in ("bascule", "popularity"):
        found = figures["test"][model]["novel"]
        assert found.items() > usual["test"][model]["novel"].items()
        assert 0 <= found["recall_of_5"] <= found["Recall@10"]
    targets = targets_by("user_id")
    firsts = [
        ITEMS[recommender.rank({"user_id": user}, 1, KEEP["novel"])[0]] in wanted
        for (user,), wanted in targets.items()
    ]
    assert figures["test"]["bascule"]["novel"]["first_row"] == pytest.approx(np.mean(firsts))
    assert sum(firsts) > 0


@pytest.mark.parametrize("values", [lambda hits: hits[1:, 0], lambda hits: hits[:, 0] / 0])
def test_a_metric_that_gives_no_number_for_each_request_is_refused(values):
    def mine(hits, n_targets):
        with np.errstate(all="ignore"):
            return values(hits)

    with pytest.raises(SchemaError, match="mine"):
        evaluate(make_recommender(repeats="exclude"), PARTS, 3, [], own=[mine])


@pytest.mark.parametrize("view", ["all", "repeat", "novel"])
def test_at_a_moment_each_user_is_asked_once(view):
    recommender, metrics = run_allowing()
    moment = datetime.fromtimestamp(AT, UTC)
    users = sorted(HOLDOUT["user_id"].unique())
    assert (
        recommender.asked == [[{"user_id": user, "datetime": moment} for user in users]] * 3
    )  # once per view
    expected = average_naively(recommender, targets_by("user_id"), KEEP[view], KEEP[view])
    assert_figures(metrics["test"]["bascule"][view], expected)


def test_all_parts_are_there():
    _, metrics = run_allowing()
    assert json.loads(json.dumps(metrics)) == metrics
    assert list(metrics) == [
        "test",
        "paired",
        "slices",
        "beyond_accuracy",
        "audit",
        "baselines",
        "protocol",
    ]
    assert list(metrics["test"]) == list(metrics["beyond_accuracy"]) == MODELS
    assert list(metrics["paired"]) == list(metrics["baselines"]) == MODELS[1:]
    figures, pairs = (
        metrics["test"]["bascule"],
        HOLDOUT.drop_duplicates(["user_id", "item_id"]),
    )
    assert [figures[view]["targets_outside_catalogue"] for view in ("all", "repeat", "novel")] == [
        3,
        0,
        3,
    ]
    assert (
        figures["repeat"]["targets"] + figures["novel"]["targets"]
        == figures["all"]["targets"]
        == len(pairs)
    )
    protocol = metrics["protocol"]
    assert (protocol["n_requests"], protocol["n_items"], protocol["split"]) == (
        HOLDOUT["user_id"].nunique(),
        N,
        "time",
    )
    assert (
        protocol["tuning"] == "baselines: NDCG@20, mean of the views all and novel, on validation"
    )


@pytest.mark.parametrize("repeats", ["allow", "exclude"])
def test_an_unlisted_target_is_a_miss_of_every_model(repeats):
    is_unlisted = np.arange(N) < 4
    recommender = make_recommender(repeats=repeats)
    recommender.bundle.index.is_hidden = is_unlisted
    metrics = run(recommender)
    unlisted = set(np.array(ITEMS)[is_unlisted])
    pairs = set(zip(HOLDOUT["user_id"], HOLDOUT["item_id"], strict=True))
    n_outside = sum(item in unlisted or item not in ITEMS for _, item in pairs)
    view = next(iter(metrics["test"]["bascule"]))
    for figures in metrics["test"].values():
        assert figures[view]["targets_outside_catalogue"] == n_outside
        assert figures[view]["targets"] == len(pairs)


def test_what_is_unlisted_is_in_no_list_of_a_baseline():
    is_unlisted = np.arange(N) % 3 == 0
    ids = Ids.number(ITEMS, (TRAIN, HOLDOUT))
    held_out = group_requests(HOLDOUT, ids)
    scores = np.random.default_rng(5).random((U + 1, N), np.float32)
    examination = Examination.prepare(held_out, ids.events(TRAIN), "allow", is_unlisted)
    lists = examination.score(lambda users: scores[users]).lists["all"]
    for user, ranked in zip(examination.user, lists.tolist(), strict=True):
        others = [row for row in np.argsort(-scores[user]) if not is_unlisted[row]]
        assert ranked == others[:20]


def test_without_a_moment_each_user_is_asked_for_the_items_of_all_times():
    recommender = make_recommender(repeats="exclude")
    metrics, targets = run(recommender, at=None), targets_by("user_id")
    assert list(metrics["test"]) == [name for name in MODELS if "personal" not in name]
    assert recommender.asked[0] == [{"user_id": user} for (user,) in sorted(targets)]
    expected = average_naively(recommender, targets, KEEP["novel"], KEEP["all"])
    assert_figures(metrics["test"]["bascule"]["novel"], expected)
    unreachable = sum(
        item in OWNED.get(user, ()) for (user,), items in targets.items() for item in items
    )
    assert metrics["test"]["bascule"]["novel"]["unreachable_targets"] == unreachable > 0


@pytest.mark.parametrize("key", ["datetime", "item_id"])
def test_requests_in_context_are_one_per_time_and_without_times_one_per_item(key):
    recommender = make_recommender(repeats="exclude", has_datetime=key == "datetime")
    holdout = pd.concat([HOLDOUT, HOLDOUT.head(3).assign(device="tv")])
    holdout = holdout if key == "datetime" else holdout.drop(columns="datetime")
    metrics = run(recommender, [], at=None, test=holdout)
    first = holdout.drop_duplicates(["user_id", key]).sort_values(["user_id", key])
    assert len(first) < len(holdout)
    devices = [None if pd.isna(device) else device for device in first["device"]]
    assert [request["context"] for request in recommender.asked[1]] == [
        {"device": device} for device in devices
    ]
    assert metrics["protocol"]["with_context"].startswith(
        f"{len(first)} requests, one per user and {key[:4].replace('date', 'time')}"
    )
    targets = targets_by("user_id", key, rows=holdout)
    for model, extra in (("bascule", {"context": {}}), ("bascule without context", {})):
        expected = average_naively(recommender, targets, KEEP["novel"], KEEP["all"], extra)
        assert_figures(metrics["with_context"][model]["novel"], expected)
    informed, plain = (metrics["with_context"][name]["novel"] for name in metrics["with_context"])
    gain = metrics["paired_with_context"]["bascule without context"]["novel"]
    assert gain["NDCG@10"] == pytest.approx(informed["NDCG@10"] - plain["NDCG@10"]) != 0


@pytest.mark.parametrize("repeats", ["allow", "exclude"])
def test_popularity_is_the_ranking_of_counts_of_events_or_of_users(repeats):
    past = pd.concat([TRAIN, VALIDATION])
    past = past if repeats == "allow" else past.drop_duplicates(["user_id", "item_id"])
    ranked = sorted(range(N), key=lambda row: (-past["item_id"].tolist().count(ITEMS[row]), row))
    popular = make_recommender()
    popular.rank = lambda request, k, keep: [
        row for row in ranked if keep(ITEMS[row], OWNED.get(request["user_id"], set()))
    ][:k]
    figures = run(make_recommender(repeats=repeats), ["popularity"])["test"]["popularity"]
    assert len(figures) == (3 if repeats == "allow" else 1)
    for view in figures:
        kept = KEEP[view] if repeats == "allow" else KEEP["all"]
        assert_figures(
            figures[view],
            average_naively(popular, targets_by("user_id"), KEEP[view], kept),
        )


def test_slices_are_parts_of_the_targets_and_coverage_is_of_the_first_view():
    recommender, metrics = run_allowing()
    slices, gender = (
        metrics["slices"]["all"],
        PEOPLE.dropna().set_index("user_id")["gender"].to_dict(),
    )
    assert set(slices) == {"history", "item_events", "popularity", "gender"}
    for value in ("f", "m", "missing"):
        some = {
            key: items
            for key, items in targets_by("user_id").items()
            if gender.get(key[0], "missing") == value
        }
        assert_figures(
            slices["gender"][value],
            average_naively(recommender, some, KEEP["all"], KEEP["all"]),
        )
    n_events = pd.concat([TRAIN, VALIDATION])["user_id"].value_counts()
    n_events = n_events.reindex(HOLDOUT["user_id"].unique(), fill_value=0)
    groups = pd.cut(
        n_events, [-1, 0, 4, 19, 999], labels=["0", "1-4", "5-19", "20+"]
    ).value_counts()
    assert {value: slices["history"][value]["users"] for value in slices["history"]} == dict(
        groups[groups > 0]
    )
    shown = {
        row
        for user in n_events.index
        for row in recommender.rank({"user_id": user}, 10, KEEP["all"])
    }
    assert metrics["beyond_accuracy"]["bascule"]["coverage@10"] == len(shown) / N


@pytest.mark.parametrize(("repeats", "metric"), [("allow", "NDCG@20"), ("exclude", "NDCG@10")])
def test_parameters_are_chosen_by_the_headline_metric_of_validation(repeats, metric):
    """The validation of a baseline is its test where the validation is held out instead."""
    recommender, nothing = make_recommender(repeats=repeats), VALIDATION[:0]
    record = run(recommender, ["itemknn"])["baselines"]["itemknn"]
    best = record["parameter"]["neighbours"]
    assert record["validation"][str(best)] == max(record["validation"].values())
    middle = list(record["validation"])[2]
    tested = run(
        recommender, ["itemknn"], test=VALIDATION, validation=nothing
    )  # owned items are those of training
    assert tested["baselines"]["itemknn"]["parameter"] == {"neighbours": int(middle)}
    views = [
        tested["test"]["itemknn"][view][metric]
        for view in ("all", "novel")
        if view in tested["test"]["itemknn"]
    ]
    assert record["validation"][middle] == pytest.approx(np.mean(views))


def test_evidence_is_known_at_the_test_and_not_where_baselines_are_chosen():
    evidence = make_rows(61, AT - 20 * DAY, AT, 5)
    recommender, (_, plain) = make_recommender(repeats="allow"), run_allowing()
    informed = run(recommender, evidence=evidence)
    early = run(recommender, train=pd.concat([TRAIN, evidence]))
    for name, record in plain["baselines"].items():
        assert informed["baselines"][name]["validation"] == pytest.approx(record["validation"]), (
            name
        )
    for name in (
        "bascule",
        "popularity",
        "personal",
    ):  # of the others another parameter is chosen
        assert informed["test"][name] == early["test"][name] != plain["test"][name]


def test_neither_order_of_rows_nor_items_outside_the_catalogue_matter():
    recommender, (_, expected) = make_recommender(repeats="allow"), run_allowing()
    gone = TRAIN.head(5).assign(item_id="gone")
    names = ["popularity", "personal-decayed", "itemknn", "ease"]
    got = run(
        recommender,
        names,
        test=HOLDOUT.sample(frac=1.0, random_state=5),
        train=pd.concat([gone, TRAIN]),
    )
    assert {name: got["test"][name] for name in names} == {
        name: expected["test"][name] for name in names
    }


def test_what_cannot_be_evaluated_is_refused():
    with pytest.raises(SchemaError, match="holdout has no interactions"):
        run(make_recommender(), test=HOLDOUT[:0])


def test_context_is_stated_as_vocabularies_know_it():
    kinds = (("day", "categorical"), ("tags", "multi_categorical"), ("load", "numeric"))
    features = tuple(Feature(name, kind, name) for name, kind in kinds)
    days = pd.to_datetime(["2020-02-03", None]).date
    rows = pd.DataFrame(
        {
            "user_id": ["a", "b"],
            "day": days,
            "tags": ["x|y", None],
            "load": [1.5, np.nan],
        }
    )
    schema = make_recommender(has_datetime=False, context_features=features).bundle.schema
    assert contextual_requests(rows, schema) == [
        {"user_id": "a", "context": {"day": "2020-02-03", "tags": "x|y", "load": 1.5}},
        {"user_id": "b", "context": {"day": None, "tags": None, "load": None}},
    ]
