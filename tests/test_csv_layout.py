import pandas as pd
import pytest
from hypothesis import given, settings

from datamodules.config import DataConfig, FeaturesConfig, TableConfig
from datamodules.reading.csv_records import read_layout
from datamodules.tables import read_tables
from serve.errors import SchemaError
from tests.written_tables import EVENTS, FAULTS, HOSTILE, encode, list_rejects, read


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "::"])
def test_the_delimiter_is_told_by_the_header(tmp_path, delimiter):
    tables, _ = read(tmp_path, "\ufeffuser_id,item_id\n1,2\n".replace(",", delimiter))
    assert tables.interactions.to_numpy().tolist() == [[1, 2]]


NAMES = ["user_id", "item_id", "datetime", "weight"]


def read_bare(folder, text, **layout):
    """Read events without a header line from a file of a suffix of no meaning."""
    path = folder / "events.data"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    layout = {"names": NAMES, **layout}
    return read_tables(DataConfig(interactions=TableConfig(str(path), **layout), max_reject_rate=1.0))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "::"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_without_a_header_has_its_names_declared(tmp_path, delimiter, mark):
    text = '"1",7,2017-12-01,2\n3,8,2017-12-02,5\n4,,2017-12-02,5\n'
    tables, rejects = read_bare(tmp_path, mark + text.replace(",", delimiter))
    assert tables.interactions.to_numpy().tolist() == [[1, 7, 1512086400, 2], [3, 8, 1512172800, 5]]
    assert list(tables.interactions) == NAMES
    assert list_rejects(rejects) == [(3, "item_id", "missing")]
    assert rejects.records == {"interactions": 3}


@pytest.mark.parametrize("name", FAULTS)
def test_lines_are_counted_from_the_first_without_a_header(tmp_path, name):
    record, expected = FAULTS[name]
    tables, rejects = read_bare(tmp_path, b"8,8,2017-12-01,1\n\n" + encode(record) + b"9,9,2017-12-02,1\n")
    assert list_rejects(rejects) == expected  # its record is on line 3 in either file
    assert tables.interactions["item_id"].tolist() == ([8, 9] if expected else [8, 2, 9])


def test_a_bad_first_record_is_one_without_a_header(tmp_path):
    tables, rejects = read_bare(tmp_path, b"1,\xff,2017-12-01,3\n9,9,2017-12-02,1\n")
    assert list_rejects(rejects) == [(1, "item_id", "not UTF-8")]
    assert tables.interactions["item_id"].tolist() == [9]


@given(HOSTILE)
@settings(max_examples=10, deadline=None)
def test_a_declared_header_reads_as_a_written_one(tmp_path_factory, parts):
    body = f"1,2,2017-12-01,3\n{''.join(parts)}\n5,6,2017-12-01,7\n".encode(errors="surrogateescape")
    folder = tmp_path_factory.getbasetemp()
    try:
        expected, written = read(folder, EVENTS.encode() + body)
    except SchemaError:
        with pytest.raises(SchemaError):
            read_bare(folder, body)
        return
    tables, rejects = read_bare(folder, body)
    pd.testing.assert_frame_equal(tables.interactions, expected.interactions)
    assert list_rejects(rejects) == [(line - 1, *rest) for line, *rest in list_rejects(written)]
    assert rejects.frame["value"].equals(written.frame["value"])


@given(HOSTILE)
@settings(max_examples=10, deadline=None)
def test_two_characters_between_cells_read_as_one(tmp_path_factory, parts):
    body = f"{EVENTS}1,2,2017-12-01,3\n{''.join(parts)}\n5,6,2017-12-01,7\n".encode(errors="surrogateescape")
    folder = tmp_path_factory.getbasetemp()
    try:
        expected, single = read(folder, body)
    except SchemaError:
        with pytest.raises(SchemaError):
            read(folder, body.replace(b",", b"::"))
        return
    tables, rejects = read(folder, body.replace(b",", b"::"))
    assert list_rejects(rejects) == list_rejects(single)
    as_single = tables.interactions.replace("::", ",", regex=True)
    pd.testing.assert_frame_equal(as_single, expected.interactions)


def test_films_are_told_from_their_genres(tmp_path):
    films = '1::Toy: Story (1995)::Animation|Children\'s|Comedy\n2::A, B, C:::D|\x1fE\n3::x::y::z\n4::"q::r"::s\n'
    tables, rejects = read_bare(tmp_path, films, names=["item_id", "title", "user_id"])
    assert tables.interactions[["item_id", "user_id"]].to_numpy().tolist() == [
        [1, "Animation|Children's|Comedy"],
        [2, ":D|\x1fE"],
        [4, "s"],
    ]
    assert rejects.frame[["line", "value"]].to_numpy().tolist() == [[3, "3::x::y::z"]]


