"""Checks of a candidate: what it may lose beside the current version, on the same requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

from evaluation.audit import find_failures
from evaluation.evaluate import (
    Examination,
    Parts,
    Requests,
    as_lists,
    audit_lists,
    label_users,
)
from evaluation.holdout import Ids, group_requests, plain_requests
from evaluation.metrics import MIN_USERS_TO_COMPARE as MIN_USERS
from evaluation.metrics import (
    Targets,
    describe_lists,
    measure_users,
    slice_targets,
    summarise,
)
from serve.arrays import Doubles, Flags, Ints
from serve.recommender import Recommender

K = 10
MIN_UNPROMPTED = 0.05  # of the test: fewer events tell of few users
METRIC = f"NDCG@{K}"
LEVEL = 0.05  # probability that any slice of equal versions is stopped


class Limits(NamedTuple):
    """The losses that are allowed, as shares of the current figures."""

    loss: float = 0.05  # of the mean over users, by its lower bound
    slice_loss: float = 0.2
    coverage_loss: float = 0.2
    recall_loss: float = 0.01  # of the searches' exact lists
    audit_users: float = 0.0  # least ratio of a group of users in the candidate's audit
    audit_items: float = 0.0


@dataclass(frozen=True)
class Check:
    """A change of a figure from the current version to the candidate, and the least allowed.

    Attributes:
        value: relative change: -0.1 is a tenth less; of a difference of means, its lower bound.
        limit: the least that passes.
        users: how many were compared; fewer than `MIN_USERS_TO_COMPARE` tell nothing.
    """

    name: str
    value: float
    limit: float
    is_passed: bool
    users: int | None = None
    note: str = ""


class Change(NamedTuple):
    """The metric of users, and how much more the candidate's lists have, (U,) each."""

    before: Doubles
    gain: Doubles

    @property
    def note(self) -> str:
        return f"{self.before.mean():.4f} to {(self.before + self.gain).mean():.4f}"


def compare(
    versions: Sequence[Recommender], parts: Parts, limits: Limits
) -> list[Check]:
    """Let two versions answer the same requests, and check what the second one loses.

    Args:
        versions: the current version, the candidate and earlier versions, each with profiles.
        parts: the test events, and the histories before them.
        limits: what may be lost.

    Returns:
        Checks of quality, of coverage, of each slice of enough users, and of the candidate beside
        each earlier version, so that many small losses are no large one; of its audit where that
        has a limit.
    """
    ids = _number_items(versions, parts)
    held_out = group_requests(parts.test, ids)
    repeats = versions[0].bundle.schema.repeats
    examination = Examination.prepare(held_out, ids.events(parts.train), repeats)
    requests = plain_requests(examination.held_out.rows, parts.at)

    views = examination.views
    lists = {}
    for view in views:
        if view != "repeat":
            is_novel = view == "novel"
            lists[view] = [_ask(each, requests, ids, is_novel) for each in versions]

    everything = next(iter(lists))
    targets = views[everything]
    pair = lists[everything][:2]

    user_groups = label_users(parts, ids)
    groups = examination.label(targets, user_groups)
    slices = {}
    for name, targets_by_value in slice_targets(targets, groups).items():
        for value, targets_of_slice in targets_by_value.items():
            slices[f"{name} {value}"] = _measure(pair, targets_of_slice)

    if len(lists) > 1:  # a memory of owned items alone may do well among all
        slices["view novel"] = _measure(lists["novel"][:2], views["novel"])

    anchors = {}
    for version, earlier in zip(versions[2:], lists[everything][2:], strict=True):
        change = _measure([earlier, pair[1]], targets)
        anchors[f"earlier version {version.version}"] = change

    name = f"coverage@{K}"
    n_events = examination.past.count_items()
    before, after = (describe_lists(each, targets, n_events, K)[name] for each in pair)
    reach = _share(after - before, before)
    loss = limits.coverage_loss
    coverage = Check(name, reach, -loss, reach >= -loss)
    quality = check_quality(_measure(pair, targets), limits.loss)

    checks = [quality, coverage, *check_slices(slices, limits.slice_loss)]
    checks += check_slices(anchors, limits.loss)
    if limits.audit_users or limits.audit_items:
        bundle = versions[1].bundle
        audited = audit_lists(examination, pair[1], user_groups, bundle, ids)
        failures = find_failures(audited, limits.audit_users, limits.audit_items)
        found = "; ".join(failures)
        checks.append(Check("audit", -len(failures), 0, not failures, note=found))
    if any(version.bundle.index.coarse for version in versions[:2]):
        checks.append(check_recall(versions[:2], requests, limits.recall_loss))
    return checks


