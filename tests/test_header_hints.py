"""A header that is read as a record, since the file is declared to have none, is hinted at."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from datamodules.clean import clean
from datamodules.config import DataConfig, FeaturesConfig, SplitConfig, TableConfig
from datamodules.report import print_report, report_data
from datamodules.splits import split_interactions
from datamodules.tables import read_tables, tables_from_frames

NAMES = ["user_id", "item_id"]
NUMBERED = "".join(f"{row % 3},{row}\n" for row in range(11))
LETTERED = "".join(f"u{row % 3},i{row}\n" for row in range(11))
NAMED = "anna,bread\nben,milk\n"


def read_events(folder, text, names=NAMES, columns=None):
    (folder / "events.csv").write_text(text)
    return read_tables(DataConfig(TableConfig(str(folder / "events.csv"), columns or {}, names=names)))[1]


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("user_id,item_id", NAMED),
        ("User ID,itemid", NUMBERED),
        ("who,what", NUMBERED),
        ("who,what", LETTERED),
        ("user_id,what", LETTERED),
    ],
)
def test_a_header_read_with_names_is_hinted_at(tmp_path, header, rows):
    (hint,) = read_events(tmp_path, f"{header}\n{rows}").headers
    assert hint == (
        f"{tmp_path}/events.csv is read with names, and its line 1 looks like a header: if it is one, take out names "
        "or that line"
    )


def test_a_header_of_names_that_are_mapped_is_hinted_at(tmp_path):
    text = f"Customer,sku\n{NAMED}"
    columns = {"user_id": "customer", "item_id": "sku"}
    assert len(read_events(tmp_path, text, ["customer", "sku"], columns).headers) == 1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (NUMBERED, NAMES),
        (LETTERED, NAMES),
        (NAMED, NAMES),
        (f"anna,7\n{NUMBERED}", NAMES),  # one column alone
        (f"anna,bread\nben,7\n{NUMBERED}", NAMES),  # not the only word
        ("who,what\n1,2\n1,3\n", NAMES),  # too few others to tell
        (f"{NUMBERED}user_id,item_id\n", NAMES),  # not the first line
        (f",what\n{NUMBERED}", NAMES),  # no user
        (f"user_id,item_id\n{NUMBERED}", None),
    ],
)
def test_a_first_line_of_ids_is_no_header(tmp_path, text, names):
    assert read_events(tmp_path, text, names).headers == ()


def test_a_frame_has_no_first_line():
    events = pd.DataFrame({"user_id": ["user_id", "a"], "item_id": ["item_id", "b"]})
    assert tables_from_frames(DataConfig(TableConfig(names=NAMES)), events)[1].headers == ()


@pytest.mark.parametrize(("first", "n_hints"), [("user_id,town", 1), ("guest,Ulm", 0)])
def test_the_one_column_of_ids_of_a_table_must_hold_its_name(tmp_path, first, n_hints):
    (tmp_path / "events.csv").write_text(f"user_id,item_id\n{LETTERED}")
    (tmp_path / "users.csv").write_text(f"{first}\n" + "".join(f"u{row},Bonn\n" for row in range(13)))
    users = TableConfig(str(tmp_path / "users.csv"), names=["user_id", "town"])
    features = FeaturesConfig(user={"town": "categorical"})
    _, rejects = read_tables(DataConfig(TableConfig(str(tmp_path / "events.csv")), users, features=features))
    assert len(rejects.headers) == n_hints


def test_the_data_report_tells_of_a_header(tmp_path):
    (tmp_path / "events.csv").write_text(f"who,what\n{NUMBERED}")
    config = DataConfig(TableConfig(str(tmp_path / "events.csv"), names=NAMES), split=SplitConfig("none"))
    tables, rejects = read_tables(config)
    tables, cleaning = clean(tables)
    report = report_data(tables, rejects, cleaning, split_interactions(tables.interactions, config, 0), config, ())
    assert report["headers"] == list(rejects.headers)
    text = io.StringIO()
    print_report(report, Console(file=text, width=400))
    assert f"a header? {rejects.headers[0]}" in " ".join(text.getvalue().split())
