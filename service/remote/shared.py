"""The state on a server, at the address in BASCULE_STATE: a password would show in an option.

A folder of state that is named comes first. Nothing of an engine is loaded before it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from serve.errors import import_extra
from service.remote.remote_state import RemoteState
from service.retention import Retention
from service.state import EVERYTHING

VARIABLE = "BASCULE_STATE"


def open_remote(
    address: str, runs: Sequence[Path] = (), retention: Retention = EVERYTHING
) -> RemoteState:
    """Open the state on a server.

    Args:
        address: of the server, which need not answer yet.
        runs: folders whose erasure lists are heeded, beside the one that the server has.
        retention: how long events and answers are kept.

    Raises:
        ModuleNotFoundError: a library is missing.
        SchemaError: the address cannot be read, or the server could lose what it has acknowledged.
    """
    engine = "postgres" if address.startswith("postgres") else "redis"
    module = import_extra(f"{__package__}.{engine}_state", "state")
    opened: RemoteState = module.Engine(address, runs, retention)
    return opened


def open_shared(
    folder: Path | None = None,
    runs: Sequence[Path] = (),
    retention: Retention = EVERYTHING,
) -> RemoteState | None:
    """Open the state on the server of the environment; None without one or for a folder."""
    address = os.environ.get(VARIABLE)
    if folder is not None or not address:
        return None
    return open_remote(address, runs, retention)
