"""What loop.py found: trainings by their truth, the services side by side, a table for the page and its picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from tests.benchmarks.loop_breaks import BREAKS
from tests.benchmarks.loop_shop import ITEMS, NEW

SCENARIOS = ("never retrained", "retrained", "retrained, explored")
WORSE = -0.05
EQUAL = 0.01
"""Of what is taken per list, by the truth: a training is worse by more than the one, equal within the other."""
BEGIN, END = "<!-- loop: made by tests/benchmarks/loop.py --page -->", "<!-- end of loop -->"
PICTURE = (
    "![Items taken per list week by week, and the true change of each candidate beside the one that "
    "the gate measured](loop.png)"
)
ORDINARY, TURNED = "ordinary training", "version in use in place of the training"
QUALITY = "NDCG@10, lower bound"
Z = 1.96


@dataclass
class Training:
    """A training, its truth and what the gate said."""

    service: str
    week: int
    broken: str
    """How its tables were broken; empty: they were not."""
    truth: float
    """How much more is taken from its lists than from those of the version in use: by people to whom lists are shown,
    in the week after the test."""
    truth_of_test: float
    """The same, by the other people in the week of the test: what the gate can know."""
    measured: float | None
    """Change of NDCG@10 that the gate saw; None where it had too few events."""
    bound: float | None
    n_people: int
    """By whom the gate judged."""
    failed: list[str]
    """Checks that it did not pass."""
    is_turned: bool = False
    """The candidate was the version in use, in place of the training."""

    @classmethod
    def judged(
        cls,
        service: str,
        week: int,
        broken: str,
        truths: tuple[float, float],
        checks: Sequence[Mapping[str, Any]],
    ) -> Self:
        """Keep a verdict of the gate."""
        failed = [str(check["name"]) for check in checks if not check["is_passed"]]
        measured = bound = None
        n_people = 0
        for check in checks:
            if check["name"] == QUALITY:
                before, after = map(float, check["note"].split(" to "))
                measured = after / before - 1 if before else None
                bound = check["value"]
                n_people = check["users"]
        return cls(service, week, broken, *truths, measured, bound, n_people, failed)

    def turned(self) -> Self:
        """Return what was found with the training in the place of the version in use: the truth is turned round."""
        truth = 1 / (1 + self.truth) - 1
        of_test = 1 / (1 + self.truth_of_test) - 1
        return replace(self, truth=truth, truth_of_test=of_test, is_turned=True)

    @property
    def origin(self) -> str:
        """Say where the candidate comes from."""
        return TURNED if self.is_turned else self.broken or ORDINARY

    @property
    def kind(self) -> str:
        return name_kind(self.truth)


def name_kind(truth: float) -> str:
    """Name a change by the limits of what is equal and what is bad."""
    if truth > EQUAL:
        return "truly better"
    if truth >= -EQUAL:
        return "equal"
    return "worse by 1 to 5 %" if truth > WORSE else "worse by 5 % and more"


KINDS = ("truly better", "equal", "worse by 1 to 5 %", "worse by 5 % and more")


@dataclass
class Outcome:
    """What became of one service."""

    name: str
    taken: list[float] = field(default_factory=list)
    """Items taken per list, by week."""
    new_share: list[float] = field(default_factory=list)
    """Of the slots, by week."""
    takers: dict[int, int] = field(default_factory=dict)
    """New item -> people who took it from lists."""
    weeks: dict[int, int] = field(default_factory=dict)
    """New item -> weeks until it was found."""
    trainings: list[Training] = field(default_factory=list)

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Self:
        """Read what was kept as JSON, whose keys are texts."""
        outcome = cls(**facts)
        outcome.takers = {int(item): number for item, number in outcome.takers.items()}
        outcome.weeks = {int(item): number for item, number in outcome.weeks.items()}
        outcome.trainings = [Training(**training) for training in facts["trainings"]]
        return outcome


Found = Sequence[Sequence[Outcome]]
"""The services of each seed."""


def find_share(outcome: Outcome) -> float:
    """Return the share of the new items that were found in the week they came or the next, of those old enough."""
    n_weeks = len(outcome.taken)
    n_items = NEW * (n_weeks - 1)
    items = range(ITEMS, ITEMS + n_items)
    return float(np.mean([outcome.weeks.get(item, n_weeks) <= 1 for item in items]))


def describe(values: Sequence[float], digits: int = 3) -> str:
    """Return the mean over seeds with twice its standard error."""
    if len(values) < 2:
        return f"{np.mean(values):.{digits}f}"
    error = 2 * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"


def describe_share(n_found: int, n: int) -> str:
    """Return a count with Wilson's interval of its share."""
    if not n:
        return "none"
    share = n_found / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return f"{n_found} of {n} ({abs(middle - half):.2f} to {middle + half:.2f})"


