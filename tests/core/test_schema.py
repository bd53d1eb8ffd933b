import json
from dataclasses import replace

import pytest
from serve.errors import SchemaError
from serve.kinds import Feature
from serve.schema import Schema
from tests.linear_bundle import SHOP

GENRES = Feature(
    "genres",
    "multi_categorical",
    "genre_list",
    ("drama", "é", "war"),
    separator=";",
    width=2,
)
PRICE = Feature("price", "numeric", "price", mean=-3.25, scale=1e-7)
SCHEMA = replace(
    SHOP,
    user_features=(),
    item_features=(GENRES, PRICE),
    timezone="Europe/Berlin",
    has_weight=False,
)


def test_round_trip_gives_an_equal_schema_and_equal_bytes():
    text = SCHEMA.to_json()
    assert Schema.from_json(text) == SCHEMA
    assert Schema.from_json(text).to_json() == text


def change(**changes):
    return json.dumps({**json.loads(SCHEMA.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "not of format 1"),
        (change(format=2), "not of format 1"),
        (change(time_zone="UTC"), "unexpected keyword argument 'time_zone'"),
        (change(item_features=[{"name": "x"}]), "another program: 'vocabulary'"),
        (change().replace('"ties": ', '"tie": '), "unexpected keyword argument 'tie'"),
        (change().replace('"numeric"', '"numerical"'), "'kind' is 'numerical'"),
    ],
)
def test_what_is_no_schema_is_refused(text, message):
    with pytest.raises(SchemaError, match=message):
        Schema.from_json(text)
