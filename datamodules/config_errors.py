"""From what jsonargparse says about a wrong configuration to one line that names the key that is meant."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from textwrap import dedent

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from datamodules.config import FeatureConfig, TableConfig
from datamodules.config_files import OPTION, SUFFIXES
from serve.errors import SchemaError, name_nearest

_UNKNOWN_IN_GROUP = re.compile(r"Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'")
_UNKNOWN = re.compile(r"Option '(?P<key>[^']+)' is not accepted")
_UNKNOWN_OPTION = re.compile(r"unrecognized arguments: --(?P<key>[\w.-]+)")
_STRAY = re.compile(r"unrecognized arguments: (?P<word>\S+)")
_NO_VALUE = re.compile(r"argument (?P<option>--[\w.]+)\S*: expected one argument")
_NEEDLESS_VALUE = re.compile(r"argument (?P<option>--[\w.]+): ignored explicit argument (?P<got>.+)")
_NO_CONFIG = re.compile(r"Unable to load config '(?P<got>.*?)'")
_MISSING = re.compile(r"the following arguments are required: (?P<key>\w+)")
_NO_TEXT = re.compile(r"Key must be a string, got: (?P<key>.*)\.")
_VALUE = re.compile(r'Parser key "(?P<key>[^"]+)":\n(?P<problem>.+)', re.DOTALL)
_OF_CLASS = re.compile(
    r"Problem with given class_path '[\w.]*?(?P<name>\w+)':\n(?P<problem>.+?)(?=\n    - |\n  Given |\Z)",
    re.DOTALL,
)
_GOT = re.compile(r"(?:Got|Given) value: (?P<got>.*)")
_EXPECTED = re.compile(r"Expected (?:an? )?(?:<class '(?P<type>[\w.]+)'>|typing\.Literal(?P<choices>\[.*?\]))")
_ARGUMENTS = re.compile(r"init_args=Namespace\((?P<given>.*?)\)")

_COMMANDS = ("help", "print_config")
"""Options that are no keys of a file."""
_SWITCHES = ("true", "false", "yes", "no")
"""Words that look like the value of an option that takes none."""
_KEYS = {cls.__name__: [field.name for field in fields(cls)] for cls in (FeatureConfig, TableConfig)}
"""Classes that stand for one of several kinds of value, so that their keys are no options of the parser."""


def parse_config(parser: ArgumentParser, argv: Sequence[str], sections: Iterable[str]) -> tuple[Namespace, Namespace]:
    """Parse a command line with its configuration files.

    Args:
        parser: made with `exit_on_error=False`.
        argv: the command line.
        sections: names of options that must be mappings.

    Returns:
        What was given, and the same with the dataclasses made of it.

    Raises:
        SchemaError: an unknown key or a wrong value, in one line with the nearest key.
    """
    try:
        given = parser.parse_args(list(argv))
        for name in sections:
            if not isinstance(given[name], Namespace):
                raise SchemaError(f"{name} is {given[name]!r}; expected a mapping of its keys")
        return given, parser.instantiate(given)
    except ArgumentError as error:
        raise SchemaError(explain(error, parser.get_defaults().keys())) from error
    except UnicodeDecodeError as error:  # of what stands for a mapping, such as a table in the place of its keys
        where = "the file that is given for a mapping of keys"
        raise SchemaError(f"{where} is no YAML in UTF-8; a table is given as --data.interactions.path FILE") from error


def explain(error: ArgumentError | str, allowed: Iterable[str]) -> str:
    """Say in one line which key or value is wrong, what is allowed, and which name is nearest.

    Args:
        error: what jsonargparse raised, or its message; one of unknown form comes back in one line.
        allowed: dotted names of all options, as of `parser.get_defaults().keys()`.
    """
    message, allowed = str(error), list(allowed)
    if match := _UNKNOWN_IN_GROUP.match(message):
        return _explain_key(f"{match['group']}.{match['key']}", allowed)
    if match := _UNKNOWN.match(message):
        return _explain_key(match["key"], allowed)
    if match := _UNKNOWN_OPTION.match(message):
        return f"option --{match['key']}: {_explain_key(match['key'], [*allowed, *_COMMANDS])}"
    if match := _STRAY.match(message):
        return _explain_stray(match["word"], allowed)
    if match := _NO_VALUE.match(message):
        return f"option {match['option']}: a value is missing; write {match['option']} VALUE"
    if match := _NEEDLESS_VALUE.match(message):
        return f"option {match['option']} takes no value; got {match['got']}"
    if match := _NO_TEXT.match(message):
        return (
            f"a key is {match['key']}; allowed: texts, in quotes if need be; a fraction is written with a point: 0.001"
        )
    if match := _VALUE.match(message):
        return _explain_value(match["key"], match["problem"])
    return _join(message)


def _explain_key(key: str, allowed: Iterable[str]) -> str:
    """Find the first part of a dotted key that is not allowed where it stands."""
    paths = [name.split(".") for name in allowed]
    parts = key.split(".")
    for depth, part in enumerate(parts):
        siblings = {path[depth] for path in paths if path[:depth] == parts[:depth] and len(path) > depth}
        if part not in siblings:
            where = ".".join(parts[:depth])
            elsewhere = [path for path in paths if path[-1] == part]
            if len(elsewhere) == 1:
                return f"{_place(where)}unknown key '{part}'; did you mean '{'.'.join(elsewhere[0])}'?"
            return _say_unknown(where, part, siblings)
    return f"unknown key '{key}'"


def _explain_stray(word: str, allowed: Iterable[str]) -> str:
    """Explain a word that belongs to no option."""
    if word.lower() in _SWITCHES:
        return f"'{word}' belongs to no option; --overwrite takes no value"
    if word.endswith(SUFFIXES):
        return f"'{word}' belongs to no option; did you mean '{OPTION} {word}'?"
    options = {name.split(".")[0] for name in allowed} | set(_COMMANDS)
    return f"'{word}' belongs to no option; {name_nearest(f'--{word}', [f'--{name}' for name in options])}"


def _say_unknown(where: str, key: str, allowed: Iterable[str]) -> str:
    return f"{_place(where)}unknown key '{key}'; {name_nearest(key, allowed)}"


def _place(where: str) -> str:
    return f"{where}: " if where else ""


def _explain_value(key: str, problem: str) -> str:
    if match := _OF_CLASS.search(problem):
        return _explain_inside(key, match["name"], dedent(match["problem"]), _find_got(problem))
    if match := _NO_CONFIG.search(problem):
        return f"{key} is '{match['got']}'; allowed: a mapping of its keys, or a YAML file of them"
    if not _EXPECTED.search(problem):
        return f"{key}: {_join(problem)}"
    got = _find_got(problem)
    choices, types = _find_expected(problem)
    if choices:
        return f"{key}: '{got}' is not allowed; {name_nearest(got, choices)}"
    quotes = "; put it in quotes" if types == ["str"] else ""
    return f"{key} is '{got}'; allowed: {' or '.join(types)}{quotes}"


def _explain_inside(key: str, name: str, problem: str, got: str) -> str:
    """Explain what is wrong inside a value that is read as one of our classes."""
    if match := _UNKNOWN.match(problem):
        return _say_unknown(key, match["key"], _KEYS.get(name, ()))
    if match := _MISSING.match(problem):
        return f"{key}: '{match['key']}' is missing in {_join(got)}"
    if match := _VALUE.match(problem):
        return _explain_value(f"{key}.{match['key']}", match["problem"])
    return f"{key}: {_join(problem)}"


def _find_got(problem: str) -> str:
    match = _ARGUMENTS.search(problem) or _GOT.search(problem)
    return match[1] if match else ""


def _find_expected(problem: str) -> tuple[list[str], list[str]]:
    """Return the allowed words and the allowed types."""
    choices: list[str] = []
    types: list[str] = []
    for match in _EXPECTED.finditer(problem):
        if match["choices"]:
            choices += map(str, ast.literal_eval(match["choices"]))
        elif match["type"]:
            types.append("null" if match["type"] == "NoneType" else match["type"])
    return list(dict.fromkeys(choices)), types


def _join(text: str) -> str:
    return " ".join(text.split())
