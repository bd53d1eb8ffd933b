"""What people get wrong in tables and declarations: each mistake ends the run with one line that says what to write.

The line names the file, the line where there is one, the column, and the remedy.
"""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
import train
import yaml
from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, TableConfig
from datamodules.schema_fitting import MAX_VOCABULARY, fit_feature
from datamodules.tables import read_tables
from pipeline.config import parse
from serve.errors import SchemaError
from tests.served import ROOT

HEADER = "user_id,item_id,datetime,weight,event"
ROWS = [
    f"{user},{item},{datetime(2024, 3, 13, tzinfo=UTC) + timedelta(days=user, hours=item):%Y-%m-%d %H:%M},1.5,buy"
    for user in range(1, 9)
    for item in range(1, 6)
]
ITEMS = [
    "item_id,price,image,brand",
    *(f"{item},{item}.5,{item} 0.5 1,b{item % 2}" for item in range(1, 6)),
]
EVENTS = "\n".join([HEADER, *ROWS])
FEATURES = {"price": "numeric", "image": "vector", "brand": "categorical"}


def events(old: str, new: str, count: int = -1) -> dict[str, str]:
    changed = EVENTS.replace(old, new, count)
    assert changed != EVENTS
    return {"events.csv": changed}


def items(*rows: str) -> dict[str, str]:
    return {"items.csv": "\n".join([ITEMS[0], *rows])}


def rewrite_dates(form: str) -> dict[str, str]:
    cells = [row.split(",") for row in ROWS]
    both = [(cell, datetime.fromisoformat(cell[2]).strftime(form)) for cell in cells]
    return {
        "events.csv": "\n".join([HEADER, *(f"{c[0]},{c[1]},{w},{c[3]},{c[4]}" for c, w in both)])
    }


def interactions(**keys) -> dict:
    return {"interactions": keys}


