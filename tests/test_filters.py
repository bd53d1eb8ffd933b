from collections import Counter
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.bundle import Bundle
from serve.errors import SchemaError
from serve.filters import parse_where
from serve.live.items import LiveItems
from serve.recommender import Recommender
from serve.requests import Filters, Request, parse_filters, parse_request
from tests.filter_worlds import GENRES, WORLDS, expressions, make_recommender, read_items
from tests.linear_bundle import FILMS, SHOP, UNTIL, N, item_ids, publish_linear
from tests.linear_profiles import known_users, requests_of
from tests.linear_reference import naive_list, naive_scores

ROWS = st.lists(st.integers(0, N - 1), max_size=12)
LIMITS = st.dictionaries(
    st.sampled_from(["department", "brand", "genres", "fresh", "stock", "price"]), st.integers(1, 3), max_size=3
)


@pytest.fixture(scope="module")
def recommenders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filters")
    return {world: make_recommender(folder, world) for world in WORLDS}


@st.composite
def filtered_requests(draw, world):
    """Draw a request, and what its `where` says of an item."""
    ids = item_ids(WORLDS[world])
    text, is_met = draw(st.none() | expressions()) or (None, lambda item: True)
    only = draw(st.none() | st.lists(st.integers(0, N - 1), max_size=N))
    filters = {"where": text, "only": None if only is None else [ids[row] for row in only], "at_most": draw(LIMITS)}
    request = {"exclude": [ids[row] for row in draw(ROWS)], "filters": filters}
    if draw(st.booleans()):
        request["user_id"] = draw(st.sampled_from(sorted(known_users(WORLDS[world]))))
    else:
        request["history"] = [{"item_id": ids[row], "datetime": UNTIL} for row in draw(ROWS)]
    return request, is_met


def owned_items(request, world):
    events = request["history"] if "history" in request else known_users(WORLDS[world])[request["user_id"]]["history"]
    return {event["item_id"] for event in events}


def walk(ranking, request, is_met, owned, items, k):
    """Walk down the complete ranking and take what may be taken: a list of ids."""
    filters, counts, taken = request["filters"], Counter(), []
    for item_id in ranking:
        item = items[item_id]
        values = {column: item[column] if column == "genres" else [item[column]] for column in filters["at_most"]}
        pairs = [(column, value) for column, of in values.items() for value in of if value is not None]
        is_admissible = is_met(item) and item_id not in owned and item_id not in request["exclude"]
        is_named = filters["only"] is None or item_id in filters["only"]
        if is_admissible and is_named and all(counts[pair] < filters["at_most"][pair[0]] for pair in pairs):
            counts.update(pairs)
            taken.append(item_id)
    return taken[:k]


