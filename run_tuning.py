"""Search for a better recipe on training and validation rows: what a trial is, and what a search leaves.

DIR/tuning/study.db    every trial; the same command goes on from it
DIR/tuning/best.yaml   the configuration of the best trial
DIR/tuning/study.png   the figure of each trial, and each parameter that was searched
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import Trial, TrialState
from rich.console import Console

from datamodules.clean import only_targets
from datamodules.fingerprint import fingerprint_rows
from datamodules.splits import Split, check_files, check_targets
from datamodules.tables import Tables
from models.config import Recipe, recipe_of
from models.fitting import list_callbacks
from run_config import Config, tuned_text
from run_state import declare
from run_training import fit_towers
from serve.bundle import BUNDLE
from serve.command_line import name_interpreter
from serve.durable import write_file
from serve.errors import SchemaError
from tuning.outcome import (
    EPOCHS,
    FAULT,
    Tried,
    compare_users,
    describe,
    drop_values,
    find_best,
    keep_values,
    list_tried,
    name_values,
)
from tuning.picture import draw_study
from tuning.space import Space, apply, default_of, list_fields, make_space, tidy
from tuning.study import ask, list_done, open_study
from tuning.watch import Watch

FOLDER, BEST, PICTURE, TRIAL = "tuning", "best.yaml", "study.png", "trial"
JUDGED_LATER = {"correlations", "neighbours", "low_pass", "shrink_items"}
"""Of what is done to trained towers: no trial says anything of it."""
console = Console()


def tune(given: Config, whole: Config, tables: Tables, split: Split, text: str) -> None:
    """Try recipes until `tune.trials` of them count, then write down the best.

    Args:
        given: the configuration; what it fixes is not searched.
        whole: the same with what the data decides; the first trial.
        tables: users and items.
        split: of the interactions; its test is not looked at.
        text: the configuration as YAML.

    Raises:
        SchemaError: nothing is left open, there is no validation or none that a list could pass, the folder holds
            another study, or no trial could be trained.
    """
    space, total = lay_space(given, whole), given.tune.trials or 0
    tables, split = without_test(tables, split)
    check_targets(split, given.data.repeats)
    check_files(split, given.data.split, tables.items)
    folder = prepare_folder(given)
    origin = {
        **declare(whole),
        "searched": {name: repr(space[name]) for name in space},
        "previous": str(given.previous),
        "rows": fingerprint_rows(split.train, split.validation, tables.users, tables.items),
    }
    console.rule(f"search by validation: {', '.join(space)}")
    with open_study(folder, origin) as study:
        n_done = len(list_done(study))
        if n_done:
            console.print(f"{n_done} trials are done already")
        while n_done < total:
            attempt(study, whole, space, tables, split)
            n_done = len(list_done(study))
            tried = list_tried(list_done(study))
            keep_compared(folder, tried)
            console.print(describe(tried[-1], total), soft_wrap=True, highlight=False, markup=False)
        finish(given, whole, list_tried(list_done(study)), text)


def lay_space(given: Config, whole: Config) -> Space:
    """Lay the ranges of what the configuration leaves open.

    Raises:
        SchemaError: it leaves nothing open.
    """
    left_open = [name for name in list_fields() if getattr(given.model, name) is None]
    space = make_space(recipe_of(whole.model), left_open, bool(given.data.features.item))
    if not space:
        raise SchemaError("tune.trials: the configuration fixes all that is searched; leave keys of `model` out")
    return space


def without_test(tables: Tables, split: Split) -> tuple[Tables, Split]:
    """Take the test away from what trials are given.

    Raises:
        SchemaError: there is no validation.
    """
    if not len(only_targets(split.validation)):
        raise SchemaError(
            f"tune.trials: data.split of kind '{split.kind}' leaves no validation event to judge a trial by; "
            "give data.split.validation, or another kind"
        )
    return replace(tables, interactions=split.refit), replace(split, test=split.validation.iloc[:0])


def prepare_folder(config: Config) -> Path:
    """Make the folder of the search, empty under `overwrite`."""
    folder = config.out / FOLDER
    if config.overwrite and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / TRIAL, ignore_errors=True)  # of a trial that was killed
    return folder


def attempt(study: optuna.Study, whole: Config, space: Space, tables: Tables, split: Split) -> None:
    """Train one trial and tell the study how it ended."""
    begun = time.monotonic()
    recipe = recipe_of(whole.model)
    trial = ask(study, space, default_of(recipe, space), whole.seed)
    watch = Watch(lambda value, step: _is_behind(trial, value, step))
    model = replace(whole.model, **asdict(apply(recipe, tidy(trial.params))))
    out = whole.out / FOLDER / TRIAL
    trainer = {**whole.trainer, "callbacks": [*list_callbacks(whole.trainer.get("callbacks")), watch]}
    try:
        epochs = fit_towers(replace(whole, model=model, trainer=trainer, out=out), tables, split, None).epochs
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except (FloatingPointError, torch.OutOfMemoryError) as error:
        trial.set_user_attr(FAULT, str(error).splitlines()[0])
        study.tell(trial, state=TrialState.PRUNED)  # worse than all others, and not to be tried again
    else:
        keep_values(out.parent, trial.number, watch.best_values)
        trial.set_user_attr(EPOCHS, epochs)
        trial.set_user_attr("seconds", round(time.monotonic() - begun, 1))
        study.tell(trial, watch.best)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _is_behind(trial: Trial, value: float, step: int) -> bool:
    trial.report(value, step)
    return trial.should_prune()


def keep_compared(folder: Path, tried: Sequence[Tried]) -> None:
    """Keep the figures of users for the two trials that are compared."""
    best = find_best(tried)
    drop_values(folder, [tried[0].key] if best is None else [tried[0].key, best.key])


def finish(given: Config, whole: Config, tried: Sequence[Tried], text: str) -> None:
    """Write what the search leaves, and say what came of it.

    Raises:
        SchemaError: no trial could be trained.
    """
    best, default, folder = find_best(tried), tried[0], given.out / FOLDER
    if best is None:
        raise SchemaError(f"none of {len(tried)} trials could be trained: {default.note}")
    chosen = recipe_of(whole.model)
    changed = {name: value for name, value in best.values.items() if value != getattr(chosen, name)}
    head = f"# Trial {best.number} of {len(tried)}: validation NDCG@10 {best.figure:.4f}\n"
    kept = keep_recipe(apply(chosen, best.values)) if changed else {}
    write_file(folder / BEST, (head + tuned_text(text, given.out, kept)).encode())
    write_file(folder / PICTURE, draw_study(tried))
    print_outcome(folder, best, default, changed)
    again = " --overwrite" if (given.out / BUNDLE).exists() else ""
    command = f"{name_interpreter()} train.py --config {shlex.quote(str(folder / BEST))}{again}"
    console.print(f"train it: {command}", soft_wrap=True, highlight=False, markup=False)


def keep_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return what trains the towers of a trial again: beside some values that are given others would be chosen anew."""
    return {name: value for name, value in asdict(recipe).items() if name not in JUDGED_LATER}


def print_outcome(folder: Path, best: Tried, default: Tried, changed: Mapping[str, Any]) -> None:
    """Print best, default and their difference."""
    console.rule("outcome of the search")
    for name, one in (("best", best), ("what the data chose", default)):
        figure = "could not be trained" if one.figure is None else f"validation NDCG@10 {one.figure:.4f}"
        console.print(f"{name}: trial {one.number}, {figure}", highlight=False)
    if not changed:
        console.print("nothing was better than what the data chose")
        return
    console.print(f"it changes {name_values(changed)}", soft_wrap=True, highlight=False)
    if default.is_whole:
        for line in compare_users(folder, best, default):
            console.print(f"difference, {line}", soft_wrap=True, highlight=False)
        console.print("these users chose the best of many: on others, such as the test, expect less")
