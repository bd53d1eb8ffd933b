"""What a run comes to, in sentences for somebody who did not train the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.intervals import FEWEST_TO_TELL
from evaluation.report.data_facts import Report, say_period, say_split
from evaluation.report.figures import Figure, ModelRow, ViewResult
from evaluation.report.groups import Gap
from evaluation.report.wording import EXPLAINED_MODELS, PRODUCT, amount, figure, percent, say_day, signed
from serve.schema import Schema

FIRST_HIT = "HR@10"
CONFIDENCE = "95\N{NO-BREAK SPACE}%"
NOTHING_HELD_OUT = "Nothing was held out, so this run does not say how good the recommendations are."
VERDICTS = {1: "better than", 0: "not clearly different from", -1: "worse than"}


@dataclass(frozen=True)
class Tile:
    """A number that stands out, and what it is."""

    value: float
    shown: str
    label: str


def say_training(report: Report, schema: Schema) -> str:
    """Say what was learnt from."""
    counts = report["counts"]
    held_out = counts["test"] + (counts["validation"] if report["split"].get("strict") else 0)
    learnt = amount(counts["interactions"] - held_out, "event")
    sizes = f"{amount(counts['users'], 'user')} and {amount(counts['items'], 'item')}"
    return f"{PRODUCT} learned from {learnt}. The data has {sizes}{_say_order(report, schema)}."


def say_test(report: Report, views: Sequence[ViewResult], schema: Schema) -> str:
    """Say what it was asked, or that nothing was held out."""
    if not views:
        return NOTHING_HELD_OUT
    question = _say_question(report, amount(views[0].users, "user"), schema)
    return f"It was asked what {question}. Its lists were compared with what they did choose."


def say_order(schema: Schema) -> str:
    """Say what of a user's events is read besides their items."""
    if schema.is_set:
        return "of a user's events, which have neither times nor an order, only what they are on"
    return "the order and times of a user's events" if schema.has_datetime else "the order of a user's events"


def say_neighbours(training: Mapping[str, Any], schema: Schema) -> str:
    """Say what items of a history add to others, nothing where they add nothing.

    Args:
        training: what `metrics.json` holds under that name.
        schema: of the bundle.
    """
    blend = training.get("correlations", {}).get("blend", {})
    if not (blend.get("share") and blend.get("n_neighbours")):
        return ""
    added = "Each item of a history adds to the scores of its neighbours, which"
    if blend["kind"] == "transitions":
        return f"{added} come after it."
    if schema.is_set:
        return f"{added} go together with it."
    return (
        f"{added} go together with it, whichever came first: by the validation the order of events tells nothing of "
        "what comes next, so that they were taken as in data without an order."
    )


def _say_order(report: Report, schema: Schema) -> str:
    if report["time"] is not None:
        return f", with events {say_period(report, schema)}"
    return (
        "; its events have neither times nor an order" if schema.is_set else "; its events have an order and no times"
    )


def _say_question(report: Report, users: str, schema: Schema) -> str:
    """Say what was asked: of the future only where what is held out comes last."""
    split = report["split"]
    if split.get("test_at"):
        return f"{users} would choose from {say_day(split['test_at'], schema.timezone)} on"
    held_out = say_split(report, schema)
    if split["kind"] == "leave_one_out" and not schema.is_set:
        return f"{users} would choose next: the test is {held_out}"
    return f"else {users} chose: the test is {held_out}"


def say_hits(view: ViewResult) -> str:
    """Say for how many users at least one recommendation was right."""
    share = view.ours.others[FIRST_HIT].value
    return f"Among ten recommendations at least one was right for {round(share * 100)} of 100 users ({FIRST_HIT})."


def say_comparison(view: ViewResult) -> str:
    """Say how a view went against the best baseline."""
    if not view.rows:
        return "No user has a target here."
    ours, rival = view.ours.headline, view.rival
    if rival is None or rival.difference is None:
        return f"{view.metric} is {_with_interval(ours)}; no baseline was measured."
    difference, verdict = rival.difference, VERDICTS[rival.difference.sign]
    return (
        f"{view.metric} is {figure(ours.value)}, {verdict} the best of {len(view.rows) - 1} simple "
        f"methods, “{rival.label}” ({_explain(rival.name)}), with {figure(rival.headline.value)}. The difference is "
        f"{signed(difference.value)} ({_relative(rival)}), {_say_doubt(difference)}."
    )


def _say_doubt(difference: Figure) -> str:
    if difference.users < FEWEST_TO_TELL:
        return f"of {amount(difference.users, 'user')}, too few to tell it from chance"
    return f"{signed(difference.low)} to {signed(difference.high)} with {CONFIDENCE} confidence"


def make_tiles(views: Sequence[ViewResult], coverage: float | None) -> list[Tile]:
    """Choose the numbers that stand out."""
    measured = [view for view in views if view.rows]
    tiles = []
    if measured:
        hits = measured[0].ours.others[FIRST_HIT].value
        tiles.append(Tile(hits, percent(hits), "of users find something right among ten"))
    for view in measured:
        headline = view.ours.headline.value
        tiles.append(Tile(headline, figure(headline), f"{view.metric}, {view.title.lower()}{_against(view.rival)}"))
    if coverage is not None:
        tiles.append(Tile(coverage, percent(coverage), "of the catalogue is in somebody's first ten"))
    return tiles


def say_gap(gap: Gap, metric: str) -> str:
    """Say how far the groups of a column are apart, and whether it may be chance."""
    best, worst = gap.best_figure, gap.worst_figure
    intervals = ", ".join(f"{figure(one.low)} to {figure(one.high)}" for one in (best, worst))
    are = "are apart" if gap.is_clear else "overlap, so this may be chance"
    return (
        f"{gap.title}: {metric} is {figure(best.value)} for “{gap.best}” ({amount(gap.best_users, 'user')}) and "
        f"{figure(worst.value)} for “{gap.worst}” ({amount(gap.worst_users, 'user')}), a gap of {figure(gap.size)}. "
        f"The {CONFIDENCE} intervals ({intervals}) {are}.{_say_unknown(gap)}"
    )


def _say_unknown(gap: Gap) -> str:
    if gap.unknown is None:
        return ""
    users, unknown = gap.unknown
    return f" Where it is not known: {_with_interval(unknown)} ({amount(users, 'user')})."


def _against(rival: ModelRow | None) -> str:
    if rival is None or rival.difference is None:
        return ""
    if rival.difference.sign == 0:
        return f"; not clearly different from “{rival.label}”, the best simple method"
    if rival.headline.value <= 0:
        return f"; “{rival.label}”, the best simple method, has nothing right"
    return f"; {_relative(rival)} against “{rival.label}”, the best simple method"


def _with_interval(one: Figure) -> str:
    return f"{figure(one.value)} [{figure(one.low)} to {figure(one.high)}]"


def _relative(rival: ModelRow) -> str:
    """Write our gain over a baseline as a share of its figure."""
    if rival.difference is None or rival.headline.value <= 0:
        return f"“{rival.label}” has nothing right"
    return f"{rival.difference.value / rival.headline.value * 100:+.1f}\N{NO-BREAK SPACE}%".replace("-", "−")


def _explain(name: str) -> str:
    return EXPLAINED_MODELS.get(name, "a baseline")
