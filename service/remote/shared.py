"""Open the state on a server."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from serve.errors import SchemaError
from service.remote.address import ENGINES, Place, find_address
from service.state import RETENTION_DAYS

if TYPE_CHECKING:
    from service.remote.remote_state import RemoteState


def open_remote(
    address: str, runs: Sequence[Path] = (), retention_days: float = RETENTION_DAYS
) -> RemoteState:
    """Open the state on a server.

    Args:
        address: of the server, which need not answer yet.
        runs: folders whose erasure lists are heeded, beside the one that the server has.
        retention_days: age at which events and answers are removed.

    Raises:
        SchemaError: a library is missing, or the server could lose what it has acknowledged.
    """
    scheme = address.partition("://")[0]
    try:
        module = import_module(f"{__package__}.{ENGINES[scheme]}")
    except ModuleNotFoundError as error:
        raise SchemaError(
            f"{error.name} is missing: pip install 'bascule[state]'"
        ) from error

    opened: RemoteState = module.Engine(address, runs, retention_days)
    return opened


def open_shared(
    given: Place | None,
    runs: Sequence[Path] = (),
    retention_days: float = RETENTION_DAYS,
) -> RemoteState | None:
    """Open the state at the address that is given, or else in the environment; None without one."""
    address = find_address(given)
    return None if address is None else open_remote(address, runs, retention_days)
