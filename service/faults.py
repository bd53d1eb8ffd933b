"""Faults that do not prevent answers: what `/ready`, the metrics and the alerts name."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from serve.errors import BundleError
from serve.files import read_erasure_list, read_opt_outs
from service.database import DAMAGED
from service.engine import ServerError, State

OUT_OF_SERVICE = "erasure"  # the fault with which requests of users are refused
FAULTS = {
    "disk": "events and impressions are not saved: the disk is full or fails",
    "lock": "events and impressions are not saved: another process locks the file of the state",
    "damage": "the file of the state is damaged: restore a copy",
    "expiry": "most of the log is older than --retention-days: nothing is removed without "
    "--expire-most",
    "impressions": "impressions are no longer logged; start the service again",
    "reload": "the last version was refused, an earlier one answers; the status says why",
    "server": "the state's server fails: events and requests that name a user are refused",
    OUT_OF_SERVICE: "a list of erasures or opt-outs is damaged, or the first is shorter than it "
    "was: requests that name a user are refused",
}
_KINDS = {errno.EBUSY: "lock", DAMAGED: "damage"}  # of faults of the state's file


def name_fault_of(state: State) -> str:
    """Return the kind of what fails in a state, or nothing."""
    fault = state.fault
    if fault is None:
        return ""
    if isinstance(fault, ServerError):
        return "server"
    return _KINDS.get(getattr(fault, "errno", None) or 0, "disk")


def lacks_erasures(state: State, runs: Sequence[Path]) -> bool:
    """Tell whether users might come back: a list is damaged, or shorter than the state remembers.

    Args:
        state: the state.
        runs: folders with erasure lists; that of the state comes last.
    """
    try:
        listed = [len(read_erasure_list(run)) for run in runs]
        read_opt_outs(runs[-1])
    except (BundleError, OSError):
        return True

    return listed[-1] < state.n_forgotten
