"""Roll back a version that does worse than the one before it: python -m evaluation.watch --registry DIR.

Of each user it counts which share of their lists in the service's log was followed by a conversion, or a click. The
current version is rolled back where it is below the one before by more than the tolerance, by an interval that holds at
all looks together. Versions that answer at the same time, as arms of an experiment, compare best; those that follow
each other differ by their days, too.

The exit status is 0 where the current version stays, 3 where it was rolled back, and 2 after a mistake of the call.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from evaluation.experiments import Difference, compare
from evaluation.gate import STOPPED, audit
from evaluation.online import DAY, WINDOW, join, read_log
from serve.bundle import STATE, STATE_FILE
from serve.command_line import make_parser, run_command
from serve.errors import SchemaError
from serve.versions import Registry, rollback

DAYS_BEFORE = 28  # of the version before, up to the first list of the current one


def main(argv: Sequence[str] | None = None, program: str = "python -m evaluation.watch") -> int:
    """Run the command and return its exit status."""
    parser = make_parser(program, str(__doc__))
    add = parser.add_argument
    add("--registry", type=Path, required=True, metavar="DIR", help="folder of the versions")
    add("--state", type=Path, metavar="DIR", help="folder of the state; default: in the registry")
    add("--figure", choices=("conversions", "clicks"), default="conversions", help="default: conversions")
    add("--targets", nargs="+", default=[], metavar="EVENT", help="events that are conversions; default: all")
    add("--tolerance", type=float, default=0.05, metavar="SHARE", help="of the figure that may be lost (default: .05)")
    add("--trusted-keys", type=Path, metavar="FILE", help="public keys: no version without a signature becomes current")
    return run_command(lambda: run(parser.parse_args(argv)))


def run(given: argparse.Namespace) -> None:
    """Compare the current version with the one before it, and roll back where it is worse."""
    log = (given.state or given.registry / STATE) / STATE_FILE
    if not log.exists():
        raise SchemaError(f"{log} does not exist; give the folder of the service's state as --state")
    if not 0 <= given.tolerance < 1:
        raise SchemaError(f"--tolerance is {given.tolerance:g}; allowed: from 0 to below 1")
    registry = Registry(given.registry, given.trusted_keys)
    current, before = registry.current(), registry.past()[:1]
    slots = join(*read_log(log), targets=given.targets).slots
    found = compare_versions(slots, before[0], current, given.figure) if before else None
    if found is None:
        sys.stdout.write(f"{current} stays: nobody can tell yet, or there is no version before it\n")
        return
    figures = (
        f"{given.figure} {found.arm:.4g}, {found.control:.4g} before, difference {found.low:.3g} to {found.high:.3g}"
    )
    if found.high >= -given.tolerance * found.control:
        sys.stdout.write(f"{current} stays: {figures}\n")
        return
    done = rollback(registry)
    audit(registry, "rolled back", version=done.version, left=done.left, reason=figures)
    sys.stdout.write(f"current: {done.version}, in place of {done.left}: {figures}\n")
    raise SystemExit(STOPPED)


def compare_versions(slots: pd.DataFrame, before: str, current: str, figure: str) -> Difference | None:
    """Compare the share of lists with an outcome, over users; None while a version has had too few.

    Lists of the last day are left out: what follows them is still to come.
    """
    ripe = slots[slots["user_id"].notna() & (slots["datetime"] <= slots["datetime"].max() - WINDOW)]
    begin = ripe["datetime"][ripe["version"] == current].min() - DAYS_BEFORE * DAY
    lists = ripe[ripe["datetime"] >= begin].groupby(["version", "user_id", "list"])[figure].sum() > 0
    users = lists.groupby(["version", "user_id"]).mean()
    version = users.index.get_level_values("version")
    return compare(*(users[version == one].to_numpy(float) for one in (before, current)))


if __name__ == "__main__":
    sys.exit(main())
