from __future__ import annotations

import pandas as pd
import pytest

import train
from datamodules.clean import (
    TARGET_WEIGHT,
    only_evidence,
    only_targets,
    weigh_targets,
)
from datamodules.config import DataConfig, FeaturesConfig, TargetsConfig
from datamodules.splits import Split
from datamodules.tables import Tables
from pipeline.config import Config
from serve.errors import SchemaError

EVENTS = pd.DataFrame(
    {
        "user_id": [1, 1, 1, 2, 2],
        "item_id": [5, 6, 7, 5, 8],
        "event": ["view", "buy", None, "cart", "buy"],
        "weight": [1.0, 5.0, 4.0, 2.0, 3.0],
    }
)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DataConfig(targets=TargetsConfig(events=["buy"])), [0, 1, 0, 0, 1]),
        (DataConfig(targets=TargetsConfig(min_weight=3)), [0, 1, 1, 0, 1]),
        (DataConfig(targets=TargetsConfig(["buy", "cart"], 3)), [0, 1, 0, 0, 1]),
        (DataConfig(events={"view": 1, "buy": 3}), [0.5555556, 1.6666667, 0.5555556, 0.5555556, 1.6666667]),
        (DataConfig(events={"buy": 6, "cart": 3}, targets=TargetsConfig(["buy", "cart"])), [0, 1.2, 0, 0.6, 1.2]),
    ],
)
def test_weights_are_those_declared_and_of_mean_one(config, expected):
    weighed = weigh_targets(EVENTS, config)
    assert weighed[TARGET_WEIGHT].tolist() == pytest.approx(expected)
    assert only_targets(weighed).index.tolist() == [row for row, weight in enumerate(expected) if weight]
    assert len(only_targets(weighed)) + len(only_evidence(weighed)) == len(EVENTS)
    assert only_targets(weighed)[TARGET_WEIGHT].mean() == pytest.approx(1)


def test_without_a_declaration_every_event_is_a_target():
    assert weigh_targets(EVENTS, DataConfig()) is EVENTS
    assert len(only_targets(EVENTS)) == len(EVENTS)
    assert only_evidence(EVENTS).empty


@pytest.mark.parametrize(
    ("config", "columns", "message"),
    [
        (DataConfig(targets=TargetsConfig(["by"])), ["event"], "event 'by' is declared.*did you mean 'buy'"),
        (DataConfig(events={"buy": 2.0}), ["weight"], "event 'buy' is declared, but the interactions have no event"),
        (DataConfig(targets=TargetsConfig(min_weight=4)), ["event"], "min_weight is 4, but the interactions have no"),
        (DataConfig(targets=TargetsConfig(min_weight=9)), ["weight"], r"no event is a target.*\(weights are 1 to 5\)"),
    ],
)
def test_a_declaration_that_fits_no_event_is_refused(config, columns, message):
    with pytest.raises(SchemaError, match=message):
        weigh_targets(EVENTS[["user_id", "item_id", *columns]], config)


def test_baselines_are_chosen_without_evidence_of_the_time_of_the_validation(monkeypatch):
    """A view that comes with a purchase of the validation would give it away."""
    columns = ["user_id", "item_id", "event", TARGET_WEIGHT]
    early, bought, viewed, last = (
        pd.DataFrame([row], columns=columns)
        for row in ((1, 5, "buy", 1.0), (1, 6, "buy", 1.0), (1, 7, "view", 0.0), (1, 8, "buy", 1.0))
    )
    asked = []
    monkeypatch.setattr(train, "evaluate", lambda *parts: asked.append(parts) or {"baselines": {}})
    split = Split(early, pd.concat([bought, viewed]), last, "leave_one_out")
    tables = Tables(pd.concat([early, bought, viewed, last]), early[["user_id"]], early[["item_id"]])
    train.measure(Config(), None, tables, split)
    _, holdout, known, validation, *_, evidence = asked[0]
    items = [part["item_id"].tolist() for part in (known, validation, evidence, holdout)]
    assert items == [[5], [6], [7], [8]]


def test_figures_are_told_by_single_valued_features_of_users_and_by_what_is_kept_for_audits(monkeypatch):
    asked = []
    monkeypatch.setattr(train, "evaluate", lambda *parts: asked.append(parts) or {"baselines": {}})
    row = pd.DataFrame({"user_id": [1], "item_id": [5], TARGET_WEIGHT: [1.0]})
    kinds = {"town": "categorical", "income": "numeric", "tags": "multi_categorical", "about": "text"}
    data = DataConfig(features=FeaturesConfig(user=kinds), audit_only=["religion"])
    split = Split(row, row, row, "leave_one_out")
    train.measure(Config(data), None, Tables(row, row[["user_id"]], row[["item_id"]]), split)
    assert [part for part in asked[0] if isinstance(part, list)] == [["town", "income", "religion"]]
