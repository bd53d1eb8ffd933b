"""Few texts among integer ids make all of them texts, which is said with the place of the first."""

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

CONFIG = DataConfig(split=SplitConfig("none"))


def read(folder, users, name="events"):
    rows = "".join(f"{user},{number % 7}\n" for number, user in enumerate(users))
    (folder / f"{name}.csv").write_text(f"user_id,item_id\n{rows}", encoding="utf-8")
    return read_tables(DataConfig(TableConfig(str(folder / "*.csv")), split=SplitConfig("none")))


def test_a_line_of_totals_among_integers_is_named_by_its_line(tmp_path):
    tables, rejects = read(tmp_path, [*range(20, 50), "Total", "Total"])
    assert rejects.odd_ids == (
        "all ids of interactions.user_id are texts, since 1 of 31 are no integers, the first in line 32 of "
        f"{tmp_path}/events.csv: if that is no record, such as a line of totals, take it out",
    )
    tables, cleaning = clean(tables)
    report = report_data(tables, rejects, cleaning, split_interactions(tables.interactions, CONFIG, 0), CONFIG, ())
    assert report["odd_ids"] == list(rejects.odd_ids)
    text = io.StringIO()
    print_report(report, Console(file=text, width=400))
    assert rejects.odd_ids[0] in text.getvalue()
    assert "Total" not in text.getvalue()  # an id stays out of what is kept


def test_the_files_of_a_table_count_together(tmp_path):
    read(tmp_path, range(20, 50), "a")
    _, rejects = read(tmp_path, ["Total"], "b")
    assert f"since 1 of 31 are no integers, the first in line 2 of {tmp_path}/b.csv" in rejects.odd_ids[0]


def test_nothing_is_said_where_the_ids_are_integers_after_all(tmp_path):
    read(tmp_path, range(20, 50), "a")
    (tmp_path / "b.csv").write_text("user_id,item_id\nTotal,\n", encoding="utf-8")
    config = DataConfig(TableConfig(str(tmp_path / "*.csv")), split=SplitConfig("none"), max_reject_rate=1)
    tables, rejects = read_tables(config)
    assert tables.interactions["user_id"].tolist() == [*range(20, 50)]  # a file without a good record has no say
    assert rejects.odd_ids == ()


@pytest.mark.parametrize(
    "users",
    [
        range(20, 50),
        [*range(20, 50), "guest", "robot"],
        [f"u{number}" for number in range(30)],
        [*range(9), "Total"],
        [*range(20, 50), " "],
    ],
    ids=["integers", "texts and integers", "texts", "few", "blank"],
)
def test_other_columns_are_left_alone(tmp_path, users):
    assert read(tmp_path, users)[1].odd_ids == ()


def test_a_frame_says_itself_what_its_ids_are():
    events = pd.DataFrame({"user_id": [*map(str, range(30)), "guest"], "item_id": 1})
    assert tables_from_frames(CONFIG, events)[1].odd_ids == ()