MISTAKES: list[tuple[str, dict, dict, tuple[str, ...]]] = [
    (
        "another separator is declared",
        events(",", ";"),
        interactions(delimiter="|"),
        ("events.csv", "line 1", ";", "delimiter"),
    ),
    ("a column has another name", events("item_id", "item", 1), {}, ("events.csv", "'item_id'", "'item'", "columns")),
    ("decimal commas", {"events.csv": EVENTS.replace(",", ";").replace("1.5", "1,5")}, {},
     ("events.csv", "line 2", "'weight'", 'decimal: ","', "data.interactions")),
    ("decimal points under a declared comma", {}, {"items": {"decimal": ","}},
     ("items.csv", "line 2", "'price'", 'decimal: "."', "data.items")),
    ("days before months", rewrite_dates("%d.%m.%Y %H:%M"), {},
     ("events.csv", "line 2", "'datetime'", "'14.03.2024 01:00'", '["%d.%m.%Y %H:%M"]', "data.interactions")),
    ("dates without signs", rewrite_dates("%Y%m%d"), {}, ("events.csv", "'datetime'", '["%Y%m%d"]')),
    ("seconds and milliseconds", {"events.csv": "\n".join(
        [HEADER, *(f"{n},{n},{1_710_378_000 * (1000 if n % 3 else 1)},1,buy" for n in range(1, 30))])}, {},
     ("events.csv", "'datetime'", "milliseconds", "one unit")),
    ("ids that were floats", {"events.csv": "\n".join([HEADER, *(row.replace(",", ".0,", 1) for row in ROWS)]),
     "users.csv": "user_id\n1\n2\n3\n"}, {"users": {"path": "users.csv"}},
     ("user_id", "'1.0'", "'1'", "without .0")),
    ("two rows of one item", items(*ITEMS[1:], "2,9.9,1 2 3,b0"), {},
     ("items.csv", "line 3", "line 7", "'price'", "keep one row")),
    ("an encoding of Windows", {"items.csv": "\n".join([ITEMS[0], *(r + "ü" for r in ITEMS[1:])]).encode("latin-1")},
     {},
     ("items.csv", "line 2", "'brand'", "encoding: cp1252", "data.items")),
    ("an open quote", events(",buy\n2,1", ',"buy\n2,1', 1), {}, ("events.csv", "line 6", "quote", "not closed")),
    ("no header", {"events.csv": "\n".join(ROWS)}, {}, ("events.csv", "line 1", "names: [user_id, item_id")),
    ("tabs under a declared comma", events(",", "\t"), interactions(delimiter=","), ("line 1", r"\t", "delimiter")),
    ("an empty file", {"events.csv": ""}, {}, ("events.csv", "empty", "at least one record")),
    ("a spreadsheet", {}, interactions(path="events.xlsx"), ("events.xlsx", "matches no file", "events.csv")),
    ("a kind that is none", {}, {"features": {"item": {"price": "number"}}}, ("price", "numeric")),
    ("a text where a vector is due", {}, {"features": {"item": {"brand": "vector"}}},
     ("items.csv", "line 2", "'brand'", "'b1'", "another kind")),
    ("vectors of two lengths", items(*ITEMS[1:3], *(row.replace(" 0.5", "") for row in ITEMS[3:])), {},
     ("items.csv", "line 2", "'image'", "one length", "another kind")),
    ("lists where one value is due", {"items.jsonl": '{"item_id": 1, "brand": ["a"]}\n{"item_id": 2, "brand": ["b"]}'},
     {"items": {"path": "items.jsonl"}, "features": {"item": {"brand": "categorical"}}},
     ("items.jsonl", "'brand'", "multi_categorical")),
    ("an event that nobody does", {}, {"events": {"purchase": 2}}, ("'purchase'", "allowed: buy")),
    ("a split after the end", {}, {"split": {"kind": "time", "at": "2025-01-01"}},
     ("data.split.at", "2024-03-14", "2024-03-21", "another moment")),
    ("a path with no match", {}, interactions(path="event.csv"),
     ("event.csv", "data.interactions.path", "did you mean 'events.csv'")),
    ("a storage that is none", {}, interactions(path="s5://shop/*.parquet"),
     ("data.interactions.path", "s5", "allowed:", "s3://")),
    ("a database without a query", {}, interactions(path="postgresql://me:secret@db/shop"),
     ("data.interactions.path", "postgresql://", "query:", "beside the path")),
    ("a query that is none", {}, interactions(path=None, query="SELEC 1"), ("data.interactions.query", "SELECT")),
    ("one user alone", {"events.csv": "\n".join([HEADER, *ROWS[:5]])}, {},
     ("5 events", "one user", "columns.user_id", "two")),
    ("one item alone", {"events.csv": "\n".join([HEADER, *ROWS[::5]])}, {}, ("8 events", "one item", "1", "two")),
    ("an event of each user", {"events.csv": "\n".join([HEADER, *ROWS[::6]])}, {},
     ("no user has two", "data.split.kind", "none")),
    ("every weight is negative", events("1.5", "-1.5"), {},
     ("40", "weight below 0", "data.interactions.columns.weight")),
    ("features of a table that is not there", {}, {"features": {"user": {"town": "categorical"}}},
     ("'town'", "data.features.user", "set data.users")),
    ("a date as a limit of a number", {}, {"features": {"item": {"price": {"kind": "numeric", "min": "2024-01-01"}}}},
     ("2024-01-01", "kind numeric", "numbers")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "changes", "parts"),
    [one[1:] for one in MISTAKES],
    ids=[one[0] for one in MISTAKES],
)
def test_a_mistake_ends_the_run_with_one_line_that_says_what_to_write(
    tmp_path, monkeypatch, capsys, files, changes, parts
):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "events.csv": EVENTS,
        "items.csv": "\n".join(ITEMS),
        **files,
    }.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    data = {
        "interactions": {"path": "events.csv"},
        "items": {"path": "items.csv"},
        "features": {"item": FEATURES},
    }
    for key, value in changes.items():
        data[key] = {**data.get(key, {}), **value}
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump({"data": data}))
    assert train.main(["--config", "shop.yaml"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert [part for part in parts if part not in line] == []
    assert "secret" not in line


# what stands in the file -> its line, key, value and remedy; `data` begins with the interactions
WRITTEN: list[tuple[str, str, tuple[str, ...]]] = [
    ("a name of another program", "    seperator: ';'", ("line 4", "seperator", "data.interactions", "delimiter")),
    ("a slip in a key", "  repaets: allow", ("line 4", "repaets", "'repeats'")),
    ("a key of a section at the top", "repeats: allow", ("line 4", "'data.repeats'")),
    ("a key of a run in a section", "model: {batch: 3, max_epoch: 4}", ("line 4", "model.batch is", "'batch_size'")),
    ("a setting of the Trainer", "model: {max_steps: 3}", ("line 4", "max_steps", "max_epochs")),
    ("yes where words are due", "  repeats: yes", ("line 4", "data.repeats is True", "'exclude' or 'allow'")),
    ("a choice with a slip", "  ties: simultanous", ("line 4", "simultanous", "'simultaneous'")),
    ("a text for a number", "model: {dim: big}", ("line 4", "model.dim is 'big'", "a whole number")),
    ("a fraction for a whole number", "model: {dim: 64.5}", ("line 4", "model.dim is 64.5", "a whole number")),
    ("a share in percent", "  max_reject_rate: 5%", ("line 4", "data.max_reject_rate is '5%'", "a number")),
    ("a rate above 1", "  max_reject_rate: 5", ("line 4", "data.max_reject_rate is 5", "0 to 1")),
    ("no seed", "seed:", ("line 4", "seed is None", "a whole number")),
    ("a number for a sign", "    delimiter: 1", ("line 4", "data.interactions.delimiter is 1", "in quotes")),
    ("one text for a list", "  audit_only: gender", ("line 4", "data.audit_only is 'gender'", "a list")),
    ("a number in a list", "    missing: [NA, 0]", ("line 4", "data.interactions.missing.1 is 0", "in quotes")),
    ("an empty section", "model:", ("line 4", "model is None", "keys")),
    ("a list for a section", "model: [dim, 3]", ("line 4", "model is ['dim', 3]", "keys")),
    ("a word for a section", "  split: time", ("line 4", "data.split is 'time'", "keys")),
    ("an empty table", "  items:\n  users: no", ("line 5", "data.users is False", "keys")),
    ("a list for features", "  features: {item: [price]}", ("line 4", "data.features.item is ['price']", "keys")),
    ("an unknown side", "  features: {items: {price: numeric}}", ("line 4", "data.features.items is", "'item'")),
    ("a kind with a slip", "  features: {item: {price: numerik}}",
     ("line 4", "data.features.item.price", "numerik", "'numeric'")),
    ("a key of a feature", "  features: {item: {price: {kind: numeric, maximum: 3}}}",
     ("line 4", "maximum", "data.features.item.price", "max")),
    ("a feature without a kind", "  features: {item: {price: {column: cost}}}",
     ("line 4", "data.features.item.price", "kind")),
    ("a key twice", "  ties: ordered\n  ties: ordered", ("line 5", "data.ties", "line 4", "keep one")),
    ("a tab", "\tties: ordered", ("line 4", "column 1", "blanks")),
    ("an open bracket", "  audit_only: [gender", ("line 5", "','", "quotes")),
    ("a colon in a text", "  timezone: a: b", ("line 4", "column", "quotes")),
    ("what only the run sets", "trainer: {max_epochs: 3}", ("line 4", "trainer.max_epochs", "model.max_epochs")),
    ("a baseline that is none", "evaluation: {baselines: [popularty]}", ("shop.yaml", "popularty", "'popularity'")),
    ("a zone that is none", "  timezone: Europe/Berln", ("shop.yaml", "Europe/Berln", "Europe/Berlin")),
    ("a format without a year", "    time_formats: ['%d.%m.']",
     ("line 4", "data.interactions.time_formats", "%d.%m.", "%Y")),
    ("a split without its moment", "  split: {kind: time}", ("line 4", "data.split.kind", "data.split.at")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "parts"), [one[1:] for one in WRITTEN], ids=[one[0] for one in WRITTEN]
)
def test_a_mistake_in_the_configuration_is_one_line_with_file_key_value_and_remedy(
    tmp_path, monkeypatch, capsys, text, parts
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events.csv").write_text(EVENTS)
    (tmp_path / "shop.yaml").write_text(f"data:\n  interactions:\n    path: events.csv\n{text}\n")
    assert train.main(["--config", "shop.yaml"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert [part for part in ("shop.yaml", *parts) if part not in line] == []
    assert not re.search(r"typing|class '|subtypes|Namespace|Group|Parser|Expected", line)


def test_python_and_the_command_line_are_told_of_the_same_slips():
    for words in (
        ["--data.interactions.delimeter", ";"],
        ["--config", '{"data": {"interactions": {"delimeter": ";"}}}'],
    ):
        with pytest.raises(SchemaError, match="did you mean 'delimiter'"):
            parse(words)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("shop.yaml", "data: {}".encode("utf-16"), ("UTF-8", "save")),
        ("shop.yaml", b"# nothing\n", ("empty", "data.interactions.path")),
        ("shop.yml", b"data: {}", ("'shop.yml'",)),
        ("shop.yaml/events.csv", b"", ("matches no file", "events.csv")),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(
    tmp_path, monkeypatch, capsys, name, content, parts
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    assert train.main(["--config", "shop.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [part for part in ("shop.yaml", *parts) if part not in line] == []


def test_yaml_may_merge_mappings_and_write_numbers_in_its_ways():
    merged, _ = parse(
        ["--config", "{index: {recall: 0.9}, model: {<<: {dim: 8}, learning_rate: 1e-3}}"]
    )
    assert (merged.model.dim, merged.model.learning_rate) == (8, 0.001)


def test_a_mistake_in_the_data_is_told_before_torch_is_imported(tmp_path):
    (tmp_path / "events.csv").write_text(EVENTS.replace("2024-03-14 01:00", "soon"))
    (tmp_path / "shop.yaml").write_text("data: {interactions: {path: events.csv}}")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train\n"
        "status = train.main(['--config', 'shop.yaml'])\n"
        "print(status, {'torch', 'pytorch_lightning', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split(maxsplit=1) == ["2", "set()\n"]
    assert "line 2" in done.stderr


EARLY = "2024-03-14 03:00"  # in line 4
LOST = [
    ("a price in words", items(*ITEMS[1:5], "5,free,1 2 3,b1"), ("items.csv", 6, "price", "free", "cell")),
    ("a date of the future", events(EARLY, "2199-12-31", 1),
     ("events.csv", 4, "datetime", "2199-12-31", "record")),
    ("a missing time as 0", events(EARLY, "1970-01-01", 1),
     ("events.csv", 4, "datetime", "1970-01-01", "record")),
    ("an unquoted separator", events("1,3,", "1,3,,", 1),
     ("events.csv", 4, None, f"1,3,,{EARLY},1.5,buy", "record")),
    ("a total below the rows", {"events.csv": EVENTS + "\n,,,60,"}, ("events.csv", 42, "user_id", None, "record")),
    ("a vector cut short", items(*ITEMS[1:], *(f"{n},1,1 2 3,b0" for n in range(6, 16)), "16,1,1 2,b0"),
     ("items.csv", 17, "image", "1 2", "cell")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "expected"), [one[1:] for one in LOST], ids=[one[0] for one in LOST]
)
def test_a_slip_is_listed_and_costs_no_more_than_it_must(tmp_path, monkeypatch, files, expected):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "events.csv": EVENTS,
        "items.csv": "\n".join(ITEMS),
        **files,
    }.items():
        (tmp_path / name).write_text(content)
    features = FeaturesConfig(item={"price": "numeric", "image": "vector", "brand": "categorical"})
    config = DataConfig(
        TableConfig("events.csv"), items=TableConfig("items.csv"), features=features
    )
    tables, rejects = read_tables(config)
    lost = rejects.frame[["file", "line", "column", "value", "costs"]].astype(object)
    assert lost.where(lost.notna(), None).to_numpy().tolist() == [list(expected)]
    assert len(tables.interactions) == rejects.records["interactions"] - len(
        rejects.tables["interactions"]
    )
    assert len(tables.items) == rejects.records["items"]


def test_a_category_of_as_many_values_as_rows_is_refused():
    cells = pd.Series(range(MAX_VOCABULARY + 1), name="Nr")
    with pytest.raises(SchemaError, match=r"column 'Nr' has 200,001 values.*declare it as text"):
        fit_feature("number", FeatureConfig("categorical", "Nr"), cells, None, None)
