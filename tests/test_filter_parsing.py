from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve.filters.expressions import And, Comparison, Flag, Membership, Not, Or

from serve.errors import SchemaError
from serve.filters import parse_where
from tests.filter_worlds import expressions


def parse(text):
    return parse_where(text).expression


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("price <= 20", Comparison("price", "<=", 20)),
        ("price<=20.0", Comparison("price", "<=", 20.0)),
        ("price == -2.5e-1", Comparison("price", "=", -0.25)),
        ("price>.5", Comparison("price", ">", 0.5)),
        ("price < 1e+5 or price > 1E-5", Or((Comparison("price", "<", 100000.0), Comparison("price", ">", 0.00001)))),
        ("price != +3", Comparison("price", "!=", 3)),
        ("brand = 'it''s'", Comparison("brand", "=", "it's")),
        ('brand = "it\'s ""x"""', Comparison("brand", "=", 'it\'s "x"')),
        ("brand = ''", Comparison("brand", "=", "")),
        ("fresh = TRUE", Comparison("fresh", "=", True)),
        ("größe.eu >= 3", Comparison("größe.eu", ">=", 3)),
        ("`in` = 'a b'", Comparison("in", "=", "a b")),
        ("`not` = 1 and `true` or `OR`", Or((And((Comparison("not", "=", 1), Flag("true"))), Flag("OR")))),
        ("`(` = 1 and `)` in [2]", And((Comparison("(", "=", 1), Membership(")", "in", (2,))))),
        ("`odd name!` in [1,2.5,'x',false]", Membership("odd name!", "in", (1, 2.5, "x", False))),
        ("brand not in ['x']", Membership("brand", "not in", ("x",))),
        ("brand IN []", Membership("brand", "in", ())),
        ("brand in ['x',]", Membership("brand", "in", ("x",))),
        ("in_stock", Flag("in_stock")),
        ("Android", Flag("Android")),
        ("not a", Not(Flag("a"))),
        ("not not a", Not(Not(Flag("a")))),
        ("not a and b", And((Not(Flag("a")), Flag("b")))),
        ("a or b and c", Or((Flag("a"), And((Flag("b"), Flag("c")))))),
        ("(a or b) AND c", And((Or((Flag("a"), Flag("b"))), Flag("c")))),
        ("a and b and c", And((Flag("a"), Flag("b"), Flag("c")))),
        ("not brand in ['x']", Not(Membership("brand", "in", ("x",)))),
    ],
)
def test_texts_are_read_as_expressions(text, expression):
    got = parse(text)
    assert got == expression
    assert repr(got) == repr(expression)  # True is 1, and 20.0 is 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "where, character 1: expected a column; got the end"),
        ("   ", "character 4: expected a column; got the end"),
        ("price <=", "character 9: expected a text, a number, true or false after <=; got the end"),
        ("brand = x", "character 9: expected .* after =: texts stand in quotes; got 'x'"),
        ("price <= 20 brand", "character 13: expected 'and', 'or' or the end; got 'brand'"),
        ("price <= 20abc", "character 12: expected 'and', 'or' or the end; got 'abc'"),
        ("20 >= price", "character 1: expected a column, which comes before its value, as in price <= 20; got '20'"),
        ("brand in 'x'", r"character 10: expected '\['; got 'x'"),
        ("brand in ['x' 'y']", "character 15: expected ','; got 'y'"),
        ("brand in ['x',,]", "character 15: expected a text, a number, true or false in the list; got ,"),
        ("brand in ['x'", "character 14: expected ','; got the end"),
        ("brand 'it''s'", "character 7: expected 'and', 'or' or the end; got \"it's\""),
        ("brand not 'x'", "character 11: expected 'in' after 'not'; got 'x'"),
        ("(a", r"character 3: expected '\)'; got the end"),
        ("a)", r"character 2: expected 'and', 'or' or the end; got \)"),
        ("a and", "character 6: expected a column; got the end"),
        ("and a", "character 1: expected a column; got 'and'"),
        ("brand = 'x", "character 9: the quote ' has no end"),
        ("`brand = 3", "character 1: the quote ` has no end"),
        ("a && b", "character 3: '&' has no meaning here; allowed: and or not in"),
        ("price = 1e999", "character 9: '1e999' is too large"),
        ("price = " + "9" * 41, "character 9: a number has more than 40 characters"),
        ("__import__('os')", r"character 11: expected 'and', 'or' or the end; got \("),
        ("x" * 10_001, "where has 10001 characters; allowed: 10000"),
        ("not " * 33 + "a", "character 133: more than 32 brackets and nots within each other"),
        ("(" * 5000, "character 34: more than 32 brackets and nots within each other"),
        ("brand = 3 " + "y" * 100, "got 'y{40}\\.\\.\\.'$"),
    ],
)
def test_faults_are_named_with_their_place(text, message):
    with pytest.raises(SchemaError, match=message):
        parse(text)


def test_32_brackets_are_read():
    assert parse("(" * 32 + "a" + ")" * 32) == Flag("a")
    assert parse("a" + " or (b)" * 1000) == Or((Flag("a"), *[Flag("b")] * 1000))


@given(expressions())
def test_spaces_between_words_do_not_matter(drawn):
    text, _ = drawn
    assert parse(f"\n{text}\t") == parse(text)


@given(st.text(alphabet="ab12.'\"`()[],=!<> \néandortif", max_size=60) | st.text(max_size=30))
def test_any_text_is_an_expression_or_a_fault(text):
    with suppress(SchemaError):
        assert parse(text) == parse(f" {text} ")
