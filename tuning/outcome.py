"""What the trials of a study came to: the best, the default, and the lines that say so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from evaluation.metrics import Floats, Summary, summarise_difference
from serve.durable import write_file
from tuning.space import tidy

FAULT = "fault"
"""Attribute of a trial that could not be trained: why."""
EPOCHS = "epochs"
_FIGURE = "NDCG@10"
_VALUES = "users-{}.json"


@dataclass(frozen=True)
class Tried:
    """One trial."""

    number: int
    """From 1, over the trials that count."""
    key: int
    """Its number in the database."""
    values: dict[str, Any]
    """What was tried."""
    figure: float | None
    """Best validation NDCG; of a trial that was ended early up to then; None of one that failed."""
    is_whole: bool
    """It was not ended early."""
    note: str
    """How it ended."""


def list_tried(trials: Sequence[FrozenTrial]) -> list[Tried]:
    """Tell of the trials that count, in their order."""
    return [_tell(number, trial) for number, trial in enumerate(trials, start=1)]


def find_best(tried: Sequence[Tried]) -> Tried | None:
    """Return the first of the best that were not ended early, None where none was trained."""
    whole = [one for one in tried if one.is_whole]
    return max(whole, key=lambda one: one.figure or 0.0, default=None)


def describe(tried: Tried, total: int) -> str:
    """Say in one line what a trial tried and what it came to."""
    figure = "   -  " if tried.figure is None else f"{tried.figure:.4f}"
    return f"trial {tried.number:>{len(str(total))}}/{total}  {figure}  {name_values(tried.values)}  ({tried.note})"


def name_values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def keep_values(folder: Path, key: int, values: Mapping[str, Floats]) -> None:
    """Keep what each validation user had, for intervals."""
    content = json.dumps({view: figures.tolist() for view, figures in values.items()})
    write_file(folder / _VALUES.format(key), content.encode())


def drop_values(folder: Path, kept: Sequence[int]) -> None:
    """Remove the figures of users but those of some trials."""
    names = {_VALUES.format(key) for key in kept}
    for path in folder.glob(_VALUES.format("*")):
        if path.name not in names:
            path.unlink()


def compare_users(folder: Path, best: Tried, default: Tried) -> Iterator[str]:
    """Say by view how much better the best is, paired user by user."""
    ours, theirs = (_read_values(folder, one.key) for one in (best, default))
    for view in ours:
        summary = summarise_difference({_FIGURE: ours[view]}, {_FIGURE: theirs[view]})
        yield f"view {view}: {_say_difference(summary)}"


def _say_difference(summary: Summary) -> str:
    low, high = np.asarray(summary[f"{_FIGURE}_ci95"])
    return f"{summary[_FIGURE]:+.4f} (95 % {low:+.4f}, {high:+.4f}) over {summary['users']:,} validation users"


def _read_values(folder: Path, key: int) -> dict[str, Floats]:
    content = json.loads((folder / _VALUES.format(key)).read_bytes())
    return {view: np.asarray(figures, np.float64) for view, figures in content.items()}


def _tell(number: int, trial: FrozenTrial) -> Tried:
    is_whole = trial.state is TrialState.COMPLETE
    reported = list(trial.intermediate_values.values())
    fault = trial.user_attrs.get(FAULT)
    if fault is not None:
        return Tried(number, trial.number, tidy(trial.params), None, False, fault)
    note = f"epoch {trial.user_attrs[EPOCHS]}" if is_whole else f"ended at epoch {len(reported)}"
    return Tried(number, trial.number, tidy(trial.params), max(reported), is_whole, note)
