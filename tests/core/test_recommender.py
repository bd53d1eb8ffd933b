from dataclasses import replace

import numpy as np
import pytest
from serve.bundle import Bundle
from serve.errors import BundleError, SchemaError
from serve.index import Neighbours
from serve.recommender import Recommender
from serve.requests import Request
from tests.linear_bundle import (
    DAY,
    FILMS,
    SEED,
    SHOP,
    UNTIL,
    WORLDS,
    D,
    N,
    W,
    item_ids,
    item_values,
    publish_linear,
    vectors_of,
)
from tests.linear_profiles import (
    draw_history,
    known_users,
    make_profiles,
    requests_of,
    write_profiles,
)
from tests.linear_reference import naive_item, naive_list, naive_scores


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("k", [1, 4, N + 5])
@pytest.mark.parametrize("mode", ["all", "novel", "owned"])
def test_answers_are_those_of_brute_force(recommenders, world, k, mode):
    schema, recommender, requests = (
        WORLDS[world],
        recommenders[world],
        requests_of(WORLDS[world]),
    )
    again = [request | {"again": "any"} for request in requests]
    ask = {
        "all": lambda: recommender.recommend(again, k, filter_viewed=False),
        "novel": lambda: recommender.recommend(requests, k, filter_viewed=True),
        "owned": lambda: recommender.rank_owned(requests, k),
    }
    answers = ask[mode]()
    assert len(answers) == len(requests) > 0
    row_of = {item_id: row for row, item_id in enumerate(item_ids(schema))}
    for request, answer in zip(requests, answers, strict=True):
        _, scores, owned = naive_scores(schema, SEED, known_users(schema), request)
        rows = {"all": set(range(N)), "novel": set(range(N)) - owned, "owned": owned}[mode]
        expected = naive_list(
            scores,
            rows - {row_of[item_id] for item_id in request.get("exclude", [])},
            k,
        )
        assert [row_of[item_id] for item_id in answer.item_id] == expected
        np.testing.assert_allclose(
            answer.score, [scores[row] for row in expected], rtol=1e-4, atol=1e-4
        )
        assert answer.rank.tolist() == list(range(1, len(expected) + 1))
        assert answer.user_id == request.get("user_id")


@pytest.mark.parametrize(("world", "filter_viewed"), [("shop", False), ("films", True)])
def test_owned_items_are_listed_by_default_where_data_repeats(recommenders, world, filter_viewed):
    recommender, requests = recommenders[world], requests_of(WORLDS[world])
    rows = recommender.recommend(requests, 4).item_row.tolist()
    assert rows == recommender.recommend(requests, 4, filter_viewed).item_row.tolist()
    assert rows != recommender.recommend(requests, 4, not filter_viewed).item_row.tolist()


@pytest.mark.parametrize("world", WORLDS)
def test_user_vectors_and_batches(recommenders, world):
    schema, recommender, requests = (
        WORLDS[world],
        recommenders[world],
        requests_of(WORLDS[world]),
    )
    expected = [naive_scores(schema, SEED, known_users(schema), request)[0] for request in requests]
    np.testing.assert_allclose(recommender.encode_users(requests), expected, rtol=1e-4, atol=1e-4)
    many = requests * 20  # more than a tile
    one_by_one = np.concatenate([recommender.encode_users([request]) for request in requests] * 20)
    assert np.abs(recommender.encode_users(many) - one_by_one).max() <= 1e-6
    batch = recommender.recommend(many, 5)
    lists = [recommender.recommend([request], 5).item_row.tolist() for request in requests] * 20
    assert [
        row_list.tolist() for row_list in np.split(batch.item_row, batch.offsets[1:-1])
    ] == lists


def test_no_request_gives_no_answer(recommenders):
    nothing = recommenders["shop"].recommend([], 4)
    assert (len(nothing), list(nothing), nothing.to_table().num_rows) == (0, [], 0)
    assert len(recommenders["shop"].rank_owned([], 4)) == 0
    assert recommenders["shop"].encode_users([]).shape == (0, W)


@pytest.mark.parametrize("world", WORLDS)
def test_a_stranger_with_a_users_history_and_features_is_that_user(recommenders, world):
    users = known_users(WORLDS[world])
    assert len(users) == 5
    for user_id, profile in users.items():
        known = recommenders[world].encode_users([{"user_id": user_id}])
        stranger = recommenders[world].encode_users([dict(profile)])
        assert np.abs(known - stranger).max() <= 1e-6


def test_unknown_items_are_counted_once_each(recommenders):
    ids = item_ids(SHOP)
    histories = [["gone", ids[0], "gone", "lost"], [], [ids[0]], ["gone"]]
    requests = [{"history": [{"item_id": item_id} for item_id in history]} for history in histories]
    assert recommenders["shop"].recommend(requests, 3).unknown_items.tolist() == [
        2,
        0,
        0,
        1,
    ]
    users = known_users(SHOP)
    expected = [
        int(any(e["item_id"] == "gone" for e in user["history"])) for user in users.values()
    ]
    answers = recommenders["shop"].recommend([{"user_id": user_id} for user_id in users], 3)
    assert answers.unknown_items.tolist() == expected
    assert sum(expected) > 0


