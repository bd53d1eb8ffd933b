"""Check YAML files and options against the dataclasses of a configuration.

A mistake is one line with file, line, key, value and remedy. pydantic finds it. jsonargparse parses
what passed here; its own messages speak of Python's types.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader
from pydantic import TypeAdapter, ValidationError, with_config

from datamodules.config import DataConfig, TableConfig
from serve.errors import SchemaError, name_nearest, say, say_missing, show

Places = dict[str, str]
"""Key of a file, such as `model.dim` -> where it stands; the key "" stands for all."""

_PARSER_ONLY = ("ckpt_path", "out", "help", "print_config")
"""Options whose values only the parser knows."""
_SECTION = "keys with values (or leave it out)"
_ALLOWED = {
    "string": "a text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": _SECTION,
    "dataclass": _SECTION,
}  # first word of pydantic's type of error -> what to write
_ALIASES = {
    "separator": "delimiter",
    "seperator": "delimiter",
    "sep": "delimiter",
    "na_values": "missing",
    "date_format": "time_formats",
    "sql": "query",
}  # key of a table as others call it -> ours


def check_words(words: Sequence[str], config: Any) -> set[str]:
    """Check the options of a command line, and the YAML that `--config` names.

    Args:
        words: the words of the command line.
        config: class of a whole configuration.

    Returns:
        the keys of the top that are given.

    Raises:
        SchemaError: names the first mistake.
    """
    adapter = TypeAdapter(with_config(extra="forbid")(config))
    given: set[str] = set()
    options = list(_list_options(words))
    for name, text in options:
        try:
            values, places = _read(name, text)
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            problem = say(error).replace('"<unicode string>", ', "")
            raise SchemaError(
                f"--{name} {text}: {problem}; indent by blanks, not tabs, put texts with signs "
                "in quotes, and save the file as UTF-8"
            ) from error

        for key in _PARSER_ONLY:
            values.pop(key, None)
        given |= values.keys()
        try:
            adapter.validate_python(values)
        except ValidationError as error:
            for fault in error.errors():
                # A rule of several keys is checked later, if they may stand in several places.
                if fault["type"] != "value_error" or len(options) == 1:
                    raise SchemaError(_say(fault, places, config)) from error

    return given


def _list_options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each option that has one."""
    for word, after in pairwise([*words, "--"]):
        option, _, value = word.partition("=")
        text = value or after
        if option.startswith("--") and not text.startswith("--"):
            yield option[2:], text


def _read(name: str, text: str) -> tuple[dict[str, Any], Places]:
    """Return what an option gives, as YAML would, and where it stands."""
    if name == "config":
        return _read_config(text)

    value: Any = text
    if text == "null" or text.startswith(("[", "{")):
        value = get_loader("yaml")(text)
    for key in reversed(name.split(".")):
        value = {key: value}
    return value, {"": f"--{name}"}


def _read_config(text: str) -> tuple[dict[str, Any], Places]:
    """Read a YAML file, or YAML that stands for one."""
    content = text
    places = {"": ""}
    nodes = {}
    if os.path.isfile(text):
        content = Path(text).read_text(encoding="utf-8-sig")
        places[""] = text
        nodes[""] = yaml.compose(content)
    elif ":" not in text:
        raise SchemaError(say_missing(text, "--config"))

    values = get_loader("yaml")(content)
    if not isinstance(values, dict):
        raise SchemaError(
            f"{text} is empty or has no keys; give at least data.interactions.path"
        )

    while nodes:
        section, node = nodes.popitem()
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            name = f"{section}.{key.value}".lstrip(".")
            place = f"{text}, line {key.start_mark.line + 1}"
            if name in places:
                raise SchemaError(
                    f"{place}: {name} stands in {places[name]} too; keep one of them"
                )
            places[name] = place
            nodes[name] = value

    return values, places


def _say(fault: Any, places: Places, config: Any) -> str:
    """Put an error of pydantic into words."""
    key = ".".join(map(str, fault["loc"]))
    kind = fault["type"].split("_")[0]
    if kind == "value":  # one of ours
        message = str(fault["ctx"]["error"])
        key = message.split()[0].removesuffix(":")
    elif kind == "unexpected":
        message = f"{key} is no key; {_find_key(fault['loc'], config)}"
    else:
        allowed = _ALLOWED.get(kind, fault["msg"].removeprefix("Input should be "))
        message = f"{key} is {show(fault['input'])}; allowed: {allowed}"

    while key not in places:
        key = key.rpartition(".")[0]
    return f"{places[key]}: {message}".removeprefix(": ")


def _find_key(path: Sequence[str], config: Any) -> str:
    """Say which key may be meant; one of `data` or `model` may stand too far left."""
    known = asdict(config(DataConfig(users=TableConfig(), items=TableConfig())))
    *sections, name = path
    for section in ("data", "model"):
        if not sections and name in known[section]:
            return f"did you mean '{section}.{name}'?"
    for section in sections:
        known = known[section]
    alias = _ALIASES.get(name)
    if alias in known:
        return f"did you mean '{alias}'?"
    return name_nearest(name, known)
