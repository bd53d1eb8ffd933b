"""Where the state of a service is: in a folder, or on a server at an address.

An address may hold a password: no message and no log repeats one. Nothing is loaded here.
"""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from pathlib import Path

from serve.errors import SchemaError

VARIABLE = "BASCULE_STATE"  # of the environment: an address, which `ps` does not show
FORMS = "redis://HOST:PORT/DB or postgresql://USER@HOST:PORT/DB"
ENGINES = {
    "redis": "redis_state",
    "rediss": "redis_state",
    "unix": "redis_state",
    "postgresql": "postgres_state",
}

Place = Path | str  # a folder called 'state', or an address


def parse_place(text: str) -> Place:
    """Read the option --state.

    Raises:
        ArgumentTypeError: no state can be kept on such a server.
    """
    scheme, mark, _ = text.partition("://")
    if not mark:
        return Path(text)
    if scheme not in ENGINES:
        allowed = ", ".join(ENGINES)
        raise ArgumentTypeError(
            f"the address begins with an unknown word; allowed: {allowed}, as in {FORMS}"
        )

    return text


def find_address(given: Place | None) -> str | None:
    """Return the address that was given, or else that of the environment."""
    if given is None:
        try:
            given = parse_place(os.environ.get(VARIABLE, "."))
        except ArgumentTypeError as error:
            raise SchemaError(f"{VARIABLE}: {error}") from error

    return given if isinstance(given, str) else None


def find_folder(given: Place | None, default: Path) -> Path:
    """Return the folder of live items, beside which figures lie."""
    return given if isinstance(given, Path) else default
