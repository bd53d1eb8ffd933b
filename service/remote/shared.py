"""The state in PostgreSQL, at the address in BASCULE_STATE: a password would show in an option.

A folder of state that is named comes first. Nothing of the engine is loaded before it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve.errors import import_extra
from service.remote.remote_state import RemoteState
from service.state import RETENTION_DAYS

VARIABLE = "BASCULE_STATE"


def open_remote(
    address: str,
    runs: Sequence[Path] = (),
    retention_days: float = RETENTION_DAYS,
    impression_days: float | None = None,
) -> RemoteState:
    """Open the state on a server of PostgreSQL.

    Args:
        address: of the server, which need not answer yet.
        runs: folders whose erasure lists are heeded, beside the one that the server has.
        retention_days: age at which events are removed.
        impression_days: age at which answers are removed; by default the same.

    Raises:
        ModuleNotFoundError: a library is missing.
        SchemaError: the address cannot be read, or the server could lose what it has acknowledged.
    """
    module = import_extra(f"{__package__}.postgres_state", "state")
    opened: RemoteState = module.Engine(address, runs, retention_days, impression_days)
    return opened


def open_shared(folder: Path | None = None, *settings: Any) -> RemoteState | None:
    """Open the state on the server of the environment; None without one or for a folder.

    Args:
        folder: a folder that is named.
        settings: what `open_remote` takes beside the address.
    """
    address = os.environ.get(VARIABLE)
    if folder is not None or not address:
        return None
    return open_remote(address, *settings)
