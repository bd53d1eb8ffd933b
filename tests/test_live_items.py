"""Items that come, change and go while a recommender serves, against loops over what should be there."""

from contextlib import closing
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.bundle import Bundle
from serve.catalogue import ItemFacts
from serve.errors import SchemaError
from serve.live.items import LiveItems
from serve.live.placing import _rate_categories
from serve.recommender import Recommender
from tests.linear_bundle import FILMS, REPEAT_RATES, SHOP, D, N, item_ids, item_values, publish_linear, vectors_of
from tests.linear_profiles import known_users, make_profiles, requests_of
from tests.linear_reference import naive_item, naive_list, naive_rate, naive_scores

SEED = 3
WORLDS = {"shop": SHOP, "films": FILMS}
MILK = {"department": "dairy", "price": 1.5, "brand": "y", "title": "Milk"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear")
    return {name: Bundle.load(publish_linear(folder / name, schema, SEED)) for name, schema in WORLDS.items()}


@pytest.fixture(scope="module")
def recommenders(bundles):
    profiles = {name: make_profiles(schema, known_users(schema)) for name, schema in WORLDS.items()}
    return {name: Recommender(bundles[name], profiles[name]) for name in WORLDS}


@pytest.fixture
def shop(recommenders, tmp_path):
    live = LiveItems(tmp_path / "state" / "items.db", recommenders["shop"])
    yield live
    live.close()


def reopen(live: LiveItems, recommender: Recommender) -> LiveItems:
    live.close()
    return LiveItems(live._store._path, recommender)


def row_of(live: LiveItems, item_id) -> dict:
    """Return what the catalogue says of an item."""
    catalogue = live.recommender.catalogue
    return catalogue.table.slice(int(catalogue.item_ids.require([item_id])[0]), 1).to_pylist()[0]


def lists(live: LiveItems, item_id) -> bool:
    return item_id in live.recommender.recommend([{}], N + 50, filter_viewed=False).item_id


def new_id(schema, number):
    return 500 + number if schema.item_id_type == "integer" else f"new-{number}"


def check_answers(live, schema, added, removed, histories, k):
    """Compare answers with sorted lists of naive scores."""
    ids = [*item_ids(schema), *added]
    requests = [{"history": [{"item_id": item_id} for item_id in history]} for history in histories]
    requests += requests_of(schema)[:6]
    for mode in ("all", "novel", "owned"):
        ask = {
            "all": lambda: live.recommender.recommend(requests, k, filter_viewed=False),
            "novel": lambda: live.recommender.recommend(requests, k, filter_viewed=True),
            "owned": lambda: live.recommender.rank_owned(requests, k),
        }
        for request, answer in zip(requests, ask[mode](), strict=True):
            _, scores, owned = naive_scores(schema, SEED, known_users(schema), request, added)
            rows = {"all": set(range(len(ids))), "novel": set(range(len(ids))) - owned, "owned": owned}[mode]
            expected = naive_list(scores, rows - {ids.index(item_id) for item_id in removed if item_id in ids}, k)
            assert [ids.index(item_id) for item_id in answer.item_id] == expected
            np.testing.assert_allclose(answer.score, [scores[row] for row in expected], rtol=1e-4, atol=1e-4)


VALUES = st.fixed_dictionaries(
    {"department": st.sampled_from(["dairy", "meat", "fruit", "other"])},
    optional={"price": st.none() | st.floats(0, 9), "brand": st.sampled_from(["x", "y", None])},
)
PLACES = st.integers(0, 7)
STEPS = st.lists(st.tuples(PLACES, st.sampled_from(["put", "remove", "reopen"]), VALUES), min_size=1, max_size=9)


@pytest.mark.parametrize("world", WORLDS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(steps=STEPS, histories=st.lists(st.lists(PLACES, max_size=5), min_size=1, max_size=3), k=st.integers(1, N + 6))
def test_any_sequence_of_changes_is_answered_as_by_brute_force(
    recommenders, tmp_path_factory, world, steps, histories, k
):
    schema, recommender = WORLDS[world], recommenders[world]
    live = LiveItems(tmp_path_factory.mktemp("live") / "items.db", recommender)
    shelf = [*item_ids(schema)[:4], *(new_id(schema, number) for number in range(4))]
    added, removed = {}, set()
    for place, action, values in steps:
        item_id = shelf[place]
        if action == "put":
            live.put(item_id, values)
            if place >= 4:
                added[item_id] = values if item_id in removed else {**added.get(item_id, {}), **values}
            removed.discard(item_id)
        elif action == "remove":
            assert live.remove(item_id) == (item_id in {*item_ids(schema), *added} - removed)
            removed.add(item_id)
        else:
            live = reopen(live, recommender)
    present = {*item_ids(schema), *added}
    histories = [[shelf[place] for place in history if shelf[place] in present] for history in histories]
    check_answers(live, schema, added, removed, histories, k)
    live.close()


def test_a_category_without_items_is_bought_again_as_all_items_are():
    facts = ItemFacts(np.array([0.25, 0.5, 1.0], np.float32), np.array([[0, 3], [1, 3], [0, 4]]), 6)
    expected = [(0.25 + 1.0) / 2, 0.5, 1.75 / 3, (0.25 + 0.5) / 2, 1.0, 1.75 / 3]
    np.testing.assert_allclose(_rate_categories(facts), expected, rtol=1e-6)


def test_a_new_item_is_in_the_next_answer_and_in_histories(shop):
    assert not lists(shop, "milk")
    shop.put("milk", MILK)
    assert lists(shop, "milk")
    expected = {"item_id": "milk", **MILK, "in_stock": True, "repeat_rate": pytest.approx(naive_rate(MILK), abs=1e-6)}
    assert row_of(shop, "milk") == expected
    vector = shop.recommender.catalogue.vectors[N]
    np.testing.assert_allclose(vector, naive_item(SEED, MILK), rtol=1e-4, atol=1e-4)
    answer = shop.recommender.recommend([{"history": [{"item_id": "milk"}]}], N + 1, filter_viewed=True).of(0)
    assert answer.unknown_items == 0
    assert "milk" not in answer.item_id
    assert len(answer.item_id) == N


def test_a_new_item_has_neighbours_and_is_one(shop):
    shop.put("milk", MILK)
    vectors = np.array([*vectors_of(SEED), naive_item(SEED, MILK)])[:, :D]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = np.argsort(-(unit @ unit[N]), kind="stable")[1:5]
    ids, _ = shop.recommender.similar_items("milk", 4)
    assert ids.tolist() == [item_ids(SHOP)[row] for row in nearest]
    assert "milk" in shop.recommender.similar_items(ids[0], N)[0]
    shop.remove("milk")
    assert shop.recommender.similar_items("milk", 4)[0].tolist() == ids.tolist()
    assert "milk" not in shop.recommender.similar_items(ids[0], N)[0]


def test_an_item_of_the_bundle_changes_its_columns_and_keeps_its_vector(shop):
    before = shop.recommender.recommend([{}], N)
    item_id = item_ids(SHOP)[2]
    shop.put(item_id, {"price": 99, "in_stock": False, "title": "Second", "department": "fruit"})
    changed = {"price": 99.0, "in_stock": False, "title": "Second", "department": "fruit"}
    assert row_of(shop, item_id) == {
        "item_id": item_id,
        **item_values(2),
        **changed,
        "repeat_rate": pytest.approx(REPEAT_RATES[2]),
    }
    after = shop.recommender.recommend([{}], N)
    assert after.item_id.tolist() == before.item_id.tolist()
    assert after.score.tolist() == before.score.tolist()


def test_columns_that_are_not_given_stay_and_null_is_missing(shop):
    shop.put("milk", MILK)
    shop.put("milk", {"in_stock": False})
    shop.put("milk", {"brand": None})
    assert row_of(shop, "milk") | {"repeat_rate": 0} == {
        "item_id": "milk",
        **MILK,
        "brand": None,
        "in_stock": False,
        "repeat_rate": 0,
    }
    np.testing.assert_allclose(
        shop.recommender.catalogue.vectors[N], naive_item(SEED, MILK | {"brand": None}), rtol=1e-4, atol=1e-4
    )
    assert lists(shop, "milk")  # who wants only what is in stock filters by it


def test_a_new_item_is_in_stock_where_the_bundle_says_so_in_texts(bundles, tmp_path):
    """A CSV file of items has no other way to say it."""
    sold_out = item_ids(SHOP)[1]
    stock = pa.array(["False" if item_id == sold_out else "True" for item_id in item_ids(SHOP)])
    bundle = replace(bundles["shop"], items=bundles["shop"].items.append_column("in_stock", stock))
    with closing(LiveItems(tmp_path / "items.db", Recommender(bundle))) as live:
        live.put("milk", MILK)
        live.put("cheese", MILK | {"in_stock": False})
        live.put("bread", MILK | {"in_stock": None})

        def admit(where):
            return set(live.recommender.recommend([{"filters": {"where": where}}], N + 3, filter_viewed=False).item_id)

        assert admit("in_stock") == {*item_ids(SHOP), "milk"} - {sold_out}
        assert admit("in_stock = false") == {sold_out, "cheese"}


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.null()])
def test_a_live_item_may_cost_a_fraction_whatever_the_prices_of_the_bundle_are(bundles, tmp_path, kind):
    """What whole numbers or nothing fill in a bundle takes what comes later, under any name of its feature."""
    features = tuple(replace(feature, name=f"{feature.name} of it") for feature in SHOP.item_features)
    prices = [None if kind == pa.null() or row % 7 == 6 else row for row in range(N)]
    items, ids = bundles["shop"].items, item_ids(SHOP)
    items = items.set_column(items.column_names.index("price"), "price", pa.array(prices, kind))
    more = {"shelf": pa.array(range(N), pa.int8()), "code": pa.array([2**64 - 1] * N, pa.uint64()), "note": pa.nulls(N)}
    for name, values in more.items():
        items = items.append_column(name, values)
    bundle = replace(bundles["shop"], items=items, schema=replace(bundles["shop"].schema, item_features=features))
    with closing(LiveItems(tmp_path / "items.db", Recommender(bundle))) as live:
        live.put("milk", MILK | {"price": 1.25, "shelf": 2**40, "note": "new"})
        live.put(ids[3], {"price": 0.5})
        expected = {"price": 1.25, "shelf": 2**40, "note": "new", "code": None, "in_stock": True}
        assert {name: row_of(live, "milk")[name] for name in expected} == expected
        assert (row_of(live, ids[3])["price"], row_of(live, ids[3])["code"]) == (0.5, 2**64 - 1)
        assert (row_of(live, ids[4])["price"], row_of(live, ids[4])["note"]) == (prices[4], None)
        np.testing.assert_allclose(
            live.recommender.catalogue.vectors[N], naive_item(SEED, MILK | {"price": 1.25}), rtol=1e-4, atol=1e-4
        )
        with pytest.raises(SchemaError, match="column 'code' is uint64; only a new bundle can change it"):
            live.put(ids[4], {"code": 7})


