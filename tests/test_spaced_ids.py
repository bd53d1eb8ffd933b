"""Ids with white space around them stay as they are, and are counted."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from datamodules.clean import clean
from datamodules.config import DataConfig, SplitConfig, TableConfig
from datamodules.report import print_report, report_data
from datamodules.splits import split_interactions
from datamodules.tables import read_tables, tables_from_frames

SPACED = ["u1", "u1 ", "u2", "\tu3", "u1 ", "  ", "u 4"]


def test_ids_with_white_space_are_counted_and_the_first_is_placed(tmp_path):
    for name, users in (("a", SPACED), ("b", [*SPACED, "u5\u00a0"])):
        rows = "".join(f"{user},i{row}\n" for row, user in enumerate(users))
        (tmp_path / f"{name}.csv").write_text(f"user_id,item_id\n{rows}", encoding="utf-8")
    tables, rejects = read_tables(DataConfig(TableConfig(str(tmp_path / "?.csv"))))
    assert rejects.spaced_ids == (
        f"distinct ids in interactions.user_id with white space at an end: 3, the first in line 3 of {tmp_path}/a.csv; "
        "each is another id than the same without",
    )
    assert tables.interactions["user_id"].tolist()[:6] == ["u1", "u1 ", "u2", "\tu3", "u1 ", "u 4"]


@pytest.mark.parametrize("kind", ["object", "str", "category"])
def test_each_column_of_ids_is_told_of(kind):
    events = pd.DataFrame({"user_id": [1, 2, 2], "item_id": pd.Series(["a", "b", " a"], dtype=kind)})
    items = pd.DataFrame({"item_id": pd.Series(["a", "b ", "c "], dtype=kind)})
    _, rejects = tables_from_frames(DataConfig(), events, items=items)
    assert [found.split(", the first")[0] for found in rejects.spaced_ids] == [
        "distinct ids in interactions.item_id with white space at an end: 1",
        "distinct ids in items.item_id with white space at an end: 2",
    ]
    assert "the first in line 3 of interactions" in rejects.spaced_ids[0]


def test_the_data_report_tells_of_them_and_names_nobody():
    events = pd.DataFrame({"user_id": ["anna", "anna ", "ben"], "item_id": [7, 8, 7]})
    config = DataConfig(split=SplitConfig("none"))
    for rows, n_found in ((events, 1), (events.replace("anna ", "anna"), 0)):
        tables, rejects = tables_from_frames(config, rows)
        tables, cleaning = clean(tables)
        report = report_data(tables, rejects, cleaning, split_interactions(tables.interactions, config, 0), config, ())
        assert report["spaced_ids"] == list(rejects.spaced_ids)
        text = io.StringIO()
        print_report(report, Console(file=text, width=300))
        assert text.getvalue().count("spaced ids") == len(rejects.spaced_ids) == n_found
        assert "anna" not in text.getvalue()
