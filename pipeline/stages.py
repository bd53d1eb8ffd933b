"""The trainings of a run: fit the towers by validation, fit them again on all before the test.

Then the towers are refined. The tables were prepared in `pipeline/tables.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from datamodules.datamodule import InteractionsDataModule
from datamodules.fingerprint import fingerprint
from datamodules.on_disk import PartName
from datamodules.schema_fitting import fit_longest_gap, fit_schema
from datamodules.sequences import Sequences, build_catalogue
from datamodules.values import find_ties
from models.config import Recipe
from models.defaults import MANY_EVENTS
from models.fit import Estimate, fit, list_callbacks, load_best
from models.initialise import (
    MEASURED,
    Start,
    build_towers,
    make_towers,
    sample_memory,
    start_taste,
    start_untrained,
    take_over,
)
from models.refine import ALONE, Limits, Refinement, apply, choose
from models.sampled_softmax import NegativeSampler
from models.table_rows import bound_table
from models.towers import Towers
from models.two_tower import TwoTower
from pipeline.run_folder import Previous, Work, console, declare
from privacy.item_item import Statistics
from serve.bundle import Bundle
from serve.index import Neighbours

CONTINUED_SHARE = 0.15  # share of the epochs of a continued training
CONTINUED_RATE = 0.2  # share of its learning rate
CONTINUED_WARMUP = 30  # steps of its linear rise
MAX_ADDED = 0.005  # a larger share of rows that the first training lacks: train anew
WARM_SHARE = 0.9  # of a warm start, see docs/loop.md
WARM_RATE = 1.0
REFIT_EPOCHS = 1  # with the test, at the rate of a continued training
MAX_REFIT = 0.2  # share of what the training cost: a dearer one is left out
EXPORT_EVENTS = 100_000  # events that are trained on while a bundle is exported
QUICK_NEIGHBOURS = 64
QUICK_LIMITS = Limits(top_k=256, n_inverted=4_000, n_factors=64, n_requests=1024)


@dataclass(frozen=True)
class Trained:
    """Towers with everything they were trained on."""

    towers: Towers
    data: InteractionsDataModule
    epochs: int
    temperature: float
    pace: dict[str, float]  # of `models.fit.EpochLog`
    continued: int = 0  # epochs on all but the test, after those validation chose
    refinement: Refinement | None = None


# ---- trainings


def train(work: Work, seconds: dict[str, float]) -> Trained:
    """Fit with early stopping, choose the refinement, fit on all before the test, and refine.

    A quick run does the same with towers that are hardly trained, or not at all.

    Args:
        work: what to train on.
        seconds: receives the seconds of each training, on the clock and of the processor.
    """
    if work.previous is not None:
        with _timed(seconds, "training"):
            return train_on(work, work.previous)

    with _timed(seconds, "training"):
        console.rule("training")
        first = fit_first(work)
        refinement = choose(first.towers, first.data, limit(work), work.config.seed)
        console.print(refinement.describe(), soft_wrap=True, highlight=False)

    if work.config.data.split.strict or not len(work.split.validation):
        return refine(work, first, refinement)
    with _timed(seconds, "training_again"):
        last = fit_again(work, first.epochs)
        return refine(work, replace(last, pace=first.pace), refinement)


def train_released(work: Work, statistics: Statistics) -> Trained:
    """Make towers of released statistics, whose item-item weights rank alone.

    Args:
        work: with drawn people in place of real ones, see `pipeline.private`.
        statistics: what was released of the real ones.
    """
    seed = work.config.seed
    data = make_last_data(work)
    towers = make_model(work.recipe, data, seed).towers
    start_untrained(towers, data, work.recipe.logit_unit, seed)
    start_taste(towers, torch.from_numpy(statistics.find_factors(work.recipe.dim)))

    weights = statistics.weigh(work.recipe.neighbours)
    offsets = weights.indptr.astype(np.int64)
    scores = (ALONE * weights.data).astype(np.float32)
    towers.neighbours = Neighbours(offsets, weights.indices, scores)
    return Trained(towers.eval(), data, epochs=0, temperature=1.0, pace={})


def fit_first(work: Work) -> Trained:
    """Fit on the training rows, and stop by the validation rows if there are any."""
    split = work.split
    # A continued training needs the items of both.
    known: PartName = "refit" if continues(work) else "train"
    data = make_data(work, known, "train", split.validation, split.validation_at)
    model = make_model(work.recipe, data, work.config.seed)

    return fit_stage(work, data, "select", model)


def fit_again(work: Work, epochs: int) -> Trained:
    """Fit on everything before the test, after a training that stopped after some epochs."""
    everything = "all but the test" if len(work.split.test) else "everything"
    n_more = 0
    if continues(work):
        share = round(CONTINUED_SHARE * work.recipe.max_epochs)
        n_more = max(1, min(epochs, share))
        work = soften(work, CONTINUED_RATE, n_more)
        console.rule(f"continuing with {everything}, {n_more} more epochs")
    else:
        console.rule(f"training again on {everything}, {epochs} epochs")

    data = make_last_data(work)
    model = make_model(work.recipe, data, work.config.seed)
    if n_more:
        load_best(model, work.config.out, "select")
    trained = fit_stage(work, data, "final", model, n_more or epochs)
    if n_more:
        return replace(trained, epochs=epochs, continued=n_more)
    return trained


def train_on(work: Work, previous: Previous) -> Trained:
    """Continue from the weights of an earlier run on everything before the test.

    Nothing is held out to stop by: those weights have seen it. The refinement is the earlier one.
    """
    epochs = max(1, round(WARM_SHARE * work.recipe.max_epochs))
    version = previous.bundle.manifest.version
    console.rule(f"training on from version {version}, {epochs} epochs")
    work = soften(work, WARM_RATE, epochs)
    start = Start.read(previous.bundle, previous.run)
    trained = fit_from(start, work, "final")

    return refine(work, trained, Refinement(**previous.refinement))


def refits(work: Work, trained: Trained) -> bool:
    """Return whether what is published is trained on with the test.

    By default it is if that costs little, counted in events that are trained on, not by a clock.
    """
    config = work.config
    if config.refit is not None or not len(work.split.test):
        return config.refit == "all" and len(work.split.test) > 0
    is_fixed = config.quick or config.privacy.epsilon is not None
    if is_fixed or work.on_disk is not None:
        return False

    is_twice = len(work.split.validation) > 0 and not config.data.split.strict
    n_events = len(work.split.refit)
    before = trained.epochs * (2 if is_twice else 1) * n_events
    return REFIT_EPOCHS * n_events + EXPORT_EVENTS <= MAX_REFIT * before


def train_with_test(work: Work, trained: Trained, measured: Bundle) -> Trained:
    """Train on everything from the weights that were measured, and refine anew.

    Args:
        work: with nothing held out.
        trained: what was measured.
        measured: its bundle.
    """
    console.rule(f"training on with what was tested, {REFIT_EPOCHS} epoch")
    work = soften(work, CONTINUED_RATE, REFIT_EPOCHS)
    if trained.epochs:
        out = work.config.out
        work = replace(work, previous=Previous(out, measured, refinement={}))
        start = Start.read(measured, out, MEASURED)
        further = fit_from(start, work, "refit")
    else:
        data = make_last_data(work)
        model = make_model(work.recipe, data, work.config.seed)
        further = fit_stage(work, data, "refit", model)

    towers = refine(work, further, trained.refinement or Refinement()).towers
    return replace(trained, towers=towers, data=further.data)


def fit_from(start: Start, work: Work, name: str) -> Trained:
    """Train on everything before the test from earlier weights."""
    seed = work.config.seed
    data = make_last_data(work)
    pl.seed_everything(seed, workers=True, verbose=False)
    sample = sample_memory(data) if data.schema.repeats == "allow" else None
    towers = make_towers(data, work.recipe, sample)
    model = wrap(towers, work.recipe, data, seed)
    take_over(model, start, data.catalogue.item_ids.tolist(), data.schema)
    bound_table(towers, data, work.recipe.table_rows)
    return fit_stage(work, data, name, model)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds on the clock and of the processor; on a busy machine they differ."""
    begun = time.monotonic()
    begun_cpu = time.process_time()
    yield
    seconds[name] = time.monotonic() - begun
    seconds[f"{name}_cpu"] = time.process_time() - begun_cpu


