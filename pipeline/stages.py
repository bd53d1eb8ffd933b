"""The stages of a run: prepare the tables, fit the towers by validation, refit them on all before the test, refine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from datamodules.clean import check_joins, clean, order_tables, weigh_targets
from datamodules.datamodule import InteractionsDataModule, fingerprint, fingerprint_rows
from datamodules.rejects import check_reject_rates, write_rejects
from datamodules.schema_fitting import fit_schema
from datamodules.sequences import build_catalogue
from datamodules.splits import split_interactions
from datamodules.tables import Tables, is_set, read_tables, tables_from_frames
from evaluation.holdout import profiles_from_frame
from models.cold_items import fit_cold_items
from models.config import ModelConfig, Recipe
from models.defaults import MANY_EVENTS, Choice, choose_recipe, count_data
from models.export import export_bundle
from models.fit import fit, load_best
from models.initialise import Start, build_towers, make_towers, sample_memory, take_over
from models.refine import Refinement, apply, choose
from models.sampled_softmax import NegativeSampler
from models.segments import MAX_USERS, find_segments, find_traits
from models.towers import Towers
from models.two_tower import TwoTower
from pipeline.config import Config
from pipeline.run_folder import Previous, Work, declare, find_previous
from serve.bundle import GOLDEN, REJECTS, SEGMENTS, Bundle, Facts
from serve.catalogue import name_items
from serve.clock import DAY
from serve.errors import SchemaError
from serve.events import Events
from serve.files import name_file, write_file
from serve.golden import draw_requests, write_golden
from serve.recommender import Recommender, golden_answer
from serve.rerank import IS_NEW, NEW_DAYS
from serve.tower import count_cores
from service.forget import inherit_erasure_list
from service.publish import Stage as BundleStage

CONTINUED_SHARE = 0.15
CONTINUED_RATE = 0.2
CONTINUED_WARMUP = 30
"""A continued training runs for a share of the epochs, at a share of the rate, which rises for so many steps."""
MAX_ADDED = 0.005
"""Share of rows that the first training did not see, up to which the last one continues it where events are many."""
WARM_SHARE = 0.15
WARM_RATE = 0.2
"""The same of a training that starts from the weights of an earlier run: see docs/loop.md for what it costs."""
LIBRARIES = ("torch", "onnx", "onnxruntime", "faiss-cpu", "numpy")
N_GOLDEN = 32
MAX_COLD_USERS = 512  # users to whom cold items are made visible
Frames = tuple[
    pd.DataFrame, pd.DataFrame | None, pd.DataFrame | None
]  # interactions, users and items as DataFrames
console = Console(log_path=False)


@dataclass(frozen=True)
class Trained:
    """Towers with everything they were trained on."""

    towers: Towers
    data: InteractionsDataModule
    epochs: int
    temperature: float
    pace: dict[str, float]  # summary of `models.fit.Pace`
    continued: int = (
        0  # epochs that followed on all but the test after those that validation chose
    )
    refinement: Refinement | None = None


def prepare(config: Config, frames: Frames | None, beside: Path) -> Work:
    """Read, clean and split the tables, write the rejects beside the bundle, and complete the configuration."""
    tables, report = read(config, frames, beside)
    rows = fingerprint_rows(tables.interactions, tables.users, tables.items)
    split = split_interactions(tables.interactions, config.data, config.seed)
    previous = find_previous(config, split) if config.warm_start else None
    if previous is not None:  # of the data that has grown, other values might be chosen
        given = {
            name: value
            for name, value in asdict(config.model).items()
            if value is not None
        }
        config = replace(
            config,
            model=ModelConfig(
                **(previous.bundle.manifest.facts.config["model"] | given)
            ),
        )
    learned = split.train if config.data.split.strict else split.refit
    recipe, choices = choose_recipe(
        config.model, count_data(replace(tables, interactions=learned), config.data)
    )
    config = replace(config, model=recipe.to_config())
    return Work(config, recipe, tables, split, report, choices, rows, previous)


def read(
    config: Config, frames: Frames | None, beside: Path
) -> tuple[Tables, dict[str, Any]]:
    """Read and clean the tables; rejected rows go beside the bundle, or into the run's folder where they stop it."""
    erased = inherit_erasure_list(config.out, config.previous)
    if frames is None:
        tables, rejects = read_tables(config.data, erased)
    elif isinstance(frames, (tuple, list)):
        tables, rejects = tables_from_frames(config.data, *frames, erased=erased)
    else:
        raise SchemaError(
            f"tables is a {type(frames).__name__}; allowed: a tuple of interactions, users and items"
        )
    try:
        check_reject_rates(rejects, config.data.max_reject_rate)
    except SchemaError:
        write_rejects(rejects, config.out / REJECTS)
        raise
    with name_file(beside / REJECTS):
        write_rejects(rejects, beside / REJECTS)
    tables, cleaning = clean(tables)
    if not len(tables.interactions):
        raise SchemaError(
            f"no interaction is left: {sum(map(len, rejects.tables.values())):,} records are rejected, "
            f"{cleaning.negative_weights:,} have a weight below 0; is another column data.interactions.columns.weight?"
        )
    check_joins(tables, rejects.records)
    tables = order_tables(tables, config.data.ties)
    tables = replace(
        tables, interactions=weigh_targets(tables.interactions, config.data)
    )
    return tables, {"rejects": rejects, "cleaning": cleaning}


