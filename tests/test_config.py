from dataclasses import fields, replace
from pathlib import Path

import jsonargparse
import pytest
import yaml

from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, SplitConfig, TableConfig, TargetsConfig
from datamodules.reading.columns import interaction_columns, user_columns
from datamodules.schema_fitting import LONGEST_HISTORY, LONGEST_RECENT, LONGEST_SET
from datamodules.tables import read_tables
from models.config import ModelConfig
from serve.errors import SchemaError

CONFIGS = Path(__file__).parents[1] / "configs"
GENRES = [
    "unknown",
    "action",
    "adventure",
    "animation",
    "childrens",
    "comedy",
    "crime",
    "documentary",
    "drama",
]
GENRES += [
    "fantasy",
    "film_noir",
    "horror",
    "musical",
    "mystery",
    "romance",
    "sci_fi",
    "thriller",
    "war",
    "western",
]


def load(name):
    """Parse the data block of one of the configurations that come with the project."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=DataConfig)
    block = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]
    return parser.instantiate(parser.parse_object({"data": block})).data


def test_the_grocery_config_declares_the_sample():
    config = load("grocery")
    assert config.split == SplitConfig("time", "2017-12-01")
    assert (config.ties, config.repeats, config.history_length) == ("simultaneous", "allow", None)
    assert config.features.context == {}
    for table in (config.interactions, config.users, config.items):
        assert (CONFIGS.parent / table.path).is_file()
    assert {*config.features.user.values(), *config.features.item.values()} == {"categorical"}
    assert (len(config.features.user), len(config.features.item)) == (7, 5)


def write_movielens(folder, config):
    """Write tables of the layout of MovieLens-100k: no header line, tabs or bars, films in Latin-1."""
    flags = "0|1|1" + "|0" * 16
    files = {
        "interactions": b"196\t242\t3\t881250949\n186\t302\t4\t891717742\n196\t302\t1\t881250999\n",
        "users": b"196|49|M|writer|55105\n186|39|F|executive|00000\n",
        "items": f"242|Kolya (1996)|24-Jan-1997||http://x?a,b|{flags}\n302|Misérables|||http://y|{flags}\n".encode(
            "latin-1"
        ),
    }
    changed = {}
    for name, content in files.items():
        table = getattr(config, name)
        path = folder / Path(table.path).name
        path.write_bytes(content)
        changed[name] = replace(table, path=str(path))
    return replace(config, **changed)


def test_the_movielens_config_reads_its_files_as_they_are(tmp_path):
    config = load("movielens-100k")
    assert [Path(table.path).name for table in (config.interactions, config.users, config.items)] == [
        "u.data",
        "u.user",
        "u.item",
    ]
    assert (config.split, config.ties, config.repeats, config.history_length) == (
        SplitConfig("leave_one_out"),
        "ordered",
        "exclude",
        None,
    )
    tables, rejects = read_tables(write_movielens(tmp_path, config))
    assert rejects.frame.empty
    assert tables.interactions.to_numpy().tolist() == [
        [196, 242, 881250949, 3],
        [186, 302, 891717742, 4],
        [196, 302, 881250999, 1],
    ]
    assert list(tables.interactions) == ["user_id", "item_id", "datetime", "weight"]
    assert tables.users["age"].tolist() == [49, 39]
    assert tables.items[GENRES].iloc[1].tolist() == ["0", "1", "1"] + ["0"] * 16
    assert tables.items["release_date"].iloc[0] == "24-Jan-1997"
    assert tables.items["release_date"].isna().tolist() == [False, True]


def list_keys(cls):
    return {field.name for field in fields(cls)}


def test_the_template_shows_every_key_and_states_the_defaults():
    block = yaml.safe_load((CONFIGS / "template.yaml").read_text())["data"]
    assert set(block) == list_keys(DataConfig)
    assert set(block["interactions"]) == list_keys(TableConfig)
    assert set(block["split"]) == list_keys(SplitConfig)
    assert set(block["targets"]) == list_keys(TargetsConfig)
    assert set(block["features"]) == list_keys(FeaturesConfig)
    declared = [value for side in block["features"].values() for value in side.values()]
    assert {key for value in declared if isinstance(value, dict) for key in value} == list_keys(FeatureConfig)
    config = load("template")
    for name in ("split", "targets", "leaks", "ties", "repeats", "history_length", "max_reject_rate"):
        assert getattr(config, name) == getattr(DataConfig(), name)
    assert not config.interactions.declares_text


def test_the_template_says_how_long_histories_are_by_default():
    (line,) = [line for line in (CONFIGS / "template.yaml").read_text().splitlines() if "history_length" in line]
    assert f"at most {LONGEST_HISTORY} ({LONGEST_RECENT} where `repeats` is allow, {LONGEST_SET} of a set)" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"timezone": "Europe/Berln"},
            "data.timezone: time zone 'Europe/Berln' is unknown; did you mean 'Europe",
        ),
        ({"timezone": "../etc/passwd"}, "data.timezone: time zone '../etc/passwd' is unknown"),
        ({"max_reject_rate": 1.5}, "data.max_reject_rate is 1.5; allowed: 0 to 1"),
        ({"audit_only": ["town", "age", "town"]}, "data.audit_only names 'town' more than once; keep one of them"),
        ({"events": {"buy": 0.0}}, "data.events: 'buy' is 0.0; allowed: a finite number above 0"),
        ({"history_length": 1}, "data.history_length is 1; allowed: 2 to 10,000"),
        ({"history_length": 1_000_000}, "data.history_length is 1000000; allowed: 2 to 10,000, or leave it out"),
        (
            {"users": TableConfig(encoding="utf-16")},
            "data.users.encoding is 'utf-16'; allowed: utf-8, latin-1",
        ),
        ({"items": TableConfig(delimiter=":::::")}, "data.items.delimiter is ':::::'; allowed: one character"),
        ({"items": TableConfig(delimiter="€€")}, "data.items.delimiter is '€€'; allowed: one character"),
        ({"items": TableConfig(delimiter="a\n")}, "data.items.delimiter is 'a\\n'; allowed: one character"),
        ({"items": TableConfig(delimiter="\x1f|")}, "data.items.delimiter is '\\x1f|'; allowed: one character"),
        ({"interactions": TableConfig(delimiter='"')}, "data.interactions.delimiter is '\"'; allowed"),
        ({"interactions": TableConfig(delimiter="")}, "data.interactions.delimiter is ''; allowed"),
        ({"events": {1: 2.0}}, "data.events: the key 1 is int; allowed: a text; put it in quotes"),
        ({"features": FeaturesConfig(item={True: "numeric"})}, "data.features.item: the key True is bool; allowed"),
    ],
)
def test_a_value_that_cannot_be_is_refused_at_once(options, message):
    with pytest.raises(SchemaError) as error:
        DataConfig(**options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "time"}, "data.split.at is not set"),
        (
            {"kind": "time", "at": "2017-12-01", "strict": True},
            "strict is True and data.split.kind is 'time'",
        ),
        ({"kind": "time", "at": "2020-01-01", "share": 0.1}, "share is 0.1 and data.split.kind is 'time'"),
        ({"kind": "pairs", "test": "a.csv"}, "test is 'a.csv' and data.split.kind is 'pairs'"),
        ({"kind": "pairs", "share": 1.0}, "share is 1.0; allowed: more than 0 and less than 1"),
        ({"kind": "files"}, "data.split.test is not set"),
        ({"kind": "none", "strict": True}, "strict is True and data.split.kind is 'none'"),
    ],
)
def test_a_split_that_contradicts_itself_is_refused(options, message):
    with pytest.raises(SchemaError, match=message):
        SplitConfig(**options)


def test_no_kind_of_event_at_all_is_refused_as_targets():
    with pytest.raises(SchemaError, match=r"data.targets.events is \[\]; allowed: one kind of event or more, or null"):
        TargetsConfig(events=[])


def test_an_empty_separator_is_refused():
    features = FeaturesConfig(item={"genres": FeatureConfig("multi_categorical", separator="")})
    with pytest.raises(SchemaError, match="feature 'genres' has an empty separator; allowed: one character or more"):
        features.of("item")


@pytest.mark.parametrize("feature", ["categorical", FeatureConfig("numeric", "user_id")])
def test_ids_of_users_are_no_feature(feature):
    config = DataConfig(users=TableConfig(), features=FeaturesConfig(user={"user_id": feature}))
    with pytest.raises(SchemaError, match=r"data\.features\.user: column 'user_id' holds ids, .*; take it out"):
        user_columns(config)


def test_ids_of_users_are_no_feature_by_the_name_that_a_file_has_for_them():
    table, feature = TableConfig(columns={"user_id": "customer"}), {"who": FeatureConfig("categorical", "customer")}
    config = DataConfig(interactions=table, users=table, features=FeaturesConfig(user=feature, context=feature))
    for side, list_columns in (("user", user_columns), ("context", interaction_columns)):
        with pytest.raises(SchemaError, match=rf"data\.features\.{side}: column 'customer' holds ids, .* all users"):
            list_columns(config)


def test_ids_of_users_are_no_context():
    config = DataConfig(features=FeaturesConfig(context={"user_id": "categorical"}))
    with pytest.raises(SchemaError, match=r"data\.features\.context: column 'user_id' holds ids, .*; take it out"):
        interaction_columns(config)


def test_a_strict_split_leaves_one_out():
    assert SplitConfig(strict=True).kind == "leave_one_out"


def test_the_template_leaves_the_model_open_or_states_the_defaults():
    block = yaml.safe_load((CONFIGS / "template.yaml").read_text())["model"]
    assert ModelConfig(**block) == ModelConfig()
    assert block.keys() <= list_keys(ModelConfig)
