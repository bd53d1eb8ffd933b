"""What a configuration holds against what it declares: from Python nothing else looks at the types of its values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from serve.errors import SchemaError

_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((Integral,), "an integer"),
    float: ((Real, Decimal), "a number"),
    str: ((str,), "a text"),
    Path: ((Path,), "a Path"),
    NoneType: ((NoneType,), "None"),
}
"""Annotation -> what its values are instances of, and in words. True is an integer to Python and none here."""

_Fault = tuple[str, Any, Any]
"""Where it is, the value, and the annotation that it does not fit."""


def check_declared_types(config: Any, name: str) -> None:
    """Refuse a value of a dataclass that its annotation does not allow.

    Args:
        config: a dataclass whose annotations are plain types, `Any`, literals, dataclasses, and lists, mappings and
            unions of these.
        name: of the dataclass in a configuration, such as `data.split`; empty: it is the whole.

    Raises:
        SchemaError: naming the first of them.
    """
    for key, annotation in get_type_hints(type(config)).items():
        for where, value, wanted in _find_faults(f"{name}.{key}".lstrip("."), getattr(config, key), annotation):
            raise SchemaError(f"{where} is {value!r}; allowed: {', '.join(_describe(wanted))}")


def take_declared_types(config: Any, name: str) -> None:
    """Check as `check_declared_types` does, and put Python's own numbers, lists and mappings in the place of others.

    What a configuration holds is written as JSON, and compared with what was read from it.
    """
    check_declared_types(config, name)
    for key in get_type_hints(type(config)):
        object.__setattr__(config, key, _to_plain(getattr(config, key)))  # a frozen one, still being made


def _to_plain(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Decimal):
        return math.nan if value.is_nan() else float(value)  # float() raises for a signalling NaN
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_to_plain(one) for one in value]
    return {key: _to_plain(one) for key, one in value.items()} if isinstance(value, Mapping) else value


def _find_faults(name: str, value: Any, annotation: Any) -> Iterator[_Fault]:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is list and isinstance(value, (list, tuple)):
        for place, one in enumerate(value):
            yield from _find_faults(f"{name}[{place}]", one, parts[0])
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        for key, one in value.items():
            yield from _find_faults(f"{name}.{key}", one, parts[1])
    elif not _fits(value, annotation):
        yield name, value, annotation


def _fits(value: Any, annotation: Any) -> bool:
    if annotation is Any:
        return True
    if annotation in _PLAIN:
        return isinstance(value, _PLAIN[annotation][0]) and (annotation is bool or not isinstance(value, bool))
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin in (Union, UnionType):
        return any(not [*_find_faults("", value, part)] for part in parts)
    return origin is None and isinstance(value, annotation)


def _describe(annotation: Any) -> list[str]:
    """Name what is allowed, one after the other."""
    if annotation in _PLAIN:
        return [_PLAIN[annotation][1]]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return [repr(part) for part in parts]
    if origin in (Union, UnionType):
        return [word for part in parts for word in _describe(part)]
    return ["a list" if origin is list else "a mapping" if origin else f"a {annotation.__name__}"]
