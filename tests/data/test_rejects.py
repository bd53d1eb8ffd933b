"""How people write numbers and dates, what a bad cell costs, dates out of place, and tables from queries."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace

import duckdb
import numpy as np
import pandas as pd
import pytest
from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, TableConfig
from datamodules.rejects import check_reject_rates, find_remedy
from datamodules.tables import read_tables, tables_from_frames
from serve.errors import SchemaError, SchemaErrors, say

EVENTS = pd.DataFrame({"user_id": [1, 1, 2, 3], "item_id": [3, 4, 5, 6]})


def read_items(cells, kind, **layout) -> tuple[list, list]:
    """Read cells as a feature of four items; return its values, and reasons and costs of what was lost."""
    items = pd.DataFrame({"item_id": [3, 4, 5, 6], "x": pd.Series(cells, dtype=object)})
    config = DataConfig(
        items=TableConfig(**layout),
        features=FeaturesConfig(item={"x": kind}),
        max_reject_rate=1,
    )
    tables, rejects = tables_from_frames(config, EVENTS, items=items)
    values = tables.items["x"].astype(object)
    return values.where(values.notna(), None).tolist(), rejects.frame[
        ["reason", "costs"]
    ].to_numpy().tolist()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["12,5", "-1.234,75", "1 000 000", ",5"], [12.5, -1234.75, 1e6, None]),
        (["1,5e3", " 7 ", "12.50", ""], [1500.0, 7.0, None, None]),
        ([1.5, 2, "3,0", None], [1.5, 2.0, 3.0, None]),
        ([{"a": 1}, "1", "3,0", None], [None, 1.0, 3.0, None]),
    ],
)
def test_a_decimal_comma_is_read_and_a_point_is_no_decimal_then(cells, expected):
    values, lost = read_items(cells, "numeric", decimal=",")
    assert values == expected
    n_lost = sum(value is None and bool(cell) for value, cell in zip(expected, cells, strict=True))
    assert lost == [["not a number", "cell"]] * n_lost


POINTS = ["$1,299.00", "-$5", "$ 0.5", "1234.5", "12.50 $", ""]
COMMAS = ["EUR 77,40", "1.234,50\xa0€", "-5 EUR", "€-5", "12,50", "EUR 12,-"]
APOSTROPHES = ["CHF 1'200.-", "CHF 12.50", "1’000.5 CHF", "7", "CHF .5", "CHF"]
AMOUNTS = {
    ".": [(POINTS, [1299.0, -5.0, 0.5, 1234.5, 12.5, None], 4),
          (APOSTROPHES, [1200.0, 12.5, 1000.5, 7.0, None, None], 3)],
    ",": [(COMMAS, [77.4, 1234.5, -5.0, -5.0, 12.5, 12.0], 5)],
}  # decimal -> cells, the numbers in them, and how many have a currency  # fmt: skip


def price_items(folder, kind, cells, decimal):
    """Read six prices of a data frame or a file."""
    rows = pd.DataFrame({"item_id": range(6), "price": cells})
    sales = pd.DataFrame({"user_id": [1, 2], "item_id": [0, 5]})
    features = FeaturesConfig(item={"price": "numeric"})
    config = DataConfig(items=TableConfig(decimal=decimal), features=features, max_reject_rate=1)
    if kind == "frame":
        return tables_from_frames(config, sales, items=rows)
    rows.to_csv(folder / "i.csv", sep=";", index=False)
    sales.to_csv(folder / "e.csv", index=False)
    items = TableConfig(str(folder / "i.csv"), decimal=decimal)
    return read_tables(
        replace(config, interactions=TableConfig(str(folder / "e.csv")), items=items)
    )


@pytest.mark.parametrize("kind", ["frame", "file"])
@pytest.mark.parametrize("decimal", AMOUNTS)
def test_amounts_of_one_currency_are_the_numbers_beside_it_and_are_counted(tmp_path, kind, decimal):
    for cells, numbers, n_counted in AMOUNTS[decimal]:
        tables, rejects = price_items(tmp_path, kind, cells, decimal)
        prices = tables.items["price"].astype(object)
        assert prices.where(prices.notna(), None).tolist() == numbers
        said = [hint for hint in rejects.hints if hint.startswith(f"{n_counted} numbers of items")]
        assert len(said) == 1
        n_bad = sum(
            number is None and bool(cell) for number, cell in zip(numbers, cells, strict=True)
        )
        assert rejects.frame["costs"].tolist() == ["cell"] * n_bad
        assert len(tables.items) == rejects.records["items"] == 6


@pytest.mark.parametrize("kind", ["frame", "file"])
def test_amounts_in_two_currencies_are_refused_and_both_are_named(tmp_path, kind):
    with pytest.raises(SchemaError, match=r"'price'.* EUR and USD"):
        price_items(tmp_path, kind, ["€ 5", "EUR 7", "USD 5", "5", "6", "7"], ".")


@pytest.mark.parametrize(
    "cells", [["1,299.00", "5 EUR 6"], ["$1,2", "$12,3456"], ["EURO 5", "5 eur"]]
)
def test_what_is_no_amount_with_a_currency_is_no_number(tmp_path, cells):
    tables, rejects = price_items(tmp_path, "frame", [*cells, "1", "2", "3", "4"], ".")
    assert tables.items["price"].isna().tolist() == [True] * 2 + [False] * 4
    assert rejects.frame["reason"].tolist() == ["not a number"] * 2


def test_weights_with_a_currency_are_kept_and_the_rest_rejected_and_counted(tmp_path):
    weights = {row: f"EUR {row},50" for row in range(30)} | {7: "gift", 8: "9,5"}
    tables, rejects = read_rows(tmp_path, 30, lambda row: {"w": weights[row]}, decimal=",")
    expected = [9.5 if row == 8 else row + 0.5 for row in range(30) if row != 7]
    assert tables.interactions["weight"].tolist() == expected
    assert rejects.frame["line"].tolist() == [9]
    assert len(tables.interactions) + len(rejects.frame) == rejects.records["interactions"]


def test_vectors_with_decimal_commas_are_read_beside_those_that_python_wrote():
    values, _ = read_items(["0,5 -1,25", "[0.5, -1.25]", "0,5;-1,25", None], "vector", decimal=",")
    assert [None if value is None else value.entries().tolist() for value in values] == [
        [0.5, -1.25]
    ] * 3 + [None]


@pytest.mark.parametrize(
    ("cells", "formats", "expected"),
    [
        (["31.05.2024", "1.6.24", "2024-06-02", ""], ["%d.%m.%Y", "%d.%m.%y"],
         ["2024-05-31", "2024-06-01", "2024-06-02", None]),
        (["05/31/2024 6:05 PM", "12/01/2024 12:00 AM"] * 2, ["%m/%d/%Y %I:%M %p"],
         ["2024-05-31T18:05:00", "2024-12-01"] * 2),
        (["31.05.2024 12:00+02:00", "31.05.2024 12:00"] * 2, ["%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M%z"],
         ["2024-05-31T10:00:00", "2024-05-31T12:00:00"] * 2),
        ([20240531, 20240601, 20240602, 20240603], ["%Y%m%d"], ["2024-05-31", *(f"2024-06-0{n}" for n in (1, 2, 3))]),
        (["31.05.2024", "31.02.2024", "soon", "01.06.2024"], ["%d.%m.%Y"], ["2024-05-31", None, None, "2024-06-01"]),
    ],
)  # fmt: skip
def test_dates_are_read_in_declared_formats_and_kept_as_iso(cells, formats, expected):
    values, lost = read_items(cells, "date", time_formats=formats)
    assert values == expected
    assert lost == [["not a time", "cell"]] * sum(
        value is None and bool(cell) for value, cell in zip(expected, cells, strict=True)
    )


def test_dates_beyond_their_limits_and_numbers_beyond_theirs_cost_the_cell():
    kind = FeatureConfig("date", min="2000-01-01", max="2024-12-31")
    values, lost = read_items(["1999-12-31", "2000-01-01", "2025-01-01", "2024-12-31"], kind)
    assert values == [None, "2000-01-01", None, "2024-12-31"]
    assert [cost for _, cost in lost] == ["cell", "cell"]
    values, lost = read_items(["1", "-1", "3", "9"], FeatureConfig("numeric", min=0, max=8))
    assert (values, len(lost)) == ([1.0, None, 3.0, None], 2)


@pytest.mark.parametrize(
    ("reason", "texts", "expected"),
    [
        ("not a number", ["-1.5", "2.25"], 'decimal: "."'),
        ("not a number", ["1,5", "2"], 'decimal: ","'),
        ("not a number", ["EUR 77,40", "7,40 €"], 'decimal: ","'),
        ("not a number", ["$77.40", "$7.4"], 'decimal: "."'),
        ("not a number", ["free", "free"], 'missing: ["free"]'),
        ("not a number", ["1,000", "12,500"], 'decimal: "," or numbers without commas for thousands'),
        ("not a number", ["red", "blue"], ""),
        ("not UTF-8", ["caf\ufffd"], "encoding: cp1252"),
        ("not a time", ["31.12.2024", "1.2.2024", "?"], 'time_formats: ["%d.%m.%Y"]'),
        ("not a time", ["1.2.2024 18:05", "1.2.2024 9:05", "31.12.2024 18:05+02:00"],
         'time_formats: ["%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M%z"]'),
        ("not a time", ["01/02/2024", "12/31/2024"], 'time_formats: ["%m/%d/%Y"]'),
        ("not a time", ["01/02/2024 18:05", "31/12/2024 18:05"], 'time_formats: ["%d/%m/%Y %H:%M"]'),
        ("not a time", ["noon", "soon"], ""),
    ],
)  # fmt: skip
def test_what_reads_the_bad_cells_is_found_from_how_they_are_written(reason, texts, expected):
    assert find_remedy(reason, pd.Series(texts)) == expected


def read_rows(folder, n_rows, spoil, **options):
    """Read sales, some cells of which are spoilt: row -> its changed cells."""
    rows = []
    for row in range(n_rows):
        cells = {"u": f"u{row % 7}", "i": f"i{row % 5}", "t": "2024-03-01", "w": "1.5"}
        rows.append({**cells, **spoil(row)})
    pd.DataFrame(rows).to_csv(folder / "e.csv", sep=";", index=False)
    columns = {"user_id": "u", "item_id": "i", "datetime": "t", "weight": "w"}
    options = {"path": str(folder / "e.csv"), "columns": columns, **options}
    return read_tables(DataConfig(TableConfig(**options)))


def spoil_a_lot(row):
    cells = {"t": "31.12.2024", "w": "1,5"}
    return cells | ({"u": ""} if row % 20 < 3 else {})


def test_all_kinds_of_faults_are_named_at_once_with_what_their_remedies_leave(tmp_path):
    with pytest.raises(SchemaErrors) as error:
        read_rows(tmp_path, 200, spoil_a_lot)
    head, *faults = str(error.value).splitlines()
    assert head.startswith("3 faults")
    declared = [fault[fault.index("declare ") :] for fault in faults]
    assert declared == [
        'declare decimal: "," in data.interactions',
        'declare time_formats: ["%d.%m.%Y"] in data.interactions',
        "declare max_reject_rate: 0.16 in data",
    ]
    layout = {"decimal": ",", "time_formats": ["%d.%m.%Y"]}
    tables, rejects = read_rows(tmp_path, 200, spoil_a_lot, **layout)
    assert (len(tables.interactions), len(rejects.frame)) == (170, 30)
    check_reject_rates(rejects, 0.16)


def test_one_fault_is_one_line(tmp_path):
    with pytest.raises(SchemaErrors) as error:
        read_rows(tmp_path, 40, lambda row: {"w": "1,5"})
    assert "\n" not in str(error.value)
    assert "\n" not in say(error.value)


def test_faults_of_files_that_cannot_be_read_stand_beside_those_of_the_others(tmp_path):
    EVENTS.assign(weight="1,5").to_csv(tmp_path / "e.csv", sep=";", index=False)
    config = DataConfig(
        TableConfig(str(tmp_path / "e.csv")),
        users=TableConfig(str(tmp_path / "no.csv")),
        items=TableConfig(str(tmp_path / "none.csv")),
    )
    with pytest.raises(SchemaErrors) as error:
        read_tables(config)
    assert len(say(error.value).splitlines()) == 4


def test_times_years_from_all_others_are_rejected_unless_a_limit_admits_them():
    times = [f"2024-05-{day:02d}" for day in range(1, 30)] + [
        "1970-01-01",
        "2199-01-01",
    ]
    events = pd.DataFrame({"user_id": 1, "item_id": range(31), "datetime": times})

    def read(**layout) -> tuple[int, int]:
        tables, rejects = tables_from_frames(
            DataConfig(TableConfig(**layout), max_reject_rate=1), events
        )
        assert len(tables.interactions) + len(rejects.tables["interactions"]) == 31
        assert len(rejects.hints) == rejects.frame["reason"].str.startswith("years").any()
        return len(tables.interactions), len(rejects.frame)

    assert read() == (29, 2)
    assert read(min_datetime="1970-01-01") == (30, 1)
    assert read(min_datetime="1970-01-01", max_datetime="2200-01-01") == (31, 0)
    assert read(min_datetime="2024-05-11", max_datetime="2024-05-20") == (10, 21)


def test_long_tails_are_not_outliers():
    rng = np.random.default_rng(0)
    seconds = 1_700_000_000 - (rng.pareto(1.5, 5000) * 40 * 86_400).clip(max=3000 * 86_400)
    events = pd.DataFrame(
        {"user_id": 1, "item_id": range(5000), "datetime": seconds.astype(np.int64)}
    )
    _, rejects = tables_from_frames(DataConfig(), events)
    assert rejects.frame.empty


def query(path=None, text="SELECT user_id, item_id, paid AS weight FROM sales") -> DataConfig:
    return DataConfig(TableConfig(None if path is None else str(path), query=text))


def test_a_query_reads_a_database_and_files_and_changes_nothing(tmp_path):
    path = tmp_path / "shop.duckdb"
    with duckdb.connect(str(path)) as database:
        database.execute(
            "CREATE TABLE sales AS SELECT 7::BIGINT AS user_id, 'a' AS item_id, 2.50::DECIMAL(9, 2) AS paid"
        )
    before = path.read_bytes()
    tables, rejects = read_tables(query(path))
    assert tables.interactions.to_numpy().tolist() == [[7, "a", 2.5]]
    assert (rejects.records, path.read_bytes()) == ({"interactions": 1}, before)
    EVENTS.to_csv(tmp_path / "e.csv", index=False)
    script = (
        f"CREATE TEMP TABLE e AS FROM '{tmp_path}/e.csv'; SELECT * FROM e ORDER BY item_id DESC"
    )
    assert read_tables(query(None, script))[0].interactions["item_id"].tolist() == [
        6,
        5,
        4,
        3,
    ]


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1 AS",
        "CREATE TEMP TABLE t AS SELECT 1",
        "SELECT 1 AS user_id WHERE false",
    ],
)
def test_a_query_without_rows_or_sense_is_refused(text):
    with pytest.raises(SchemaError, match=r"data\.interactions\.query") as error:
        read_tables(query(None, text))
    assert "\n" not in str(error.value)


def test_a_query_beside_a_text_file_says_that_its_path_is_a_database(tmp_path):
    EVENTS.to_csv(tmp_path / "e.csv", index=False)
    with pytest.raises(SchemaError, match="as path a database, or none"):
        read_tables(query(tmp_path / "e.csv", "SELECT 1"))


def test_a_record_that_is_bad_as_a_whole_is_described_without_a_column(tmp_path):
    path = tmp_path / "e.csv"
    path.write_text("user_id,item_id\n1,a,9\n")
    _, rejects = read_tables(DataConfig(TableConfig(str(path))))
    with pytest.raises(SchemaError, match="line 2, value '1,a,9': too many columns"):
        check_reject_rates(rejects, 0.5)


def test_a_database_of_sqlite_is_read_where_the_extension_is_there_and_else_named(
    tmp_path,
):
    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE sales (user_id INTEGER, item_id TEXT, paid REAL)")
        database.execute("INSERT INTO sales VALUES (7, 'a', 2.5)")
    database.close()
    try:
        duckdb.connect(config={"autoinstall_known_extensions": "false"}).execute("LOAD sqlite")
    except duckdb.Error:
        with pytest.raises(SchemaError, match=r"data\.interactions\.query.*INSTALL"):
            read_tables(query(path))
        pytest.skip("DuckDB has no extension sqlite here, and tests download none")
    assert read_tables(query(path))[0].interactions.to_numpy().tolist() == [[7, "a", 2.5]]


def test_a_query_over_text_that_is_not_utf_8_says_what_reads_it(tmp_path):
    path = tmp_path / "e.csv"
    path.write_bytes("user_id,item_id\n1,Käse\n2,Brot\n".encode("latin-1"))
    with pytest.raises(SchemaError, match="encoding = 'latin-1'"):
        read_tables(query(None, f"SELECT * FROM '{path}'"))
    told = f"SELECT * FROM read_csv('{path}', encoding = 'latin-1')"
    assert read_tables(query(None, told))[0].interactions["item_id"].tolist() == ["Käse", "Brot"]
