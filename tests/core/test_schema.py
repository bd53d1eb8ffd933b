import json
from dataclasses import replace

import pytest

from serve.errors import SchemaError
from serve.schema import FIRST_CODE, PADDING, UNKNOWN, Feature, Schema

GENRES = Feature("genres", "multi_categorical", "genre_list", ("drama", "é", "war"), separator=";", width=2)
PRICE = Feature("price", "numeric", "price", mean=-3.25, scale=1e-7)
HOUR = Feature("hour", "hour_of_day", "datetime", tuple(str(hour) for hour in range(24)))
SCHEMA = Schema(
    user_features=(),
    item_features=(GENRES, PRICE),
    context_features=(HOUR,),
    user_id_type="string",
    item_id_type="integer",
    event_types=("view", "purchase"),
    has_datetime=True,
    has_weight=False,
    weight_mean=0.5,
    weight_scale=2.0,
    timezone="Europe/Berlin",
    ties="simultaneous",
    repeats="allow",
    history_length=13,
    memory_length=29,
    decay_days=(0.5, 7.0, 31.0),
    popularity_days=(),
    data_until=1_700_000_000,
)


def test_round_trip_gives_an_equal_schema_and_equal_bytes():
    text = SCHEMA.to_json()
    assert Schema.from_json(text) == SCHEMA
    assert Schema.from_json(text).to_json() == text


def test_codes_start_after_padding_and_unknown():
    assert GENRES.codes == {"drama": 2, "é": 3, "war": 4}
    assert GENRES.n_codes == 5
    assert PRICE.n_codes == 2
    assert len({PADDING, UNKNOWN, FIRST_CODE}) == 3


def test_a_longer_vocabulary_keeps_the_codes():
    longer = replace(GENRES, vocabulary=(*GENRES.vocabulary, "noir"))
    assert longer.codes.items() >= GENRES.codes.items()


def test_features_of_a_side():
    assert SCHEMA.features("user") == ()
    assert SCHEMA.features("item") == (GENRES, PRICE)
    assert SCHEMA.features("context") == (HOUR,)


def change(**changes):
    return json.dumps({**json.loads(SCHEMA.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "not of format 1"),
        (change(format=2), "not of format 1"),
        (change(time_zone="UTC"), "unknown key 'time_zone'; did you mean 'timezone'"),
        (change(item_features=[{"name": "x"}]), "key 'buckets' is missing"),
    ],
)
def test_what_is_no_schema_is_refused(text, message):
    with pytest.raises(SchemaError, match=message):
        Schema.from_json(text)


def test_a_missing_key_is_named():
    raw = json.loads(SCHEMA.to_json())
    del raw["ties"]
    with pytest.raises(SchemaError, match="key 'ties' is missing"):
        Schema.from_json(json.dumps(raw))


def test_an_unknown_kind_is_named():
    raw = json.loads(SCHEMA.to_json())
    raw["item_features"][1]["kind"] = "numerical"
    with pytest.raises(SchemaError, match="'price': unknown kind 'numerical'"):
        Schema.from_json(json.dumps(raw))