def list_trainings(found: Found) -> list[Training]:
    return [one for outcomes in found for outcome in outcomes for one in outcome.trainings]


def summarise_trainings(found: Found) -> list[str]:
    """Return the rows of a table: kinds of trainings, what the gate measured, and how many it let pass."""
    rows = [
        "| candidate | truly | in the test | by the gate | it judged by | passed |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[str, list[Training]] = {}
    for training in list_trainings(found):
        name = f"{training.origin}, {training.kind}"
        groups.setdefault(name, []).append(training)
    for origin in (ORDINARY, TURNED, *BREAKS):
        for kind in KINDS:
            name = f"{origin}, {kind}"
            if name in groups:
                rows.append(describe_trainings(name, groups[name]))
    return rows


def describe_trainings(name: str, chosen: Sequence[Training]) -> str:
    """Return the row of a kind of trainings."""
    truth = 100 * np.mean([one.truth for one in chosen])
    of_test = 100 * np.mean([one.truth_of_test for one in chosen])
    measured = [one.measured for one in chosen if one.measured is not None]
    seen = f"{100 * np.mean(measured):+.1f} %" if measured else "nothing"
    people = np.mean([one.n_people for one in chosen])
    passed = describe_share(sum(not one.failed for one in chosen), len(chosen))
    return (
        f"| {name} | {truth:+.1f} % | {of_test:+.1f} % | {seen} | {people:,.0f} people | {passed} |"
    )


def summarise_services(found: Found) -> list[str]:
    """Return the rows of a table of what each service showed."""
    rows = [
        "| service | items taken per list | beside the first, by seed | new items in the slots | new items found |",
        "|---|---|---|---|---|",
    ]
    for place, name in enumerate(SCENARIOS):
        gains = find_gains(found, place)
        gain = f"{describe(gains, 1)} %" if place else ""
        taken = describe([np.mean(each[place].taken[1:]) for each in found])
        new = describe([np.mean(each[place].new_share[1:]) for each in found])
        share = describe([find_share(each[place]) for each in found])
        rows.append(f"| {name} | {taken} | {gain} | {new} | {share} |")
    return rows


def find_gains(found: Found, place: int) -> list[float]:
    """Return how many percent more a service had taken from its lists than the one that is never retrained."""
    means = [[float(np.mean(outcome.taken[1:])) for outcome in outcomes] for outcomes in found]
    return [100 * (each[place] / each[0] - 1) for each in means]


def count_right(found: Found) -> list[str]:
    """Return a row for each truth: the shares that the loop has to show, without broken trainings."""
    rows = [
        "| by the truth for | better, passed | equal, passed | worse by 5 % and more, stopped |",
        "|---|---|---|---|",
    ]
    trainings = [one for one in list_trainings(found) if not one.broken]
    truths = {
        "those who are shown lists, in the next week": [one.truth for one in trainings],
        "the others, in the week of the test": [one.truth_of_test for one in trainings],
    }
    for people, values in truths.items():
        passed: dict[str, list[bool]] = {kind: [] for kind in KINDS}
        for training, truth in zip(trainings, values, strict=True):
            passed[name_kind(truth)].append(not training.failed)
        better, equal, _, worse = passed.values()
        shares = [describe_share(sum(each), len(each)) for each in (better, equal)]
        shares.append(describe_share(len(worse) - sum(worse), len(worse)))
        rows.append(f"| {people} | {' | '.join(shares)} |")
    return rows


def explain_stops(found: Found) -> str:
    """Say by which checks candidates were stopped."""
    trainings = list_trainings(found)
    counts = Counter(name_check(name) for training in trainings for name in training.failed)
    stops = ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"
    return f"Checks that stopped, of {len(trainings)} candidates: {stops}."


def name_check(name: str) -> str:
    """Name a check without the version that it is of."""
    return "earlier version" if name.startswith("earlier version") else name


def report(found: Found) -> bool:
    """Print the figures; return whether the loop did what it is for."""
    for number, outcomes in enumerate(found):
        for outcome in outcomes:
            for one in outcome.trainings:
                seen = "unknown" if one.measured is None else f"{100 * one.measured:+.1f} %"
                verdict = f"stopped by {', '.join(one.failed)}" if one.failed else "passed"
                print(
                    f"{number}, {one.service}, week {one.week}, {one.origin}: truth {100 * one.truth:+.1f} % "
                    f"(in the test {100 * one.truth_of_test:+.1f} %), the gate {seen} by {one.n_people}: {verdict}"
                )
    n_weeks = len(found[0][0].taken)
    print(f"\n{len(found)} seeds, {n_weeks} weeks; means over seeds, ± two standard errors\n")
    tables = (summarise_services, summarise_trainings, count_right)
    for summarise in tables:
        print("\n".join([*summarise(found), ""]))
    print(explain_stops(found))
    return bool(np.mean(find_gains(found, 1)) > 0)


def write_page(found: Found, page: Path) -> None:
    """Write both tables between the markers of a page.

    Raises:
        ValueError: the page has no markers.
    """
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks '{BEGIN}' or '{END}'")

    n_weeks = len(found[0][0].taken)
    said = f"{len(found)} seeds, weeks 1 to {n_weeks - 1}; means over seeds, ± two standard errors:"
    note = (
        "Candidates of the gate by their truth for those who are shown lists, in the next week; "
        "beside it the truth for the others in the week of the test, which is all that the gate can "
        f"know. Within {100 * EQUAL:.0f} % is equal, in brackets are intervals of 95 %:"
    )
    gain = np.mean([find_share(each[2]) - find_share(each[1]) for each in found])
    found_more = (
        f"With exploration {100 * abs(gain):.0f} % of the new items {'more' if gain > 0 else 'fewer'} "
        "are found in the week they come or the next."
    )
    lines = [said, "", *summarise_services(found), "", found_more, "", note, ""]
    lines += [*summarise_trainings(found), "", *count_right(found), ""]
    lines += [explain_stops(found), "", PICTURE]
    body = "\n".join(lines)
    page.write_text(f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}", encoding="utf-8")


def draw(found: Found, path: Path) -> None:
    """Draw what each service had taken by week, and each training's truth beside what the gate saw."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for place, name in enumerate(SCENARIOS):
        values = np.array([each[place].taken for each in found])
        error = None
        if len(values) > 1:
            error = 2 * values.std(axis=0, ddof=1) / np.sqrt(len(values))
        weeks = np.arange(values.shape[1]) + 0.08 * (place - 1)  # bars do not hide each other
        axes[0].errorbar(weeks, values.mean(axis=0), error, marker="o", label=name)
    axes[0].set(title="items taken per list", xlabel="week")
    axes[0].legend(frameon=False)

    trainings = [one for one in list_trainings(found) if one.measured is not None]
    for word, is_stopped, marker in (("passed", False, "o"), ("stopped", True, "x")):
        chosen = [one for one in trainings if bool(one.failed) == is_stopped]
        truths = [100 * one.truth for one in chosen]
        measured = [100 * float(one.measured or 0) for one in chosen]
        axes[1].scatter(truths, measured, marker=marker, label=word, alpha=0.7)
    axes[1].axline((0, 0), slope=1, color="grey", linestyle=":", linewidth=1)
    axes[1].set(
        title="each candidate beside the version that it would replace", xlabel="true change, %"
    )
    axes[1].set_ylabel("change that the gate measured, %")
    axes[1].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
