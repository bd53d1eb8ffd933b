from pathlib import Path

import pytest

from serve.errors import SchemaError
from serve.row_layout import RowLayout, read_layout


@pytest.mark.parametrize(
    ("name", "header", "delimiter"),
    [
        ("a.csv", "item_id", ","),
        ("a.csv", "item_id;price", ";"),
        ("a.csv", '"a;b;c",d', ","),
        ("a.csv", "a,b|c|d", "|"),
        ("a.csv", "a;b,c", ","),
        ("a.TSV", "a,b,c", "\t"),
    ],
)
def test_the_delimiter_shows_in_the_header(name, header, delimiter):
    assert RowLayout().delimiter_of(Path(name), header) == delimiter
    assert RowLayout("~").delimiter_of(Path(name), header) == "~"


def test_columns_come_under_our_names():
    layout = read_layout(None, "item_id=sku,title=name,price=sku")
    given = {"sku": 7, "price": 1.5, "brand": "x", "title": "old", "item_id": 3}
    assert layout.rename(given) == {"item_id": 7, "price": 7, "brand": "x"}
    assert RowLayout(columns={"a": "b", "b": "a"}).rename({"a": 1, "b": 2}) == {"a": 2, "b": 1}
    assert RowLayout().rename(given) == given


def test_options_are_read_from_text():
    assert read_layout(r"\t", None) == RowLayout("\t")
    assert read_layout(";", "item_id = sku") == RowLayout(";", {"item_id": "sku"})
    for delimiter in ('"', "\n", ""):
        with pytest.raises(SchemaError, match=r"delimiter is .*allowed: one character"):
            read_layout(delimiter, None)
