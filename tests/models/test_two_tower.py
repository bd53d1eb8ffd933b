from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from datamodules.config import DataConfig, FeaturesConfig
from datamodules.datamodule import InteractionsDataModule
from datamodules.schema_fitting import fit_schema
from datamodules.sequences import build_catalogue
from datamodules.tables import Tables
from models.initialise import build_towers
from models.two_tower import STARTED_TABLES, TwoTower, warm_cosine
from tests.models.tiny_towers import RECIPE, make_module, make_towers
from tests.tiny_data import (
    BASKETS,
    DAY,
    FIRST,
    ORDERED,
    hold_out,
    make_data,
    make_world,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # within Lightning
]
GROUPS, ITEMS_OF_GROUP, USERS = 8, 10, 160
N = GROUPS * ITEMS_OF_GROUP
CHAINS = DataConfig(history_length=8)
SHOPPERS = DataConfig(ties="simultaneous", repeats="allow", history_length=20)
SEASONS = DataConfig(features=FeaturesConfig(context={"month": "month_of_year"}), history_length=8)
STRANGERS = DataConfig(features=FeaturesConfig(user={"town": "categorical"}), history_length=8)


def fit(model: TwoTower, data: pl.LightningDataModule, max_epochs: int) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, data)
    return trainer


def learn(
    config: DataConfig,
    events: pd.DataFrame,
    held_out: pd.DataFrame,
    users: pd.DataFrame,
    epochs: int,
):
    """Train small towers and return the scores of the validation requests, (B, N), with the batch."""
    items = pd.DataFrame({"item_id": np.arange(N)})
    schema = fit_schema(Tables(events, users, items), events, config)
    catalogue = build_catalogue(items, events, schema)
    data = InteractionsDataModule(events, held_out, users, catalogue, schema, batch_size=32, seed=1)
    pl.seed_everything(1, verbose=False)
    recipe = replace(RECIPE, dim=16, n_blocks=1, n_heads=1, id_dropout=0.0, max_epochs=epochs)
    towers = build_towers(data, recipe, 1)
    model = make_module(towers, max_epochs=epochs)
    fit(model, data, epochs)
    (batch,) = data.validation_batches
    model.eval()
    with torch.no_grad():
        vectors = towers.item_vectors(batch.popularity)
        users_of, bonus = towers.request_vectors(batch, vectors)
        scores = users_of @ vectors.T
    if bonus is None:
        return scores, batch
    return scores.index_put((batch.owned_users, batch.owned_rows), bonus, accumulate=True), batch


def bar_owned(scores: torch.Tensor, batch) -> torch.Tensor:
    barred = scores.clone()
    barred[batch.owned_users, batch.owned_rows] = -torch.inf
    return barred


def hit_rate(scores: torch.Tensor, batch, k: int) -> float:
    top = scores.topk(k, dim=1).indices
    wanted = torch.zeros_like(scores, dtype=torch.bool)
    wanted[batch.target_users, batch.target_rows] = True
    has_target = wanted.any(dim=1)
    return float(wanted.gather(1, top).any(dim=1)[has_target].float().mean())


def popularity(events: pd.DataFrame, n_requests: int) -> torch.Tensor:
    counts = np.bincount(events["item_id"], minlength=N)
    return torch.from_numpy(counts).float().expand(n_requests, N)


def part(events: pd.DataFrame, is_held_out: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    return events[~is_held_out].reset_index(drop=True), events[is_held_out].reset_index(drop=True)


def test_the_next_item_of_a_chain_is_learned():
    rng = np.random.default_rng(0)
    successor = rng.permutation(N)
    rows = []
    for user in range(USERS):
        item = int(rng.integers(N))
        for step in range(9):
            rows.append((user, item, FIRST + step * DAY))
            item = int(successor[item])
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "datetime"]).drop_duplicates(
        ["user_id", "item_id"]
    )
    last = events.groupby("user_id")["datetime"].transform("max")
    train, held_out = part(events, events["datetime"] == last)
    users = events[["user_id"]].drop_duplicates()
    scores, batch = learn(CHAINS, train, held_out, users, epochs=12)
    barred = bar_owned(scores, batch)
    assert hit_rate(barred, batch, 1) > 0.8
    assert hit_rate(barred, batch, 1) > 2 * hit_rate(
        bar_owned(popularity(train, USERS), batch), batch, 1
    )


def shopping(rng: np.random.Generator) -> pd.DataFrame:
    """Draw baskets: each user buys from the items of her group, some of them again and again."""
    rows = []
    for user in range(USERS):
        group = user % GROUPS * ITEMS_OF_GROUP
        favourites = group + rng.permutation(ITEMS_OF_GROUP)[:3]
        for week in range(6):
            others = group + rng.permutation(ITEMS_OF_GROUP)[:2]
            basket = {int(item) for item in [*favourites[rng.random(3) < 0.8], *others]}
            rows += [(user, item, FIRST + week * 7 * DAY) for item in basket]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "datetime"])


def test_what_is_bought_again_and_what_is_new_are_learned():
    events = shopping(np.random.default_rng(1))
    train, held_out = part(events, events["datetime"] == events["datetime"].max())
    scores, batch = learn(
        SHOPPERS, train, held_out, events[["user_id"]].drop_duplicates(), epochs=6
    )
    popular = popularity(train, USERS)
    assert hit_rate(scores, batch, 1) > 0.6
    assert hit_rate(scores, batch, 5) > 2 * hit_rate(popular, batch, 5)
    new, popular_new = (
        hit_rate(bar_owned(part, batch), only_novel(batch), 5) for part in (scores, popular)
    )
    assert new > 0.6
    assert new > 2 * popular_new