@pytest.mark.parametrize("columns", [{}, {"title": "Milk"}, {"brand": None, "department": None, "price": None}])
def test_a_new_item_of_which_nothing_is_known_is_refused(shop, columns):
    before = shop.recommender
    with pytest.raises(SchemaError, match=r"'milk' .* is new and nothing says what it is: give it at least"):
        shop.put("milk", columns)
    assert shop.recommender is before


@pytest.mark.parametrize("item_id", ["milk", item_ids(SHOP)[2]])
def test_how_often_an_item_is_bought_again_is_not_said_by_hand(shop, item_id):
    before = shop.recommender
    with pytest.raises(SchemaError, match="repeat_rate"):
        shop.put(item_id, MILK | {"repeat_rate": 0.9})
    assert shop.recommender is before


def test_a_removed_item_starts_anew(shop):
    first = item_ids(SHOP)[0]
    for item_id in ("milk", first):
        shop.put(item_id, MILK | {"in_stock": False})
        assert shop.remove(item_id)
        assert not shop.remove(item_id)
        assert not lists(shop, item_id)
    shop.put("milk", {"department": "meat"})
    shop.put(first, {"brand": "y"})
    assert (row_of(shop, "milk")["price"], row_of(shop, "milk")["in_stock"]) == (None, True)
    assert (row_of(shop, first)["price"], row_of(shop, first)["brand"]) == (item_values(0)["price"], "y")
    assert lists(shop, "milk")
    assert lists(shop, first)


