"""Numbers that raise as soon as they are looked at: NaN of decimals, integers beyond every float, complex ones."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, SplitConfig, TargetsConfig
from datamodules.tables import tables_from_frames
from models.config import ModelConfig
from pipeline.config import Config
from serve.encode import to_numbers, to_text
from serve.errors import SchemaError
from serve.requests import parse_request
from serve.schema import Feature
from tests.linear_bundle import SHOP

SIGNAL = Decimal("sNaN")
TIMES = [1_700_000_000, 1_700_000_001, 1_700_000_002]
LAX = DataConfig(max_reject_rate=1.0, features=FeaturesConfig(context={"price": "numeric", "device": "categorical"}))


def read(**columns):
    """Read three events, the second of which is odd."""
    sound = {"user_id": [1, 2, 3], "item_id": [4, 5, 6], "price": [1.0, 2.0, 3.0], "device": ["a", "b", "c"]}
    given = {name: pd.Series(values, dtype=object) for name, values in columns.items()}
    return tables_from_frames(LAX, pd.DataFrame(sound | given))


@pytest.mark.parametrize("others", [(4, 6), (Decimal(4), Decimal(6))])
@pytest.mark.parametrize(
    ("column", "reason"),
    [("user_id", "missing"), ("item_id", "missing"), ("datetime", "missing"), ("weight", "missing"), ("price", None)],
)
def test_a_signalling_nan_in_a_frame_is_a_missing_value(column, reason, others):
    first, last = (TIMES[0], TIMES[2]) if column == "datetime" else others
    tables, rejects = read(**{column: [first, SIGNAL, last]})
    assert rejects.frame["reason"].tolist() == ([reason] if reason else [])
    assert tables.interactions[column].dropna().tolist() == [first, last]


def test_a_signalling_nan_is_no_category():
    assert read(device=["a", SIGNAL, "c"])[0].interactions["device"].isna().tolist() == [False, True, False]
    assert to_text(SIGNAL) is None
    np.testing.assert_array_equal(to_numbers(Feature("price", "numeric", "price"), [SIGNAL, Decimal(2)]), [np.nan, 2.0])


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        ({"features": {"gender": SIGNAL}}, "features.gender"),
        ({"history": [{"item_id": "x", "weight": SIGNAL}]}, r"history\[0\].weight"),
        ({"datetime": SIGNAL}, "datetime"),
    ],
)
def test_a_signalling_nan_in_a_request_is_named(raw, where):
    with pytest.raises(SchemaError, match=rf"{where} is Decimal\('s?NaN'\)"):
        parse_request(raw, SHOP)


@pytest.mark.parametrize("blank", ["", "  ", "NaN"])
@pytest.mark.parametrize("others", [("1.5", "2"), (1.5, 2)], ids=["texts", "numbers"])
def test_a_blank_text_is_a_missing_number_whatever_stands_beside_it(blank, others):
    first, last = others
    tables, rejects = read(price=[first, blank, last])
    np.testing.assert_array_equal(tables.interactions["price"], [1.5, np.nan, 2.0])
    assert rejects.frame.empty
    assert read(weight=[first, blank, last])[1].frame["reason"].tolist() == ["missing"]


@pytest.mark.parametrize("first", [TIMES[0], str(TIMES[0])])
def test_a_blank_text_is_a_missing_time(first):
    assert read(datetime=[first, " ", TIMES[2]])[1].frame["reason"].tolist() == ["missing"]


@pytest.mark.parametrize(
    ("odd", "reason"),
    [(10**400, "not finite"), (-(10**400), "not finite"), (1j, "not a number"), ([SIGNAL], "not a number")],
)
@pytest.mark.parametrize("column", ["price", "weight", "position"])
def test_what_no_float_can_be_is_rejected(column, odd, reason):
    tables, rejects = read(**{column: [1, odd, 3]})
    assert rejects.frame["reason"].tolist() == [reason]
    assert tables.interactions[column].tolist() == [1, 3]


def test_a_time_beyond_every_float_is_rejected():
    assert read(datetime=[TIMES[0], 10**400, TIMES[2]])[1].frame["reason"].tolist() == ["not a time"]


def test_a_column_of_complex_numbers_is_refused():
    events = pd.DataFrame({"user_id": [1, 2], "item_id": [4, 5], "weight": [1j, 2]})
    with pytest.raises(SchemaError, match="column 'weight' is complex128; allowed: numbers"):
        tables_from_frames(DataConfig(), events)


@pytest.mark.parametrize("nan", [math.nan, Decimal("NaN"), SIGNAL])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda nan: DataConfig(max_reject_rate=nan), "data.max_reject_rate is s?nan; allowed: 0 to 1"),
        (
            lambda nan: DataConfig(events={"view": nan}),
            "data.events: 'view' is s?nan; allowed: a finite number above 0",
        ),
        (lambda nan: SplitConfig("pairs", share=nan), "data.split.share is s?nan; allowed: more than 0"),
        (lambda nan: TargetsConfig(min_weight=nan), "data.targets.min_weight is s?nan; allowed: a number"),
        (
            lambda nan: FeaturesConfig(user={"age": FeatureConfig("numeric", min=nan)}).of("user"),
            "feature 'age' has min s?nan; allowed: a number",
        ),
        (
            lambda nan: FeaturesConfig(user={"age": FeatureConfig("numeric", max=nan)}).of("user"),
            "feature 'age' has max s?nan; allowed: a number",
        ),
        (lambda nan: ModelConfig(learning_rate=nan), "model.learning_rate is s?nan; allowed: more than 0"),
        (lambda nan: Config(seed=nan), "seed is .*nan.*; allowed: an integer"),
    ],
)
def test_a_configuration_with_nan_is_refused_in_one_line(make, message, nan):
    with pytest.raises(SchemaError, match=f"(?i){message}"):
        make(nan)


@pytest.mark.parametrize("name", ["learning_rate", "memory_learning_rate", "temperature", "weight_decay"])
def test_no_rate_is_infinite(name):
    with pytest.raises(SchemaError, match=f"model.{name} is inf; allowed: .*finite"):
        ModelConfig(**{name: math.inf})
