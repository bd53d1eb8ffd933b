"""Check a configuration, in YAML files and options, against the keys that its dataclasses have.

A mistake is one line with file, line, key, value and remedy. jsonargparse parses what passed here:
its own errors speak of Python's types.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from datamodules.config import FeatureConfig, FeaturesConfig, say_missing
from serve.errors import MAX_SHOWN, SchemaError, name_nearest
from serve.kinds import Kind

Keys = Mapping[str, Any]
"""Key -> type of its value: a class, a union, or the keys of a section."""

_TAG = "tag:yaml.org,2002:"
_OF_OPTION = "option"  # tag of an option's value, which may be of any type
_TEXTS = (f"{_TAG}str", f"{_TAG}timestamp", _OF_OPTION)
_NULLS = (f"{_TAG}null", _OF_OPTION)
_SIDES = dict.fromkeys(("user", "item", "context"), dict[str, Kind | FeatureConfig])
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
        if name == "config":
            _check_config(text, keys)
        elif name not in ("help", "print_config") and keys.get(name) is not bool:
            _check_option(name, text, keys)


def list_options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the name of each option, and its value or the word that follows."""
    for word, after in pairwise([*words, ""]):
        option, is_joined, value = word.partition("=")
        if option.startswith("--"):
            yield option[2:], value if is_joined else after


def read_config(text: str) -> bytes:
    """Return the content of a file, or YAML that stands for one."""
    return Path(text).read_bytes() if os.path.isfile(text) else text.encode()


def _check_config(text: str, keys: Keys) -> None:
    file = text if os.path.isfile(text) else ""
    node = _read(file or "--config", read_config(text))
    if os.path.isdir(text):
        raise SchemaError(f"--config is {text}, a folder; give a YAML file")
    if not file and not isinstance(node, yaml.MappingNode):
        raise SchemaError(say_missing(text, "--config"))
    _Checker(file, keys).check(node, keys, "")


def _check_option(name: str, text: str, keys: Keys) -> None:
    """Check an option as YAML that has its key alone."""
    node: yaml.Node = yaml.ScalarNode(_OF_OPTION, text)
    if text[:1] in ("[", "{"):
        node = _read(f"--{name}", text.encode())
    for part in reversed(name.split(".")):
        node = yaml.MappingNode("", [(yaml.ScalarNode("", part), node)])
    _Checker("", keys).check(node, keys, "")


def _read(where: str, content: bytes) -> yaml.Node:
    """Parse YAML into nodes, which know their lines."""
    try:
        node = yaml.compose(content.decode("utf-8-sig"), yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise SchemaError(
            f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        remedy = "indent by blanks, not tabs, and put texts with signs in quotes"
        raise SchemaError(f"{where}{place}: {error.problem}; {remedy}") from error

    if node is None:
        raise SchemaError(f"{where} is empty; give at least data.interactions.path")
    return node


@dataclass(frozen=True)
class _Checker:
    """Checks what stands in a file, or in none, against the keys of a configuration."""

    file: str
    keys: Keys

    def check(self, node: yaml.Node, annotation: Any, key: str) -> None:
        """Check a value and all that is in it."""
        if node.tag in _NULLS and key in self.keys and _find_keys(annotation):
            return  # the lines of a section are commented out
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
        first: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if key.tag.endswith(":merge"):
                continue
            if name in first:
                line = first[name].start_mark.line + 1
                message = f"'{name}' stands in line {line} too; keep one of them"
                raise self._fault(key, message)
            first[name] = key
            try:
                annotation = names[name]
            except KeyError:
                message = self._say_unknown(name, names, section)
                raise self._fault(key, message) from None
            self.check(value, annotation, f"{section}.{name}".lstrip("."))

    def _say_unknown(self, name: str, names: Keys, section: str) -> str:
        """Say that a key is unknown, and which one may be meant."""
        meant = _OTHER_NAMES.get(name, name)
        remedy = name_nearest(meant if meant in names else name, names)
        for other, annotation in self.keys.items():
            if meant in (_find_keys(annotation) or ()) and other != section:
                remedy = f"did you mean '{other}.{meant}'?"
        return f"'{name[:MAX_SHOWN]}' is no key of {section or 'a configuration'}; {remedy}"

    def _fault(self, node: yaml.Node, message: str) -> SchemaError:
        if self.file:
            message = f"{self.file}, line {node.start_mark.line + 1}: {message}"
        return SchemaError(message)


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
    if kind in (int, float):
        return _is_number(node.value, kind)
    if kind is bool:
        return node.value.lower() in yaml.SafeLoader.bool_values
    if kind is NoneType:
        return node.tag in _NULLS and node.value in ("", "~", "null")
    return kind not in (str, Path) or node.tag in _TEXTS


def _is_number(text: str, kind: type[int] | type[float]) -> bool:
    """Tell whether a text is a number, in quotes or not."""
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _say_allowed(value: str, annotation: Any) -> str:
    """End a message about a value with what is allowed in its place."""
    words = []
    for kind in _list_types(annotation):
        if get_origin(kind) is Literal:
            return name_nearest(value, map(str, get_args(kind)))
        if _find_keys(kind) is not None:
            words.append("keys with values")
        elif kind is not NoneType:
            words.append(_WORDS.get(get_origin(kind) or kind, "another value"))

    return f"allowed: {' or '.join(words)}"
