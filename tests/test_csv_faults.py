import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.config import FeatureConfig, FeaturesConfig, TableConfig
from serve.errors import SchemaError
from tests import bad_records
from tests.written_tables import EVENTS, FAULTS, HOSTILE, encode, list_rejects, read


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_record_is_named_once_and_its_neighbours_are_kept(tmp_path, name):
    record, expected = FAULTS[name]
    text = EVENTS.encode() + b"8,8,2017-12-01,1\n" + encode(record) + b"9,9,2017-12-02,1\n"
    tables, rejects = read(tmp_path, text)
    assert list_rejects(rejects) == expected
    assert tables.interactions["item_id"].tolist() == ([8, 9] if expected else [8, 2, 9])


def test_bad_records_are_named_where_lines_end_as_on_windows(tmp_path):
    text = EVENTS.encode() + b"".join(encode(record) for record, _ in FAULTS.values())
    tables, rejects = read(tmp_path, text.replace(b"\n", b"\r\n"))
    expected = [
        (line, column, reason)
        for line, (_, faults) in enumerate(FAULTS.values(), start=2)
        for _, column, reason in faults
    ]
    assert list_rejects(rejects) == expected
    assert tables.interactions["item_id"].tolist() == [2]


@given(HOSTILE)
@settings(max_examples=12, deadline=None)
def test_every_record_is_kept_or_rejected_or_the_file_is_refused(tmp_path_factory, parts):
    text = f"user_id,item_id,note\n1,2,3\n{''.join(parts)}\n5,6,7\n".encode(errors="surrogateescape")
    try:
        tables, rejects = read(tmp_path_factory.getbasetemp(), text)
    except SchemaError as refusal:
        tables, message = None, str(refusal)
    if tables is None:
        assert "last good line" in message
        return
    ids = tables.interactions["user_id"].astype(str).tolist()
    assert (ids[0], ids[-1]) == ("1", "5")
    assert rejects.frame["line"].is_unique
    lines = [line for line in text.split(b"\n")[1:] if line]
    assert len(lines) == len(ids) + len(rejects.frame) or b'"' in text


def test_lines_are_those_of_the_file(tmp_path):
    lines = [
        "user_id,item_id,datetime,weight,note",
        '1,2,2017-12-01,3,"a',
        "",
        'b ""c"""',
        "",
        "1,2,x,3,d",
        "1,2",
    ]
    lines += ["", '1,,2017-12-01,3,"', '"', "5,6,2017-12-01,7,e", ",6,2017-12-01,7,e"]
    _, rejects = read(tmp_path, "\n".join(lines))
    assert list_rejects(rejects) == [
        (6, "datetime", "not a time"),
        (7, "datetime", "too few columns"),
        (9, "item_id", "missing"),
        (12, "user_id", "missing"),
    ]


def test_a_blank_line_of_one_column_is_a_missing_id(tmp_path):
    (tmp_path / "users.csv").write_text("user_id\n1\n\n2\n")
    _, rejects = read(tmp_path, "user_id,item_id\n1,2\n", users=TableConfig(str(tmp_path / "users.csv")))
    assert rejects.frame[["line", "column", "reason"]].to_numpy().tolist() == [[3, "user_id", "missing"]]


def test_a_stray_quote_that_spoils_two_lines_is_named_by_the_first(tmp_path):
    tail = '1,"2"2,2017-12-01,"3\n"\n4,5,2017-12-01,6\n'
    with pytest.raises(SchemaError, match="quote opened on line 3 is not closed; the last good line is 2"):
        read(tmp_path, EVENTS + "8,8,2017-12-01,1\n" + tail)


@pytest.mark.parametrize("tail", ['1,2,2017-12-01,"3\n4,5,2017-12-01,6\n', '1,2,2017-12-01,"3\n4,5,x,"6"\n7,8,x,9\n'])
def test_an_open_quote_stops_and_names_the_last_good_line(tmp_path, tail):
    with pytest.raises(SchemaError, match="quote opened on line 4 is not closed; the last good line is 3"):
        read(tmp_path, EVENTS + "8,8,2017-12-01,1\n9,9,2017-12-01,1\n" + tail)


