"""The pages stay readable and the house stays small: each limit may only fall.

Raising one needs a line in docs/decisions.md that says what was paid for it.
"""

import ast
import re
from functools import cache
from statistics import mean

from tests.test_layering import OURS, SOURCES

MAX_NODES = 240_000
MAX_NODES_A_LINE = 6.0
MAX_STATEMENT_MEAN, MAX_STATEMENT_P90, MAX_LARGE_STATEMENTS = 11, 22, 40
MAX_WIDE_LINES = 0.05  # share of lines over 100 characters
MAX_TUPLE_ASSIGNMENTS, MAX_COMPREHENSIONS = 3, 25  # per 1,000 lines
MIN_SECTIONS = 150  # public docstrings with arguments, returns, errors or an example
MAX_FUNCTION_P90, MAX_LONG_FUNCTIONS = 25, 0.01  # lines, and share of those over 50
MAX_FILE, MAX_SERVE_ARROWS, MAX_SERVE_FLOORS = 450, 125, 12
MAX_KIND_QUESTIONS = 45  # places that ask for `.kind`

COMPOUND = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.If,
    ast.For,
    ast.While,
    ast.With,
    ast.Try,
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in SOURCES.items()}
NODES = [node for text in TEXTS.values() for node in ast.walk(ast.parse(text))]
LINES = [line for text in TEXTS.values() for line in text.splitlines()]


def count_nodes(node):
    return sum(1 for _ in ast.walk(node))


def percentile_90(sizes):
    return sorted(sizes)[int(0.9 * len(sizes))]


def measure_body(function):
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_there_is_no_more_to_understand():
    assert 100_000 < len(NODES) <= MAX_NODES
    assert len(NODES) / len(LINES) <= MAX_NODES_A_LINE


def test_a_statement_holds_one_thought():
    sizes = [
        count_nodes(node)
        for node in NODES
        if isinstance(node, ast.stmt) and not isinstance(node, COMPOUND)
    ]
    assert len(sizes) > 5000
    assert mean(sizes) <= MAX_STATEMENT_MEAN
    assert percentile_90(sizes) <= MAX_STATEMENT_P90
    assert sum(size > 40 for size in sizes) <= MAX_LARGE_STATEMENTS


def test_a_line_is_no_longer_than_the_eye_follows():
    assert sum(len(line) > 100 for line in LINES) <= MAX_WIDE_LINES * len(LINES)


def test_tuple_assignments_and_comprehensions_are_few():
    pairs = [
        node
        for node in NODES
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Tuple)
        and any(isinstance(target, ast.Tuple) for target in node.targets)
    ]
    comprehensions = [node for node in NODES if isinstance(node, COMPREHENSIONS)]
    assert len(pairs) <= MAX_TUPLE_ASSIGNMENTS * len(LINES) / 1000
    assert len(comprehensions) <= MAX_COMPREHENSIONS * len(LINES) / 1000


def test_public_entry_points_say_what_they_take_and_return():
    public = [
        node
        for node in NODES
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_")
    ]
    section = re.compile(r"(Args|Returns|Raises|Example):")
    documented = [node for node in public if section.search(ast.get_docstring(node) or "")]
    assert len(documented) >= MIN_SECTIONS


def test_functions_are_short():
    lengths = [measure_body(node) for node in NODES if isinstance(node, FUNCTIONS)]
    assert percentile_90(lengths) <= MAX_FUNCTION_P90
    assert sum(length > 50 for length in lengths) <= MAX_LONG_FUNCTIONS * len(lengths)


def test_a_file_is_one_chapter():
    lengths = {name: text.count("\n") for name, text in TEXTS.items()}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE} == {}


def test_the_scorer_is_one_small_building():
    rooms = {name for name in SOURCES if name.split(".")[0] == "serve"}
    arrows = {name: OURS[name] & rooms for name in rooms}
    assert len(rooms) > 10
    assert sum(map(len, arrows.values())) < MAX_SERVE_ARROWS

    @cache
    def measure_floor(name):
        return 1 + max(map(measure_floor, arrows[name]), default=0)

    assert max(map(measure_floor, rooms)) <= MAX_SERVE_FLOORS


def test_what_a_kind_of_column_means_stands_in_one_table():
    questions = [node for node in NODES if isinstance(node, ast.Attribute) and node.attr == "kind"]
    assert len(questions) <= MAX_KIND_QUESTIONS
