"""Train the towers of a run: what the data decides, early stopping, and once more on all before the test."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table

from datamodules.catalogue import Catalogue, build_catalogue
from datamodules.config import DataConfig
from datamodules.fingerprint import fingerprint
from datamodules.interactions import InteractionsDataModule
from datamodules.ordering import is_set
from datamodules.schema_fitting import fit_schema
from datamodules.sets import FOLDS
from datamodules.splits import Split
from datamodules.tables import Tables
from models.assembly import EncodedItems, PastOfAll, build_towers
from models.config import recipe_of
from models.data_counts import DataCounts
from models.defaults import Choice, choose_recipe
from models.fitting import fit
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
        mean_history=float(history.mean()),
        is_set=is_set(rows),
        is_repeated=config.repeats == "allow",
        trains_on_windows=config.ties == "ordered" and config.repeats == "exclude" and not is_set(rows),
        has_content=bool(config.features.item),
        has_context=bool(config.features.context),
        has_demographics=bool(config.features.user),
    )


def train(config: Config, tables: Tables, split: Split) -> tuple[Trained, dict[str, float]]:
    """Train with early stopping, then again on everything before the test for as many epochs; finish the towers."""
    is_only = config.data.split.strict or not len(split.validation)

    def train_first() -> Trained:
        return judge(config, fit_towers(config, tables, split, None), is_only, console)

    def train_again() -> Trained:
        again = fit_towers(config, tables, split, first.epochs)
        return finish(config, replace(again, pace=first.pace, shrunk=first.shrunk, judged=first.judged))

    console.rule("training")
    first, seconds = _clock("training", train_first)
    if is_only:
        return first, seconds
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
    if epochs is None:
        rows, validation, at = split.train, split.validation, split.validation_at
    else:
        rows, validation, at = split.refit, split.validation.iloc[:0], split.test_at
    pl.seed_everything(config.seed, workers=True, verbose=False)
    previous = None if config.previous is None else Bundle.load(config.previous).schema
    schema = fit_schema(tables, rows, config.data, previous)
    catalogue = build_catalogue(tables.items, rows, schema)
    recipe = recipe_of(config.model)
    data = InteractionsDataModule(
        rows, validation, tables.users, catalogue, schema, recipe.batch_size, config.seed, split.horizon, at
    )
    model = make_model(config, schema, catalogue, data)
    read = fingerprint(schema, data.sequences, catalogue.item_ids, catalogue.features, data.validation_batches)
    trained_for, pace = fit(
        model,
        data,
        config.out,
        "select" if epochs is None else "final",
        recipe.max_epochs if epochs is None else epochs,
        recipe.patience if len(validation) else None,
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
            "only where every event is a target is it known how often each item is drawn"
        )
    return NegativeSampler.make(n_negatives, n_in_batch, torch.from_numpy(data.count_targets()))