def _number_items(versions: Sequence[Recommender], parts: Parts) -> Ids:
    """Number the items of both catalogues and of the tables."""
    tables = (parts.train, parts.test)
    columns = [each.catalogue.item_ids.ids for each in versions]
    columns += [table["item_id"].to_numpy() for table in tables]
    item_ids = dict.fromkeys(np.concatenate(columns).tolist())
    return Ids.number(item_ids, tables)


def _ask(
    recommender: Recommender, requests: Requests, ids: Ids, filter_viewed: bool
) -> Ints:
    """Return lists of rows among `ids`, (B, K): the rows of two catalogues are not the same."""
    rows = ids.items.get_indexer(pd.Index(recommender.catalogue.item_ids.ids))
    rows = np.append(rows, -1)  # for -1, the missing item
    lists = as_lists(recommender.recommend(requests, K, filter_viewed), K)
    return np.asarray(rows[lists], np.int64)


def _measure(lists: Sequence[Ints], targets: Targets) -> Change:
    before, after = (measure_users(each, targets, (K,))[METRIC] for each in lists)
    return Change(before, after - before)


def _share(gain: float, base: float) -> float:
    return float(gain / base) if base else 0.0  # nothing falls below 0


def check_quality(change: Change, loss: float) -> Check:
    """Check the lower bound of the paired difference, as a share of the current mean."""
    low = summarise({METRIC: change.gain})[f"{METRIC}_ci95"][0]  # type: ignore[index]
    value = _share(low, change.before.mean())
    n_users = len(change.before)
    is_known = n_users >= MIN_USERS and bool(change.before.any())
    is_passed = is_known and value >= -loss
    return Check(
        f"{METRIC}, lower bound", value, -loss, is_passed, n_users, change.note
    )


def check_unprompted(is_unprompted: Flags, fault: str = "") -> Check:
    """Check that enough events of a test came before their user was shown a list.

    Args:
        is_unprompted: a flag for each event; none where they cannot be told apart.
        fault: why they cannot, and what to do.
    """
    share = float(is_unprompted.mean()) if len(is_unprompted) else 0.0
    is_enough = share >= MIN_UNPROMPTED
    note = fault or f"{is_unprompted.sum():,} of {len(is_unprompted):,} events decide"
    name = "events before a list"
    return Check(name, share, MIN_UNPROMPTED, is_enough, note=note)


def check_recall(
    versions: Sequence[Recommender], requests: Requests, loss: float
) -> Check:
    """Check what share of the exact lists each version's search finds, for the same requests."""
    before, after = (
        version.bundle.index.measure_recall(next(version.queries(requests, "all")))
        for version in versions
    )
    value = after - before
    note = f"{before:.4f} to {after:.4f}"
    return Check("recall of the search", value, -loss, value >= -loss, note=note)


def check_slices(slices: Mapping[str, Change], loss: float) -> list[Check]:
    """Check that no slice of enough users has fallen by more than the loss.

    Args:
        slices: name -> change of its users.
        loss: the share of the current mean that may be lost.

    Returns:
        A check of each slice; one that fell passes if that may be chance, at a level that is
        divided by their number (Bonferroni).
    """
    n_large = sum(len(change.gain) >= MIN_USERS for change in slices.values())
    bound = norm.ppf(1 - LEVEL / max(n_large, 1))
    checks = []
    for name, change in slices.items():
        gain = change.gain
        if len(gain) < MIN_USERS:
            continue
        value = _share(gain.mean(), change.before.mean())
        high = gain.mean() + bound * gain.std(ddof=1) / np.sqrt(len(gain))
        is_passed = bool(value >= -loss or high >= 0)
        checks.append(Check(name, value, -loss, is_passed, len(gain), change.note))

    return checks
