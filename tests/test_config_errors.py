import gzip
from typing import Literal

import jsonargparse
import pytest

from datamodules.config import DataConfig
from datamodules.config_errors import explain, parse_config
from serve.errors import SchemaError


def make_parser():
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--data", type=DataConfig)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--precision", type=Literal[16, "16", "16-true"], default=16)
    return parser


def explain_arguments(*arguments):
    parser = make_parser()
    with pytest.raises(jsonargparse.ArgumentError) as error:
        parser.parse_args(list(arguments))
    return explain(error.value, parser.get_defaults().keys())


def explain_file(folder, text):
    (folder / "run.yaml").write_text(text)
    return explain_arguments("--config", str(folder / "run.yaml"))


KINDS = "categorical, day_of_week, hour_of_day, multi_categorical, numeric, text, vector"
FILES = [
    ("sed: 3", "unknown key 'sed'; did you mean 'seed'?"),
    ("zzz: 3", "unknown key 'zzz'; allowed: config, data, overwrite, precision, seed"),
    ("dat: {ties: ordered}", "unknown key 'dat'; did you mean 'data'?"),
    ("data: {featurs: {user: {age: numeric}}}", "data: unknown key 'featurs'; did you mean 'features'?"),
    ("data: {features: {usr: {age: numeric}}}", "data.features: unknown key 'usr'; did you mean 'user'?"),
    ("data: {split: {att: now}}", "data.split: unknown key 'att'; did you mean 'at'?"),
    ("data: {interactions: {pth: a}}", "data.interactions: unknown key 'pth'; did you mean 'path'?"),
    ("data: {users: {pth: a}}", "data.users: unknown key 'pth'; did you mean 'path'?"),
    (
        "data: {features: {user: {age: numric}}}",
        "data.features.user: 'numric' is not allowed; did you mean 'numeric'?",
    ),
    ("data: {features: {item: {a: 3}}}", f"data.features.item: '3' is not allowed; allowed: {KINDS}"),
    (
        "data: {features: {user: {age: {kind: numric}}}}",
        "data.features.user.kind: 'numric' is not allowed; did you mean 'numeric'?",
    ),
    (
        "data: {features: {user: {age: {kind: numeric, colum: a}}}}",
        "data.features.user: unknown key 'colum'; did you mean 'column'?",
    ),
    (
        "data: {features: {user: {age: {kind: numeric, min: low}}}}",
        "data.features.user.min is 'low'; allowed: float or null",
    ),
    ("{seed: 0,001}", "a key is 1; allowed: texts, in quotes if need be; a fraction is written with a point: 0.001"),
    ("data: {split: {kind: nne}}", "data.split.kind: 'nne' is not allowed; did you mean 'none'?"),
    ("data: {history_length: many}", "data.history_length is 'many'; allowed: int or null"),
    ("data: {audit_only: 3}", "data.audit_only is '3'; allowed: list"),
    ("data: {interactions: {names: a}}", "data.interactions.names is 'a'; allowed: list or null"),
    ("data: {items: {columns: {item_id: 3}}}", "data.items.columns is '3'; allowed: str; put it in quotes"),
    ("data: {users: {missing: [NA, no]}}", "data.users.missing is 'False'; allowed: str; put it in quotes"),
    ("ties: ordered", "unknown key 'ties'; did you mean 'data.ties'?"),
    ("data: {at: now}", "data: unknown key 'at'; did you mean 'data.split.at'?"),
    ("data: {split: pairs}", "data.split is 'pairs'; allowed: a mapping of its keys, or a YAML file of them"),
    ("precision: 7", "precision: '7' is not allowed; allowed: 16, 16-true"),
]


@pytest.mark.parametrize(("text", "expected"), FILES)
def test_a_fault_in_a_file_is_named_in_one_line(tmp_path, text, expected):
    assert explain_file(tmp_path, text) == expected


def test_a_feature_without_a_kind_is_named_by_what_it_has(tmp_path):
    message = explain_file(tmp_path, "data: {features: {user: {age: {column: years}}}}")
    assert message.startswith("data.features.user: 'kind' is missing in ")
    assert "column='years'" in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--data.split.knd", "none"],
            "option --data.split.knd: data.split: unknown key 'knd'; did you mean 'kind'?",
        ),
        (
            ["--data.featurs.user.age=numeric"],
            "option --data.featurs.user.age: data: unknown key 'featurs'; did you mean 'features'?",
        ),
        (["--sed", "3"], "option --sed: unknown key 'sed'; did you mean 'seed'?"),
        (["--print-config"], "option --print-config: unknown key 'print-config'; did you mean 'print_config'?"),
        (
            ["--data-users", "a"],
            "option --data-users: unknown key 'data-users'; allowed: config, data, help, overwrite, precision, "
            "print_config, seed",
        ),
        (["--data.tie", "ordered"], "option --data.tie: data: unknown key 'tie'; did you mean 'ties'?"),
        (["--data.users.pth", "a"], "data.users: unknown key 'pth'; did you mean 'path'?"),
        (
            ["--data.features.user.age.kind", "numric"],
            "data.features.user.kind: 'numric' is not allowed; did you mean 'numeric'?",
        ),
        (["--seed", "x"], "seed is 'x'; allowed: int"),
        (["--data.split.kind", "nne"], "data.split.kind: 'nne' is not allowed; did you mean 'none'?"),
        (["seed"], "'seed' belongs to no option; did you mean '--seed'?"),
        (["--overwrite", "True"], "'True' belongs to no option; --overwrite takes no value"),
        (["mine.yaml"], "'mine.yaml' belongs to no option; did you mean '--config mine.yaml'?"),
        (
            ["-q"],
            "'-q' belongs to no option; allowed: --config, --data, --help, --overwrite, --precision, --print_config, "
            "--seed",
        ),
        (["--print_confg"], "option --print_confg: unknown key 'print_confg'; did you mean 'print_config'?"),
        (["--seed"], "option --seed: a value is missing; write --seed VALUE"),
        (["--overwrite=yes"], "option --overwrite takes no value; got 'yes'"),
        (["--data", "mine"], "data is 'mine'; allowed: a mapping of its keys, or a YAML file of them"),
    ],
)
def test_a_fault_on_the_command_line_is_named_in_one_line(arguments, expected):
    assert explain_arguments(*arguments) == expected


def test_what_is_no_yaml_or_no_file_comes_back_in_one_line(tmp_path):
    message = explain_file(tmp_path, "data: {a: b: c}")
    assert "line 1, column 12" in message
    assert "\n" not in message
    assert "does not exist" in explain_arguments("--config", str(tmp_path / "none.yaml"))


def test_a_table_of_other_bytes_in_the_place_of_its_keys_is_told_where_it_belongs(tmp_path):
    table = tmp_path / "table.csv.gz"
    table.write_bytes(gzip.compress(b"user_id,item_id\nu1,i1\n"))
    with pytest.raises(SchemaError, match=r"is no YAML in UTF-8; a table is given as --data\.interactions\.path FILE$"):
        parse_config(make_parser(), ["--data.interactions", str(table)], ())


def test_a_message_of_unknown_form_is_kept():
    assert explain("Something\n  quite new", ["seed"]) == "Something quite new"
    assert explain('Parser key "data.x":\n  Is\n  odd', ["data.x"]) == "data.x: Is odd"