@pytest.mark.parametrize(
    ("line", "n_cells", "delimiter"),
    [
        ("1::Toy Story (1995)::A|B|C", 3, "::"),
        ("1::Toy Story (1995)::A|B|C|D|E|F", 3, "::"),
        ("1::American President, The (1995)::Comedy", 3, "::"),
        ("1|Toy: Story|http://a::b", 3, "|"),
        ("1,a::b,c::d,e::f", 4, ","),
        ('"a::b";1;2', 3, ";"),
        ('"a,b,c,d"::1', 2, "::"),
        ("1", 1, ","),
    ],
)
@pytest.mark.parametrize("has_header", [False, True])
def test_what_splits_the_first_line_is_the_delimiter(tmp_path, line, n_cells, delimiter, has_header):
    path = tmp_path / "films.dat"
    path.write_text(f"{line}\n")
    names = None if has_header else [f"c{place}" for place in range(n_cells)]
    layout = read_layout(path, TableConfig(names=names))
    assert layout.delimiter == delimiter
    assert len(layout.names) == n_cells


@pytest.mark.parametrize("line", ["1,2,A|B", "1,2,http::x", "1::2::A|B"])
def test_a_name_too_few_is_no_other_delimiter(tmp_path, line):
    with pytest.raises(SchemaError, match="2 names are declared, but line 1 has 3 cells"):
        read_bare(tmp_path, f"{line}\n", names=NAMES[:2])


def test_a_quoted_delimiter_of_two_characters_is_shown_as_it_is(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text('"a::b"::user_id::item_id\nx::1::2\n"y::z"::3::4::\n')
    features = FeaturesConfig(context={"a::b": "categorical"})
    tables, rejects = read_tables(
        DataConfig(interactions=TableConfig(str(path)), features=features, max_reject_rate=1.0)
    )
    assert tables.interactions["a::b"].tolist() == ["x"]
    assert rejects.frame["value"].tolist() == ["y::z::3::4::"]


def test_latin_1_is_read_as_declared(tmp_path):
    text = "user_id,item_id,größe\nRenée,ÿ,ß\nb,\xa0c,\n"
    path = tmp_path / "events.csv"
    path.write_bytes(text.encode("latin-1"))
    features = FeaturesConfig(context={"größe": "categorical"})
    table = TableConfig(str(path), encoding="latin-1")
    tables, rejects = read_tables(DataConfig(interactions=table, features=features))
    assert rejects.frame.empty
    assert tables.interactions["user_id"].tolist() == ["Renée", "b"]
    assert tables.interactions["item_id"].tolist() == ["ÿ", "\xa0c"]
    assert tables.interactions["größe"].fillna("").tolist() == ["ß", ""]
    with pytest.raises(SchemaError, match=r"header is not UTF-8; .*declare its encoding"):
        read_tables(DataConfig(interactions=TableConfig(str(path))))


def test_a_tsv_has_tabs_whatever_is_in_its_header(tmp_path):
    path = tmp_path / "events.TSV"
    path.write_text("user_id\titem_id\ta, b, c\n1\t2,3\tx\n")
    tables, rejects = read_tables(DataConfig(interactions=TableConfig(str(path))))
    assert tables.interactions.to_numpy().tolist() == [[1, "2,3"]]
    assert rejects.dropped == {"interactions": ("a, b, c",)}
    path.write_text("user_id;item_id\n1;2\n")
    tables, _ = read_tables(DataConfig(interactions=TableConfig(str(path), delimiter=";")))
    assert tables.interactions.to_numpy().tolist() == [[1, 2]]


def test_a_declared_delimiter_is_not_guessed(tmp_path):
    tables, _ = read_bare(tmp_path, "a,b c\nd,e f\n", names=NAMES[:2], delimiter=" ")
    assert tables.interactions.to_numpy().tolist() == [["a,b", "c"], ["d,e", "f"]]


def test_cells_too_many_are_shown_and_counted_once(tmp_path):
    _, rejects = read_bare(tmp_path, "1,2\n3,é,,\n5,6,7\n8,9\n", names=NAMES[:2])
    assert rejects.frame[["line", "value"]].to_numpy().tolist() == [[2, "3,é,,"], [3, "5,6,7"]]
    assert rejects.records == {"interactions": 4}


@pytest.mark.parametrize(
    ("text", "layout", "message"),
    [
        ("1,2,3\n", {}, "4 names are declared, but line 1 has 3 cells between ','"),
        ("1,2,3,4,5\n", {}, "4 names are declared, but line 1 has 5 cells"),
        ("1,2,3,4\n", {"delimiter": ";"}, "4 names are declared, but line 1 has 1 cells between ';'"),
        ("1\n", {"names": []}, "0 names are declared, but line 1 has 1 cells"),
        ("", {}, "events.data is empty"),
        ("\n1,2,3,4\n", {}, "is empty, or its first line is"),
        ("1,2,3,4\n", {"names": ["user_id", "item_id", "x", "item_id"]}, "2 columns are called 'item_id'"),
        (
            "1,2,3,4\n",
            {"names": ["user_id", "item", "x", "y"]},
            "'item_id' is absent, the default of .*columns.item_id; did you mean 'item'",
        ),
        ('1,2,3,"4\n5,6,7,8\n', {}, "quote opened on line 1 is not closed"),
    ],
)
def test_names_that_do_not_fit_the_file_are_refused(tmp_path, text, layout, message):
    with pytest.raises(SchemaError, match=message):
        read_bare(tmp_path, text, **layout)