def test_an_item_that_was_removed_before_it_came_is_there_after_a_restart(shop, recommenders):
    assert not shop.remove("milk")
    shop.put("milk", MILK)
    again = reopen(shop, recommenders["shop"])
    assert lists(again, "milk")
    again.close()


def test_a_removed_item_still_counts_in_histories(shop, recommenders):
    shop.put("milk", MILK)
    request = {"history": [{"item_id": "milk"}, {"item_id": item_ids(SHOP)[1]}]}
    before = shop.recommender.encode_users([request])
    for item_id in ("milk", item_ids(SHOP)[1]):
        shop.remove(item_id)
    again = reopen(shop, recommenders["shop"])
    for live in (shop, again):
        np.testing.assert_allclose(live.recommender.encode_users([request]), before, atol=1e-6)
        assert live.recommender.recommend([request], 3).unknown_items.tolist() == [0]
        assert not {"milk", item_ids(SHOP)[1]} & set(live.recommender.rank_owned([request]).item_id)
    again.close()


def test_all_of_it_survives_a_restart(shop, recommenders):
    ids = item_ids(SHOP)
    shop.put_many({f"new-{number}": MILK | {"price": number} for number in range(40)})
    shop.put(ids[3], {"price": 7})
    shop.remove(ids[4])
    shop.remove("new-5")
    before = shop.recommender.recommend(requests_of(SHOP), N + 40)
    again = reopen(shop, recommenders["shop"])
    after = again.recommender.recommend(requests_of(SHOP), N + 40)
    assert after.item_id.tolist() == before.item_id.tolist()
    np.testing.assert_allclose(after.score, before.score, rtol=1e-5, atol=1e-5)
    assert again.recommender.catalogue.table.equals(shop.recommender.catalogue.table)
    again.close()