def check_against_a_walk(recommenders, data):
    world = data.draw(st.sampled_from(sorted(WORLDS)))
    drawn = data.draw(st.lists(filtered_requests(world), min_size=1, max_size=3))
    k, filter_viewed = data.draw(st.integers(1, N + 2)), data.draw(st.booleans())
    items = {item["item_id"]: item for item in read_items(WORLDS[world])}
    requests = [request for request, _ in drawn]
    bare = [{name: request[name] for name in request.keys() - {"filters", "exclude"}} for request in requests]
    everything = recommenders[world].recommend(bare, N, filter_viewed=False)
    answers = recommenders[world].recommend(requests, k, filter_viewed)
    for (request, is_met), whole, answer in zip(drawn, everything, answers, strict=True):
        owned = owned_items(request, world) if filter_viewed else set()
        expected = walk(whole.item_id.tolist(), request, is_met, owned, items, k)
        assert answer.item_id.tolist() == expected
        scores = dict(zip(whole.item_id.tolist(), whole.score.tolist(), strict=True))
        np.testing.assert_allclose(answer.score, [scores[item_id] for item_id in expected], rtol=1e-6)
        assert answer.rank.tolist() == list(range(1, len(expected) + 1))
        assert (answer.reason is None) == (len(expected) == k)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_filtered_lists_are_those_of_a_walk_down_the_whole_ranking(recommenders, data):
    check_against_a_walk(recommenders, data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=5_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_five_thousand_filtered_lists_are_those_of_a_walk(recommenders, data):
    check_against_a_walk(recommenders, data)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("filter_viewed", [True, False])
def test_filtered_answers_are_those_of_naive_scores(recommenders, world, filter_viewed):
    schema, ids = WORLDS[world], item_ids(WORLDS[world])
    filters = {"where": "price <= 5 or genres = 'drama'"}
    requests = [request | {"filters": filters} for request in requests_of(schema)]
    items = read_items(schema)
    admitted = {
        row for row, item in enumerate(items) if (item["price"] or 9) <= 5 or "drama" in item["genres"] or row == 0
    }
    for request, answer in zip(requests, recommenders[world].recommend(requests, 4, filter_viewed), strict=True):
        _, scores, owned = naive_scores(schema, 3, known_users(schema), request)
        rows = admitted - {ids.index(item_id) for item_id in request.get("exclude", [])}
        expected = naive_list(scores, rows - owned if filter_viewed else rows, 4)
        assert [ids.index(item_id) for item_id in answer.item_id] == expected


def test_owned_items_obey_the_filters_beside_the_memory(recommenders):
    ids, items = item_ids(SHOP), read_items(SHOP)
    history = [{"item_id": item_id, "datetime": UNTIL} for item_id in ids[:8]]
    request = {"history": history, "filters": {"where": "brand = 'x'"}}
    for answer in (recommenders["shop"].recommend([request], N), recommenders["shop"].rank_owned([request], N)):
        listed = set(answer.item_id)
        assert listed
        assert {items[ids.index(item_id)]["brand"] for item_id in listed} == {"x"}
    assert set(recommenders["shop"].rank_owned([request], N).item_id) == set(ids[:8:2])


def test_requests_with_and_without_filters_share_a_batch(recommenders):
    bare = requests_of(SHOP)
    mixed = [
        request | ({"filters": {"where": "fresh"}} if place % 3 == 0 else {}) for place, request in enumerate(bare)
    ]
    alone, together = recommenders["shop"].recommend(bare, 5), recommenders["shop"].recommend(mixed, 5)
    fresh = {item["item_id"] for item in read_items(SHOP) if item["fresh"]}
    for place in range(len(bare)):
        if place % 3:
            assert together.of(place).item_id.tolist() == alone.of(place).item_id.tolist()
        else:
            assert set(together.of(place).item_id) <= fresh


@pytest.mark.parametrize("column", ["brand", "fresh"])
@pytest.mark.parametrize("world", WORLDS)
def test_users_who_share_limits_walk_down_each_her_own_ranking(recommenders, world, column):
    bare = [{**request, "exclude": []} for request in requests_of(WORLDS[world])]
    items = {item["item_id"]: item for item in read_items(WORLDS[world])}
    wholes = recommenders[world].recommend(bare, N, filter_viewed=False)
    assert len({tuple(whole.item_id) for whole in wholes}) > 3
    for k in (1, 2, 3, 4, 5):
        shared = {"where": None, "only": None, "at_most": {column: 1}}
        requests = [request | {"filters": shared} for request in bare]
        answers = recommenders[world].recommend(requests, k, filter_viewed=False)
        for request, whole, answer in zip(requests, wholes, answers, strict=True):
            expected = walk(whole.item_id.tolist(), request, lambda item: True, set(), items, k)
            assert answer.item_id.tolist() == expected


def test_an_item_of_many_genres_counts_for_each_and_one_of_none_for_none(recommenders):
    items = {item["item_id"]: item for item in read_items(FILMS)}
    answer = recommenders["films"].recommend([{"filters": {"at_most": {"genres": 2}}}], N).of(0)
    counts = Counter(genre for item_id in answer.item_id.tolist() for genre in items[item_id]["genres"])
    assert counts
    assert max(counts.values()) <= 2
    without = [item_id for item_id, item in items.items() if not item["genres"]]
    assert set(without) <= set(answer.item_id.tolist())
    assert len(GENRES) == 3


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"wher": "fresh"}, r"filters: unknown name 'wher'.*did you mean 'where'"),
        ({"where": 7}, r"filters.where is 7 \(int\); expected a text"),
        ({"only": "i100"}, r"filters.only is 'i100' \(str\); expected a list"),
        ({"only": [1.5]}, r"filters.only\[0\] is 1.5"),
        ({"at_most": 2}, r"filters.at_most is 2 \(int\); expected a mapping"),
        ({"at_most": {"brand": 0}}, r"filters.at_most of 'brand' is 0 \(int\); expected a whole number, 1 or"),
        ({"at_most": {"brand": True}}, r"at_most of 'brand' is True"),
        ({"at_most": {"brand": 1.5}}, r"at_most of 'brand' is 1.5"),
        ({"at_most": {3: 1}}, r"at_most names 3 \(int\); expected a column"),
        ({"at_most": {"brnd": 1}}, r"unknown column 'brnd'; did you mean 'brand'"),
        ({"where": "prise <= 2"}, r"unknown column 'prise'; did you mean 'price'"),
        ({"where": "repeat_rate > 0"}, r"unknown column 'repeat_rate'"),
        ("fresh", r"filters is 'fresh' \(str\); expected a mapping"),
        ({"where": ""}, r"where, character 1: expected a column; got the end"),
    ],
)
def test_faults_of_filters_are_named(recommenders, filters, message):
    with pytest.raises(SchemaError, match=message):
        recommenders["shop"].recommend([{"filters": filters}], 3)