def refine(work: Work, trained: Trained, refinement: Refinement) -> Trained:
    """Add item-item weights to the towers, and shrink items towards their content."""
    apply(refinement, trained.towers, trained.data, limit(work), work.config.seed)
    return replace(trained, refinement=refinement)


def limit(work: Work) -> Limits:
    """Return what the refinement may cost."""
    top_k = work.recipe.neighbours
    min_users = work.recipe.min_users
    if not work.config.quick:
        return Limits(top_k, min_users)
    # Untrained towers need them also where baskets are not bought again.
    top_k = min(top_k or QUICK_NEIGHBOURS, QUICK_LIMITS.top_k)
    return replace(QUICK_LIMITS, top_k=top_k, min_users=min_users)


def continues(work: Work) -> bool:
    """Return whether the last training continues the one that validation stopped.

    Trainings of sets and with repeats start from factors of all their data, and are soon done.
    """
    data = work.config.data
    refit = work.split.refit
    n_added = len(refit) - len(work.split.train)
    is_little = 0 < n_added <= MAX_ADDED * len(refit)
    is_ordered = find_ties(refit, data.ties) == "ordered" and data.repeats == "exclude"
    if work.config.quick or data.split.strict:
        return False
    return len(refit) >= MANY_EVENTS and is_little and is_ordered


