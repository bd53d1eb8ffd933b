"""Check a configuration, in YAML files and options, against the keys that its dataclasses have.

A mistake is one line with file, line, key, value and remedy. jsonargparse parses what passed here:
its own errors speak of Python's types.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from datamodules.config import FeatureConfig, FeaturesConfig
from serve.errors import MAX_SHOWN, SchemaError, name_nearest, say_missing
from serve.kinds import Kind

Keys = Mapping[str, Any]
"""Key -> type of its value: a class, a union, or the keys of a section."""

_SIDES = dict.fromkeys(("user", "item", "context"), dict[str, Kind | FeatureConfig])
_PATTERNS = {
    int: r"[-+]?\d+",
    float: r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?",
    bool: "true|false|yes|no|on|off",
    NoneType: "|~|null",
}
_WORDS = {
    str: "a text in quotes",
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
}
_OTHER_NAMES = {
    "separator": "delimiter",
    "seperator": "delimiter",
    "file": "path",
    "epochs": "max_epochs",
    "lr": "learning_rate",
}  # what others call a key of ours


def check_words(words: Sequence[str], keys: Keys) -> None:
    """Check the options of a command line, and the YAML that `--config` names.

    Args:
        words: the words of the command line.
        keys: the top of a configuration.

    Raises:
        SchemaError: names the first mistake.
    """
    for name, text in list_options(words):
        if name in ("help", "print_config") or keys.get(name) is bool:
            continue
        where = f"--{name}"
        if name == "config":
            content = read_config(text)
            where = text if os.path.isfile(text) else ""
        else:
            content = _write_option(name, text).encode()
        _Checker(where, keys).check(_read(where, content), keys, "")


def list_options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the name of each option, and its value or the word that follows."""
    for word, after in pairwise([*words, ""]):
        option, is_joined, value = word.partition("=")
        if option.startswith("--"):
            yield option[2:], value if is_joined else after


def read_config(text: str) -> bytes:
    """Return the content of a file, or YAML that stands for one.

    Raises:
        SchemaError: there is no such file.
    """
    if os.path.isfile(text):
        return Path(text).read_bytes()
    if ":" not in text:
        raise SchemaError(say_missing(text, "--config"))
    return text.encode()


def _write_option(name: str, text: str) -> str:
    """Write an option as YAML that has its key alone."""
    if text[:1] not in ("[", "{"):
        text = json.dumps(text)
    for part in reversed(name.split(".")):
        text = f"{{{json.dumps(part)}: {text}}}"
    return text


def _read(where: str, content: bytes) -> yaml.Node:
    """Parse YAML into nodes, which know their lines."""
    try:
        node = yaml.compose(content.decode("utf-8-sig"), yaml.SafeLoader)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise SchemaError(
            f"{where or '--config'}{place}: {problem}; indent by blanks, not tabs, put texts "
            "with signs in quotes, and save the file as UTF-8"
        ) from error

    if node is None:
        raise SchemaError(f"{where} is empty; give at least data.interactions.path")
    return node


@dataclass(frozen=True)
class _Checker:
    """Checks what stands in a file or an option against the keys of a configuration."""

    where: str
    keys: Keys

    def check(self, node: yaml.Node, annotation: Any, key: str) -> None:
        """Check a value and all that is in it."""
        for kind in _list_types(annotation):
            names = _find_keys(kind)
            if names is not None and isinstance(node, yaml.MappingNode):
                self._check_entries(node, names, key)
                return
            if get_origin(kind) is list and isinstance(node, yaml.SequenceNode):
                for value in node.value:
                    self.check(value, get_args(kind)[0], key)
                return
            if names is None and _is_of(node, kind):
                return

        value = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
        if isinstance(node, yaml.ScalarNode):
            value = node.value[:MAX_SHOWN] or "empty"
        remedy = _say_allowed(value, annotation)
        raise self._fault(node, f"{key or 'a configuration'} is {value}; {remedy}")

    def _check_entries(self, node: yaml.Node, names: Keys, section: str) -> None:
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            if key.tag.endswith(":merge"):
                continue
            if name in lines:
                message = f"'{name}' stands in line {lines[name]} too; keep one of them"
                raise self._fault(key, message)
            if name not in names and not isinstance(names, defaultdict):
                raise self._fault(key, self._say_unknown(name, names, section))
            lines[name] = key.start_mark.line + 1
            self.check(value, names[name], f"{section}.{name}".lstrip("."))

    def _say_unknown(self, name: str, names: Keys, section: str) -> str:
        """Say that a key is unknown, and which one may be meant."""
        meant = _OTHER_NAMES.get(name, name)
        remedy = name_nearest(meant if meant in names else name, names)
        if section in ("", "trainer"):  # it may stand too far left
            for other, annotation in self.keys.items():
                if meant in (_find_keys(annotation) or ()) and other != section:
                    remedy = f"did you mean '{other}.{meant}'?"
        return f"'{name[:MAX_SHOWN]}' is no key of {section or 'a configuration'}; {remedy}"

    def _fault(self, node: yaml.Node, message: str) -> SchemaError:
        where = self.where
        if where and not where.startswith("--"):
            where = f"{where}, line {node.start_mark.line + 1}"
        return SchemaError(f"{where}: {message}".removeprefix(": "))


def _list_types(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type alone."""
    is_union = get_origin(annotation) in (Union, UnionType)
    return get_args(annotation) if is_union else (annotation,)


def _find_keys(kind: Any) -> Keys | None:
    """Return name -> type of the mappings of a type; None if it has no mappings."""
    if isinstance(kind, Mapping):
        return kind
    if kind is FeaturesConfig:
        return _SIDES
    if is_dataclass(kind):
        return get_type_hints(kind)
    if get_origin(kind) is dict:
        value_type = get_args(kind)[1]
        return defaultdict(lambda: value_type)
    return None


def _is_of(node: yaml.Node, kind: Any) -> bool:
    """Tell whether a value may be of a type; of one that is not known here it may."""
    if get_origin(kind) is list or not isinstance(node, yaml.ScalarNode):
        return kind is Any
    if get_origin(kind) is Literal:
        return node.value in map(str, get_args(kind))
    if kind in _PATTERNS:
        return bool(re.fullmatch(_PATTERNS[kind], node.value, re.IGNORECASE))
    return kind not in (str, Path) or node.tag.endswith(("str", "timestamp"))


def _say_allowed(value: str, annotation: Any) -> str:
    """End a message about a value with what is allowed in its place."""
    words = []
    for kind in _list_types(annotation):
        if get_origin(kind) is Literal:
            return name_nearest(value, map(str, get_args(kind)))
        if _find_keys(kind) is not None:
            words.append("keys with values (or leave it out)")
        elif kind is not NoneType:
            words.append(_WORDS.get(get_origin(kind) or kind, "another value"))

    return f"allowed: {' or '.join(words)}"
