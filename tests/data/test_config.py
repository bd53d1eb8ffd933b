"""The data section: which declarations are refused, and which columns they ask for."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import jsonargparse
import pytest
import yaml
from datamodules.columns import columns_of_table
from datamodules.config import (
    DataConfig,
    FeatureConfig,
    FeaturesConfig,
    SplitConfig,
    TableConfig,
    TargetsConfig,
)
from datamodules.schema_fitting import LONGEST_HISTORY, LONGEST_RECENT, LONGEST_SET
from datamodules.tables import read_tables
from serve.errors import SchemaError

CONFIGS = Path(__file__).parents[2] / "configs"


def load(name: str) -> DataConfig:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=DataConfig)
    block = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]
    return parser.instantiate(parser.parse_object({"data": block})).data


def test_the_movielens_config_reads_its_files_as_they_are(tmp_path):
    """No header line, tabs or bars, films in Latin-1."""
    kolya, miserables = "0|1|1" + "|0" * 16, "0|1" + "|0" * 16 + "|1"
    contents = {
        "u.data": b"196\t242\t3\t881250949\n186\t302\t4\t891717742\n",
        "u.user": b"196|49|M|writer|55105\n186|39|F|executive|00000\n",
        "u.item": f"242|Kolya (1996)|24-Jan-1997||http://x?a,b|{kolya}\n302|Misérables|||http://y|{miserables}\n".encode(
            "latin-1"
        ),
    }
    text = (CONFIGS / "movielens-100k.yaml").read_text()
    block = yaml.safe_load(text.replace("../shared/data/movielens-100k", str(tmp_path)))["data"]
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=DataConfig)
    tables, rejects = read_tables(parser.instantiate(parser.parse_object({"data": block})).data)
    assert rejects.frame.empty
    assert tables.interactions.to_numpy().tolist() == [
        [196, 242, 881250949, 3],
        [186, 302, 891717742, 4],
    ]
    assert tables.users["age"].tolist() == [49, 39]
    assert tables.items["title"].tolist() == ["Kolya (1996)", "Misérables"]
    assert tables.items["year"].isna().tolist() == [False, True]
    assert tables.items["genres"].tolist() == ["Action|Adventure", "Action|Western"]


def test_the_template_shows_every_key_and_states_the_defaults():
    text = (CONFIGS / "template.yaml").read_text()
    block = yaml.safe_load(text)["data"]
    for key, cls in (
        (None, DataConfig),
        ("interactions", TableConfig),
        ("split", SplitConfig),
        ("targets", TargetsConfig),
    ):
        shown = block if key is None else block[key]
        assert set(shown) == {field.name for field in fields(cls)}
    config = load("template")
    for name in (
        "split",
        "targets",
        "leaks",
        "ties",
        "repeats",
        "history_length",
        "max_reject_rate",
    ):
        assert getattr(config, name) == getattr(DataConfig(), name)
    assert (
        f"at most {LONGEST_HISTORY} ({LONGEST_RECENT} where `repeats` is allow, {LONGEST_SET} of a set)"
        in text
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataConfig(timezone="Europe/Berln"),
        lambda: DataConfig(events={"buy": 0.0}),
        lambda: DataConfig(history_length=1),
        lambda: DataConfig(history_length=1_000_000),
        lambda: DataConfig(ties="sometimes"),
        lambda: TableConfig(encoding="utf-32"),
        lambda: DataConfig(TableConfig(keep="last")),
        lambda: FeatureConfig("number"),
        lambda: FeatureConfig("categorical", min=0),
        lambda: FeatureConfig("multi_categorical", separator=""),
        lambda: FeaturesConfig(item={"price": "number"}).of("item"),
        lambda: SplitConfig("tme"),
        lambda: SplitConfig("time"),
        lambda: SplitConfig("time", "2017-12-01", strict=True),
        lambda: SplitConfig("pairs", test="a.csv"),
        lambda: SplitConfig("pairs", share=1.0),
        lambda: SplitConfig("files"),
    ],
)
def test_a_value_that_cannot_be_is_refused_at_once(make):
    with pytest.raises(SchemaError, match=r"allowed|is not set|keep each|did you mean"):
        make()


@pytest.mark.parametrize(
    ("table", "config"),
    [
        ("users", DataConfig(features=FeaturesConfig(user={"user_id": "categorical"}))),
        (
            "users",
            DataConfig(
                users=TableConfig(columns={"user_id": "who"}),
                features=FeaturesConfig({"who": "categorical"}),
            ),
        ),
        (
            "users",
            DataConfig(features=FeaturesConfig(user={"age": "numeric"}), audit_only=["age"]),
        ),
        (
            "users",
            DataConfig(
                features=FeaturesConfig(user={"born": FeatureConfig("hour_of_day", "born")})
            ),
        ),
        ("items", DataConfig(items=TableConfig(columns={"sku": "x"}))),
        (
            "items",
            DataConfig(
                features=FeaturesConfig(item={"repeat_rate": "numeric"}),
                repeats="allow",
            ),
        ),
        (
            "items",
            DataConfig(
                features=FeaturesConfig(item={"a": "vector", "b": FeatureConfig("text", "a")})
            ),
        ),
        (
            "interactions",
            DataConfig(features=FeaturesConfig(context={"user_id": "categorical"})),
        ),
        (
            "interactions",
            DataConfig(features=FeaturesConfig(context={"event": "numeric"})),
        ),
        (
            "interactions",
            DataConfig(features=FeaturesConfig(context={"datetime": "vector"})),
        ),
    ],
)
def test_a_column_that_cannot_be_read_so_is_refused(table, config):
    with pytest.raises(
        SchemaError,
        match=r"are no feature|allowed|no column of ours|reserved|a feature as well",
    ):
        columns_of_table(table, config)


def test_of_several_limits_of_a_column_the_narrowest_count():
    one, other = (
        FeatureConfig("numeric", "price", min=0, max=8),
        FeatureConfig("numeric", "price", min=-2, max=10),
    )
    _, price = columns_of_table(
        "items", DataConfig(features=FeaturesConfig(item={"one": one, "other": other}))
    )
    assert (price.name, price.role, price.low, price.high) == ("price", "number", 0, 8)


def test_nothing_of_this_machine_is_declared():
    config = DataConfig(
        TableConfig("/home/me/a.csv"), split=SplitConfig("files", test="/home/me/b.csv")
    )
    assert "/home" not in str(config.declared())
    assert config.declared()["split"]["kind"] == "files"