def test_decimals_of_a_database_survive_a_restart(shop, recommenders):
    shop.put("milk", MILK | {"price": Decimal("1.50"), "title": Decimal("1.50"), "brand": Decimal("7.0")})
    before = row_of(shop, "milk")
    assert (before["price"], before["title"], before["brand"]) == (1.5, "1.50", "7")
    again = reopen(shop, recommenders["shop"])
    assert row_of(again, "milk") == before
    again.close()


def rename_item(bundle: Bundle, old: str, new: str) -> Bundle:
    ids = [new if item_id == old else item_id for item_id in bundle.items.column("item_id").to_pylist()]
    return replace(bundle, items=bundle.items.set_column(0, "item_id", pa.array(ids)))


def test_a_new_bundle_gets_the_same_changes(shop, bundles):
    first, second, third = item_ids(SHOP)[:3]
    shop.put("milk", MILK)
    shop.put("cheese", MILK | {"price": 3})
    shop.put(first, {"price": 99})
    shop.remove(second)
    shop.remove("someday")
    renamed = rename_item(rename_item(bundles["shop"], first, "milk"), third, "someday")
    shop.rebase(Recommender(renamed))
    catalogue = shop.recommender.catalogue
    assert catalogue.item_ids.ids.tolist()[N:] == ["cheese"]  # the first item was only changed, never added
    np.testing.assert_array_equal(catalogue.vectors[0], bundles["shop"].vectors[0])
    assert row_of(shop, "milk")["title"] == "Milk"
    listed = shop.recommender.recommend([{}], N + 5).item_id
    assert {"milk", "cheese"} <= set(listed)
    assert not {first, second, "someday"} & set(listed)


