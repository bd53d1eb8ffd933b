"""Options of Python calls: tables with options, unknown names, and messages in our words."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from serve.errors import SchemaError, name_nearest, say, show
from service.command_line import import_ours

_SOURCES = {"path", "query", "table"}
_WORDS_OF_OTHERS = {
    "N": "k",
    "n": "k",
    "top_k": "k",
    "top_n": "k",
    "n_items": "k",
    "filter_viewed": "repeats='exclude'",
    "filter_already_liked_items": "repeats='exclude'",
    "filter_items": "filters={'where': 'CONDITION'}",
    "items_to_recommend": "filters={'only': [ids]}",
    "items_subset": "filters={'only': [ids]}",
    "factors": "dim",
    "n_factors": "dim",
    "iterations": "epochs",
    "n_epochs": "epochs",
    "random_state": "seed",
    "verbose": "quiet",
}  # option of implicit, RecTools and their kin -> ours

# ---- messages
_WORDS = {
    "interactions": "events",
    "events": "weights",
    "max_epochs": "epochs",
}  # key of a configuration -> option of `fit`, where they differ
_FLAGS = {
    "--ckpt_path last": "resume=True",
    "--overwrite": "overwrite=True",
    "--out": "out",
    "--previous": "previous",
}
_FLAG = re.compile("|".join(_FLAGS))
_KEY = re.compile(r"\b(?:data|model|trainer|evaluation)\.(\w+)")
_OF_TABLE = re.compile(r"declare (\w+): (.+?) in data\.(interactions|users|items)\b")
_OF_DATA = re.compile(r"declare (\w+): (\S+) in data\b(?!\.)")


def refuse_unknown(
    call: str, unknown: Collection[str], allowed: Collection[str]
) -> None:
    """Refuse options of another name, with the name that they have here."""
    allowed = set(allowed) - {"self", "unknown", "return"}
    for name in unknown:
        nearest = name_nearest(name, allowed)
        word = _WORDS_OF_OTHERS.get(name, "")
        if word.partition("=")[0] in allowed:
            nearest = f"here it is {word}"
        elif call == "fit" and name in _list_layout():
            nearest = f"it belongs to a table: events={{'path': FILE, '{name}': ...}}"
        raise SchemaError(f"{call}: unknown option '{name}'; {nearest}")


def declare_tables(
    tables: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Part tables from what a configuration says of them.

    Args:
        tables: name in a configuration -> path, table, options with one of them, or None.
        columns: our name -> theirs, in all tables.

    Returns:
        The tables in memory, and the declarations, both by name.

    Raises:
        SchemaError: some are in files and some in memory.
    """
    if not isinstance(columns, Mapping):
        raise SchemaError(f"fit: columns is {show(columns)}; allowed: a dict")

    names = {"interactions": columns, "users": ["user_id"], "items": ["item_id"]}
    in_memory = {}
    declared: dict[str, dict[str, Any]] = {}
    for name, given in tables.items():
        if given is None:
            continue
        options = _read_options(given, columns)
        table = options.pop("table", None)
        if table is not None:
            in_memory[name] = table
        renamed = {ours: columns[ours] for ours in names[name] if ours in columns}
        declared[name] = {"columns": renamed} | options

    if in_memory and len(in_memory) < len(declared):
        raise SchemaError("fit: give all tables as paths, or all in memory")
    return in_memory, declared


def _read_options(given: Any, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the options of a table, with its path, query or the table itself."""
    if isinstance(given, (str, Path)):
        return {"path": str(given)}
    ids = {columns.get(name, name) for name in ("user_id", "item_id")}
    if (
        not isinstance(given, Mapping)
        or not _SOURCES & given.keys()
        or ids & given.keys()
    ):
        return {"table": given}
    if "table" in given and len(_SOURCES & given.keys()) > 1:
        raise SchemaError(
            "fit: a table has a path or query beside it; give one of them"
        )
    return dict(given)


def make_folder(call: str, path: str | Path) -> Path:
    """Make a folder, if it is not there.

    Raises:
        SchemaError: it cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SchemaError(
            f"{call}: {say(error)}; choose a folder that can be made"
        ) from error
    return folder


def _list_layout() -> list[str]:
    table = import_ours("datamodules.config").TableConfig
    return [field.name for field in fields(table)]


def in_python(message: str, options: Collection[str]) -> str:
    """Name keys and flags in a message as the options of `fit`."""

    def name_key(key: re.Match[str]) -> str:
        word = _WORDS.get(key[1], key[1])
        return word if word in options else key[0]

    def name_option(remedy: re.Match[str]) -> str:
        key, value, table = remedy.groups()
        quoted = f'"{value}"' if value.isalnum() else value
        return f'give {_WORDS.get(table, table)}={{..., "{key}": {quoted}}}'

    message = _OF_TABLE.sub(name_option, message)
    message = _OF_DATA.sub(r"give \1=\2", message)
    message = _FLAG.sub(lambda flag: _FLAGS[flag[0]], message)
    return _KEY.sub(name_key, message)
