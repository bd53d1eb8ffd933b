"""Open the state on a server, or copy its log for those who read all of it."""

from __future__ import annotations

import shutil
from atexit import register
from collections.abc import Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from serve.bundle import STATE, STATE_FILE
from serve.errors import SchemaError
from service.forget import take_over
from service.remote.address import ENGINES, Place, find_address, find_folder
from service.state import RETENTION_DAYS, StateStore

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


def fetch_state(given: Place | None, default: Path) -> Path:
    """Find a folder with the log of a service, for those who read all of it.

    Args:
        given: the option --state.
        default: the folder without it.

    Returns:
        The folder. The log of a server is copied into one that lasts as long as the process; its
        erasure list lies beside it, as in a run.
    """
    address = find_address(given)
    if address is None:
        return find_folder(given, default)

    home = Path(mkdtemp(prefix="bascule-"))
    register(shutil.rmtree, home, ignore_errors=True)
    with closing(open_remote(address)) as state:
        take_over(home, state.list_forgotten())
        with closing(StateStore(home / STATE / STATE_FILE)) as store:
            state.copy(store)

    return home / STATE