def only_novel(batch):
    is_novel = batch.target_owned < 0
    return batch._replace(
        target_users=batch.target_users[is_novel],
        target_rows=batch.target_rows[is_novel],
    )


def test_demographics_alone_place_a_user_nobody_knows():
    rng = np.random.default_rng(2)
    rows = [
        (user, int(user % GROUPS * ITEMS_OF_GROUP + item), FIRST + step * DAY)
        for user in range(USERS)
        for step, item in enumerate(rng.permutation(ITEMS_OF_GROUP)[:6])
    ]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "datetime"])
    users = pd.DataFrame(
        {
            "user_id": np.arange(USERS),
            "town": [f"t{user % GROUPS}" for user in range(USERS)],
        }
    )
    train, strangers = part(events, events["user_id"] >= USERS - 40)
    held_out = strangers.groupby("user_id").head(1)
    scores, batch = learn(STRANGERS, train, held_out, users, epochs=12)
    assert batch.arrays["history_lengths"].sum() == 0
    assert hit_rate(scores, batch, 10) > 0.8
    assert hit_rate(scores, batch, 10) > 2 * hit_rate(popularity(train, 40), batch, 10)


def test_the_month_alone_says_what_somebody_new_takes():
    rng = np.random.default_rng(4)
    days = np.sort(rng.integers(0, 2 * 365, (USERS, 6)), axis=1).ravel()
    times = FIRST + days * DAY
    months = pd.to_datetime(times, unit="s").month
    items = months % GROUPS * ITEMS_OF_GROUP + rng.integers(0, ITEMS_OF_GROUP, len(times))
    users = np.arange(USERS).repeat(6)
    events = pd.DataFrame({"user_id": users, "item_id": items, "datetime": times})
    train, strangers = part(events, events["user_id"] >= USERS - 40)
    held_out = strangers.groupby("user_id").head(1)
    nothing = pd.DataFrame({"user_id": np.arange(USERS)})
    scores, batch = learn(SEASONS, train, held_out, nothing, epochs=60)
    assert batch.arrays["history_lengths"].sum() == 0
    assert hit_rate(scores, batch, 10) > 0.8
    assert hit_rate(scores, batch, 10) > 2 * hit_rate(popularity(train, 40), batch, 10)


@pytest.fixture(params=[(ORDERED, "cosine"), (BASKETS, "dot")], ids=["ordered", "baskets"])
def tiny(request):
    config, similarity = request.param
    world = make_world(config)
    return world, similarity


def trained(tiny, seed: int = 0) -> TwoTower:
    world, similarity = tiny
    world, validation = hold_out(world)
    data = make_data(world, validation=validation)
    model = make_module(make_towers(world, data, similarity).train(), seed=seed)
    fit(model, data, 2)
    return model


def test_the_same_seed_gives_the_same_weights(tiny):
    torch.manual_seed(1)
    first = trained(tiny)
    torch.manual_seed(2)
    second = trained(tiny)
    third = trained(tiny, seed=3)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
    assert any(
        not torch.equal(weight, third.state_dict()[name])
        for name, weight in first.state_dict().items()
    )


def test_a_view_that_nobody_is_asked_in_is_left_out():
    world = make_world(BASKETS)
    events = world.tables.interactions
    model = make_module(make_towers(world, make_data(world)).train())
    owned = fit(model, make_data(world, validation=events.head(9)), 1).callback_metrics
    assert "val_ndcg_novel" not in owned
    assert owned["val_ndcg"] == owned["val_ndcg_all"]


def test_the_rate_rises_then_falls_to_nothing():
    rates = [warm_cosine(step, 4, 20) for step in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[12] == pytest.approx(0.5)
    assert rates[20] == pytest.approx(0)


def test_started_tables_are_parameters_that_learn_slowly():
    world = make_world(BASKETS)
    towers = make_towers(world, make_data(world))
    model = make_module(towers)
    assert set(STARTED_TABLES) <= {name for name, _ in towers.named_parameters()}
    rate = model.recipe.learning_rate
    assert {*map(model.rate_of, STARTED_TABLES)} == {0.2 * rate}
    assert model.rate_of("user_tower.start_token") == rate


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("hour_of_day", 2e-3), ("day_of_week", 2e-3), ("month_of_year", 1e-2), ("week_of_year", 1e-2)],
)
def test_a_context_learns_faster_where_it_has_a_season_and_nothing_else_does(kind, expected):
    features = replace(ORDERED.features, context={"device": "categorical", "moment": kind})
    world = make_world(replace(ORDERED, features=features))
    towers = make_towers(world, make_data(world))
    model = make_module(towers, learning_rate=2e-3)
    rates = {name: model.rate_of(name) for name, _ in towers.named_parameters()}
    assert rates.pop("user_tower.context.table.weight") == expected
    assert {*rates.values()} == {2e-3}


@pytest.mark.parametrize(
    ("precision", "is_fused"),
    [("32-true", True), ("bf16-mixed", True), ("16-mixed", False)],
)
def test_the_optimiser_is_fused_unless_it_would_clip_gradients_that_are_still_scaled(
    precision, is_fused
):
    world = make_world(ORDERED)
    model = make_module(make_towers(world, make_data(world)))
    model._trainer = SimpleNamespace(
        precision=precision, estimated_stepping_batches=8, max_epochs=2
    )
    assert model.configure_optimizers()[0][0].defaults["fused"] is is_fused