def test_an_item_older_than_the_memory_is_still_owned(recommenders):
    ids = item_ids(SHOP)
    history = [{"item_id": ids[1]}] + [{"item_id": ids[2]}] * SHOP.memory_length
    novel = recommenders["shop"].recommend([{"history": history}], N, filter_viewed=True)
    assert set(ids[1:3]) & set(novel.item_id) == set()
    assert len(novel.item_id) == N - 2
    assert set(recommenders["shop"].rank_owned([{"history": history}], N).item_id) == set(ids[1:3])
    again = {"history": history, "again": "any"}
    everything = recommenders["shop"].recommend([again], N, filter_viewed=False)
    assert sorted(everything.item_row) == list(range(N))


def test_a_missing_weight_is_the_mean_and_not_1(recommenders):
    event = {"item_id": item_ids(SHOP)[0], "datetime": UNTIL}
    mean = {**event, "weight": float(np.expm1(SHOP.weight_mean))}
    vectors = recommenders["shop"].encode_users([{"history": [event]}, {"history": [mean]}])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_data_without_times_ignores_them(tmp_path):
    schema = replace(FILMS, has_datetime=False)
    recommender = Recommender.load(publish_linear(tmp_path, schema, SEED))
    timed = draw_history(schema, 6, np.random.default_rng(8))
    untimed = [{"item_id": event["item_id"]} for event in timed]
    requests = [
        {"history": timed},
        {"history": timed, "datetime": UNTIL + DAY},
        {"history": []},
    ]
    naive = [
        {"history": untimed},
        {"history": untimed, "datetime": UNTIL + DAY},
        {"history": []},
    ]
    expected = [naive_scores(schema, SEED, {}, request)[0] for request in naive]
    np.testing.assert_allclose(recommender.encode_users(requests), expected, rtol=1e-4, atol=1e-4)


def test_new_items_are_placed_by_content(recommenders):
    rows = [
        item_values(4),
        {},
        {"brand": "new", "price": 2.5},
        {"department": "meat", "price": None},
    ]
    got = recommenders["shop"].encode_items(rows)
    np.testing.assert_allclose(got, [naive_item(SEED, row) for row in rows], rtol=1e-4, atol=1e-4)
    many = recommenders["shop"].encode_items(rows * 100)
    np.testing.assert_allclose(many, np.tile(got, (100, 1)), atol=1e-6)
    assert recommenders["shop"].encode_items([]).shape == (0, W)


def test_a_column_that_no_feature_reads_is_refused(recommenders):
    with pytest.raises(SchemaError, match="unknown column 'prise'; did you mean 'price'"):
        recommenders["shop"].encode_items([{"price": 1.0}, {"prise": 1.0}])
    with pytest.raises(SchemaError, match=r"'price': .*'dear'"):
        recommenders["shop"].encode_items([{"price": "dear"}])


@pytest.mark.parametrize("world", WORLDS)
def test_similar_items_are_near_in_taste(recommenders, world):
    ids, taste = item_ids(WORLDS[world]), vectors_of(SEED)[:, :D].astype(float)
    unit = taste / np.linalg.norm(taste, axis=1, keepdims=True)
    expected = [row for row in np.argsort(-(unit @ unit[6]), kind="stable") if row != 6][:4]
    found, cosines = recommenders[world].similar_items(ids[6], 4)
    assert found.tolist() == [ids[row] for row in expected]
    np.testing.assert_allclose(cosines, (unit @ unit[6])[expected], atol=1e-6)


def test_profiles_are_found_beside_the_bundle_or_where_it_is_said(bundle_paths, tmp_path):
    assert len(Recommender.load(bundle_paths["shop"]).profiles) == 5
    assert len(Recommender(Bundle.load(bundle_paths["shop"])).profiles) == 0
    two = dict(list(known_users(SHOP).items())[:2])
    write_profiles(tmp_path, make_profiles(SHOP, two))
    assert len(Recommender.load(bundle_paths["shop"], tmp_path).profiles) == 2
    assert len(Recommender.load(bundle_paths["shop"], make_profiles(SHOP, two)).profiles) == 2
    with pytest.raises(BundleError, match="no profiles here"):
        Recommender.load(bundle_paths["shop"], tmp_path / "none")


def test_profiles_of_other_data_are_refused(bundle_paths):
    with pytest.raises(BundleError, match="int64; the bundle has string"):
        Recommender(Bundle.load(bundle_paths["shop"]), make_profiles(FILMS, known_users(FILMS)))
    texts, numbers = (
        make_profiles(SHOP, known_users(SHOP)),
        make_profiles(FILMS, known_users(FILMS)),
    )
    mixed = replace(numbers, user_ids=texts.user_ids, features=texts.features)
    with pytest.raises(BundleError, match="int64; the bundle has string"):
        Recommender(Bundle.load(bundle_paths["shop"]), mixed)
    with pytest.raises(BundleError, match="object; the bundle has integer"):
        Recommender(
            Bundle.load(bundle_paths["films"]),
            replace(texts, user_ids=numbers.user_ids),
        )