@pytest.mark.parametrize(
    ("world", "filters", "message"),
    [
        ("shop", Filters(at_most=(("brand", 0),)), r"at_most of 'brand' is 0 \(int\); expected a whole number, 1 or"),
        ("shop", Filters(at_most=(("brand", 1), ("price", -1))), r"at_most of 'price' is -1 \(int\); expected a whole"),
        ("films", Filters(at_most=(("genres", 1.5),)), r"at_most of 'genres' is 1.5 \(float\); expected a whole"),
        ("shop", Filters(only=("i100", 1.5)), r"filters.only\[1\] is 1.5 \(float\); expected a text"),
        ("films", Filters(only=(100, 121.5)), r"filters.only\[1\] is 121.5 \(float\); expected a whole number"),
        ("shop", Filters(only="i100"), r"filters.only is 'i100' \(str\); expected a list"),
        ("shop", Filters(only={"i100"}), r"filters.only is {'i100'} \(set\); expected a list"),
        ("films", Filters(only=("i100",)), r"filters.only\[0\] is 'i100' \(str\); expected a whole number"),
    ],
)
def test_filters_made_by_hand_are_refused_as_those_of_a_request_are(recommenders, world, filters, message):
    with pytest.raises(SchemaError, match=message):
        recommenders[world].recommend([Request(filters=filters)], 3)


@pytest.mark.parametrize("most", [0, -1, 1.5, True, "2"])
def test_limits_made_by_hand_are_checked_before_anything_is_answered(recommenders, most):
    with pytest.raises(SchemaError, match="expected a whole number, 1 or more"):
        recommenders["shop"].admission.check(Filters(at_most=(("brand", most),)))


def test_an_allow_list_made_by_hand_holds_ids_as_any_request_does(recommenders):
    for only in (("121", 100, "100"), [121, 100], np.array([121, 100]), [np.int64(100), "121"]):
        by_hand = recommenders["films"].recommend([Request(filters=Filters(only=only))], 3)
        assert set(by_hand.item_id) == {100, 121}


@pytest.mark.parametrize("filters", [{}, {"where": None, "only": None, "at_most": None}, {"at_most": {}}, None])
def test_filters_that_filter_nothing_are_none(filters):
    assert parse_request({"filters": filters}, SHOP).filters is None


