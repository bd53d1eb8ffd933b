"""Let a version take over if it is no worse: python -m evaluation.gate --registry DIR --candidate DIR ... --out FILE.

Both versions answer the same requests of the same last days; nothing is fitted. A candidate passes if its files and
golden answers are whole, the lower bound of its paired NDCG@10 is near the current figure or above, no group of users
or items has lost much, and its lists reach as much of the catalogue. It is then published and activated. Later, python
-m evaluation.gate watch --registry DIR rolls it back where users do less with its lists than with those of the version
before. `REGISTRY/audit.jsonl` has a line for each step. Exit status: 0 passed, or stays; 3 stopped, or rolled back; 2 a
mistake of the call.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

from evaluation.evaluate import Examination, Parts, Requests, as_lists, label_users
from evaluation.experiments import Difference
from evaluation.experiments import compare as compare_users
from evaluation.holdout import (
    Ids,
    group_requests,
    plain_requests,
    profiles_from_frame,
    to_moment,
)
from evaluation.metrics import MIN_USERS_TO_COMPARE as MIN_USERS
from evaluation.metrics import (
    Targets,
    describe_lists,
    measure_users,
    slice_targets,
    summarise,
)
from evaluation.online import WINDOW, join, read_log
from serve.arrays import Doubles, Ints
from serve.bundle import MANIFEST, STATE, STATE_FILE, Bundle
from serve.clock import DAY
from serve.errors import BundleError, SchemaError
from serve.files import write_file
from serve.golden import replay
from serve.recommender import Recommender, golden_answer
from serve.schema import Schema
from service.command_line import make_parser, run_command, tabulate
from service.publish import read_version
from service.registry import (
    LOADING_ERRORS,
    Registry,
    activate,
    publish_version,
    rollback,
)

Read = Callable[
    [Schema], Parts
]  # what a version of a schema is asked, should find and knows before
STOPPED = 3  # exit status where a version is not let through
AUDIT = "audit.jsonl"
K = 10
METRIC = f"NDCG@{K}"
LEVEL = 0.05  # at which one slice of all is stopped by chance
DAYS_BEFORE = 28  # of the version before, up to the first list of the current one, that it is watched by
MIN_RECALL = 0.99  # of the index, as measured at export against exact search


class Limits(NamedTuple):
    """What may be lost, as shares of the current figures."""

    loss: float = 0.05  # of the mean over users, by its lower bound
    slice_loss: float = 0.2
    coverage_loss: float = 0.2


@dataclass(frozen=True)
class Check:
    """A figure of the candidate, and the least that it may be."""

    name: str
    value: float
    limit: float
    is_passed: bool
    users: int | None = None
    note: str = ""


def main(
    argv: Sequence[str] | None = None, program: str = "python -m evaluation.gate"
) -> int:
    """Run the command and return its exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["watch"]:
        watcher = make_watcher(f"{program} watch")
        return run_command(lambda: watch(watcher.parse_args(words[1:])))
    parser = make_parser(program, str(__doc__))
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--current",
        type=Path,
        metavar="DIR",
        help="bundle to compare with; nothing is published",
    )
    which.add_argument(
        "--registry",
        type=Path,
        metavar="DIR",
        help="compare with its current version, and publish",
    )
    add(
        "--candidate",
        type=Path,
        required=True,
        metavar="DIR",
        help="the bundle that would take over",
    )
    add(
        "--holdout",
        type=Path,
        required=True,
        metavar="FILE",
        help="interactions of the last days",
    )
    add(
        "--train",
        type=Path,
        required=True,
        metavar="FILE",
        help="interactions before them: the users' histories",
    )
    add(
        "--users",
        type=Path,
        metavar="FILE",
        help="user features, by which groups are compared, too",
    )
    add(
        "--at",
        metavar="TIME",
        help="when the holdout begins: the moment that each user is asked at",
    )
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="write the verdict here, in JSON",
    )
    add_limits(parser)
    return run_command(lambda: run(parser.parse_args(words)))


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide what passes."""
    add = parser.add_argument
    for name, share in Limits._field_defaults.items():
        add(
            f"--{name.replace('_', '-')}",
            type=_read_share,
            default=share,
            metavar="SHARE",
            help=f"default: {share}",
        )
    add(
        "--trusted-keys",
        type=Path,
        metavar="FILE",
        help="public keys: a bundle that none of them signed is stopped",
    )


def _read_share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"got {text}; allowed: a share from 0 to 1")
    return float(text)


def run(given: argparse.Namespace) -> None:
    """Let tables on disk decide."""
    for path in (given.holdout, given.train, given.users, given.candidate / MANIFEST):
        if path is not None and not path.exists():
            raise SchemaError(
                f"{path} does not exist; the working directory is {Path.cwd()}"
            )
    decide(
        given, partial(Parts.read, given.holdout, given.train, given.users, given.at)
    )


def decide(given: argparse.Namespace, read: Read) -> None:
    """Judge, write the verdict and, into a registry, publish; end with status 3 where the candidate is stopped."""
    registry = (
        None if given.registry is None else Registry(given.registry, given.trusted_keys)
    )
    if registry is not None and has_taken_over(registry, given.candidate):
        return
    current = Bundle.load(
        given.current if registry is None else registry.folder(registry.current())
    )
    verdict = judge(
        given, current, Limits(*(getattr(given, name) for name in Limits._fields)), read
    )
    write_file(
        given.out, (json.dumps(verdict, indent=1, allow_nan=False) + "\n").encode()
    )
    said = (
        f"{verdict['verdict']}: {verdict['candidate']} in place of {verdict['current']}"
    )
    sys.stdout.write("\n".join([*tabulate(verdict["checks"]), said]) + "\n")
    if registry is not None:
        release(registry, given.candidate, verdict)
    if verdict["verdict"] != "passed":
        raise SystemExit(STOPPED)


def has_taken_over(registry: Registry, candidate: Path) -> bool:
    """Tell whether a candidate has been let in before, which happens once; log what a kill left out of the log."""
    version = read_version(candidate)
    log = registry.path / AUDIT
    said = log.read_text(encoding="utf-8") if log.exists() else ""
    steps = {
        step
        for step in ("published", "activated")
        if f'"step": "{step}", "version": "{version}"' in said
    }
    is_current = version is not None and version == registry.find_current()
    if not is_current and "activated" not in steps:
        return False
    if steps == {"published"}:
        audit(
            registry,
            "activated",
            version=version,
            left=next(iter(registry.past()), None),
        )
    end = (
        "is current"
        if is_current
        else "was current before: to let it be served again, activate it by hand"
    )
    sys.stdout.write(f"nothing is left to do: {version} {end}\n")
    return True


def release(registry: Registry, candidate: Path, verdict: dict[str, Any]) -> None:
    """Log the verdict, and publish and activate a candidate that passed, if the other one is still current."""
    failed = [check["name"] for check in verdict["checks"] if not check["is_passed"]]
    audit(
        registry,
        "judged",
        **{name: verdict[name] for name in ("candidate", "current", "verdict")},
        failed=failed,
    )
    if verdict["verdict"] != "passed":
        return
    if (
        registry.current() != verdict["current"]
        or read_version(candidate) != verdict["candidate"]
    ):
        raise BundleError(
            "another version became current, or the candidate was replaced, meanwhile: judge it again"
        )
    version = publish_version(registry, candidate).version
    audit(registry, "published", version=version)
    activate(registry, version)
    audit(registry, "activated", version=version, left=verdict["current"])


def audit(registry: Registry, step: str, **facts: Any) -> None:
    """Append what was done to the registry's audit log, on disk when this returns."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        **facts,
    }
    with (
        registry.writing(),
        (registry.path / AUDIT).open("a", encoding="utf-8") as file,
    ):
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def judge(
    given: argparse.Namespace, current: Bundle, limits: Limits, read: Read
) -> dict[str, Any]:
    """Return the verdict on a candidate; one that cannot be loaded is stopped without further checks."""
    head = {
        "verdict": "stopped",
        "current": current.manifest.version,
        "candidate": read_version(given.candidate),
    }
    try:
        candidate = Bundle.load(given.candidate, trusted=given.trusted_keys)
        n_golden = replay(candidate.golden, golden_answer(Recommender(candidate)))
    except LOADING_ERRORS as error:
        return head | {
            "checks": [
                asdict(Check("files and golden answers", 0, 1, False, note=str(error)))
            ]
        }
    checks = [Check("files and golden answers", n_golden, 1, True)]
    checks += compare(*prepare(read, [current, candidate]), limits)
    outcome = "passed" if all(check.is_passed for check in checks) else "stopped"
    return head | {"verdict": outcome, "checks": [asdict(check) for check in checks]}