def print_previous(previous: Path | None, warm_start: bool) -> None:
    """Say what an earlier bundle is used for, and what not."""
    if previous is not None:
        towers = "start from its weights" if warm_start else "are trained anew"
        kept = f"known values of features keep its codes, new ones come after them; towers {towers}"
        console.print(
            f"previous: {previous}: {kept}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def print_choices(choices: Sequence[Choice]) -> None:
    """Print the values that the data decided, with the reasons."""
    if not choices:
        return
    console.rule("chosen from the data")
    table = Table.grid(padding=(0, 2))
    for choice in choices:
        table.add_row(f"model.{choice.name}", f"{choice.value}", choice.reason)
    console.print(table)


def train(work: Work) -> tuple[Trained, dict[str, float]]:
    """Fit with early stopping, choose the refinement, fit again on everything before the test, and refine.

    The seconds of each training are those on the clock and of the processor.
    """
    if work.previous is not None:
        return train_on(work, work.previous)
    is_only = work.config.data.split.strict or not len(work.split.validation)
    console.rule("training")
    begun = time.monotonic(), time.process_time()
    first = fit_first(work)
    refinement = choose(
        first.towers, first.data, work.recipe.neighbours, work.config.seed
    )
    console.print(refinement.describe(), soft_wrap=True, highlight=False)
    if is_only:
        return refine(work, first, refinement), _since("training", begun)
    seconds = _since("training", begun)
    everything = "all but the test" if len(work.split.test) else "everything"
    begun = time.monotonic(), time.process_time()
    if continues(work):
        n_more = max(
            1, min(first.epochs, round(CONTINUED_SHARE * work.recipe.max_epochs))
        )
        console.rule(f"continuing with {everything}, {n_more} more epochs")
        more = fit_last(
            soften(work, CONTINUED_RATE, n_more), n_more, continued="select"
        )
        last = replace(more, epochs=first.epochs, continued=n_more)
    else:
        console.rule(f"training again on {everything}, {first.epochs} epochs")
        last = fit_last(work, first.epochs)
    trained = refine(work, replace(last, pace=first.pace), refinement)
    return trained, seconds | _since("training_again", begun)


def train_on(work: Work, previous: Previous) -> tuple[Trained, dict[str, float]]:
    """Continue from the weights of an earlier run with everything before the test, refined as it was.

    Nothing is held out to stop by: those weights have seen what would be.
    """
    begun = time.monotonic(), time.process_time()
    epochs = max(1, round(WARM_SHARE * work.recipe.max_epochs))
    console.rule(
        f"training on from version {previous.bundle.manifest.version}, {epochs} epochs"
    )
    work = soften(work, WARM_RATE, epochs)
    data = make_data(
        work,
        work.split.refit,
        (work.split.refit, work.split.validation.iloc[:0]),
        work.split.test_at,
    )
    pl.seed_everything(work.config.seed, workers=True, verbose=False)
    sample = sample_memory(data) if data.schema.repeats == "allow" else None
    model = wrap(
        make_towers(data, work.recipe, sample), work.recipe, data, work.config.seed
    )
    take_over(
        model,
        Start.read(previous.bundle, previous.run),
        data.catalogue.item_ids.tolist(),
        data.schema,
    )
    trained = fit_stage(work, data, "final", epochs, model)
    return refine(work, trained, Refinement(**previous.refinement)), _since(
        "training", begun
    )


def _since(name: str, begun: tuple[float, float]) -> dict[str, float]:
    """Return the seconds on the clock and of the processor: on a busy machine they differ."""
    return {
        name: time.monotonic() - begun[0],
        f"{name}_cpu": time.process_time() - begun[1],
    }


def refine(work: Work, trained: Trained, refinement: Refinement) -> Trained:
    """Add item-item weights to the towers, and shrink items towards their content, as was chosen."""
    apply(
        refinement,
        trained.towers,
        trained.data,
        work.recipe.neighbours,
        work.config.seed,
    )
    return replace(trained, refinement=refinement)


def continues(work: Work) -> bool:
    """Return whether the last training continues the one that validation stopped.

    Those of sets and with repeats start from factors of all their data, and are soon done.
    """
    data = work.config.data
    n_rows = len(work.split.refit)
    is_little = 0 < n_rows - len(work.split.train) <= MAX_ADDED * n_rows
    is_ordered = (
        data.ties == "ordered"
        and data.repeats == "exclude"
        and not is_set(work.split.refit)
    )
    return n_rows >= MANY_EVENTS and is_little and is_ordered and not data.split.strict


def fit_first(work: Work) -> Trained:
    """Fit on the training rows, and stop by the validation rows if there are any."""
    known = (
        work.split.refit if continues(work) else work.split.train
    )  # a continued training needs the items of both
    data = make_data(
        work, known, (work.split.train, work.split.validation), work.split.validation_at
    )
    return fit_stage(
        work,
        data,
        "select",
        work.recipe.max_epochs,
        make_model(work.recipe, data, work.config.seed),
    )


def fit_last(work: Work, epochs: int, continued: str | None = None) -> Trained:
    """Fit on everything before the test for some epochs of the schedule, from the best weights of a stage if named."""
    data = make_data(
        work,
        work.split.refit,
        (work.split.refit, work.split.validation.iloc[:0]),
        work.split.test_at,
    )
    model = make_model(work.recipe, data, work.config.seed)
    if continued is not None:
        load_best(model, work.config.out, continued)
    return fit_stage(work, data, "final", epochs, model)


def soften(work: Work, rate: float, epochs: int) -> Work:
    """Return the work with a schedule for trained weights: a share of the rate, a short rise, and so many epochs."""
    gentle = replace(
        work.recipe,
        learning_rate=rate * work.recipe.learning_rate,
        warmup_steps=min(work.recipe.warmup_steps, CONTINUED_WARMUP),
        max_epochs=epochs,
    )
    return replace(
        work, recipe=gentle, config=replace(work.config, model=gentle.to_config())
    )


def make_data(
    work: Work,
    known: pd.DataFrame,
    rows: tuple[pd.DataFrame, pd.DataFrame],
    at: int | None,
) -> InteractionsDataModule:
    """Fit the schema and build the catalogue from known interactions, and index the rows to train on and to stop by."""
    tables = work.tables
    config = work.config
    previous = None if config.previous is None else Bundle.load(config.previous).schema
    schema = fit_schema(tables, known, config.data, previous)
    catalogue = build_catalogue(tables.items, known, schema)
    size = work.recipe.batch_size
    seed = config.seed
    return InteractionsDataModule(
        *rows, tables.users, catalogue, schema, size, seed, work.split.horizon, at
    )


def fit_stage(
    work: Work, data: InteractionsDataModule, name: str, epochs: int, model: TwoTower
) -> Trained:
    """Train a model for some epochs of the schedule, stopping by the validation if there is any."""
    config = work.config
    catalogue = data.catalogue
    parts = (
        data.schema,
        data.sequences,
        catalogue.item_ids,
        catalogue.features,
        data.validation_batches,
    )
    origin = {**declare(config), "training data": fingerprint(*parts)}
    if work.previous is not None:
        origin["weights of version"] = work.previous.bundle.manifest.version
    trained_for, pace = fit(
        model, data, config.out, name, epochs, config.trainer, origin
    )
    return Trained(
        model.towers, data, trained_for, float(model.temperature.detach()), pace
    )


def make_model(recipe: Recipe, data: InteractionsDataModule, seed: int) -> TwoTower:
    """Build the towers and the module that trains them."""
    pl.seed_everything(seed, workers=True, verbose=False)
    return wrap(build_towers(data, recipe, seed), recipe, data, seed)


def wrap(
    towers: Towers, recipe: Recipe, data: InteractionsDataModule, seed: int
) -> TwoTower:
    """Make the module that trains towers."""
    sampler = NegativeSampler.make(
        recipe.negatives, torch.from_numpy(data.count_targets())
    )
    return TwoTower(towers, recipe, sampler, seed)


def stage_bundle(
    work: Work, trained: Trained, stage: BundleStage
) -> tuple[Facts, Recommender]:
    """Write the bundle's files out of sight and open them as serving does."""
    console.rule("export")
    config = work.config
    towers = trained.towers.eval()
    data = trained.data
    schema = data.schema
    items = data.catalogue.to_arrow()
    popularity = data.trends.popularity[-1]
    if schema.repeats == "allow":
        items = items.append_column(
            "repeat_rate", pa.array(data.trends.repeat_rate[-1])
        )
    if schema.has_datetime and IS_NEW not in items.column_names:
        is_new = find_new_items(data.sequences.events, len(items), schema.data_until)
        items = items.append_column(IS_NEW, pa.array(is_new))
    is_taken = torch.from_numpy(data.count_targets() > 0)
    requests = data.drawn_requests(MAX_COLD_USERS)
    cold_items = fit_cold_items(
        towers, torch.from_numpy(popularity), is_taken, requests, config.seed
    )
    export_bundle(towers, cold_items, schema, items, popularity, stage, config.seed)
    facts = Facts(
        similarity=towers.item_tower.similarity,
        popularity_dims=len(schema.popularity_days),
        index_recall=1.0,
        counts={
            "items": len(items),
            "users": len(data.sequences.user_ids),
            "epochs": trained.epochs,
        },
        libraries={name: version(name) for name in LIBRARIES},
        data_until=schema.data_until,
        config={
            "data": config.data.declared(),
            "model": asdict(config.model),
            "seed": config.seed,
        },
        neighbour_decay=towers.neighbours.decay,
        neighbour_context_gain=towers.neighbours.context_gain,
    )
    stage.seal(facts, {})
    bundle = Bundle.load_staged(stage.path, n_threads=count_cores())
    profiles = profiles_from_frame(work.split.refit, work.tables.users, schema)
    recommender = Recommender(bundle, profiles)
    golden = draw_requests(
        schema,
        bundle.items.column("item_id").to_pylist(),
        N_GOLDEN,
        np.random.default_rng(0),
    )
    write_golden(stage.path / GOLDEN, golden, golden_answer(recommender), k=10)
    return facts, write_segments(recommender, stage, config.seed)


def find_new_items(events: Events, n_items: int, until: int) -> NDArray[np.bool_]:
    """Tell which items, (N,), were first seen in the last days of the data."""
    first = np.full(n_items, until)
    np.minimum.at(first, events.item_row, events.time)
    return np.asarray((first < until) & (first >= until - NEW_DAYS * DAY))


def write_segments(
    recommender: Recommender, stage: BundleStage, seed: int
) -> Recommender:
    """Write the segments of the users if they are stable, and return a recommender that knows them.

    A user is taken as of their last event.
    """
    profiles = recommender.profiles
    catalogue = recommender.catalogue
    schema = recommender.bundle.schema
    others = np.random.default_rng(seed).permutation(len(profiles))[MAX_USERS:]
    profiles = profiles.without(profiles.user_ids[others].tolist())
    table = catalogue.table
    columns = {
        one.column: table.column(one.column).to_pylist()
        for one in schema.item_features
        if one.vocabulary
    }
    rows = catalogue.item_ids.find(profiles.history.item_id)
    names = name_items(table, schema.item_features)
    vectors = recommender.encode_users(
        [{"user_id": user_id} for user_id in profiles.user_ids.tolist()]
    )
    segments = find_segments(
        vectors, [*find_traits(profiles, rows, names, columns, schema)], seed
    )
    if segments is None:
        return recommender
    write_file(stage.path / SEGMENTS, segments.to_bytes())
    return Recommender(
        replace(recommender.bundle, segments=segments), recommender.profiles
    )
