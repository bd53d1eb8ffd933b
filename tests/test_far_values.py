from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from datamodules.clean import clean
from datamodules.config import DataConfig, FeaturesConfig, TableConfig
from datamodules.far_values import find_far
from datamodules.report import print_report, report_data
from datamodules.splits import split_interactions
from datamodules.tables import tables_from_frames

PRICES = np.arange(1.0, 101.0)


@pytest.mark.parametrize("far", [[1e9], [-1e9], [1e9, -3e8], [9_999.0] * 7, [1e300], [1e9] * 33, [1e5, 1e9]])
@pytest.mark.parametrize("scale", [1e-6, 1.0])
def test_few_values_far_from_all_others_are_found(far, scale):
    numbers = np.random.default_rng(0).permutation(np.concatenate([PRICES, far])) * scale
    assert find_far(numbers).tolist() == (np.abs(numbers) > 200 * scale).tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [20, 400, 9_000])
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.lognormal(3, 1, n),
        lambda rng, n: rng.lognormal(3, 2, n),
        lambda rng, n: rng.poisson(0.05, n),
        lambda rng, n: rng.negative_binomial(0.05, 0.01, n),
        lambda rng, n: rng.zipf(2.5, n),
        lambda rng, n: rng.exponential(5, n),
        lambda rng, n: np.where(rng.random(n) < 0.9, 0, rng.lognormal(1, 1, n)),
        lambda rng, n: rng.random(n) < 0.01,
        lambda rng, n: np.full(n, 7),
    ],
    ids=["lognormal", "wide lognormal", "poisson", "bursts", "zipf", "exponential", "mostly 0", "flags", "constant"],
)
def test_ordinary_skewed_columns_have_none(draw, n, seed):
    assert not find_far(draw(np.random.default_rng(seed), n).astype(np.float64)).any()


@pytest.mark.parametrize("numbers", [[], [3.0], [3.0, 1e9], [1.0, 2.0, 1e9], [1.0] * 9 + [1e9] * 9])
def test_of_few_values_and_of_halves_none_is_far(numbers):
    assert not find_far(np.array(numbers)).any()


def test_a_value_that_is_far_but_hardly_changes_the_scale_is_none():
    assert not find_far(np.concatenate([np.tile(PRICES, 1_000), [6_000.0]])).any()


def test_the_report_names_column_value_rows_and_what_to_do():
    features = FeaturesConfig(
        user={"age": "numeric"}, item={"price": "numeric", "code": "categorical"}, context={"speed": "numeric"}
    )
    config = DataConfig(users=TableConfig(), items=TableConfig(), features=features)
    ids = np.arange(200)
    events = pd.DataFrame({"user_id": ids % 40, "item_id": ids % 100, "datetime": 1_700_000_000 + ids})
    events["speed"] = np.where(ids % 50 == 3, 1e6 + ids, ids % 9)
    users = pd.DataFrame({"user_id": range(40), "age": [None, *range(20, 59)]})
    items = pd.DataFrame({"item_id": range(100), "price": PRICES, "code": PRICES})
    items.loc[7, ["price", "code"]] = 1e9
    items.loc[9, "price"] = None
    tables, rejects = tables_from_frames(config, events, users, items)
    tables, cleaning = clean(tables)
    report = report_data(tables, rejects, cleaning, split_interactions(tables.interactions, config, 0), config, ())
    assert [hint.split(" and are ")[0] for hint in report["far_values"]] == [
        "items.price has 1e+09 in 1 of 99 rows, all others lie from 1 to 100",
        "interactions.speed has values such as 1.00015e+06 in 4 of 200 rows, all others lie from 0 to 8",
    ]
    text = io.StringIO()
    print_report(report, Console(file=text, width=400))
    assert "items.price has 1e+09" in text.getvalue()
    assert "give the feature a `min` and `max`, which reject them" in text.getvalue()