def prepare(read: Read, bundles: Sequence[Bundle]) -> tuple[list[Recommender], Parts]:
    """Read the tables as each bundle does; return recommenders, and what the first one is asked and should find."""
    asked = [read(bundle.schema) for bundle in bundles]
    for bundle, parts in zip(bundles, asked, strict=True):
        check_unseen(bundle, parts.at)
    pairs = zip(bundles, asked, strict=True)
    return [
        Recommender(one, profiles_from_frame(its.train, its.users, one.schema))
        for one, its in pairs
    ], asked[0]


def check_unseen(bundle: Bundle, at: int | None) -> None:
    """Refuse to ask a version at a moment after which it was trained."""
    if at is not None and bundle.schema.data_until > at:
        until = to_moment(bundle.schema.data_until)
        raise SchemaError(
            f"--at is {to_moment(at)}; {bundle.path} has seen data until {until}: ask later"
        )


def compare(
    versions: Sequence[Recommender], parts: Parts, limits: Limits
) -> list[Check]:
    """Let the current version and the candidate answer the same requests, and check what the second one loses."""
    schema = versions[0].bundle.schema
    facts = versions[1].bundle.manifest.facts
    items = [one.catalogue.item_ids.ids.tolist() for one in versions]
    items += [part["item_id"].tolist() for part in (parts.train, parts.test)]
    ids = Ids.number(dict.fromkeys(chain(*items)), (parts.train, parts.test))
    examination = Examination.prepare(
        group_requests(parts.test, ids), ids.events(parts.train), schema.repeats
    )
    requests = plain_requests(examination.held_out.rows, parts.at)
    views = {
        view: targets for view, targets in examination.views.items() if view != "repeat"
    }
    shown = {
        view: [_ask(one, requests, ids, view == "novel") for one in versions]
        for view in views
    }
    targets = next(iter(views.values()))  # of all there are
    lists = next(iter(shown.values()))
    groups = slice_targets(targets, examination.label(targets, label_users(parts, ids)))
    slices = {
        f"{name} {value}": _measure(lists, one)
        for name, of in groups.items()
        for value, one in of.items()
    }
    if len(views) > 1:  # a memory of owned items alone may do well among all
        slices["view novel"] = _measure(shown["novel"], views["novel"])
    n_events = examination.past.count_items()
    covered, covers = (
        describe_lists(one, targets, n_events, K)[f"coverage@{K}"] for one in lists
    )
    change = _share(covers - covered, covered)
    recall = facts.index_recall
    return [
        check_quality(*_measure(lists, targets), limits.loss),
        Check(
            f"coverage@{K}",
            change,
            -limits.coverage_loss,
            change >= -limits.coverage_loss,
        ),
        Check("recall of the index", recall, MIN_RECALL, recall >= MIN_RECALL),
        *check_slices(slices, limits.slice_loss),
    ]


