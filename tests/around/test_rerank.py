"""Dials at 0 change nothing; turned up they do what loops over the definition do, within filters and limits."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from serve.errors import SchemaError
from serve.recommender import Recommender
from serve.rerank import Dials, find_new, recommend
from service.live_items import LiveItems
from tests.linear_bundle import (
    FILMS,
    SHOP,
    D,
    N,
    item_ids,
    item_values,
    publish_linear,
    vectors_of,
)
from tests.linear_profiles import known_users, make_profiles, requests_of

NEW = {2, 9, 14, 20}


@pytest.fixture(scope="module", params=[SHOP, FILMS], ids=["shop", "films"])
def schema(request):
    return request.param


@pytest.fixture(scope="module")
def recommender(schema, tmp_path_factory):
    """Give a recommender whose bundle says which items are new."""
    recommender = Recommender.load(publish_linear(tmp_path_factory.mktemp("dials"), schema, 3))
    flags = pa.array(np.isin(np.arange(N), [*NEW]))
    bundle = replace(
        recommender.bundle,
        items=recommender.bundle.items.append_column("is_new", flags),
    )
    return Recommender(bundle, make_profiles(schema, known_users(schema)))


def directions():
    vectors = vectors_of(3)[:, :D].astype(float)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def choose(scores, past, k, dials):
    """Choose by loops from rows -> scores: each item in standard deviations of those of the pool."""
    likeness, pool = (
        directions() @ directions().T,
        sorted(scores, key=scores.get, reverse=True),
    )
    pairs = [likeness[one, other] for one in pool for other in pool if one != other] or [0]
    (mean, std), (middle, spread) = (
        (np.mean(given), np.std(given) or 1) for given in (pairs, [*scores.values()] or [0])
    )
    familiar = {row: max((likeness[row, one] for one in past), default=0.0) for row in pool}
    chosen = []
    while len(chosen) < min(k, len(pool)):
        worth = {}
        for row in set(pool) - set(chosen):
            worth[row] = (scores[row] - middle) / spread
            if past:
                of_past = (familiar[row] - np.mean([*familiar.values()])) / np.std(
                    [*familiar.values()]
                )
                worth[row] -= dials.novelty * of_past
            if chosen:
                nearest = max(likeness[row, one] for one in chosen)
                worth[row] -= dials.diversity * (nearest - mean) / std
        due = math.floor((len(chosen) + 1) * dials.new_share + 1e-9) > len(NEW & set(chosen))
        if due and (left := NEW & set(worth)):
            chosen.append(max(left, key=scores.get))
        else:
            chosen.append(max(worth, key=worth.get))
    return chosen


@pytest.mark.parametrize("repeats", [None, "allow", "exclude"])
def test_dials_at_0_give_the_same_bits_as_none(recommender, schema, repeats):
    plain = recommender.recommend(
        requests_of(schema), 7, None if repeats is None else repeats == "exclude"
    )
    given = recommend(recommender, requests_of(schema), 7, repeats, Dials())
    for name in ("item_row", "score", "rank", "offsets", "unknown_items"):
        assert getattr(given, name).tobytes() == getattr(plain, name).tobytes()
    assert given.reason.tolist() == plain.reason.tolist()


@pytest.mark.parametrize(
    "dials",
    [
        Dials(1),
        Dials(0.4),
        Dials(0, 1),
        Dials(0.5, 0.7),
        Dials(0, 0, 0.5),
        Dials(0.8, 0.2, 0.3),
        Dials(1, 1, 1),
    ],
)
def test_a_list_is_chosen_one_by_one_from_its_pool(recommender, schema, dials):
    requests, rows = (
        requests_of(schema),
        {item_id: row for row, item_id in enumerate(item_ids(schema))},
    )
    pools, lists = (
        recommender.recommend(requests, N, filter_viewed=False),
        recommend(recommender, requests, 6, "allow", dials),
    )
    assert len(lists) == len(requests) > 0
    for request, pool, given in zip(requests, pools, lists, strict=True):
        scores = {
            rows[item]: float(score)
            for item, score in zip(pool.item_id.tolist(), pool.score, strict=True)
        }
        known = known_users(schema).get(request.get("user_id"), {"history": []})
        past = [
            rows[one["item_id"]]
            for one in request.get("history", known["history"])
            if one["item_id"] in rows
        ]
        assert [rows[item] for item in given.item_id.tolist()] == choose(scores, past, 6, dials)
        assert given.score.tolist() == pytest.approx(
            [scores[rows[item]] for item in given.item_id.tolist()], rel=1e-6
        )
        assert given.rank.tolist() == [*range(1, len(given.rank) + 1)]


def test_filters_limits_and_exclusions_hold_whatever_the_dials(recommender, schema):
    filters = {
        "where": "not brand = 'z' and price >= 1",
        "at_most": {"department": 2, "brand": 3},
    }
    requests = [
        one | {"filters": filters, "exclude": item_ids(schema)[3:5]} for one in requests_of(schema)
    ]
    rows = {item_id: row for row, item_id in enumerate(item_ids(schema))}
    lists = recommend(recommender, requests, 5, "allow", Dials(0.9, 0.9, 0.6))
    assert len(lists) == len(requests) > 0
    for given in lists:
        listed = [item_values(rows[item]) for item in given.item_id.tolist()]
        assert not {3, 4} & {rows[item] for item in given.item_id.tolist()}
        assert all(one["price"] >= 1 for one in listed)
        assert Counter(one["brand"] for one in listed).most_common(1)[0][1] <= 3
        departments = Counter(one["department"] for one in listed if one["department"])
        assert departments.most_common(1)[0][1] <= 2


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("dials", [Dials(), Dials(0.5, 0.3)])
def test_variants_that_are_too_many_come_behind_the_first_rows_in_their_order(
    recommender, schema, most, dials, monkeypatch
):
    monkeypatch.setattr("serve.rerank.FIRST_ROWS", 6)
    manifest = recommender.bundle.manifest
    facts = replace(manifest.facts, variants={"department": most})
    bundle = replace(recommender.bundle, manifest=replace(manifest, facts=facts))
    limited = Recommender(bundle, recommender.profiles)
    requests = requests_of(schema)
    rows = {item_id: row for row, item_id in enumerate(item_ids(schema))}
    n_moved = 0
    for request in requests:
        (whole,) = recommend(recommender, [request], N, "allow", dials)
        order = whole.item_id.tolist()
        first, over = [], []
        for item in order:
            department = item_values(rows[item])["department"]
            alike = [1 for one in first if item_values(rows[one])["department"] == department]
            if len(first) < 6 and (department is None or len(alike) < most):
                first.append(item)
            elif len(first) < 6:
                over.append(item)
        expected = [*first, *over, *(item for item in order if item not in {*first, *over})]
        (given,) = recommend(limited, [request], N, "allow", dials)
        assert given.item_id.tolist() == expected
        (any_of,) = recommend(limited, [{**request, "variants": "any"}], N, "allow", dials)
        assert any_of.item_id.tolist() == order
        (own,) = recommend(limited, [request], 5, "allow", dials)
        assert own.item_id.tolist() == expected[:5] or dials != Dials()
        n_moved += expected != order
    assert n_moved > 0
    with pytest.raises(SchemaError):
        recommend(limited, [{"variants": "some"}], 3)


def test_of_the_first_places_a_share_is_of_new_items_even_far_below_the_pool(
    recommender, schema, monkeypatch
):
    monkeypatch.setattr("serve.rerank.MAX_POOL", 1)
    rows = {item_id: row for row, item_id in enumerate(item_ids(schema))}
    requests = [{}, {"filters": {"where": "price > 1"}}]
    lists = recommend(recommender, requests, 8, "allow", Dials(new_share=0.25))
    assert len(lists) == 2
    for given in lists:
        is_new = [rows[item] in NEW for item in given.item_id.tolist()]
        assert all(sum(is_new[:place]) >= place // 4 for place in range(1, 9))
    few = [{"filters": {"only": item_ids(schema)[:3]}}]
    (given,) = recommend(recommender, few, 8, "allow", Dials(new_share=1.0))
    assert sorted(rows[item] for item in given.item_id.tolist()) == [0, 1, 2]
    assert given.reason is not None


def test_items_put_live_are_new(recommender, tmp_path):
    live = LiveItems(tmp_path / "items.db", recommender)
    live.put(
        "i900" if recommender.bundle.schema.item_id_type == "string" else 900,
        {"department": "dairy"},
    )
    assert set(np.flatnonzero(find_new(live.recommender))) == NEW | {N}
    live.close()


def test_a_column_of_that_name_which_holds_no_flags_is_the_callers_own(recommender):
    items = recommender.bundle.items.drop_columns(["is_new"]).append_column("is_new", [["yes"] * N])
    assert not find_new(Recommender(replace(recommender.bundle, items=items))).any()


def test_a_list_has_at_least_one_place(recommender):
    with pytest.raises(ValueError, match="k is 0"):
        recommend(recommender, [{}], 0, None, Dials(0.5))


@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan"), "0.5", True, None])
@pytest.mark.parametrize("name", ["diversity", "novelty", "new_share"])
def test_a_dial_is_a_number_from_0_to_1(name, value):
    with pytest.raises(SchemaError, match=name):
        Dials(**{name: value})
