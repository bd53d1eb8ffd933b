"""Items that come, change and go while a recommender serves, against loops over what should be there."""

import os
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.bundle import Bundle
from serve.errors import SchemaError
from serve.index import ItemIndex
from serve.nearest import CoarseIndex
from serve.recommender import Recommender
from service.live_items import LiveItems
from tests.linear_bundle import (
    REPEAT_RATES,
    SEED,
    SHOP,
    WORLDS,
    N,
    item_ids,
    item_values,
)
from tests.linear_profiles import known_users, requests_of
from tests.linear_reference import naive_item, naive_list, naive_rate, naive_scores

MILK = {"department": "dairy", "price": 1.5, "brand": "y", "title": "Milk"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "items.db"


@pytest.fixture
def shop(recommenders, path):
    with closing(LiveItems(path, recommenders["shop"])) as live:
        yield live


def reopen(live: LiveItems, recommender: Recommender) -> LiveItems:
    live.close()
    return LiveItems(live._path, recommender)


def row_of(live: LiveItems, item_id) -> dict:
    """Return what the catalogue says of an item."""
    catalogue = live.recommender.catalogue
    return catalogue.table.slice(int(catalogue.item_ids.require([item_id])[0]), 1).to_pylist()[0]


def lists(live: LiveItems, item_id) -> bool:
    return item_id in live.recommender.recommend([{}], N + 50, filter_viewed=False).item_id


def test_an_unlisted_item_counts_in_histories_and_is_listed_once_it_is_put(recommenders, path):
    served = recommenders["shop"]
    ids = served.catalogue.item_ids.ids.tolist()
    is_unlisted = np.arange(len(ids)) == 4
    index = ItemIndex(served.bundle.vectors, is_unlisted)
    bundle = replace(served.bundle, index=index)
    request = {"history": [{"item_id": ids[4]}, {"item_id": ids[9]}]}
    with closing(LiveItems(path, Recommender(bundle))) as live:
        before = live.recommender.recommend([request], N, filter_viewed=False)
        whole = served.recommend([request], N, filter_viewed=False)
        left = [item_id for item_id in whole.item_id if item_id != ids[4]]
        assert before.item_id.tolist() == left
        assert ids[4] not in live.recommender.similar_items(ids[9], N)[0]
        assert live.recommender.catalogue.n_listed == len(ids) - 1

        live.put(ids[4], {})
        after = live.recommender.recommend([request], N, filter_viewed=False)
        assert after.item_id.tolist() == whole.item_id.tolist()
        live.rebase(Recommender(bundle))
        assert lists(live, ids[4])
        assert live.remove(ids[4])
        assert not lists(live, ids[4])


def new_id(schema, number):
    return 500 + number if schema.item_id_type == "integer" else f"new-{number}"


def check_answers(live, schema, added, removed, histories, k):
    """Compare answers with sorted lists of naive scores."""
    ids = [*item_ids(schema), *added]
    requests = [{"history": [{"item_id": item_id} for item_id in history]} for history in histories]
    requests += requests_of(schema)[:6]
    requests = [request | {"again": "any"} for request in requests]
    for mode in ("all", "novel", "owned"):
        ask = {
            "all": lambda: live.recommender.recommend(requests, k, filter_viewed=False),
            "novel": lambda: live.recommender.recommend(requests, k, filter_viewed=True),
            "owned": lambda: live.recommender.rank_owned(requests, k),
        }
        for request, answer in zip(requests, ask[mode](), strict=True):
            _, scores, owned = naive_scores(schema, SEED, known_users(schema), request, added)
            rows = {
                "all": set(range(len(ids))),
                "novel": set(range(len(ids))) - owned,
                "owned": owned,
            }[mode]
            expected = naive_list(
                scores,
                rows - {ids.index(item_id) for item_id in removed if item_id in ids},
                k,
            )
            assert [ids.index(item_id) for item_id in answer.item_id] == expected
            np.testing.assert_allclose(
                answer.score, [scores[row] for row in expected], rtol=1e-4, atol=1e-4
            )


VALUES = st.fixed_dictionaries(
    {"department": st.sampled_from(["dairy", "meat", "fruit", "other"])},
    optional={
        "price": st.none() | st.floats(0, 9),
        "brand": st.sampled_from(["x", "y", None]),
    },
)
PLACES = st.integers(0, 7)
STEPS = st.lists(
    st.tuples(PLACES, st.sampled_from(["put", "remove", "reopen"]), VALUES),
    min_size=1,
    max_size=9,
)


@pytest.mark.parametrize("world", WORLDS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    steps=STEPS,
    histories=st.lists(st.lists(PLACES, max_size=5), min_size=1, max_size=3),
    k=st.integers(1, N + 6),
)
def test_any_sequence_of_changes_is_answered_as_by_brute_force(
    recommenders, tmp_path_factory, world, steps, histories, k
):
    schema, recommender = WORLDS[world], recommenders[world]
    file = tmp_path_factory.mktemp("live") / "items.db"
    lives = [LiveItems(file, recommender) for _ in range(2)]  # as in two processes
    shelf = [*item_ids(schema)[:4], *(new_id(schema, number) for number in range(4))]
    added, removed = {}, set()
    for number, (place, action, values) in enumerate(steps):
        item_id, live = shelf[place], lives[number % 2]
        if action == "put":
            live.put(item_id, values)
            if place >= 4:
                added[item_id] = (
                    values if item_id in removed else {**added.get(item_id, {}), **values}
                )
            removed.discard(item_id)
        elif action == "remove":
            assert live.remove(item_id) == (item_id in {*item_ids(schema), *added} - removed)
            removed.add(item_id)
        else:
            lives[number % 2] = reopen(live, recommender)
    present = {*item_ids(schema), *added}
    histories = [
        [shelf[place] for place in history if shelf[place] in present] for history in histories
    ]
    for live in lives:
        live.follow()
        check_answers(live, schema, added, removed, histories, k)
        live.close()
    live.close()


def test_a_new_item_is_in_the_next_answer_and_in_histories(shop):
    assert not lists(shop, "milk")
    shop.put("milk", MILK)
    assert lists(shop, "milk")
    expected = {
        "item_id": "milk",
        **MILK,
        "in_stock": True,
        "repeat_rate": pytest.approx(naive_rate(MILK), abs=1e-6),
    }
    assert row_of(shop, "milk") == expected
    vector = shop.recommender.catalogue.index.vectors[N]
    np.testing.assert_allclose(vector, naive_item(SEED, MILK), rtol=1e-4, atol=1e-4)
    answer = shop.recommender.recommend(
        [{"history": [{"item_id": "milk"}]}], N + 1, filter_viewed=True
    ).of(0)
    assert answer.unknown_items == 0
    assert "milk" not in answer.item_id
    assert len(answer.item_id) == N


def test_a_live_item_is_found_beside_a_coarse_index(recommenders, tmp_path):
    served = recommenders["shop"]
    schema = served.bundle.schema
    ids = served.catalogue.item_ids.ids.tolist()
    coarse = CoarseIndex.build(np.array(served.bundle.vectors), 4)
    coarse.n_probes = 4
    index = ItemIndex(served.bundle.vectors, None, coarse)
    quick = Recommender(replace(served.bundle, index=index), served.profiles)
    answers = []
    for number, recommender in enumerate((served, quick)):
        with closing(LiveItems(tmp_path / f"{number}.db", recommender)) as live:
            feature = schema.item_features[0]
            for value in (0, 1):  # apart from each other: alike, the last bit would order them
                live.put(new_id(schema, 1 + value), {feature.column: feature.vocabulary[value]})
            live.remove(ids[3])
            kept = live.recommender.catalogue.index.coarse
            answers.append(live.recommender.recommend(requests_of(schema)[:9], 20, False))
    assert kept is coarse
    assert answers[0].item_id.tolist() == answers[1].item_id.tolist()
    assert new_id(schema, 1) in answers[1].item_id
    np.testing.assert_allclose(answers[0].score, answers[1].score, atol=2e-5)


def test_an_item_of_the_bundle_changes_its_columns_and_keeps_its_vector(shop):
    before = shop.recommender.recommend([{}], N)
    item_id = item_ids(SHOP)[2]
    shop.put(
        item_id,
        {"price": 99, "in_stock": False, "title": "Second", "department": "fruit"},
    )
    changed = {
        "price": 99.0,
        "in_stock": False,
        "title": "Second",
        "department": "fruit",
    }
    assert row_of(shop, item_id) == {
        "item_id": item_id,
        **item_values(2),
        **changed,
        "repeat_rate": pytest.approx(REPEAT_RATES[2]),
    }
    after = shop.recommender.recommend([{}], N)
    assert after.item_id.tolist() == before.item_id.tolist()
    assert after.score.tolist() == before.score.tolist()


def test_a_removed_item_starts_anew(shop):
    first = item_ids(SHOP)[0]
    for item_id in ("milk", first):
        shop.put(item_id, MILK | {"in_stock": False})
        assert shop.remove(item_id)
        assert not shop.remove(item_id)
        assert not lists(shop, item_id)
    shop.put("milk", {"department": "meat"})
    shop.put(first, {"brand": "y"})
    assert (row_of(shop, "milk")["price"], row_of(shop, "milk")["in_stock"]) == (
        None,
        True,
    )
    assert (row_of(shop, first)["price"], row_of(shop, first)["brand"]) == (
        item_values(0)["price"],
        "y",
    )
    assert lists(shop, "milk")
    assert lists(shop, first)


def rename_item(bundle: Bundle, old: str, new: str) -> Bundle:
    ids = [
        new if item_id == old else item_id for item_id in bundle.items.column("item_id").to_pylist()
    ]
    return replace(bundle, items=bundle.items.set_column(0, "item_id", pa.array(ids)))


def test_a_new_bundle_gets_the_same_changes(shop, recommenders):
    first, second, third = item_ids(SHOP)[:3]
    shop.put("milk", MILK)
    shop.put("cheese", MILK | {"price": 3})
    shop.put(first, {"price": 99})
    shop.remove(second)
    shop.remove("someday")
    bundle = recommenders["shop"].bundle
    renamed = rename_item(rename_item(bundle, first, "milk"), third, "someday")
    shop.rebase(Recommender(renamed))
    catalogue = shop.recommender.catalogue
    assert catalogue.item_ids.ids.tolist()[N:] == [
        "cheese"
    ]  # the first item was only changed, never added
    np.testing.assert_array_equal(catalogue.index.vectors[0], bundle.vectors[0])
    assert row_of(shop, "milk")["title"] == "Milk"
    listed = shop.recommender.recommend([{}], N + 5).item_id
    assert {"milk", "cheese"} <= set(listed)
    assert not {first, second, "someday"} & set(listed)


def test_profiles_know_items_that_come_later(recommenders, shop):
    users = [user for user, known in known_users(SHOP).items() if "gone" in str(known["history"])]
    requests = [{"user_id": user_id} for user_id in users]
    assert recommenders["shop"].recommend(requests, 3).unknown_items.sum() > 0
    shop.put("gone", MILK)
    assert shop.recommender.recommend(requests, 3).unknown_items.sum() == 0
    for request, vector in zip(requests, shop.recommender.encode_users(requests), strict=True):
        expected, _, _ = naive_scores(SHOP, SEED, known_users(SHOP), request, {"gone": MILK})
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("item_id", "columns", "message"),
    [
        (
            "milk",
            {"prise": 1.0},
            r"unknown column 'prise' \(str\); did you mean 'price'",
        ),
        ("milk", {"repeat_rate": 1.0}, "unknown column 'repeat_rate'"),
        ("milk", {"item_id": "x"}, "unknown column 'item_id'"),
        ("milk", {"price": "dear"}, r"column 'price' is 'dear' \(str\); expected a"),
        ("milk", {"price": float("nan")}, "column 'price' is nan"),
        ("milk", {"price": True}, "column 'price' is True"),
        (
            "milk",
            {"in_stock": 1},
            r"column 'in_stock' is 1 \(int\); expected true or false",
        ),
        ("milk", {"department": ["dairy"]}, r"column 'department' is \['dairy'\]"),
        ("milk", {"title": "half \ud800"}, "column 'title' is .*surrogate"),
        (
            "milk",
            {"title": "Milk", "in_stock": True},
            r"'milk' \(str\) is new .* at least one of department, price, brand",
        ),
        ("milk", {"brand": " "}, r"'milk' \(str\) is new and nothing says what it is"),
        ("", MILK, r"item_id is '' \(str\); expected a text"),
        (item_ids(SHOP)[0], {"department": {}}, r"column 'department' is \{\}"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(shop, item_id, columns, message):
    before = shop.recommender
    with pytest.raises(SchemaError, match=message):
        shop.put_many({"cheese": MILK, item_id: columns})
    assert shop.recommender is before
    assert not lists(shop, "cheese")


def test_no_change_is_lost_where_many_come_at_once(shop, path, recommenders):
    known, starting = item_ids(SHOP), Barrier(8)

    def change(first):
        starting.wait(20)
        for number in range(first, 16, 8):
            shop.remove(known[number])
            shop.put(f"new-{number}", MILK | {"price": number})

    threads = [Thread(target=change, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {*known[16:], *(f"new-{number}" for number in range(16))}
    assert set(shop.recommender.recommend([{}], N + 20).item_id) == expected
    shop.close()
    with closing(LiveItems(path, recommenders["shop"])) as again:
        assert set(again.recommender.recommend([{}], N + 20).item_id) == expected


def test_processes_list_items_that_score_the_same_in_one_order(shop, path, recommenders):
    with closing(LiveItems(path, recommenders["shop"])) as other:
        for number in (2, 1, 3):
            shop.put(f"same-{number}", MILK)
        other.put("same-2", {"title": "Milk again"})
        shop.put("same-4", MILK)
        other.follow()
        with closing(LiveItems(path, recommenders["shop"])) as later:
            orders = [
                one.recommender.catalogue.item_ids.ids[N:].tolist() for one in (shop, other, later)
            ]
    assert orders == [["same-2", "same-1", "same-3", "same-4"]] * 3
    assert row_of(shop, "same-2")["title"] == row_of(other, "same-2")["title"] == "Milk again"


def test_a_bundle_with_ids_of_another_type_serves_without_the_items_that_it_cannot_name(
    shop, path, recommenders
):
    n_items = recommenders["films"].catalogue.n_listed
    shop.put_many({"milk": MILK, "cheese": MILK, "7000001": MILK})
    shop.remove("cheese")  # of which nobody misses anything
    shop.rebase(recommenders["films"])
    note = "live items: 'milk' (str) is no id of the bundle: not listed (1 times)"
    assert note in shop.notes
    assert shop.recommender.catalogue.n_listed == n_items + 1
    shop.close()
    with closing(LiveItems(path, recommenders["films"])) as again:
        assert note in again.notes
    with closing(LiveItems(path, recommenders["shop"])) as back:
        assert lists(back, "milk")
        assert back.notes == []


def test_what_was_acknowledged_survives_a_kill(path, recommenders):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from serve.bundle import Bundle\n"
        "from service.live_items import LiveItems\n"
        "from serve.recommender import Recommender\n"
        f"bundle = Bundle.load(Path({str(recommenders['shop'].bundle.path)!r}))\n"
        f"live = LiveItems(Path({str(path)!r}), Recommender(bundle))\n"
        "for number in range(50):\n"
        "    live.put(f'new-{number}', {'price': number})\n"
        "    if number % 3 == 0: live.remove(f'new-{number}')\n"
        "    print(number, flush=True)\n"
        "assert not {'pandas', 'torch', 'pytorch_lightning'} & set(sys.modules)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == [str(number) for number in range(50)]
    with closing(LiveItems(path, recommenders["shop"])) as live:
        assert [lists(live, f"new-{number}") for number in range(50)] == [
            number % 3 > 0 for number in range(50)
        ]
