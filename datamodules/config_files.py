"""The YAML files that a command line names, looked at before they are parsed, so that a fault has a place in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from serve.errors import SchemaError, name_nearest

OPTION = "--config"
SUFFIXES = (".yaml", ".yml")
_MERGE = "tag:yaml.org,2002:merge"


def check_config_files(argv: Sequence[str]) -> None:
    """Refuse a configuration file that is not there, or that is no YAML mapping.

    Raises:
        SchemaError: names the file, and for YAML that is none line and column.
    """
    for given in list_config_files(argv):
        if not given.strip():
            raise SchemaError(f"{OPTION} is empty; give a YAML file")
        path = Path(given)
        if os.path.isfile(given):  # `Path.is_file` raises of what is too long for a name
            _check_mapping(path, _read(path))
        elif ":" not in given:  # else YAML in place of a file
            raise SchemaError(f"{OPTION} {given} {_explain_absence(path)}")


def list_config_files(argv: Sequence[str]) -> Iterator[str]:
    """Give each value of --config."""
    for word, following in zip(argv, [*argv, None][1:], strict=True):
        if word == OPTION and following is not None:
            yield following
        elif word.startswith(f"{OPTION}="):
            yield word.partition("=")[2]


def _explain_absence(path: Path) -> str:
    if path.is_dir():
        return "is a folder; give a YAML file"
    folders = dict.fromkeys((path.parent, Path("configs")))
    found = [str(file) for folder in folders for file in folder.glob("*") if file.suffix in SUFFIXES]
    nearest = f"; {name_nearest(str(path), found)}" if found else ""
    return f"does not exist; it is relative to {Path.cwd()}{nearest}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SchemaError(f"{path} is not UTF-8: byte {error.start + 1} breaks it; save it as UTF-8") from error


def _check_mapping(path: Path, text: str) -> None:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise SchemaError(f"{path}{_explain(error)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise SchemaError(f"{path}, line {line}, column {column}: {error.reason}") from error
    if not isinstance(root, yaml.MappingNode):
        what = "is empty" if root is None else "holds a list or a single value"
        raise SchemaError(f"{path} {what}; expected a mapping of keys such as 'data:' and 'model:'")
    _check_keys(path, root)


def _check_keys(path: Path, root: yaml.Node) -> None:
    """Refuse a key that stands twice in a mapping: YAML would take the last one and say nothing."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))  # an alias is the node that it names
        if isinstance(node, yaml.MappingNode):
            _check_names(path, [key for key, _ in node.value if key.tag != _MERGE])
            waiting += [value for _, value in node.value]
        else:
            waiting += node.value


def _check_names(path: Path, keys: Sequence[yaml.Node]) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key in keys:
        name, line = (key.tag, str(key.value)), key.start_mark.line + 1
        if name in lines:
            raise SchemaError(
                f"{path}, line {line}: '{key.value}' stands in line {lines[name]} already; keep one of them"
            )
        lines[name] = line


def _explain(error: yaml.MarkedYAMLError) -> str:
    """Give line, column and problem, and where what holds the fault begins, if that is another line."""
    mark, start = error.problem_mark, error.context_mark
    place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
    inside = "" if mark is None or start is None or start.line == mark.line else f", inside of line {start.line + 1}"
    return f"{place}: {error.problem}{inside}; mend the YAML"
