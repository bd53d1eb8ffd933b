"""Configurations made in Python: a value of another type or a misspelled word is named where it is given."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, SplitConfig, TableConfig, TargetsConfig
from models.config import ModelConfig
from pipeline.config import Config, EvaluationConfig, TuneConfig
from pipeline.run_folder import declare_finished
from serve.errors import SchemaError

KINDS = "'categorical', 'multi_categorical', 'numeric', 'text', 'vector', 'hour_of_day', 'day_of_week'"


@pytest.mark.parametrize(
    ("make", "given", "words"),
    [
        (DataConfig, {"repeats": "allowed"}, "data.repeats is 'allowed'; allowed: 'exclude', 'allow'"),
        (DataConfig, {"ties": "set"}, "data.ties is 'set'; allowed: 'ordered', 'simultaneous'"),
        (DataConfig, {"features": {"item": {"brand": "text"}}}, "; allowed: a FeaturesConfig"),
        (DataConfig, {"items": "items.csv"}, "data.items is 'items.csv'; allowed: a TableConfig, None"),
        (DataConfig, {"events": {"view": "1"}}, "data.events.view is '1'; allowed: a number"),
        (DataConfig, {"audit_only": "gender"}, "data.audit_only is 'gender'; allowed: a list"),
        (DataConfig, {"audit_only": ["gender", 3]}, r"data.audit_only\[1\] is 3; allowed: a text"),
        (DataConfig, {"events": [1]}, r"data.events is \[1\]; allowed: a mapping"),
        (TableConfig, {"path": Path("items.csv")}, r"table.path is .*Path\('items.csv'\); allowed: a text, None"),
        (FeaturesConfig, {"item": {"brand": "txt"}}, f"data.features.item.brand is 'txt'; allowed: {KINDS}, a Feat"),
        (FeaturesConfig, {"item": {"brand": {"kind": "text"}}}, r"item.brand is {'kind': 'text'}; .*a FeatureConfig"),
        (FeatureConfig, {"kind": "txt"}, f"feature.kind is 'txt'; allowed: {KINDS}"),
        (SplitConfig, {"kind": "random"}, "data.split.kind is 'random'; allowed: 'leave_one_out'"),
        (TargetsConfig, {"min_weight": True}, "data.targets.min_weight is True; allowed: a number, None"),
        (ModelConfig, {"similarity": "cos"}, "model.similarity is 'cos'; allowed: 'dot', 'cosine', None"),
        (ModelConfig, {"dim": "64"}, "model.dim is '64'; allowed: an integer, None"),
        (ModelConfig, {"dim": 64.0}, "model.dim is 64.0; allowed: an integer, None"),
        (ModelConfig, {"max_epochs": True}, "model.max_epochs is True; allowed: an integer, None"),
        (ModelConfig, {"shrink_items": 1}, "model.shrink_items is 1; allowed: True or False, None"),
        (TuneConfig, {"trials": "30"}, "tune.trials is '30'; allowed: an integer, None"),
        (EvaluationConfig, {"baselines": "ease"}, "evaluation.baselines is 'ease'; allowed: a list, None"),
        (Config, {"data": {"repeats": "allow"}}, "data is .*; allowed: a DataConfig"),
        (Config, {"out": "runs/mine"}, "out is 'runs/mine'; allowed: a Path"),
        (Config, {"trainer": "cpu"}, "trainer is 'cpu'; allowed: a mapping"),
    ],
)
def test_what_is_not_declared_so_is_named(make, given, words):
    with pytest.raises(SchemaError, match=words):
        make(**given)


def test_numbers_of_numpy_and_what_unions_allow_are_taken():
    model = ModelConfig(
        dim=np.int64(64), dropout=np.float32(0.5), learning_rate=1, similarity="dot", shrink_items=False
    )
    assert (model.dim, model.dropout, model.learning_rate) == (64, 0.5, 1)
    features = FeaturesConfig(item={"brand": "categorical", "cost": FeatureConfig("numeric", min=0, max=np.float64(9))})
    data = DataConfig(TableConfig("a.csv", names=["u", "i"]), None, TableConfig(), features, ["age"], {"view": 1})
    assert Config(data, model, {"callbacks": [object()], "max_time": None}, Path("runs/x")).data is data


def test_what_a_configuration_holds_is_what_json_gives_back(tmp_path):
    """A run notes what it is as JSON, and is known by it when it is asked for again."""
    data = DataConfig(
        TableConfig(names=("u", "i"), columns={"item_id": "i"}),
        features=FeaturesConfig(item={"cost": FeatureConfig("numeric", min=np.float32(0.1), max=Decimal("9.5"))}),
        audit_only=("age", "town"),
        events={"view": np.float64(0.5), "buy": Decimal(2)},
        targets=TargetsConfig(events=("buy",), min_weight=np.int64(1)),
        split=SplitConfig("pairs", share=np.float32(0.3)),
        history_length=np.int64(50),
    )
    model = ModelConfig(dim=np.int32(8), learning_rate=Decimal("0.01"), dropout=np.float32(0.1))
    config = Config(data, model, {"gradient_clip_val": np.float32(2)}, tmp_path, seed=np.int64(3))
    declared = declare_finished(config, "rows")
    assert json.loads(json.dumps(declared)) == declared
    assert (config.seed, model.dim, model.learning_rate, data.audit_only) == (3, 8, 0.01, ["age", "town"])
    assert declared["trainer"] == {"gradient_clip_val": 2.0}


def test_lists_and_mappings_of_any_kind_are_as_those_of_python(tmp_path):
    names = namedtuple("names", ["first", "second"])("u", "i")
    columns = MappingProxyType({"user_id": "u", "item_id": "i"})
    item = MappingProxyType({"cost": FeatureConfig("numeric", min=np.float32(0.5))})
    events = OrderedDict(view=np.float32(0.5), buy=Decimal(2))
    data = DataConfig(TableConfig(names=names, columns=columns), None, None, FeaturesConfig(item=item), [], events)
    config = Config(data, ModelConfig(), MappingProxyType({"gradient_clip_val": np.float32(2)}), tmp_path)
    declared = declare_finished(config, "rows")
    assert json.loads(json.dumps(declared)) == declared
    assert (data.interactions.names, data.interactions.columns) == (["u", "i"], {"user_id": "u", "item_id": "i"})
    assert {type(one) for one in (config.trainer, data.events, data.features.item, data.interactions.columns)} == {dict}
