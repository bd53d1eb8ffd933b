"""Filters: a truth table of the language, and lists against a walk down the whole ranking."""

from collections import Counter
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve.catalogue import Columns
from serve.errors import SchemaError
from serve.filters import admit, parse_where
from serve.kinds import Feature
from serve.requests import Filters, join_filters, parse_filters
from tests.around.filter_worlds import (
    COMPARE,
    expressions,
    make_recommender,
    read_items,
)
from tests.linear_bundle import FILMS, SHOP, UNTIL, WORLDS, N, item_ids
from tests.linear_profiles import known_users

TABLE = pa.table(
    {
        "item_id": ["7", "007", "x", "y", "z"],
        "whole": pa.array([1, None, 2**53 + 1, -3, 0], pa.int64()),
        "small": pa.array([200, None, 0, 1, 2], pa.uint8()),
        "price": pa.array([0.1, float("nan"), 5.0, None, -0.0], pa.float64()),
        "rough": pa.array([0.1, None, 5.0, 3e38, -1.0], pa.float32()),
        "label": pa.array([" dairy", "", "meat", None, "dairy "], pa.large_string()),
        "flag": pa.array([True, None, False, True, False]),
        "said": pa.array(["True", None, "false", "TRUE", ""], pa.string()),
        "genres": pa.array(["a| b", "b|", None, "c|a", "||"], pa.string()),
        "tags": pa.array([["a", "b"], [], None, ["c"], ["a", None]], pa.list_(pa.string())),
        "year": pa.array(["1995", "2000", "1995", None, "1996"], pa.string()),
        "image": pa.array([[1.0]] * 5, pa.list_(pa.float32())),
        "empty": pa.array([None] * 5, pa.string()),
        "repeat_rate": pa.array([0.5] * 5, pa.float32()),
    }
)
COLUMNS = Columns(TABLE, (Feature("kinds", "multi_categorical", "genres", separator="|"),))


def admitted(text):
    return np.flatnonzero(admit(COLUMNS, text)).tolist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("item_id = '7'", [0]),
        ("item_id in ['007', 'x', 'q']", [1, 2]),
        ("whole = 9007199254740993", [2]),
        ("whole = 9007199254740992", []),
        ("whole in [9007199254740992, 9007199254740993, 1.0, 1.5, 1e300]", [0, 2]),
        ("whole < 1.5", [0, 3, 4]),
        ("whole < 99999999999999999999", [0, 2, 3, 4]),
        ("whole != 1", [2, 3, 4]),
        ("not whole = 1", [1, 2, 3, 4]),
        ("small = 200", [0]),
        ("small > -1", [0, 2, 3, 4]),
        ("price <= 0.1", [0, 4]),
        ("price = 0", [4]),
        ("price != 5", [0, 4]),
        ("not price < 6", [1, 3]),
        ("price not in [5]", [0, 4]),
        ("not price in [5]", [0, 1, 3, 4]),
        ("price in []", []),
        ("price not in []", [0, 2, 4]),
        ("rough <= 0.1", [0, 4]),
        ("rough in [0.1, 1e300]", [0]),
        ("rough < 1e300", [0, 2, 3, 4]),
        ("label = 'dairy'", [0, 4]),
        ("label = ' dairy '", [0, 4]),
        ("label != 'dairy'", [2]),
        ("not label = 'dairy'", [1, 2, 3]),
        ("label = ''", []),
        ("label not in ['meat', 'q']", [0, 4]),
        ("flag", [0, 3]),
        ("not flag", [1, 2, 4]),
        ("flag = false", [2, 4]),
        ("flag != true", [2, 4]),
        ("flag in [true, false]", [0, 2, 3, 4]),
        ("said", [0, 3]),
        ("said = false", [2]),
        ("genres = 'a'", [0, 3]),
        ("genres in ['b', 'c']", [0, 1, 3]),
        ("genres != 'a'", [1]),
        ("genres not in ['b']", [3]),
        ("not genres = 'a'", [1, 2, 4]),
        ("year in ['1995']", [0, 2]),
        ("empty = 'x' or not empty = 'x'", [0, 1, 2, 3, 4]),
    ],
)
def test_items_that_an_expression_lets_in(text, rows):
    assert admitted(text) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *[
            (text, "column 'price' holds numbers")
            for text in ("price <= 'x'", "price = true", "price in [1, 'x']", "price")
        ],
        *[
            (text, "column 'label' holds texts")
            for text in ("label = true", "label", "label < 'x'", "label in [1]")
        ],
        (
            "item_id = 7",
            r"column 'item_id' holds texts; got 7 \(int\)",
        ),
        ("year >= '1995'", "column 'year' holds texts; these have no order"),
        ("genres", "column 'genres' holds texts"),
        *[
            (text, "column 'flag' holds true or false")
            for text in ("flag = 1", "flag < true", "flag in ['true']")
        ],
        ("said = 'True'", "column 'said' holds true or false"),
        (
            "image = 3",
            r"column 'image' holds list<.*float>; allowed are numbers, texts",
        ),
        ("genre = 'a'", "unknown column 'genre'; did you mean 'genres'"),
        ("repeat_rate > 0", "unknown column 'repeat_rate'"),
        ("y" * 100 + " = 3", "unknown column 'y{40}'; allowed:"),
    ],
)
def test_a_value_that_is_not_of_its_columns_kind_is_refused(text, message):
    with pytest.raises(SchemaError, match=message):
        admit(COLUMNS, text)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("whole<2.0 or price>.5", [0, 2, 3, 4]),
        ("price == -2.5e-1 or whole == +1", [0]),
        ("`label` = 'dairy' AND Flag", None),
        ("not not flag", [0, 3]),
        ("not flag and whole = 0", [4]),
        ("flag or whole = 0 and price = 7", [0, 3]),
        ("(flag or whole = 0) AND NOT price = 0", [0, 3]),
        ("label in ['dairy',]", [0, 4]),
        ("label IN []", []),
        ("flag" + " or (flag)" * 900, [0, 3]),
        ("(" * 32 + "flag" + ")" * 32, [0, 3]),
        ("\n flag\t", [0, 3]),
    ],
)
def test_texts_are_read_as_expressions(text, rows):
    if rows is None:
        with pytest.raises(SchemaError, match="unknown column 'Flag'"):
            admitted(text)
    else:
        assert admitted(text) == rows


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "   ",
            "price <=",
            "brand = x",
            "price <= 20 brand",
            "price <= 20abc",
            "20 >= price",
            "brand in 'x'",
        ),
        *(
            "brand in ['x' 'y']",
            "brand in ['x',,]",
            "brand in ['x'",
            "brand 'it''s'",
            "brand not 'x'",
            "(a",
            "a)",
        ),
        *(
            "a and",
            "and a",
            "brand = 'x",
            "`brand = 3",
            "a && b",
            "price = " + "9" * 41,
        ),
        *(
            "__import__('os')",
            "1 < price < 3",
            "a = b",
            "a = (1, 2)",
            "a in ('x')",
            "a == not b",
            "a['x']",
            "a if b",
        ),
        *(
            "not " * 33 + "a",
            "(" * 5000,
            "(not " * 40,
            "a = 3 + 4",
            "-a",
            "a.b()",
            "1",
            "'x'",
        ),
    ],
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(SchemaError, match="where") as caught:
        parse_where(text)
    assert len(str(caught.value)) < 300