def _ask(
    recommender: Recommender, requests: Requests, ids: Ids, filter_viewed: bool
) -> Ints:
    """Return lists of rows among `ids`, (B, K): the rows of two catalogues are not the same."""
    row = np.append(
        ids.items.get_indexer(pd.Index(recommender.catalogue.item_ids.ids)), -1
    )  # the last one answers -1
    return np.asarray(
        row[as_lists(recommender.recommend(requests, K, filter_viewed), K)], np.int64
    )


def _measure(lists: Sequence[Ints], targets: Targets) -> tuple[Doubles, Doubles]:
    """Return the metric of the current lists, and how much more the candidate's have, user by user, (U,) each."""
    was, is_now = (measure_users(one, targets, (K,))[METRIC] for one in lists)
    return was, is_now - was


def _share(change: float, base: float) -> float:
    return float(change / base) if base else 0.0  # below 0 nothing falls


def _say(was: Doubles, change: Doubles) -> str:
    return f"{was.mean():.4f} to {(was + change).mean():.4f}"


def check_quality(was: Doubles, change: Doubles, loss: float) -> Check:
    """Check the lower bound of the paired difference: a share of the current figure."""
    low = summarise({METRIC: change})[f"{METRIC}_ci95"][0]  # type: ignore[index]
    value = _share(low, was.mean())  # too few users, or no hit
    tells = len(was) >= MIN_USERS and bool(was.any())
    return Check(
        f"{METRIC}, lower bound",
        value,
        -loss,
        tells and value >= -loss,
        len(was),
        _say(was, change),
    )