def test_towers_of_another_contract_are_refused(tiny_bundle):
    with pytest.raises(BundleError, match="reads 'codes'"):
        Recommender.load(tiny_bundle(1))


@pytest.mark.parametrize("world", WORLDS)
def test_nothing_that_it_hands_out_changes_it(recommenders, world):
    recommender, profiles = recommenders[world], recommenders[world].profiles
    answers, profile = (
        recommender.recommend(requests_of(WORLDS[world]), 3),
        profiles.get(profiles.user_ids[0]),
    )
    features = [value for value in profile.features.values() if isinstance(value, np.ndarray)]
    shared = [
        answers.item_ids,
        recommender.catalogue.index.vectors,
        profiles.offsets,
        *features,
    ]
    shared += [
        profiles.user_ids,
        *profiles.features.values(),
        *profile.history.columns().values(),
    ]
    shared.append(recommender.catalogue.item_ids.extended([]).ids)
    for array in shared:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = array[::-1]


def test_a_request_made_by_hand_is_read_as_a_mapping_is(recommenders):
    recommender, ids = recommenders["films"], item_ids(FILMS)
    by_hand = Request(
        "1", exclude=(str(ids[3]), ids[4], np.int64(ids[5])), datetime=np.int64(UNTIL)
    )
    expected = {"user_id": 1, "exclude": ids[3:6], "datetime": UNTIL}
    answers, same = recommender.recommend([by_hand, expected], N)
    assert (answers.user_id, answers.item_id.tolist()) == (1, same.item_id.tolist())
    np.testing.assert_array_equal(*recommender.encode_users([by_hand, expected]))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("u7"), "user_id is 'u7'"),
        (Request(1.5), r"user_id is 1\.5"),
        (Request(1, exclude="107"), r"exclude is '107' .*; expected a list"),
        (Request(1, exclude=(107.5,)), r"exclude\[0\] is 107\.5"),
        (
            Request(1, datetime=UNTIL * 1000),
            "datetime is .* expected whole UTC seconds",
        ),
        (Request(1, datetime=float("nan")), "datetime is nan"),
    ],
)
def test_a_request_made_by_hand_that_means_nothing_is_refused(recommenders, request_, words):
    with pytest.raises(SchemaError, match=words):
        recommenders["films"].recommend([request_])


@pytest.mark.parametrize("days_later", [0, 2, 3, 400])
def test_a_request_long_after_the_last_event_is_answered_as_by_the_longest_gap(
    tmp_path, days_later
):
    schema = replace(SHOP, longest_gap=3 * DAY)
    recommender = Recommender.load(publish_linear(tmp_path, schema, SEED))
    history = draw_history(schema, 6, np.random.default_rng(8))
    last = history[-1]["datetime"]
    request = {"history": history, "again": "any"}
    answer = recommender.recommend([request | {"datetime": last + days_later * DAY}], N)
    # The hour, which is a context, is the same.
    moment = last + min(days_later, 3) * DAY
    _, scores, _ = naive_scores(schema, SEED, {}, {"history": history, "datetime": moment})
    np.testing.assert_allclose(answer.score, sorted(scores, reverse=True), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lifts_owned", [True, False])
def test_owned_items_gain_the_greatest_sum_that_another_item_has_of_the_history(
    bundle_paths, lifts_owned
):
    bundle = Bundle.load(bundle_paths["shop"])
    rows = np.array([4, 5, 5, 6])
    neighbours = Neighbours(
        offsets=np.array([0, 2, 4, *[4] * (N - 2)]),
        rows=rows,
        weights=np.array([0.5, 0.75, 0.75, 9.0], np.float32),
    )
    schema = replace(SHOP, lifts_owned=lifts_owned)
    recommender = Recommender(replace(bundle, schema=schema, neighbours=neighbours))
    ids = item_ids(SHOP)
    history = [{"item_id": ids[row], "datetime": UNTIL} for row in (0, 1, 6)]
    request = {"history": history, "again": "any"}
    answer, _ = recommender.recommend([request, {"again": "any"}], N)
    _, scores, _ = naive_scores(SHOP, SEED, {}, {"history": history})
    shares = 1 / 3**0.5
    gained = dict.fromkeys(range(N), 0.0)
    gained |= {4: 0.5 * shares, 5: 1.5 * shares}
    if lifts_owned:  # 6 is owned, so that its own sum counts for nothing
        gained |= dict.fromkeys((0, 1, 6), 1.5 * shares)
    expected = [scores[row] + gained[row] for row in range(N)]
    np.testing.assert_allclose(answer.score, sorted(expected, reverse=True), rtol=1e-4, atol=1e-4)
