"""Let a version take over if it is no worse: bascule gate --registry DIR --candidate DIR ...

Both versions answer the same requests of the same last days; nothing is fitted. A candidate passes
if its files and golden answers are whole, the lower bound of its paired NDCG@10 is near the current
figure or above, no group of users or items has lost much, and its lists reach as much of the
catalogue. It is then published and activated. Later, bascule gate watch --registry DIR rolls it
back where users do less with its lists than with those of the version before.
What is checked, and what a new guardrail joins, stands in `evaluation/guardrails.py`.

`REGISTRY/audit.jsonl` has a line for each step. Exit status: 0 passed, or stays; 3 stopped, or
rolled back; 2 a mistake of the call.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.evaluate import Parts
from evaluation.experiments import MIN_USERS
from evaluation.guardrails import Check, Limits, check_unprompted, compare
from evaluation.holdout import profiles_from_frame, to_moment
from evaluation.online import find_unprompted, join, keep_shown, read_frames
from evaluation.watch import DAYS_AFTER, compare_versions
from serve.bundle import MANIFEST, STATE, STATE_FILE, Bundle
from serve.errors import BundleError, SchemaError
from serve.files import write_json
from serve.recommender import Recommender, replay
from serve.schema import Schema
from service.command_line import make_parser, run_command, tabulate
from service.event_log import SHOWN, read_log
from service.publish import read_version
from service.registry import (
    LOADING_ERRORS,
    Registry,
    activate,
    publish_version,
    rollback,
)
from service.remote.fetched import fetch_state

Verdict = dict[str, Any]  # the content of `verdict.json`
Read = Callable[[Schema], Parts]  # reads what a version of a schema is asked
STOPPED = 3  # exit status where a version is not let through
AUDIT = "audit.jsonl"
MAX_EARLIER = 8  # versions that a candidate is compared with, beside the current one
_FILES = "files and golden answers"
_OTHERS = {
    "--current": "bundle to compare with; nothing is published",
    "--registry": "compare with its current version, and publish",
}
_INPUTS = {
    "--candidate": ("DIR", "the bundle that would take over"),
    "--holdout": ("FILE", "interactions of the last days"),
    "--train": ("FILE", "interactions before them: the users' histories"),
    "--out": ("FILE", "write the verdict here, in JSON"),
}


def main(argv: Sequence[str] | None = None, program: str = "bascule gate") -> int:
    """Run the command and return its exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["watch"]:
        watcher = make_watcher(f"{program} watch")
        return run_command(lambda: watch(watcher.parse_args(words[1:])))

    parser = make_parser(program, str(__doc__))
    which = parser.add_mutually_exclusive_group(required=True)
    for name, text in _OTHERS.items():
        which.add_argument(name, type=Path, metavar="DIR", help=text)
    for name, (metavar, text) in _INPUTS.items():
        parser.add_argument(name, type=Path, required=True, metavar=metavar, help=text)
    parser.add_argument(
        "--users",
        type=Path,
        metavar="FILE",
        help="user features, by which groups are compared, too",
    )
    parser.add_argument(
        "--at",
        metavar="TIME",
        help="when the holdout begins: the moment that each user is asked at",
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="folder of the state: what users did after a list that it has is left out; "
        "default: in the registry, if there is one",
    )
    add_limits(parser)

    return run_command(lambda: run(parser.parse_args(words)))


def add_limits(parser: ArgumentParser) -> None:
    """Add the options that decide what passes."""
    for name, share in Limits._field_defaults.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=_read_share,
            default=share,
            metavar="SHARE",
            help=f"default: {share}",
        )

    parser.add_argument(
        "--trusted-keys",
        type=Path,
        metavar="FILE",
        help="public keys: a bundle that none of them signed is stopped",
    )


def _read_share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise ArgumentTypeError(f"got {text}; allowed: a share from 0 to 1")
    return float(text)


def run(options: Namespace) -> None:
    """Let tables on disk decide."""
    path = options.candidate / MANIFEST
    if not path.exists():
        raise SchemaError(
            f"{path} does not exist; the working directory is {Path.cwd()}"
        )

    if options.state is None and options.registry is not None:
        state = fetch_state(None, options.registry / STATE)
        options.state = state if (state / STATE_FILE).exists() else None

    tables = (options.holdout, options.train, options.users)
    decide(options, partial(Parts.read, *tables, options.at))


