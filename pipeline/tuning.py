"""Search for a better recipe with Optuna, on training and validation rows.

DIR/tuning/study.jsonl   every trial; the same command resumes it
DIR/tuning/best.yaml     the configuration of the best trial
DIR/tuning/study.png     the figure of each value that was tried
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
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
from pipeline.run_folder import Work, declare
from serve.bundle import BUNDLE
from serve.errors import SchemaError, say
from serve.files import write_file

FOLDER = "tuning"
JOURNAL = "study.jsonl"
BEST = "best.yaml"
PICTURE = "study.png"
TRIAL = "trial"
NAME = "study"
ORIGIN = "origin"
FAULT = "fault"
DONE = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
)  # states of a trial that counts; a killed one is begun once more
DIGITS = 3  # digits of a rate or a share that is tried
DROPOUT_RANGE = 0.2
MAX_DROPOUT = 0.8
MAX_ID_DROPOUT = 0.5
RATE_FACTOR = 4
Space = dict[str, BaseDistribution]
Fit = Callable[[Work], int]
console = Console(log_path=False)


def tune(given: Config, work: Work, text: str, fit: Fit) -> None:
    """Try recipes until `tune.trials` of them count, then write down the best; the test is not looked at.

    The keys of `model` that are given are not searched; the data's choice is the first trial. `fit` trains one.
    """
    split = work.split
    left_open = [name for name, value in asdict(given.model).items() if value is None]
    space = make_space(work.recipe, left_open, bool(given.data.features.item))
    total = given.tune.trials or 0
    if not space:
        raise SchemaError(
            "tune.trials: the configuration fixes all that is searched; leave keys of `model` out"
        )
    if not len(only_targets(split.validation)):
        raise SchemaError(
            "tune.trials: data.split leaves no validation event to judge a trial by; give another kind"
        )
    check_targets(split, given.data.repeats)
    tables = replace(work.tables, interactions=split.refit)
    work = replace(
        work, tables=tables, split=replace(split, test=split.validation.iloc[:0])
    )
    folder = given.out / FOLDER
    if given.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    searched = {name: repr(space[name]) for name in space}
    origin = {
        **declare(work.config),
        "searched": searched,
        "previous": str(given.previous),
        "rows": work.rows,
    }
    console.rule(f"search by validation: {', '.join(space)}")
    study = open_study(folder / JOURNAL, json.loads(json.dumps(origin)))
    while len(list_done(study)) < total:
        attempt(study, work, space, fit)
        done = list_done(study)
        console.print(
            f"{len(done)} of {total}: {describe(done[-1])}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    finish(given, work, list_done(study), text)


def make_space(recipe: Recipe, left_open: Sequence[str], has_content: bool) -> Space:
    """Return a range about each value of the recipe that is left open.

    Not of `patience`, which never lowers the best figure, nor of `neighbours`, fitted after a trial is judged.
    """
    step = (
        recipe.dim if recipe.dim % (2 * recipe.n_heads) else recipe.dim // 2
    )  # heads divide every size
    rate = recipe.learning_rate
    half = max(recipe.max_epochs // 2, 1)
    space: Space = {
        "dim": IntDistribution(step, 2 * recipe.dim, step=step),
        "n_blocks": IntDistribution(max(recipe.n_blocks - 1, 0), recipe.n_blocks + 1),
        "dropout": _share(recipe.dropout, MAX_DROPOUT),
        "id_dropout": _share(recipe.id_dropout, MAX_ID_DROPOUT if has_content else 0.0),
        "similarity": CategoricalDistribution(("cosine", "dot")),
        "negatives": _doublings(recipe.negatives, 2),
        "learning_rate": FloatDistribution(
            rate / RATE_FACTOR, rate * RATE_FACTOR, log=True
        ),
        "batch_size": _doublings(recipe.batch_size, 1),
        "max_epochs": IntDistribution(half, recipe.max_epochs + half),
    }
    return {
        name: space[name]
        for name in left_open
        if name in space and not space[name].single()
    }


def _share(value: float, most: float) -> BaseDistribution:
    return FloatDistribution(
        max(0.0, value - DROPOUT_RANGE), max(value, min(most, value + DROPOUT_RANGE))
    )


def _doublings(value: int, n_doublings: int) -> BaseDistribution:
    """Return the half, the value and its doublings; of 0, 0 alone."""
    half = max(value // 2, min(value, 1))
    return CategoricalDistribution(
        sorted({half, *(value << n for n in range(n_doublings + 1))})
    )


def tidy(values: Mapping[str, Any]) -> dict[str, Any]:
    """Round what was drawn, so that it can be read and typed."""
    return {
        name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for name, value in values.items()
    }


def open_study(path: Path, origin: Mapping[str, Any]) -> optuna.Study:
    """Open the study of a journal, or begin it; trials that were killed are failed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path.with_name(f"{path.name}.lock").unlink(
        missing_ok=True
    )  # a kill leaves it; the run's stage is locked
    if path.exists():
        content = path.read_bytes()
        write_file(
            path, content[: content.rfind(b"\n") + 1]
        )  # a kill may tear the last line
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        pruner = MedianPruner(n_warmup_steps=2)
        study = optuna.create_study(
            storage=storage,
            study_name=NAME,
            direction="maximize",
            pruner=pruner,
            load_if_exists=True,
        )
        if ORIGIN not in study.user_attrs:
            study.set_user_attr(ORIGIN, origin)
        there = study.user_attrs[ORIGIN]
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, KeyError, TypeError) as error:
        raise SchemaError(
            f"{path} is damaged: {say(error)}; begin anew with --overwrite"
        ) from error
    for difference in compare(there, origin):
        raise SchemaError(
            f"{path.parent} holds another study: {difference}; give another --out, or add --overwrite"
        )
    return study


