"""The words of a command line: a fault is one line that names what is nearest, and help keeps its lines."""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr

from serve.errors import SchemaError, name_nearest

FAULT = 2
"""Status of a process that was told something wrong."""

_OPTION = re.compile(r"--[a-z][\w-]*")
_ERROR = re.compile(r"^\S.*?: error: ", re.MULTILINE)


def make_parser(program: str, description: str, usage: str | None = None) -> argparse.ArgumentParser:
    """Make a parser; the lines of its description stay as they are, and no option can be cut short."""
    return argparse.ArgumentParser(
        prog=program,
        usage=usage,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse_command(
    summary: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser], words: Sequence[str] | None
) -> argparse.Namespace:
    """Parse a command and its options.

    Args:
        summary: help on all commands.
        commands: name -> parser of what follows it.
        words: of the command line; None: of this process.

    Raises:
        SchemaError: no such command, or as `parse_options`.
    """
    given = list(sys.argv[1:] if words is None else words)
    name = given[0] if given else ""
    if name in ("-h", "--help"):
        return summary.parse_args([name])
    if name not in commands:
        got = f"unknown command '{name}'" if name and not name.startswith("-") else "no command is given"
        raise SchemaError(_refer(f"{got}; {name_nearest(name, commands)}", summary))
    return parse_options(commands[name], given[1:])


def parse_options(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """Parse options.

    Args:
        parser: of the options.
        words: of the command line; None: of this process.

    Raises:
        SchemaError: an unknown option, a wrong value or one that is missing, in one line with the nearest option.
    """
    given = list(sys.argv[1:] if words is None else words)
    allowed = {"--help", *_OPTION.findall(parser.format_usage())}
    for word in given:
        name = word.split("=")[0]
        if name.startswith("--") and name not in allowed:
            raise SchemaError(_refer(f"unknown option '{name}'; {name_nearest(name, allowed)}", parser))
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parser.parse_args(given)
    except SystemExit as end:
        if end.code != FAULT:
            raise
        fault = " ".join(_ERROR.split(said.getvalue())[-1].split())
        raise SchemaError(_refer(fault, parser)) from end


def _refer(fault: str, parser: argparse.ArgumentParser) -> str:
    return f"{fault}{'' if fault.endswith('?') else ';'} see {parser.prog} --help"