def test_a_limit_that_a_row_of_a_table_does_not_give_is_none():
    assert parse_filters({"at_most": {"brand": None}}, "string") is None
    assert parse_filters({"at_most": {"brand": None, "price": np.int64(2)}}, "string") == Filters(
        at_most=(("price", 2),)
    )


def test_the_order_of_limits_does_not_matter():
    limits = {"price": 2, "brand": 1, "fresh": 3}
    backwards = dict(reversed(limits.items()))
    assert parse_filters({"at_most": limits}, "string") == parse_filters({"at_most": backwards}, "string")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"where": "brand = 'x' or fresh"}, {"where": "price <= 2 or genres = 'drama'"}),
        ({"where": "fresh"}, {"only": [0, 3, 5, 6]}),
        ({"only": [0, 3, 5, 6]}, {"only": [9, 6, 2, 3]}),
        ({"only": []}, {"only": [0, 3]}),
        ({"only": []}, {"where": "fresh"}),
        ({"at_most": {"price": 3, "brand": 1}}, {"at_most": {"brand": 2, "fresh": 5, "price": 2}}),
        ({"at_most": {"brand": 1}}, {"where": "not fresh", "only": [1, 2]}),
    ],
)
def test_joined_filters_let_in_what_both_let_in(recommenders, one, other):
    ids, recommender = item_ids(SHOP), recommenders["shop"]
    raw = [
        filters | ({"only": [ids[row] for row in filters["only"]]} if "only" in filters else {})
        for filters in (one, other)
    ]
    parsed = [parse_filters(filters, "string") for filters in raw]
    barred = np.logical_or.reduce([recommender.admission.bar(filters) for filters in parsed])
    limits = [filters.get("at_most", {}) for filters in raw]
    least = {name: min(some[name] for some in limits if name in some) for some in limits for name in some}
    for first, second in (parsed, reversed(parsed)):
        joined = first.join(second)
        np.testing.assert_array_equal(recommender.admission.bar(joined), barred)
        assert joined.at_most == tuple(sorted(least.items()))
        if joined.where is not None:  # masks are kept by its text
            columns = recommender.admission.columns.changed(recommender.catalogue.table)
            read = columns.admit(parse_where(joined.where.text))
            np.testing.assert_array_equal(recommender.admission.columns.admit(joined.where), read)
        assert joined.join(None) == joined


def test_an_allow_list_passes_over_items_that_are_not_there(recommenders):
    ids = item_ids(FILMS)
    answer = recommenders["films"].recommend([{"filters": {"only": [str(ids[3]), 999, ids[4], ids[3]]}}], 5).of(0)
    assert set(answer.item_id) == {ids[3], ids[4]}
    assert answer.reason == f"only 2 items are admissible: 'only' leaves 2 of {N}"
    assert recommenders["films"].recommend([{"filters": {"only": []}}], 5).of(0).item_id.tolist() == []


def test_the_reason_counts_down_from_the_catalogue(recommenders):
    ids, items = item_ids(SHOP), read_items(SHOP)
    cheap = [item["item_id"] for item in items if item["price"] is not None and item["price"] <= 2]
    assert len(cheap) == 6
    request = {
        "history": [{"item_id": cheap[0]}, {"item_id": cheap[0]}, {"item_id": ids[20]}],
        "exclude": [cheap[1], cheap[2], ids[22]],
        "filters": {"where": "price\n<= 2"},
    }
    reasons = {
        viewed: recommenders["shop"].recommend([request], 7, filter_viewed=viewed).of(0).reason
        for viewed in (True, False)
    }
    assert reasons[True] == (
        "only 3 items are admissible: where 'price <= 2' leaves 6 of 23, 2 of them are excluded, 1 of them is owned"
    )
    assert reasons[False] == "only 4 items are admissible: where 'price <= 2' leaves 6 of 23, 2 of them are excluded"
    both = request | {"exclude": cheap[:3]}  # what is excluded and owned counts once
    assert recommenders["shop"].recommend([both], 7).of(0).reason == (
        "only 3 items are admissible: where 'price <= 2' leaves 6 of 23, 3 of them are excluded"
    )


