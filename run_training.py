"""Train the towers of a run: what the data decides, early stopping, and once more on all before the test."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table

from datamodules.clean import is_set
from datamodules.config import DataConfig
from datamodules.datamodule import InteractionsDataModule
from datamodules.fingerprint import fingerprint
from datamodules.schema_fitting import fit_schema
from datamodules.sequences import Catalogue, build_catalogue
from datamodules.sets import FOLDS
from datamodules.splits import Split
from datamodules.tables import Tables
from models.assembly import EncodedItems, PastOfAll, build_towers
from models.config import recipe_of
from models.data_counts import DataCounts
from models.defaults import MANY_EVENTS, Choice, choose_recipe
from models.fitting import fit, load_best
from models.sampling import NegativeSampler
from models.two_tower import TwoTower
from models.warm_start import STARTED_TABLES
from run_config import Config
from run_finishing import Trained, finish, judge
from run_state import declare
from serve.bundle import Bundle
from serve.errors import SchemaError
from serve.schema import Schema

console = Console()

CONTINUED_SHARE, CONTINUED_RATE, CONTINUED_WARMUP = 0.15, 0.2, 30
"""How a training that validation stopped goes on with all but the test: for a share of the epochs, at a share of the
rate, which rises for so many steps. One from the beginning takes five to seven times as long: see docs/training.md."""
MOST_ADDED = 0.005
"""Share of all but the test that the first training did not see, up to which the last one goes on from it, where there
are many events: few are soon learned anew. With .01 (of MovieLens-100k and Amazon Beauty) the test ranked 1 to 2 %
worse than from the beginning; the more there is, the more is not learned well enough."""

MOST_OF_MEDIAN = 100
"""Times the median history, up to which a history counts in the mean: one account of all guests, or a robot, says
nothing of the others."""


@dataclass(frozen=True)
class Stage:
    """One of a run's trainings."""

    name: str
    rows: pd.DataFrame
    """To learn from."""
    validation: pd.DataFrame
    """To stop by; empty: there is none, the last weights stay."""
    at: int | None
    """When validation asks, or the test will."""
    known: pd.DataFrame
    """What schema and catalogue are made of."""
    epochs: int
    start: str | None = None
    """Name of the stage whose best weights it goes on from; None: from the beginning."""


def settle(config: Config, tables: Tables) -> tuple[Config, list[Choice]]:
    """Decide from the data what the configuration leaves open; return it whole, with the choices made."""
    recipe, choices = choose_recipe(config.model, count_data(tables, config.data))
    return replace(config, model=replace(config.model, **asdict(recipe))), choices


def print_choices(choices: Sequence[Choice], console: Console) -> None:
    """Print what the data decided, and why."""
    if not choices:
        return
    console.rule("chosen from the data")
    table = Table.grid(padding=(0, 2))
    for choice in choices:
        table.add_row(f"model.{choice.name}", f"{choice.value}", choice.reason)
    console.print(table)


def count_data(tables: Tables, config: DataConfig) -> DataCounts:
    rows = tables.interactions
    if is_set(rows):  # rows of one pair are one preference
        rows = rows.drop_duplicates(["user_id", "item_id"])
    history = rows.groupby("user_id").size()
    return DataCounts(
        n_examples=int(history.clip(upper=FOLDS).sum()) if is_set(rows) else len(history),
        n_users=len(history),
        n_items=rows["item_id"].nunique(),
        n_untaken=int((~tables.items["item_id"].isin(rows["item_id"])).sum()),
        n_events=len(rows),
        mean_history=float(history.clip(upper=MOST_OF_MEDIAN * history.median()).mean()),
        is_set=is_set(rows),
        is_repeated=config.repeats == "allow",
        trains_on_windows=trains_on_windows(config, rows),
        has_content=bool(config.features.item),
        has_context=bool(config.features.context),
        has_demographics=bool(config.features.user),
    )


def trains_on_windows(config: DataConfig, rows: pd.DataFrame) -> bool:
    """Say whether every event is a target of those before it."""
    return config.ties == "ordered" and config.repeats == "exclude" and not is_set(rows)


def continues(config: Config, split: Split) -> bool:
    """Say whether the last training goes on from the one that validation stopped.

    Those of sets and with repeats start from factors of all their data, and are soon done.
    """
    n_rows = len(split.refit)
    is_little = 0 < n_rows - len(split.train) <= MOST_ADDED * n_rows
    is_much = n_rows >= MANY_EVENTS and is_little
    return is_much and not config.data.split.strict and trains_on_windows(config.data, split.refit)


def train(config: Config, tables: Tables, split: Split) -> tuple[Trained, dict[str, float]]:
    """Train with early stopping, then on everything before the test; finish the towers."""
    is_only = config.data.split.strict or not len(split.validation)

    def train_first() -> Trained:
        return judge(config, fit_towers(config, tables, split, None), is_only, console)

    def train_again() -> Trained:
        if n_more:
            more = continue_towers(config, tables, split, n_more)
            last = replace(more, epochs=first.epochs, continued=more.epochs)
        else:
            last = fit_towers(config, tables, split, first.epochs)
        names = ("pace", "shrunk", "judged", "low_pass", "pair_filter", "popular")
        return finish(config, replace(last, **{name: getattr(first, name) for name in names}))

    console.rule("training")
    first, seconds = _clock("training", train_first)
    if is_only:
        return first, seconds
    n_more = count_continued(config, first.epochs) if continues(config, split) else 0
    if n_more:
        console.rule(f"going on with all but the test, {n_more} more epochs")
    else:
        console.rule(f"training again on all but the test, {first.epochs} epochs")
    last, more_seconds = _clock("training_again", train_again)
    return last, seconds | more_seconds