def soften(work: Work, rate: float, epochs: int) -> Work:
    """Return the work with a schedule for trained weights: a lower rate and a short rise."""
    recipe = replace(
        work.recipe,
        learning_rate=rate * work.recipe.learning_rate,
        warmup_steps=min(work.recipe.warmup_steps, CONTINUED_WARMUP),
        max_epochs=epochs,
    )
    config = replace(work.config, model=recipe.to_config())
    return replace(work, recipe=recipe, config=config)


# ---- the data, the model and one training


def make_last_data(work: Work) -> InteractionsDataModule:
    """Index everything before the test to train on, and nothing to stop by."""
    split = work.split
    nothing = split.validation.iloc[:0]
    return make_data(work, "refit", "refit", nothing, split.test_at)


def make_data(
    work: Work,
    known: PartName,
    learned: PartName,
    validation: pd.DataFrame,
    at: int | None,
) -> InteractionsDataModule:
    """Fit the schema, build the catalogue and index the rows.

    Args:
        work: gives users, items, features and sizes.
        known: the part that schema and catalogue are of.
        learned: the part to train on.
        validation: interactions to stop by.
        at: UTC seconds of the validation requests.
    """
    config = work.config
    tables = work.tables
    previous = None
    if work.previous is not None:
        previous = work.previous.bundle.schema
    elif config.previous is not None:
        previous = Bundle.load(config.previous).schema
    rows: pd.DataFrame = getattr(work.split, known)
    schema = fit_schema(tables, rows, config.data, previous)
    if schema.repeats == "allow" and schema.has_datetime and work.split.horizon is None:
        # With a horizon, training looks back from moments as distant as those of the test.
        schema = replace(schema, longest_gap=fit_longest_gap(rows))
    if work.on_disk is not None:
        rows = work.on_disk.list_items(known)
    catalogue = build_catalogue(tables.items, rows, schema, config.data.unlisted)
    train: pd.DataFrame | Sequences = getattr(work.split, learned)
    if work.on_disk is not None:
        item_ids = catalogue.item_ids
        train = work.on_disk.build_sequences(learned, validation, item_ids, schema)

    return InteractionsDataModule(
        train,
        validation,
        tables.users,
        catalogue,
        schema,
        work.recipe.batch_size,
        config.seed,
        work.split.horizon,
        at,
    )


def make_model(recipe: Recipe, data: InteractionsDataModule, seed: int) -> TwoTower:
    """Build the towers and the module that trains them."""
    pl.seed_everything(seed, workers=True, verbose=False)
    return wrap(build_towers(data, recipe, seed), recipe, data, seed)


def wrap(
    towers: Towers, recipe: Recipe, data: InteractionsDataModule, seed: int
) -> TwoTower:
    """Make the module that trains towers."""
    counts = torch.from_numpy(data.count_targets())  # (N,)
    sampler = NegativeSampler.make(recipe.negatives, counts)
    return TwoTower(towers, recipe, sampler, seed)


def fit_stage(
    work: Work,
    data: InteractionsDataModule,
    name: str,
    model: TwoTower,
    epochs: int | None = None,
) -> Trained:
    """Train a model for some epochs of the schedule, stopping by the validation if there is any.

    Default: all epochs. Checkpoints of other data, weights or options are refused. A quick run
    trains nothing if there is no memory.
    """
    config = work.config
    if config.quick and model.towers.user_tower.memory is None:
        model.towers.unfold()
        start_untrained(model.towers, data, work.recipe.logit_unit, config.seed)
        temperature = float(model.temperature.detach())
        return Trained(model.towers.eval(), data, 0, temperature, pace={})

    catalogue = data.catalogue
    origin = declare(config)
    origin["training data"] = fingerprint(
        data.schema,
        data.sequences,
        catalogue.item_ids,
        catalogue.features,
        data.validation_batches,
    )
    if work.previous is not None:
        origin["weights of version"] = work.previous.bundle.manifest.version

    options = dict(config.trainer)
    is_shown = options.get("enable_progress_bar", True) and not config.quick
    if is_shown and name == "select":
        n_pairs = len(catalogue) * work.split.test["user_id"].nunique()
        estimate = Estimate(1 if config.data.split.strict else 2, n_pairs)
        options["callbacks"] = [*list_callbacks(options.get("callbacks")), estimate]

    epochs = epochs or work.recipe.max_epochs
    epochs, pace = fit(model, data, config.out, name, epochs, options, origin)
    model.towers.unfold()
    temperature = float(model.temperature.detach())
    return Trained(model.towers, data, epochs, temperature, pace)