def test_an_open_quote_in_the_header_is_named(tmp_path):
    with pytest.raises(SchemaError, match="quote opened on line 1 is not closed"):
        read(tmp_path, 'user_id,item_id,"note\n1,2,3\n')


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (["\n", "\n", "\r\n", "\n"], "line 3 ends in CR LF, the lines before it in LF"),
        (["\r\n", "\r\n", "\r\n", "\n"], "line 4 ends in LF, the lines before it in CR LF"),
        (["\n", "\r", "\n", "\n"], "line 2 ends in CR, the lines before it in LF"),
    ],
)
def test_mixed_line_ends_are_named(tmp_path, ends, message):
    lines = ["user_id,item_id", "1,2", "3,4", "5,6"]
    with pytest.raises(SchemaError, match=f"{message}; save the file with one kind of line end"):
        read(tmp_path, "".join(line + end for line, end in zip(lines, ends, strict=True)))


def test_a_long_cell_of_many_lines_is_a_cell(tmp_path):
    note = "<p>\n" * 50_000
    features = FeaturesConfig(context={"note": "categorical"})
    tables, rejects = read(tmp_path, f'user_id,item_id,note\n1,2,"{note}"\n3,,b\n4,5,c\n', features=features)
    assert tables.interactions["note"].tolist() == [note, "c"]
    assert list_rejects(rejects) == [(50_003, "item_id", "missing")]


def test_mixed_line_ends_by_which_lines_are_miscounted_are_named(tmp_path):
    text = "user_id,item_id,note\n1,2,a\n ,\r\n;b\n"
    with pytest.raises(SchemaError, match="line 3 ends in CR LF, the lines before it in LF; save the file"):
        read(tmp_path, text)


def test_line_ends_inside_quotes_are_cells(tmp_path):
    tables, rejects = read(tmp_path, 'user_id,item_id\r\n1,"a\nb"\r\n2,"c\rd"\r\n')
    assert tables.interactions["item_id"].tolist() == ["a\nb", "c\rd"]
    assert rejects.frame.empty


PRICED = FeaturesConfig(context={"note": "categorical", "price": FeatureConfig("numeric", min=0, max=100)})


def check_reading(folder, written):
    """Compare all rows and all rejects with what was written."""
    tables, rejects = read(folder, written.content, features=PRICED)
    assert list_rejects(rejects) == written.rejects
    events = tables.interactions
    assert list(events) == list(bad_records.NAMES)
    for name, values in zip(events, zip(*written.rows, strict=True), strict=True):
        column = events[name].astype(object).where(events[name].notna(), None)
        assert column.tolist() == list(values), name


def test_a_thousand_bad_records_among_a_hundred_thousand(tmp_path):
    written = bad_records.write_records(7, 100_000, 1_000)
    assert len({reason for *_, reason in written.rejects}) == len(bad_records.REASONS)
    check_reading(tmp_path, written)
    content, line = bad_records.open_a_quote(written)
    with pytest.raises(
        SchemaError, match=f"quote opened on line {line} is not closed; the last good line is {line - 1}"
    ):
        read(tmp_path, content, features=PRICED)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@given(st.integers(0, 2**32 - 1), st.integers(15, 60), st.integers(0, 14))
@settings(max_examples=4, deadline=None)
def test_bad_records_are_told_whatever_the_line_end(tmp_path_factory, mark, end, seed, n_good, n_bad):
    check_reading(tmp_path_factory.getbasetemp(), bad_records.write_records(seed, n_good, n_bad, end, mark))


CELL = st.text(st.sampled_from('ab,"\n;ü '), max_size=5)


@given(st.lists(st.tuples(st.integers(0, 9), CELL, CELL), min_size=1, max_size=11))
@settings(max_examples=12, deadline=None)
def test_a_well_written_csv_comes_back_as_it_was(tmp_path_factory, records):
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("user_id", "item_id", "note"), *records])
    features = FeaturesConfig(context={"note": "categorical"})
    frame, rejects = read(tmp_path_factory.getbasetemp(), text.getvalue(), features=features)
    good = [record for record in records if record[1].strip()]
    assert frame.interactions["item_id"].tolist() == [item for _, item, _ in good]
    assert frame.interactions["note"].fillna("").tolist() == [note for *_, note in good]
    lines = np.cumsum([1, *(1 + item.count("\n") + note.count("\n") for _, item, note in records)]) + 1
    bad = [line for line, record in zip(lines, records, strict=False) if not record[1].strip()]
    assert rejects.frame["line"].tolist() == bad