def _clock(name: str, training: Callable[[], Trained]) -> tuple[Trained, dict[str, float]]:
    """Train, and return how many seconds passed and how many the processor worked: on a busy machine they differ."""
    begun, begun_work = time.monotonic(), time.process_time()
    trained = training()
    return trained, {name: time.monotonic() - begun, f"{name}_cpu": time.process_time() - begun_work}


def fit_towers(config: Config, tables: Tables, split: Split, epochs: int | None) -> Trained:
    """Fit schema and towers.

    Args:
        config: of the run.
        tables: users and items.
        split: of the interactions.
        epochs: None: learn from the training rows and stop by the validation rows. A number: learn from both, and
            stop there on the same schedule.
    """
    if epochs is not None:
        return _fit_stage(config, tables, split, _last_stage(split, epochs))
    known = split.refit if continues(config, split) else split.train  # what goes on has items and codes of both
    most = recipe_of(config.model).max_epochs
    stage = Stage("select", split.train, split.validation, split.validation_at, known, most)
    return _fit_stage(config, tables, split, stage)


def count_continued(config: Config, epochs: int) -> int:
    """Return how many epochs a training goes on for whose best weights come after `epochs`."""
    return max(1, min(epochs, round(CONTINUED_SHARE * recipe_of(config.model).max_epochs)))


def continue_towers(config: Config, tables: Tables, split: Split, epochs: int) -> Trained:
    """Go on from the best weights of the first training, gently, with everything before the test, for some epochs."""
    recipe = recipe_of(config.model)
    gentle = replace(
        config.model,
        learning_rate=CONTINUED_RATE * recipe.learning_rate,
        warmup_steps=min(recipe.warmup_steps, CONTINUED_WARMUP),
        max_epochs=epochs,
    )
    stage = replace(_last_stage(split, epochs), start="select")
    return _fit_stage(replace(config, model=gentle), tables, split, stage)


def _last_stage(split: Split, epochs: int) -> Stage:
    return Stage("final", split.refit, split.validation.iloc[:0], split.test_at, split.refit, epochs)


def _fit_stage(config: Config, tables: Tables, split: Split, stage: Stage) -> Trained:
    pl.seed_everything(config.seed, workers=True, verbose=False)
    previous = None if config.previous is None else Bundle.load(config.previous).schema
    schema = fit_schema(tables, stage.known, config.data, previous)
    catalogue = build_catalogue(tables.items, stage.known, schema)
    recipe = recipe_of(config.model)
    data = InteractionsDataModule(
        stage.rows,
        stage.validation,
        tables.users,
        catalogue,
        schema,
        recipe.batch_size,
        config.seed,
        split.horizon,
        stage.at,
    )
    model = make_model(config, schema, catalogue, data)
    if stage.start is not None:
        load_best(model, config.out, stage.start)
    read = fingerprint(schema, data.sequences, catalogue.item_ids, catalogue.features, data.validation_batches)
    trained_for, pace = fit(
        model,
        data,
        config.out,
        stage.name,
        stage.epochs,
        recipe.patience if len(stage.validation) else None,
        config.trainer,
        {**declare(config), "training data": read},
    )
    return Trained(model.towers, schema, catalogue, data, trained_for, float(model.temperature.detach()), pace)


def make_model(config: Config, schema: Schema, catalogue: Catalogue, data: InteractionsDataModule) -> TwoTower:
    """Build the towers and what trains them."""
    settings, recipe, features = config.model, recipe_of(config.model), catalogue.features
    towers = build_towers(
        schema,
        EncodedItems(*map(torch.from_numpy, (features.codes, features.values, catalogue.categories))),
        PastOfAll(data.final_requests(), data.early_pairs()),
        recipe.dim,
        settings.affinity_dim,
        recipe.n_blocks,
        recipe.n_heads,
        recipe.dropout,
        recipe.id_dropout,
        recipe.similarity,
        settings.temperature,
        recipe.freeze_items,
        config.seed,
    )
    return TwoTower(
        towers,
        recipe.learning_rate,
        settings.memory_learning_rate,
        settings.weight_decay,
        recipe.warmup_steps,
        settings.temperature,
        config.seed,
        STARTED_TABLES if schema.repeats == "allow" else (),
        recipe.max_epochs,
        make_sampler(config, data),
        settings.correction,
    )


def make_sampler(config: Config, data: InteractionsDataModule) -> NegativeSampler | None:
    """Make what draws the negatives of a step, if they are drawn.

    Raises:
        SchemaError: draws from the targets of requests are wanted: how often they come there is not known.
    """
    n_negatives, n_in_batch = recipe_of(config.model).negatives, config.model.in_batch_negatives
    if n_negatives and n_in_batch and not data.trains_on_windows:
        raise SchemaError(
            f"model.in_batch_negatives is {n_in_batch}; allowed in sets, in baskets and with repeats: 0, "
            "since how often each item is drawn is known only where every event is a target"
        )
    return NegativeSampler.make(n_negatives, n_in_batch, torch.from_numpy(data.count_targets()))