def decide(options: Namespace, read: Read) -> None:
    """Judge a candidate, write the verdict and, into a registry, publish.

    Args:
        options: of the command.
        read: returns what a version of a schema is asked, should find and knows before.

    Raises:
        SystemExit: with status 3, the candidate is stopped.
    """
    if options.registry is None:
        registry = None
        current = Bundle.load(options.current)
    else:
        registry = Registry(options.registry, options.trusted_keys)
        if has_taken_over(registry, options.candidate):
            return
        current = Bundle.load(registry.folder(registry.current()))

    verdict = judge(options, current, read)

    write_json(options.out, verdict)
    outcome = verdict["verdict"]
    versions = f"{verdict['candidate']} in place of {verdict['current']}"
    lines = [*tabulate(verdict["checks"]), f"{outcome}: {versions}"]
    sys.stdout.write("\n".join(lines) + "\n")

    if registry is not None:
        release(registry, options.candidate, verdict)
    if outcome != "passed":
        raise SystemExit(STOPPED)


def has_taken_over(registry: Registry, candidate: Path) -> bool:
    """Tell whether a candidate has been let in before, which happens once.

    A kill after the activation leaves its line out of the audit log: it is added here.
    """
    version = read_version(candidate)
    path = registry.path / AUDIT
    log = path.read_text(encoding="utf-8") if path.exists() else ""

    is_published = f'"step": "published", "version": "{version}"' in log
    is_activated = f'"step": "activated", "version": "{version}"' in log
    if version != registry.current() and not is_activated:
        return False

    if is_published and not is_activated:
        left = next(iter(registry.past()), None)
        audit(registry, "activated", version=version, left=left)

    sys.stdout.write(
        f"nothing is left to do: {version} is or was current; to let it be served "
        "again, activate it by hand\n"
    )
    return True


def release(registry: Registry, candidate: Path, verdict: Verdict) -> None:
    """Log the verdict, and publish and activate a candidate that passed.

    Raises:
        BundleError: the current version or the candidate changed meanwhile.
    """
    facts = {**verdict}
    checks = facts.pop("checks")
    failed = [check["name"] for check in checks if not check["is_passed"]]
    audit(registry, "judged", **facts, failed=failed)

    if verdict["verdict"] != "passed":
        return

    judged = (verdict["current"], verdict["candidate"])
    if (registry.current(), read_version(candidate)) != judged:
        raise BundleError(
            "another version became current, or the candidate was replaced, meanwhile: "
            "judge it again"
        )

    version = publish_version(registry, candidate, keep=MAX_EARLIER + 1).version
    audit(registry, "published", version=version)
    activate(registry, version)
    audit(registry, "activated", version=version, left=verdict["current"])


def audit(registry: Registry, step: str, **facts: Any) -> None:
    """Append what was done to the registry's audit log, on disk when this returns.

    Args:
        registry: whose log it is.
        step: such as `published`.
        facts: what else the line says.
    """
    time = datetime.now(UTC).isoformat(timespec="seconds")
    line = json.dumps({"time": time, "step": step, **facts})
    path = registry.path / AUDIT
    with registry.writing(), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def judge(options: Namespace, current: Bundle, read: Read) -> Verdict:
    """Return the verdict on a candidate; one that cannot be loaded is stopped at once.

    Args:
        options: with the candidate, trusted keys and limits.
        current: the bundle that it would replace.
        read: as in `decide`.

    Returns:
        The content of `verdict.json`.
    """
    try:
        candidate = Bundle.load(options.candidate, trusted=options.trusted_keys)
        n_golden = replay(candidate.golden, Recommender(candidate).recommend)
    except LOADING_ERRORS as error:
        checks = [Check(_FILES, 0, 1, False, note=str(error))]
    else:
        limits = Limits(**{name: getattr(options, name) for name in Limits._fields})
        checks = [Check(_FILES, n_golden, 1, True)]
        parts = read(current.schema)
        recommenders = [prepare(current, read), prepare(candidate, read)]
        # Without times nothing tells what came before a list.
        if options.state is not None and "datetime" in parts.test:
            parts, share = set_prompted_apart(parts, options.state, current.schema)
            checks.append(share)

        if checks[-1].is_passed:  # else there may be nothing to ask
            for bundle in load_earlier(options.registry, options.trusted_keys):
                with suppress(SchemaError):  # one that cannot be asked stops no other
                    recommenders.append(prepare(bundle, read))
            checks += compare(recommenders, parts, limits)

    is_passed = all(check.is_passed for check in checks)
    return {
        "verdict": "passed" if is_passed else "stopped",
        "current": current.manifest.version,
        "candidate": read_version(options.candidate),
        "checks": [asdict(check) for check in checks],
    }