def test_an_item_is_listed_again_where_a_bundle_had_it_meanwhile(shop, bundles):
    shop.put("milk", MILK)
    shop.rebase(Recommender(rename_item(bundles["shop"], item_ids(SHOP)[0], "milk")))
    shop.put("milk", {"price": 9})
    shop.rebase(Recommender(bundles["shop"]))
    assert lists(shop, "milk")
    assert (row_of(shop, "milk")["price"], row_of(shop, "milk")["title"]) == (9, "Milk")


def test_what_is_said_at_once_of_one_id_in_two_forms_is_joined(shop):
    shop.put_many({"7": MILK, 7: {"price": 9}})
    assert [row_of(shop, "7")[name] for name in MILK] == ["dairy", 9, "y", "Milk"]


def number_brands(bundle: Bundle) -> Bundle:
    """Let the brands of a bundle be numbers, and its items have no titles."""
    items = bundle.items.drop_columns(["title"])
    place = items.column_names.index("brand")
    return replace(bundle, items=items.set_column(place, "brand", pa.array(np.arange(N))))


def test_what_is_said_under_a_bundle_joins_what_that_cannot_read(shop, bundles):
    shop.put("milk", MILK)
    shop.rebase(Recommender(number_brands(bundles["shop"])))
    shop.put("milk", {"price": 9})
    assert (row_of(shop, "milk")["price"], row_of(shop, "milk")["brand"]) == (9, None)
    shop.rebase(Recommender(bundles["shop"]))
    assert [row_of(shop, "milk")[name] for name in MILK] == ["dairy", 9, "y", "Milk"]


def test_of_a_removed_item_it_is_not_told_that_it_cannot_be_placed(shop, bundles):
    shop.put("fizz", {"brand": "x"})
    shop.remove("fizz")
    shop.rebase(Recommender(number_brands(bundles["shop"])))
    note = "live items: a value of column 'brand' (str) does not fit the bundle: it is not read (1 times)"
    assert shop.notes == [note]


def test_values_that_a_new_bundle_cannot_read_are_left_out_and_told(shop, bundles):
    shop.put("milk", MILK)
    shop.put("fizz", {"brand": "x"})
    shop.rebase(Recommender(number_brands(bundles["shop"])))
    assert lists(shop, "milk")
    assert not lists(shop, "fizz")
    assert shop.notes == [
        "live items: a value of column 'brand' (str) does not fit the bundle: it is not read (2 times)",
        "live items: a value of column 'title' (str) does not fit the bundle: it is not read (1 times)",
        "live items: nothing that the bundle reads says what an item is: it is not listed (1 times)",
    ]
    shop.rebase(Recommender(bundles["shop"]))
    assert shop.notes == []
    assert lists(shop, "fizz")


def test_profiles_know_items_that_come_later(recommenders, shop):
    users = [user for user, known in known_users(SHOP).items() if "gone" in str(known["history"])]
    requests = [{"user_id": user_id} for user_id in users]
    assert recommenders["shop"].recommend(requests, 3).unknown_items.sum() > 0
    shop.put("gone", MILK)
    assert shop.recommender.recommend(requests, 3).unknown_items.sum() == 0
    for request, vector in zip(requests, shop.recommender.encode_users(requests), strict=True):
        expected, _, _ = naive_scores(SHOP, SEED, known_users(SHOP), request, {"gone": MILK})
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-4)