def check_slices(
    slices: Mapping[str, tuple[Doubles, Doubles]], loss: float
) -> list[Check]:
    """Check slices of enough users: none falls by more than the loss and, all taken together, not by chance."""
    enough = {name: pair for name, pair in slices.items() if len(pair[0]) >= MIN_USERS}
    bound = norm.ppf(1 - LEVEL / max(len(enough), 1))
    checks = []
    for name, (was, change) in enough.items():
        value = _share(change.mean(), was.mean())
        high = change.mean() + bound * change.std(ddof=1) / np.sqrt(len(change))
        checks.append(
            Check(
                name,
                value,
                -loss,
                bool(value >= -loss or high >= 0),
                len(was),
                _say(was, change),
            )
        )
    return checks


def make_watcher(program: str) -> argparse.ArgumentParser:
    """Make the parser of the command that watches a version."""
    parser = make_parser(program, str(__doc__))
    add = parser.add_argument
    add(
        "--registry",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the versions",
    )
    add(
        "--state",
        type=Path,
        metavar="DIR",
        help="folder of the state; default: in the registry",
    )
    add(
        "--figure",
        choices=("conversions", "clicks"),
        default="conversions",
        help="default: conversions",
    )
    add(
        "--targets",
        nargs="+",
        default=[],
        metavar="EVENT",
        help="events that are conversions; default: all",
    )
    add(
        "--tolerance",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="of the figure that may be lost (default: .05)",
    )
    add(
        "--trusted-keys",
        type=Path,
        metavar="FILE",
        help="public keys: no version without a signature becomes current",
    )
    return parser


def watch(given: argparse.Namespace) -> None:
    """Compare the current version with the one before it, and roll back where it is worse."""
    log = (given.state or given.registry / STATE) / STATE_FILE
    if not log.exists():
        raise SchemaError(
            f"{log} does not exist; give the folder of the service's state as --state"
        )
    if not 0 <= given.tolerance < 1:
        raise SchemaError(
            f"--tolerance is {given.tolerance:g}; allowed: from 0 to below 1"
        )
    registry = Registry(given.registry, given.trusted_keys)
    current = registry.current()
    before = registry.past()[:1]
    slots = join(*read_log(log), targets=given.targets).slots
    found = None
    figures = "nobody can tell yet, or there is no version before it"
    if (
        before
        and (found := compare_versions(slots, before[0], current, given.figure))
        is not None
    ):
        after = f"{given.figure} {found.arm:.4g} after {found.control:.4g}"
        figures = f"{after}, difference {found.low:.3g} to {found.high:.3g}"
    if found is None or found.high >= -given.tolerance * found.control:
        sys.stdout.write(f"{current} stays: {figures}\n")
        return
    done = rollback(registry)
    audit(registry, "rolled back", version=done.version, left=done.left, reason=figures)
    sys.stdout.write(f"current: {done.version}, in place of {done.left}: {figures}\n")
    raise SystemExit(STOPPED)


def compare_versions(
    slots: pd.DataFrame, before: str, current: str, figure: str
) -> Difference | None:
    """Compare the share of lists with an outcome, over users; None while a version has had too few.

    Lists of the last day are left out: what follows them is still to come.
    """
    ripe = slots[
        slots["user_id"].notna()
        & (slots["datetime"] <= slots["datetime"].max() - WINDOW)
    ]
    begin = ripe["datetime"][ripe["version"] == current].min() - DAYS_BEFORE * DAY
    lists = (
        ripe[ripe["datetime"] >= begin]
        .groupby(["version", "user_id", "list"])[figure]
        .sum()
        > 0
    )
    users = lists.groupby(["version", "user_id"]).mean()
    version = users.index.get_level_values("version")
    return compare_users(
        *(users[version == one].to_numpy(float) for one in (before, current))
    )


if __name__ == "__main__":
    sys.exit(main())
