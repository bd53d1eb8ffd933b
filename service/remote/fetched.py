"""The log of a service for those who read all of it, wherever it is kept."""

from __future__ import annotations

import shutil
from atexit import register
from contextlib import closing
from pathlib import Path
from tempfile import mkdtemp

from serve.bundle import STATE, STATE_FILE
from service.forget import replace_opt_outs, take_over
from service.remote.shared import open_shared
from service.state import StateStore


def fetch_state(folder: Path | None, default: Path) -> Path:
    """Find a folder with the log of a service, for those who read all of it.

    Args:
        folder: the option --state.
        default: the folder without it, if there is no server.

    Returns:
        The folder. The log of a server is copied into one that lasts as long as the process; its
        lists of those who left lie beside it, as in a run.
    """
    state = open_shared(folder)
    if state is None:
        return folder or default

    home = Path(mkdtemp(prefix="bascule-"))
    register(shutil.rmtree, home, ignore_errors=True)
    with closing(state), closing(StateStore(home / STATE / STATE_FILE)) as store:
        state.copy(store)
    fetch_left_out(folder, home)  # afterwards: whoever left meanwhile is on a list

    return home / STATE


def fetch_left_out(folder: Path | None, run: Path) -> None:
    """Take over into a run who was forgotten or opted out on the server, if there is one.

    Args:
        folder: the option --state.
        run: folder of the run.
    """
    state = open_shared(folder)
    if state is not None:
        with closing(state):
            take_over(run, state.list_users("forgotten"))
            replace_opt_outs(run, state.list_users("opted_out"))