def test_other_reasons(recommenders):
    ids = item_ids(SHOP)

    def reason_of(request, k):
        return recommenders["shop"].recommend([request], k, filter_viewed=False).of(0).reason

    assert reason_of({}, N) is None
    assert reason_of({}, N + 1) == f"only {N} items are admissible: the catalogue has {N}"
    assert reason_of({"exclude": ids}, 1) == f"no item is admissible: the catalogue has {N}, {N} of them are excluded"
    limited = {"filters": {"at_most": {"brand": 1}, "only": ids[:8], "where": "fresh"}}
    assert reason_of(limited, 3) == (
        "only 2 items are admissible: where 'fresh' and 'only' leave 3 of 23, at most 1 per brand"
    )
    assert reason_of({"filters": {"only": []}}, 1) == f"no item is admissible: 'only' leaves 0 of {N}"
    long = "price <= 2 or " * 20 + "price < 0"
    assert f"where '{long[:80]}...' leaves" in reason_of({"filters": {"where": long}}, N)
    assert recommenders["shop"].rank_owned([{}], 3).of(0).reason is None


def test_live_items_and_what_is_said_of_them_are_filtered_at_once(tmp_path):
    ids, recommender = item_ids(SHOP), Recommender(Bundle.load(publish_linear(tmp_path, SHOP, 3)))
    with closing(LiveItems(tmp_path / "items.db", recommender)) as live:

        def ask(filters, k=N + 5):
            return live.recommender.recommend([{"filters": filters}], k, filter_viewed=False).of(0)

        assert len(ask({"where": "in_stock"}).item_id) == N
        live.put(ids[3], {"in_stock": False, "price": 0.5})
        live.put("new", {"department": "dairy", "price": 0.25})
        live.remove(ids[0])
        everything = set(ids[1:]) | {"new"}
        assert set(ask({"where": "in_stock"}).item_id) == everything - {ids[3]}
        assert set(ask({"where": "price in [0.25, 0.5]"}).item_id) == {"new", ids[3]}
        assert set(ask({"only": [ids[0], "new", ids[3]]}).item_id) == {"new", ids[3]}
        assert ids[0] not in ask({"at_most": {"department": N}}).item_id
        reason = ask({"where": "not in_stock"}).reason
        assert reason == f"only 1 item is admissible: where 'not in_stock' leaves 1 of {N}"
        assert ask({}).reason == f"only {N} items are admissible: the catalogue has {N}"


def test_a_live_item_does_not_change_what_a_column_is_for_all_filters(tmp_path):
    ids, bundle = item_ids(SHOP), Bundle.load(publish_linear(tmp_path, SHOP, 3))
    texts = {"flag": ["True"] * (N - 1) + ["false"], "promo": ["true"] * (N - 1) + ["later"], "note": [None] * N}
    items = bundle.items
    for name, values in texts.items():
        items = items.append_column(name, pa.array(values, pa.string()))
    with closing(LiveItems(tmp_path / "items.db", Recommender(replace(bundle, items=items)))) as live:

        def count(where):
            return len(live.recommender.recommend([{"filters": {"where": where}}], N, filter_viewed=False).item_id)

        assert [count("flag"), count("promo = 'true'"), count("note = 'true'")] == [N - 1, N - 1, 0]
        live.put(ids[N - 1], {"flag": True, "promo": "true", "note": "true"})
        assert [count("flag"), count("promo = 'true'"), count("note = 'true'")] == [N, N, 1]
        live.put(ids[0], {"promo": "sale"})
        assert [count("promo = 'true'"), count("promo != 'true'")] == [N - 1, 1]
        live.remove(ids[1])
        assert count("flag") == N - 1