def list_done(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count, in their order."""
    return study.get_trials(deepcopy=False, states=DONE)


def ask(
    study: optuna.Study, space: Space, default: Mapping[str, Any], seed: int
) -> Trial:
    """Begin the next trial: first the default, then what the finished trials and the seed lead to."""
    n_done = len(list_done(study))
    drawn = np.random.SeedSequence((seed, n_done)).generate_state(1)
    study.sampler = TPESampler(
        seed=int(drawn[0])
    )  # anew for each trial: no generator is kept in the journal
    if not n_done and not study.get_trials(
        deepcopy=False, states=(TrialState.WAITING,)
    ):
        study.enqueue_trial(dict(default))
    return study.ask(space)


def attempt(
    study: optuna.Study, work: Work, space: Space, fit: Callable[[Work], int]
) -> None:
    """Train one trial and tell the study how it ended."""
    config = work.config
    out = work.config.out / FOLDER / TRIAL
    shutil.rmtree(out, ignore_errors=True)  # of a trial that was killed
    trial = ask(
        study, space, {name: getattr(work.recipe, name) for name in space}, config.seed
    )
    watch = Watch(trial)
    model = replace(config.model, **tidy(trial.params))
    recipe, _ = choose_recipe(model, count_data(work.tables, config.data))
    trainer = {
        **config.trainer,
        "callbacks": [*list_callbacks(config.trainer.get("callbacks")), watch],
    }
    try:
        fit(
            replace(
                work,
                recipe=recipe,
                config=replace(config, model=model, trainer=trainer, out=out),
            )
        )
        study.tell(trial, watch.best)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except (FloatingPointError, torch.OutOfMemoryError) as error:
        trial.set_user_attr(FAULT, str(error).splitlines()[0])
        study.tell(
            trial, state=TrialState.PRUNED
        )  # worse than all others, and not to be tried again
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
        """Note the recent validation."""
        value = float(trainer.callback_metrics[MONITOR])
        self.n_validations = self.n_validations + 1
        self.best = max(self.best, value)
        self.trial.report(value, self.n_validations)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def figure_of(trial: FrozenTrial) -> float:
    """Return the best validation NDCG of a trial; -1 if it could not be trained."""
    return (
        -1.0
        if FAULT in trial.user_attrs
        else max(trial.intermediate_values.values(), default=-1.0)
    )


def describe(trial: FrozenTrial) -> str:
    values = ", ".join(f"{name} {value}" for name, value in tidy(trial.params).items())
    note = trial.user_attrs.get(FAULT) or (
        "ended early" if trial.state is TrialState.PRUNED else "complete"
    )
    return f"validation NDCG@10 {figure_of(trial):.4f} ({note}), {values}"


def finish(given: Config, work: Work, done: Sequence[FrozenTrial], text: str) -> None:
    """Write what the search leaves, and print what came of it."""
    complete = [trial for trial in done if trial.state is TrialState.COMPLETE]
    if not complete:
        raise SchemaError(
            f"none of {len(done)} trials could be trained: {done[0].user_attrs.get(FAULT)}"
        )
    best = max(complete, key=figure_of)
    folder = given.out / FOLDER
    kept = {
        name: value
        for name, value in asdict(work.config.model).items()
        if name != "neighbours"
    }
    kept = (
        {} if best is done[0] else kept | tidy(best.params)
    )  # else the data chooses the same again
    head = f"# Trial {done.index(best) + 1} of {len(done)}: validation NDCG@10 {figure_of(best):.4f}\n"
    write_file(folder / BEST, (head + tuned_text(text, given.out, kept)).encode())
    write_file(
        folder / PICTURE,
        draw([trial for trial in done if FAULT not in trial.user_attrs]),
    )
    console.rule("outcome of the search")
    for name, trial in (("best", best), ("chosen from the data", done[0])):
        console.print(
            f"{name}: {describe(trial)}", soft_wrap=True, highlight=False, markup=False
        )
    console.print(
        "the best of many is judged by the users that chose it: expect less on others, such as the test"
    )
    again = " --overwrite" if (given.out / BUNDLE).exists() else ""
    command = f"python train.py --config {shlex.quote(str(folder / BEST))}{again}"
    console.print(f"train it: {command}", soft_wrap=True, highlight=False, markup=False)


def draw(trials: Sequence[FrozenTrial]) -> bytes:
    """Draw the figure of each trial by the values that were tried, as PNG."""
    names = ["trial", *trials[0].params]
    figure = Figure(figsize=(3.0 * len(names), 3.0), layout="constrained")
    for chart, name in zip(
        np.atleast_1d(figure.subplots(1, len(names), sharey=True)), names, strict=True
    ):
        values = [
            trial.number if name == "trial" else tidy(trial.params)[name]
            for trial in trials
        ]
        chart.plot(values, [figure_of(trial) for trial in trials], "o")
        chart.set(xlabel=name, ylabel="validation NDCG@10")
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
