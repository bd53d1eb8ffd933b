"""Row-wise updates against the same update written over the whole table, and what a step leaves alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from models.sampled_softmax import NegativeSampler
from models.two_tower import ID_TABLE, RowWiseAdamW, TwoTower, clip_norm
from pytorch_lightning.callbacks import ModelCheckpoint
from tests.models.tiny_towers import RECIPE, make_towers
from tests.tiny_data import ORDERED, hold_out, make_data, make_world
from torch import nn

from models import two_tower

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # within Lightning
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]
R, D, STEPS, RATE = 11, 3, 9, 0.1
DRAWN = torch.Generator().manual_seed(0)


def draw_steps() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Draw rows, some of them twice, and the weight of each in the loss."""
    steps = []
    for _ in range(STEPS):
        rows = torch.randint(R - 2, (5,), generator=DRAWN)  # the last two are never touched
        steps.append((rows, torch.randn(5, D, generator=DRAWN)))
    return steps


def dense_adagrad(table: torch.Tensor, steps) -> torch.Tensor:
    """Update the whole table in every step by a dense gradient; rows of no gradient stay."""
    table = table.clone()
    summed = torch.zeros(R)
    for rows, weights in steps:
        gradient = torch.zeros(R, D)
        for row, weight in zip(rows.tolist(), weights, strict=True):
            gradient[row] += weight * table[row].cos()
        summed += (gradient**2).sum(dim=1) / D
        root = torch.where(summed > 0, summed, 1).sqrt()
        table -= RATE * gradient / root.unsqueeze(1)
    return table


def test_touched_rows_are_those_of_the_dense_twin_and_the_others_stay():
    embedding = nn.Embedding(R, D, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = RowWiseAdamW(embedding.parameters(), lr=RATE)
    steps = draw_steps()
    expected = dense_adagrad(before, steps)
    for rows, weights in steps:
        optimizer.zero_grad()
        (embedding(rows).sin() * weights).sum().backward()
        optimizer.step()
    found = embedding.weight.detach()
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(found[-2:], before[-2:])
    assert not torch.allclose(found[:-2], before[:-2], atol=1e-2)


def test_dense_parameters_get_the_steps_of_adamw():
    weights = {"lr": RATE, "betas": (0.9, 0.98), "weight_decay": 0.01}
    ours = nn.Linear(D, 1)
    theirs = copy.deepcopy(ours)
    pairs = (
        (ours, RowWiseAdamW(ours.parameters(), **weights)),
        (
            theirs,
            torch.optim.AdamW(theirs.parameters(), **weights),
        ),
    )
    for seed in range(3):
        inputs = torch.randn(4, D, generator=torch.Generator().manual_seed(seed))
        for layer, optimizer in pairs:
            optimizer.zero_grad()
            layer(inputs).square().sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_sparse_gradients_are_clipped_as_dense_ones(max_norm):
    models = []
    for is_sparse in (True, False):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Embedding(R, D, sparse=is_sparse), nn.Linear(D, 2))
        model(torch.tensor([1, 4, 4, 7])).square().sum().backward()
        clip_norm(model, max_norm)
        models.append(model)
    ours, theirs = ([parameter.grad for parameter in model.parameters()] for model in models)
    assert ours[0].is_sparse
    for found, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(found.to_dense(), expected, atol=1e-7)


@pytest.fixture
def row_wise(monkeypatch):
    monkeypatch.setattr(two_tower, "MANY_ROWS", 1)
    world, validation = hold_out(make_world(ORDERED))
    data = make_data(world, validation=validation)

    def make_model() -> TwoTower:
        towers = make_towers(world, data).train()
        counts = torch.from_numpy(data.count_targets())
        return TwoTower(towers, replace(RECIPE, negatives=2), NegativeSampler.make(2, counts), 0)

    return make_model, data


def fit(model: TwoTower, data, max_epochs: int, folder, start=None, **options) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        callbacks=[ModelCheckpoint(folder, "last", save_on_train_epoch_end=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        **options,
    )
    trainer.fit(model, data, ckpt_path=start)
    return trainer


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_changes_only_the_rows_it_needs(row_wise, tmp_path, precision):
    make_model, data = row_wise
    model = make_model()
    before = model.towers.item_tower.id_table.weight.detach().clone()
    needed = []
    original = model.towers.some_item_vectors
    model.towers.some_item_vectors = lambda rows, nothing: (
        needed.append(rows) or original(rows, nothing)
    )
    fit(model, data, 1, tmp_path, precision=precision, limit_train_batches=1, limit_val_batches=0)
    changed = (model.towers.item_tower.id_table.weight != before).any(dim=1)
    assert 0 < changed.sum() < len(before)
    assert set(changed.nonzero().flatten().tolist()) <= set(needed[0].tolist())


def test_a_resumed_training_ends_with_the_same_bytes(row_wise, tmp_path):
    make_model, data = row_wise
    whole = make_model()
    fit(whole, data, 2, tmp_path / "whole")
    fit(make_model(), data, 1, tmp_path / "half")
    resumed = make_model()
    fit(resumed, data, 2, tmp_path / "half", start=tmp_path / "half" / "last.ckpt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_the_table_keeps_one_number_a_row_and_rates_follow_the_schedule(row_wise, tmp_path):
    make_model, data = row_wise
    model = make_model()
    trainer = fit(model, data, 1, tmp_path)
    table = model.towers.item_tower.id_table.weight
    optimizer = trainer.optimizers[0]
    state = optimizer.state[table]
    assert sum(value.numel() for value in state.values()) <= len(table) + 1
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    others = rates[id(model.towers.user_tower.start_token)]
    assert rates[id(table)] == pytest.approx(two_tower.ROW_RATE * others)
    assert model.rate_of(ID_TABLE) == two_tower.ROW_RATE * model.recipe.learning_rate


def test_small_tables_and_the_whole_softmax_keep_dense_gradients(row_wise, tmp_path, monkeypatch):
    make_model, data = row_wise
    model = make_model()
    monkeypatch.setattr(two_tower, "MANY_ROWS", model.towers.n_items + 1)
    fit(model, data, 1, tmp_path)
    assert not model.towers.item_tower.id_table.sparse
    monkeypatch.setattr(two_tower, "MANY_ROWS", 1)
    model = TwoTower(make_model().towers, RECIPE, None, 0)
    fit(model, data, 1, tmp_path / "whole")
    assert not model.towers.item_tower.id_table.sparse
