"""Texts and vectors in requests, files of requests, profiles and golden requests."""

import json
from dataclasses import replace

import numpy as np
import pytest

from serve.bundle import draw_requests
from serve.encode import RowEncoder, Vector, encode_features, keyed_by_name
from serve.errors import SchemaError
from serve.profiles import History, Profiles, feature_values, write_profiles
from serve.requests import parse_request
from serve.schema import Feature, Schema
from serve.tables import read_requests
from tests.linear_bundle import FILMS, item_ids

ABOUT = Feature("about", "text", "biography", width=7, buckets=64)
FACE = Feature("face", "vector", "picture", width=3, scale=2.0)
SCHEMA = replace(FILMS, user_features=(ABOUT, FACE), context_features=(replace(FACE, name="place"),))


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ({"about": "I like"}, {"about": "I like"}),
        ({"about": ["I", None, "like"]}, {"about": ["I", None, "like"]}),
        ({"about": 1984}, {"about": 1984}),
        ({"face": [1, 2.5, 3]}, {"face": Vector.pack(np.float32([1, 2.5, 3]))}),
        ({"face": np.array([1.0, 2.5, 3])}, {"face": Vector.pack(np.float32([1, 2.5, 3]))}),
        ({"face": "[1, 2.5, 3]"}, {"face": Vector.pack(np.float32([1, 2.5, 3]))}),
        ({"face": None, "about": None}, {"face": None, "about": None}),
        ({"face": []}, {"face": None}),
    ],
)
def test_texts_and_vectors_are_checked(given, parsed):
    assert parse_request({"features": given}, SCHEMA).features == parsed


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"features": {"face": [1, 2]}}, r"features\.face has 2 numbers; expected 3, as in the training data"),
        ({"context": {"place": [1] * 4}}, r"context\.place has 4 numbers; expected 3"),
        ({"features": {"face": [1, None, 3]}}, r"features\.face is \[1, None, 3\] \(list\): an entry is not finite"),
        ({"features": {"face": "a b c"}}, r"features\.face is 'a b c' \(str\): no list of numbers; expected 3 finite"),
        ({"features": {"face": 5}}, r"features\.face is 5 \(int\): no list of numbers"),
        ({"features": {"face": {"a": 1}}}, r"features\.face is .*no list of numbers"),
        ({"features": {"about": ["a", {}]}}, r"features\.about\[1\] is \{\} \(dict\); expected a text"),
        ({"features": {"about": float("inf")}}, r"features\.about is inf"),
    ],
)
def test_what_is_wrong_is_named(raw, message):
    with pytest.raises(SchemaError, match=message):
        parse_request(raw, SCHEMA)


def test_messages_do_not_echo_long_vectors():
    with pytest.raises(SchemaError) as error:
        parse_request({"features": {"face": ["x" * 10**5] * 10}}, SCHEMA)
    assert len(str(error.value)) < 250


def test_a_csv_file_holds_vectors_as_text(tmp_path):
    path = tmp_path / "requests.csv"
    path.write_text('user_id,about,face,place\n3,I like,1 2 3,"[4, 5, 6]"\n5,,,\n')
    first, second = read_requests(path, SCHEMA)
    assert first.features == {"about": "I like", "face": Vector.pack(np.float32([1, 2, 3]))}
    assert first.context == {"place": Vector.pack(np.float32([4, 5, 6]))}
    assert second.features is None


COLUMNS = {
    "biography": ["I like", None, ["a b", " c", None], "", "x\ny"],
    "picture": [[1.0, 2, 3], None, "4 5 6", [], np.array([0.1, 0, -7])],
}


def make_profiles() -> Profiles:
    history = History(np.arange(7), np.arange(7))
    return Profiles(np.arange(5) * 3, feature_values((ABOUT, FACE), COLUMNS), history, np.array([0, 1, 1, 4, 6, 7]))


def test_profiles_keep_what_training_read(tmp_path):
    profiles = make_profiles()
    write_profiles(tmp_path, profiles)
    loaded = Profiles.load(tmp_path)
    assert loaded.features["about"].tolist() == ["I like", None, "a b\nc", None, "x\ny"]
    np.testing.assert_array_equal(loaded.features["face"], profiles.features["face"])
    raw = encode_features((ABOUT, FACE), COLUMNS, 5)
    stored = encode_features(keyed_by_name((ABOUT, FACE)), loaded.features, 5)
    assert np.array_equal(raw.codes, stored.codes)
    assert np.array_equal(raw.values, stored.values)


def test_a_profile_is_as_good_as_the_same_features_in_a_request():
    profiles, features = make_profiles(), keyed_by_name((ABOUT, FACE))
    stored = encode_features(features, profiles.features, 5)
    given = [dict(profiles.get(user).features) for user in profiles.user_ids.tolist()]
    assert [row["face"] is None for row in given] == [False, True, False, True, False]
    parsed = [parse_request({"features": row}, SCHEMA).features for row in given]
    inline = RowEncoder(SCHEMA.user_features, None).encode(parsed)
    assert np.array_equal(stored.codes, inline.codes)
    assert np.array_equal(stored.values, inline.values)


def test_users_are_erased_with_their_vectors():
    left = make_profiles().without([0, 9])
    assert left.user_ids.tolist() == [3, 6, 12]
    assert left.features["face"][1].tolist() == [4, 5, 6]


def test_profiles_of_another_width_are_refused():
    features = (replace(FACE, width=2, column="face"),)
    with pytest.raises(SchemaError, match="'face': a vector of 3 numbers; expected 2"):
        encode_features(features, make_profiles().features, 5)


def test_golden_requests_are_plain_json_and_valid():
    requests = json.loads(json.dumps(draw_requests(SCHEMA, item_ids(SCHEMA), 11, np.random.default_rng(7))))
    parsed = [parse_request(request, SCHEMA) for request in requests]
    drawn = [request.features for request in parsed if request.features is not None]
    codes = RowEncoder(SCHEMA.user_features, None).encode(drawn).codes
    assert (codes[:, 0] >= 2).all()
    assert len({tuple(row) for row in codes.tolist()}) > 1
    assert all(len(features["face"]) == 3 for features in drawn)
    assert any(request.context for request in parsed)


def test_a_schema_written_before_there_were_texts_is_read():
    raw = json.loads(FILMS.to_json())
    for feature in raw["item_features"] + raw["user_features"] + raw["context_features"]:
        del feature["buckets"]
    assert Schema.from_json(json.dumps(raw)) == FILMS
    assert Schema.from_json(SCHEMA.to_json()) == SCHEMA