def prepare(bundle: Bundle, read: Read) -> Recommender:
    """Give a version the users' histories, as it reads the tables.

    Raises:
        SchemaError: it has seen what it would be asked, or cannot read the tables.
    """
    parts = read(bundle.schema)
    check_unseen(bundle, parts.at)
    profiles = profiles_from_frame(parts.train, parts.users, bundle.schema)
    return Recommender(bundle, profiles)


def load_earlier(folder: Path | None, trusted: Path | None) -> list[Bundle]:
    """Load the versions that were current before, the latest ones; none without a registry."""
    if folder is None:
        return []
    registry = Registry(folder, trusted)
    bundles = []
    for version in registry.past()[:MAX_EARLIER]:
        with suppress(*LOADING_ERRORS):  # one that is gone is no reason to stop another
            bundles.append(Bundle.load(registry.folder(version)))
    return bundles


def set_prompted_apart(
    parts: Parts, state: Path, schema: Schema
) -> tuple[Parts, Check]:
    """Leave out of a test what users did after they were shown a list.

    Args:
        parts: the test, whose events have times, at a moment.
        state: folder of the log of what was shown.
        schema: of the current version, by whose time zone days begin.

    Returns:
        The test without those events, and the check that enough are left. It does not pass where
        the events cannot be told from others: without a moment, or by lists that nobody confirms.
    """
    at = parts.at
    lists, _, events = (table.to_pandas() for table in read_log(state / STATE_FILE))
    shown = keep_shown(lists, events)
    asked = lists[lists["policy"] != SHOWN]

    if at is None:
        fault = "unknown: give --at"
    elif asked["datetime"].max() >= at and not shown["datetime"].max() >= at:
        fault = "no list is confirmed: POST /v1/shown"
    else:
        found = find_unprompted(parts.test, shown, at, schema.timezone).to_numpy(bool)
        return replace(parts, test=parts.test[found]), check_unprompted(found)

    return parts, check_unprompted(np.zeros(0, bool), fault)


def check_unseen(bundle: Bundle, at: int | None) -> None:
    """Refuse to ask a version at a moment after which it was trained."""
    if at is not None and bundle.schema.data_until > at:
        until = to_moment(bundle.schema.data_until)
        raise SchemaError(
            f"--at is {to_moment(at)}; {bundle.path} has seen data until {until}: ask "
            "later"
        )


# ---- watching


def make_watcher(program: str) -> ArgumentParser:
    """Make the parser of the command that watches a version."""
    parser = make_parser(program, str(__doc__))
    parser.add_argument(
        "--registry",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the versions",
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="folder of the state; default: in the registry",
    )
    parser.add_argument(
        "--figure",
        choices=("conversions", "clicks"),
        default="conversions",
        help="default: conversions",
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        default=[],
        metavar="EVENT",
        help="events that are conversions; default: all but dismissals",
    )
    parser.add_argument(
        "--tolerance",
        type=_read_share,
        default=0.05,
        metavar="SHARE",
        help="of the figure that may be lost (default: .05)",
    )
    parser.add_argument(
        "--trusted-keys",
        type=Path,
        metavar="FILE",
        help="public keys: no version without a signature becomes current",
    )

    return parser


def watch(options: Namespace) -> None:
    """Compare the current version with the one before it, and roll back where it is worse.

    Raises:
        SystemExit: with status 3, the version was rolled back.
    """
    path = fetch_state(options.state, options.registry / STATE) / STATE_FILE
    registry = Registry(options.registry, options.trusted_keys)
    current = registry.current()
    past = registry.past()
    difference = None

    reason = "the registry has no version before it"
    if past:
        slots = join(*read_frames(path), targets=options.targets).slots
        difference = compare_versions(slots, past[0], current, options.figure)
        reason = (
            f"too little is known yet; needed are {DAYS_AFTER} days, and {MIN_USERS} users "
            f"with lists of both {past[0]} and {current} before the last day of the log; "
            "only lists that are confirmed (POST /v1/shown) and in no arm count"
        )

    if difference is None:
        sys.stdout.write(f"{current} stays: {reason}\n")
        return

    interval = f"{difference.low:.3g} to {difference.high:.3g}"
    figures = (
        f"{options.figure} {difference.arm:.4g} after {difference.control:.4g}, "
        f"difference {interval}"
    )

    if difference.high >= -options.tolerance * difference.control:
        sys.stdout.write(f"{current} stays: {figures}\n")
        return

    done = rollback(registry)
    audit(registry, "rolled back", version=done.version, left=done.left, reason=figures)
    sys.stdout.write(f"current: {done.version}, in place of {done.left}: {figures}\n")
    raise SystemExit(STOPPED)
