"""Search for a better recipe with Optuna, on training and validation rows.

DIR/tuning/study.jsonl   every trial; the same command resumes it
DIR/tuning/best.yaml     the configuration of the best trial
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytorch_lightning as pl
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from pytorch_lightning.callbacks import Callback
from rich.console import Console

from datamodules.clean import only_targets
from datamodules.splits import check_targets
from models.checkpoints import compare
from models.config import Recipe
from models.defaults import choose_recipe, count_data
from models.fit import MONITOR, list_callbacks
from pipeline.config import Config, tuned_text
from pipeline.run_folder import Work, declare_finished
from serve.errors import SchemaError
from serve.files import write_file

FOLDER = "tuning"
JOURNAL = "study.jsonl"
BEST = "best.yaml"
TRIAL = "trial"
NAME = "study"
ORIGIN = "origin"
FAULT = "fault"
DONE = (TrialState.COMPLETE, TrialState.PRUNED)  # a killed trial does not count
DIGITS = 3  # digits of a rate or a share that is tried
DROPOUT_RANGE = 0.2
MAX_DROPOUT = 0.8
MAX_ID_DROPOUT = 0.5
RATE_FACTOR = 4
Space = dict[str, BaseDistribution]
Fit = Callable[[Work], object]
console = Console(soft_wrap=True, markup=False, highlight=False)


def tune(given: Config, work: Work, text: str, fit: Fit) -> None:
    """Try recipes until `tune.trials` of them count, then write down the best.

    The test is not looked at. The first trial is what the data chooses.

    Args:
        given: the configuration; the keys of `model` that it sets are not searched.
        work: the same, complete, with tables and split.
        text: the YAML of `given`.
        fit: trains one trial.

    Raises:
        SchemaError: there is nothing to search, no validation, or another study in the folder.
    """
    values = asdict(given.model)
    left_open = [name for name, value in values.items() if value is None]
    space = make_space(work.recipe, left_open, bool(given.data.features.item))
    if not space:
        raise SchemaError(
            "tune.trials: the configuration fixes all that is searched; leave keys of `model` out"
        )

    split = work.split
    if not len(only_targets(split.validation)):
        raise SchemaError(
            "tune.trials: data.split leaves no validation event to judge a trial by; "
            "give another kind"
        )

    check_targets(split, given.data.repeats)
    tables = replace(work.tables, interactions=split.refit)
    without_test = replace(split, test=split.validation.iloc[:0])
    work = replace(work, tables=tables, split=without_test)

    console.rule(f"search by validation: {', '.join(space)}")
    folder = given.out / FOLDER
    if given.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    origin = declare_finished(work.config, work.rows)
    origin["searched"] = {name: repr(values) for name, values in space.items()}
    study = open_study(folder / JOURNAL, origin)

    total = given.tune.trials or 0
    while len(list_done(study)) < total:
        attempt(study, work, space, fit)
        done = list_done(study)
        console.print(f"{len(done)} of {total}: {describe(done[-1])}")

    finish(given, work, study, text)


def make_space(recipe: Recipe, left_open: Sequence[str], has_content: bool) -> Space:
    """Return a range about each value of the recipe that is left open.

    `patience` never lowers the best figure, and `neighbours` is fitted after a trial is judged, so
    neither has a range.

    Args:
        recipe: what the data chooses.
        left_open: keys of `model`.
        has_content: whether the items have features.
    """
    step = recipe.dim // 2
    if recipe.dim % (2 * recipe.n_heads):  # the heads divide every size
        step = recipe.dim
    rate = recipe.learning_rate
    half = max(recipe.max_epochs // 2, 1)
    max_id_dropout = MAX_ID_DROPOUT if has_content else 0.0
    blocks = recipe.n_blocks
    space: Space = {
        "dim": IntDistribution(step, 2 * recipe.dim, step=step),
        "n_blocks": IntDistribution(max(blocks - 1, 0), blocks + 1),
        "dropout": _share(recipe.dropout, MAX_DROPOUT),
        "id_dropout": _share(recipe.id_dropout, max_id_dropout),
        "similarity": CategoricalDistribution(("cosine", "dot")),
        "negatives": _doublings(recipe.negatives, 2),
        "learning_rate": FloatDistribution(
            rate / RATE_FACTOR, rate * RATE_FACTOR, log=True
        ),
        "batch_size": _doublings(recipe.batch_size, 1),
        "max_epochs": IntDistribution(half, recipe.max_epochs + half),
    }
    names = [name for name in left_open if name in space]

    return {name: space[name] for name in names if not space[name].single()}


def _share(value: float, most: float) -> BaseDistribution:
    low = max(0.0, value - DROPOUT_RANGE)
    high = min(most, value + DROPOUT_RANGE)
    return FloatDistribution(low, max(value, high))


def _doublings(value: int, n_doublings: int) -> BaseDistribution:
    """Return the half of a value, the value and its doublings; of 0, 0 alone."""
    half = max(value // 2, min(value, 1))
    doublings = {value << n for n in range(n_doublings + 1)}
    return CategoricalDistribution(sorted({half, *doublings}))


def tidy(values: Mapping[str, Any]) -> dict[str, Any]:
    """Round drawn values, so that they can be read and typed."""
    rounded = dict(values)
    for name, value in values.items():
        if isinstance(value, float):
            rounded[name] = float(f"{value:.{DIGITS}g}")

    return rounded


# ---- the study


def open_study(path: Path, origin: Mapping[str, Any]) -> optuna.Study:
    """Open the study of a journal, or begin it; trials that were killed fail.

    A kill may leave the lock, and tear the last line; the run's stage is locked meanwhile.

    Args:
        path: the journal.
        origin: identifies the search; JSON values.

    Raises:
        SchemaError: the journal is of another search.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists():
        content = path.read_bytes()
        write_file(path, content[: content.rfind(b"\n") + 1])

    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        study_name=NAME,
        direction="maximize",
        pruner=MedianPruner(n_warmup_steps=2),
        load_if_exists=True,
    )
    if ORIGIN not in study.user_attrs:
        study.set_user_attr(ORIGIN, origin)
    for difference in compare(study.user_attrs[ORIGIN], origin):
        raise SchemaError(
            f"{path.parent} holds another study: {difference}; "
            "give another --out, or add --overwrite"
        )

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def list_done(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count, in their order."""
    return study.get_trials(deepcopy=False, states=DONE)


def ask(
    study: optuna.Study, space: Space, default: Mapping[str, Any], seed: int
) -> Trial:
    """Begin the next trial: first the default, then what finished trials and the seed lead to.

    The journal keeps no generator, so each trial has a sampler of its own.
    """
    n_done = len(list_done(study))
    drawn = np.random.SeedSequence((seed, n_done)).generate_state(1)
    study.sampler = TPESampler(seed=int(drawn[0]))
    if not n_done:
        study.enqueue_trial(dict(default))
    return study.ask(space)


def attempt(study: optuna.Study, work: Work, space: Space, fit: Fit) -> None:
    """Train one trial and tell the study how it ended.

    A trial that diverges, or lacks memory, counts as worse than all others and is not repeated.
    """
    config = work.config
    out = config.out / FOLDER / TRIAL
    shutil.rmtree(out, ignore_errors=True)  # of a killed trial
    default = {name: getattr(work.recipe, name) for name in space}
    trial = ask(study, space, default, config.seed)
    watch = Watch(trial)

    model = replace(config.model, **tidy(trial.params))
    recipe, _ = choose_recipe(model, count_data(work.tables, config.data))
    callbacks = [*list_callbacks(config.trainer.get("callbacks")), watch]
    # Here the study is told of each validation, so that this process trains.
    trainer = {**config.trainer, "callbacks": callbacks, "devices": 1}
    tried = replace(config, model=model, trainer=trainer, out=out)

    try:
        fit(replace(work, recipe=recipe, config=tried))
        study.tell(trial, watch.best)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except (FloatingPointError, MemoryError) as error:
        trial.set_user_attr(FAULT, str(error).splitlines()[0])
        study.tell(trial, state=TrialState.PRUNED)
    finally:
        shutil.rmtree(out, ignore_errors=True)


class Watch(Callback):
    """Report each validation of a trial, and end a trial that falls behind the others."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.n_validations = 0
        self.best = -1.0

    def on_validation_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        value = float(trainer.callback_metrics[MONITOR])
        self.n_validations += 1
        self.best = max(self.best, value)
        self.trial.report(value, self.n_validations)
        if self.trial.should_prune():
            raise optuna.TrialPruned


# ---- the outcome


def describe(trial: FrozenTrial) -> str:
    values = ", ".join(f"{name} {value}" for name, value in tidy(trial.params).items())
    note = trial.user_attrs.get(FAULT, trial.state.name.lower())
    return f"validation NDCG@10 {trial.value or 0:.4f} ({note}), {values}"


def finish(given: Config, work: Work, study: optuna.Study, text: str) -> None:
    """Write the configuration of the best trial, and print the outcome."""
    done = list_done(study)
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        fault = done[0].user_attrs.get(FAULT)
        raise SchemaError(f"none of {len(done)} trials could be trained: {fault}")

    best = study.best_trial
    values: dict[str, Any] = {}
    if best.number != done[0].number:  # else the data chooses the same again
        values = asdict(work.config.model) | tidy(best.params)
        values.pop("neighbours")

    head = f"# The best of {len(done)} trials: validation NDCG@10 {best.value:.4f}"
    path = given.out / FOLDER / BEST
    write_file(path, f"{head}\n{tuned_text(text, given.out, values)}".encode())

    console.rule("outcome of the search")
    console.print(f"best: {describe(best)}")
    console.print(f"chosen from the data: {describe(done[0])}")
    console.print(
        "the best of many is judged by the users that chose it: expect less on others, "
        "such as the test"
    )
    console.print(f"train it: bascule train --config {shlex.quote(str(path))}")
