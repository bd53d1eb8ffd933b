import re

import pytest

from datamodules.config_files import check_config_files
from serve.errors import SchemaError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"data:\n  users: {path: a\n  ties: ordered\n",
            "line 3, column 7: expected ',' or '}', but got ':', inside of",
        ),
        (b"data:\n\tties: ordered\n", r"line 2, column 1: found character '\t' that cannot start any token"),
        (b"data: {ties: *x}\n", "line 1, column 14: found undefined alias 'x'; mend the YAML"),
        (b"seed: 1\ndata: \x00\n", "line 2, column 7: special characters are not allowed"),
    ],
)
def test_what_is_no_yaml_is_named_with_file_line_and_column(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(SchemaError, match=re.escape(f"{path}, {message}")) as error:
        check_config_files(["--seed", "3", f"--config={path}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a mapping of keys such as 'data:'"),
        (b"- data\n", "holds a list or a single value; expected a mapping"),
        (b"data: \xe4\n", "is not UTF-8: byte 7 breaks it; save it as UTF-8"),
    ],
)
def test_what_is_no_mapping_is_refused(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(SchemaError, match=re.escape(f"{path} {message}")):
        check_config_files(["--config", str(path)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: 1\ndata: {}\nseed: 2\n", "line 3: 'seed' stands in line 1 already"),
        (
            "data:\n  users: {path: a}\n  ties: ordered\n  users: {path: b}\n",
            "line 4: 'users' stands in line 2 already",
        ),
        ("data: {ties: ordered, ties: ordered}\n", "line 1: 'ties' stands in line 1 already"),
        ("data:\n  targets:\n  - a: 1\n    b: 2\n    a: 3\n", "line 5: 'a' stands in line 3 already"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(SchemaError, match=re.escape(f"{path}, {message}; keep one of them")):
        check_config_files(["--config", str(path)])


def test_one_key_in_two_mappings_is_no_repetition(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  users: {path: a}\n  items: {path: b}\n")
    check_config_files(["--config", str(path)])


@pytest.mark.parametrize(
    "content",
    ["a: &x {p: 1}\nb: &y {q: 1}\nc:\n  <<: *x\n  <<: *y\n", "a: {1: x, '1': y}\n", "data: &x\n  a: *x\n"],
    ids=["two merges", "a number and a text", "an anchor inside itself"],
)
def test_what_is_no_repetition_passes(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    check_config_files(["--config", str(path)])


def test_a_file_that_is_not_there_is_named_with_the_nearest(tmp_path):
    (tmp_path / "shop.yaml").write_text("seed: 1\n")
    with pytest.raises(SchemaError, match=rf"--config {tmp_path}/shp.yaml does not exist.*did you mean '.*/shop.yaml'"):
        check_config_files(["--config", str(tmp_path / "shp.yaml")])
    with pytest.raises(SchemaError, match=rf"--config {tmp_path} is a folder"):
        check_config_files(["--config", str(tmp_path)])


def test_files_that_are_mappings_and_lines_without_any_pass(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: {ties: ordered}\n")
    check_config_files(["--config", str(path), "--seed", "3"])
    check_config_files(["--config", "seed: 3"])
    check_config_files(["--config"])


@pytest.mark.parametrize("words", [("--config", ""), ("--config=",), ("--config", " ")])
def test_an_empty_name_is_said_to_be_empty(words):
    with pytest.raises(SchemaError, match="--config is empty; give a YAML file"):
        check_config_files(words)