@settings(deadline=None)
@given(st.text(alphabet="ab12.'\"`()[],=!<> \néandortif", max_size=60) | st.text(max_size=30))
def test_any_text_is_an_expression_or_a_fault(text):
    with suppress(SchemaError):
        parse_where(text)


@settings(deadline=None)
@given(
    values=st.lists(
        st.none() | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, 2**53, 2**53 + 1])
    ),
    sign=st.sampled_from(sorted(COMPARE)),
    number=st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, 1.5, 2**53, 2**53 + 1, -1e300]),
)
def test_integers_are_compared_exactly(values, sign, number):
    table = pa.table({"n": pa.array(values, pa.int64())})
    expected = [value is not None and COMPARE[sign](value, number) for value in values]
    assert admit(Columns(table, ()), f"n {sign} {number!r}").tolist() == expected
    among = admit(Columns(table, ()), f"n in [{number!r}, 1]").tolist()
    assert among == [value is not None and value in (number, 1) for value in values]


ROWS = st.lists(st.integers(0, N - 1), max_size=12)
LIMITS = st.dictionaries(
    st.sampled_from(["department", "brand", "genres", "fresh", "stock", "price"]),
    st.integers(1, 3),
    max_size=3,
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
    filters = {
        "where": text,
        "only": None if only is None else [ids[row] for row in only],
        "at_most": draw(LIMITS),
    }
    request = {"exclude": [ids[row] for row in draw(ROWS)], "filters": filters}
    if draw(st.booleans()):
        request["user_id"] = draw(st.sampled_from(sorted(known_users(WORLDS[world]))))
    else:
        request["history"] = [{"item_id": ids[row], "datetime": UNTIL} for row in draw(ROWS)]
    return request, is_met


def owned_items(request, world):
    events = (
        request["history"]
        if "history" in request
        else known_users(WORLDS[world])[request["user_id"]]["history"]
    )
    return {event["item_id"] for event in events}


def walk(ranking, request, is_met, owned, items, k):
    """Walk down the complete ranking and take what may be taken: a list of ids."""
    filters, counts, taken = request["filters"], Counter(), []
    for item_id in ranking:
        item = items[item_id]
        values = {
            column: item[column] if column == "genres" else [item[column]]
            for column in filters["at_most"]
        }
        pairs = [
            (column, value) for column, of in values.items() for value in of if value is not None
        ]
        is_admissible = is_met(item) and item_id not in owned and item_id not in request["exclude"]
        is_named = filters["only"] is None or item_id in filters["only"]
        if (
            is_admissible
            and is_named
            and all(counts[pair] < filters["at_most"][pair[0]] for pair in pairs)
        ):
            counts.update(pairs)
            taken.append(item_id)
    return taken[:k]


def check_against_a_walk(recommenders, data):
    world = data.draw(st.sampled_from(sorted(WORLDS)))
    drawn = data.draw(st.lists(filtered_requests(world), min_size=1, max_size=3))
    k, filter_viewed = data.draw(st.integers(1, N + 2)), data.draw(st.booleans())
    items = {item["item_id"]: item for item in read_items(WORLDS[world])}
    requests = [request for request, _ in drawn]
    bare = [
        {name: request[name] for name in request.keys() - {"filters", "exclude"}}
        for request in requests
    ]
    everything = recommenders[world].recommend(bare, N, filter_viewed=False)
    answers = recommenders[world].recommend(requests, k, filter_viewed)
    for (request, is_met), whole, answer in zip(drawn, everything, answers, strict=True):
        owned = owned_items(request, world) if filter_viewed else set()
        expected = walk(whole.item_id.tolist(), request, is_met, owned, items, k)
        assert answer.item_id.tolist() == expected
        scores = dict(zip(whole.item_id.tolist(), whole.score.tolist(), strict=True))
        np.testing.assert_allclose(
            answer.score,
            [scores[item_id] for item_id in expected],
            rtol=1e-4,
            atol=1e-4,
        )
        assert answer.rank.tolist() == list(range(1, len(expected) + 1))
        assert (answer.reason is None) == (len(expected) == k)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_filtered_lists_are_those_of_a_walk_down_the_whole_ranking(recommenders, data):
    check_against_a_walk(recommenders, data)


@pytest.mark.parametrize(
    "filters",
    [
        *(
            {"wher": "fresh"},
            {"where": 7},
            {"only": "i100"},
            {"only": [1.5]},
            {"at_most": 2},
            {"at_most": {"brand": 0}},
        ),
        *(
            {"at_most": {"brand": True}},
            {"at_most": {"brand": 1.5}},
            {"at_most": {3: 1}},
            {"at_most": {"brnd": 1}},
        ),
        *(
            {"where": "prise <= 2"},
            {"where": "repeat_rate > 0"},
            "fresh",
            {"where": ""},
        ),
    ],
)
def test_faults_of_filters_are_named(recommenders, filters):
    with pytest.raises(SchemaError, match=r"filters|where"):
        recommenders["shop"].recommend([{"filters": filters}], 3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            {"where": "brand = 'x' or fresh"},
            {"where": "price <= 2 or genres = 'drama'"},
        ),
        ({"where": "fresh"}, {"only": [0, 3, 5, 6]}),
        ({"only": [0, 3, 5, 6]}, {"only": [9, 6, 2, 3]}),
        ({"only": []}, {"only": [0, 3]}),
        ({"only": []}, {"where": "fresh"}),
        (
            {"at_most": {"price": 3, "brand": 1}},
            {"at_most": {"brand": 2, "fresh": 5, "price": 2}},
        ),
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
    least = {
        name: min(some[name] for some in limits if name in some) for some in limits for name in some
    }
    for first, second in (parsed, reversed(parsed)):
        joined = join_filters(first, second)
        np.testing.assert_array_equal(recommender.admission.bar(joined), barred)
        assert joined.at_most == tuple(sorted(least.items()))
        assert join_filters(joined, Filters()) == joined


def test_an_allow_list_passes_over_items_that_are_not_there(recommenders):
    ids = item_ids(FILMS)
    answer = (
        recommenders["films"]
        .recommend([{"filters": {"only": [str(ids[3]), 999, ids[4], ids[3]]}}], 5)
        .of(0)
    )
    assert set(answer.item_id) == {ids[3], ids[4]}
    assert answer.reason == f"2 of 5 items: the filters leave 2 of {N}"
    assert (
        recommenders["films"].recommend([{"filters": {"only": []}}], 5).of(0).item_id.tolist() == []
    )


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
        "3 of 7 items: the filters leave 6 of 23, 2 of them excluded, 1 of them owned"
    )
    assert reasons[False] == (
        "3 of 7 items: the filters leave 6 of 23, 2 of them excluded, 1 of them not due again"
    )
    nothing = recommenders["shop"].recommend([{"exclude": ids}], 1, filter_viewed=False).of(0)
    assert nothing.reason == f"0 of 1 items: the filters leave {N} of {N}, {N} of them excluded"
    limited = {"at_most": {"brand": 1}, "only": ids[:8], "where": "fresh"}
    assert recommenders["shop"].recommend([{"filters": limited}], 3).of(0).reason == (
        "2 of 3 items: the filters leave 3 of 23, at most 1 per brand"
    )
    both = request | {"exclude": cheap[:3]}  # what is excluded and owned counts once
    assert recommenders["shop"].recommend([both], 7).of(0).reason == (
        "3 of 7 items: the filters leave 6 of 23, 3 of them excluded"
    )
