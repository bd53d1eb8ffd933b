"""Fitting: what it leaves, how it goes on, what stops it, and training in 16 bits."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models.checkpoints import read_checkpoint
from models.fit import FIXED_MINUTES, MINUTES_A_PAIR, Estimate, fit
from models.two_tower import NDCG, TwoTower
from pytorch_lightning.callbacks import LambdaCallback
from serve.errors import SchemaError
from tests.models.tiny_towers import make_module, make_towers
from tests.tiny_data import BASKETS, ORDERED, hold_out, make_data, make_world

EPOCHS = 5
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
CONFIGS = [ORDERED, BASKETS]


def fit_tiny(folder: Path, config=ORDERED, patience: int | None = 2, origin=None, **options):
    """Fit the towers of the small shop; return the module and the epochs of its weights."""
    world, validation = hold_out(make_world(config))
    data = make_data(world, validation=validation if patience else validation.iloc[:0])
    model = make_module(make_towers(world, data).train(), learning_rate=0.05, max_epochs=EPOCHS)
    model.recipe = replace(model.recipe, patience=patience or 1)
    return model, fit(
        model,
        data,
        folder,
        "select",
        EPOCHS,
        {**QUIET, **options},
        origin or {"seed": 1},
    )[0]


def curve(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "select" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def count_steps(monkeypatch, stop_after: int | None = None) -> list[int]:
    """Count training steps from now on; the one after the last raises as a kill in the midst would end it."""
    steps: list[int] = []
    step = TwoTower.training_step

    def counted(self, batch, batch_idx):
        if len(steps) == stop_after:
            raise KeyError("killed")
        steps.append(self.current_epoch)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TwoTower, "training_step", counted)
    return steps


def assert_same(left: TwoTower, right: TwoTower) -> None:
    for name, weight in left.state_dict().items():
        assert torch.equal(weight, right.state_dict()[name]), name


@pytest.mark.parametrize("patience", [2, None])
def test_each_epoch_is_a_row_of_the_curves(tmp_path, patience):
    _, epochs = fit_tiny(tmp_path, patience=patience)
    rows = curve(tmp_path)
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    assert all(float(row["train_loss"]) > 0 for row in rows)
    if patience is None:
        assert len(rows) == epochs == EPOCHS
        assert rows[0].keys() == {"epoch", "step", "train_loss"}
    else:
        ndcg = [float(row["val_ndcg"]) for row in rows]
        recent = [np.mean(ndcg[max(0, end - 3) : end]) for end in range(1, len(ndcg) + 1)]
        np.testing.assert_allclose(
            [float(row["val_ndcg_recent"]) for row in rows], recent, rtol=1e-6
        )
        assert recent.index(max(recent)) + 1 == epochs
        assert len(rows) == min(EPOCHS, epochs + patience)


def test_a_training_that_had_stopped_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(
        TwoTower,
        "on_validation_epoch_end",
        lambda model: model.log(NDCG, 1 / (1 + model.current_epoch)),
    )
    model, epochs = fit_tiny(tmp_path, patience=1)
    rows = curve(tmp_path)
    assert (epochs, len(rows)) == (
        1,
        2,
    )  # it stopped by the validation, which only falls
    steps = count_steps(monkeypatch)
    again, same = fit_tiny(tmp_path, patience=1)
    assert steps == []
    assert same == epochs
    assert curve(tmp_path) == rows
    assert_same(model, again)


@pytest.mark.parametrize("config", CONFIGS, ids=["ordered", "baskets"])
def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path, config, monkeypatch):
    whole, epochs = fit_tiny(tmp_path / "whole", config, patience=9)
    per_epoch = len(make_data(hold_out(make_world(config))[0]).examples.plan(0, 0))
    with monkeypatch.context() as patch:
        count_steps(patch, stop_after=3 * per_epoch + 1)
        with pytest.raises(KeyError, match="killed"):
            fit_tiny(tmp_path / "here", config, patience=9)
    steps = count_steps(monkeypatch)
    resumed, same = fit_tiny(tmp_path / "here", config, patience=9)
    assert min(steps) == 3
    assert same == epochs
    assert curve(tmp_path / "here") == curve(tmp_path / "whole")
    assert_same(whole, resumed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"accelerator": "abacus"},
            "trainer: .*invalid accelerator name: `accelerator='abacus'`",
        ),
        (
            {"precision": "64-true"},
            r"trainer\.precision is '64-true'; allowed: 32-true, 16-mixed, bf16-mixed",
        ),
        (
            {"limit_train_batches": 0},
            r"ended before its first epoch or validation: see .*limit_train_batches",
        ),
        (
            {"patience": None, "limit_train_batches": 0},
            r"the training ended before its first epoch or validation: see",
        ),
    ],
)
def test_options_of_no_training_here_are_refused_in_one_line(tmp_path, options, message):
    with pytest.raises(SchemaError, match=message) as error:
        fit_tiny(tmp_path, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "form", [lambda one: [one], lambda one: (one,), lambda one: one, lambda one: None]
)
def test_callbacks_are_given_as_the_trainer_takes_them(tmp_path, form):
    """One alone, or None, was a traceback once the data was read."""
    begun: list[int] = []
    given = form(
        LambdaCallback(
            on_train_epoch_start=lambda trainer, module: begun.append(trainer.current_epoch)
        )
    )
    fit_tiny(tmp_path, patience=None, callbacks=given, max_epochs=2)
    assert begun == ([] if given is None else [0, 1])


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    fit_tiny(tmp_path)
    with pytest.raises(
        SchemaError, match=r"last\.ckpt is of another run: seed is 1 there and 2 here"
    ):
        fit_tiny(tmp_path, origin={"seed": 2})


@pytest.mark.parametrize("config", CONFIGS, ids=["ordered", "baskets"])
@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path, config, spoilt, monkeypatch):
    name = "window_step" if config is ORDERED else "request_step"
    losses = iter([1.0, 1.0, spoilt])
    real = getattr(TwoTower, name)
    monkeypatch.setattr(TwoTower, name, lambda self, batch: real(self, batch) * next(losses))
    message = f"the loss is {spoilt} in epoch 1, step 2: nothing is published; lower --model.learning_rate"
    with pytest.raises(FloatingPointError, match=message) as error:
        fit_tiny(tmp_path, config)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_graphics_card_without_room_is_a_lack_of_memory(tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(TwoTower, "training_step", fail)
    with pytest.raises(MemoryError, match="no room"):
        fit_tiny(tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    def spoil(self):
        self.towers.user_tower.start_token.data.fill_(float("nan"))

    monkeypatch.setattr(TwoTower, "on_train_epoch_end", spoil)
    with pytest.raises(
        FloatingPointError,
        match=r"after training 'towers\.user_tower\.start_token' is not finite",
    ):
        fit_tiny(tmp_path, patience=None, max_epochs=1)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_named_and_the_training_goes_on_when_there_is_room(
    tmp_path, call, monkeypatch
):
    whole, _ = fit_tiny(tmp_path / "whole")
    real, left = (
        getattr(os, call),
        iter(range(4)),
    )  # a curve and two checkpoints an epoch

    def fail(*arguments):
        if next(left, None) is None:
            raise OSError(
                28,
                "No space left on device",
                *([str(arguments[1])] if call == "replace" else []),
            )
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(
            OSError,
            match=r"No space left on device: '.*(best\.ckpt|metrics\.csv|last\.ckpt)'",
        ):
            fit_tiny(tmp_path / "full")
    assert not list(tmp_path.rglob("*.part"))
    assert read_checkpoint(tmp_path / "full" / "checkpoints" / "select" / "last.ckpt")["epoch"] == 0
    resumed, _ = fit_tiny(tmp_path / "full")
    assert_same(whole, resumed)


def make_trainer(**values) -> SimpleNamespace:
    known = {"num_training_batches": 40, "num_val_batches": [10], "max_epochs": 6}
    return SimpleNamespace(**known, **{"current_epoch": 0, "is_last_batch": False, **values})


def test_an_estimate_counts_both_trainings_by_their_steps_and_validations():
    low, high = Estimate(2, 15).bound(make_trainer(), step=0.5)
    rest = FIXED_MINUTES + MINUTES_A_PAIR * 15
    trainings = 2 * 6 * 0.5 * (40 + 0.3 * 10)
    assert (low, high) == pytest.approx((trainings / 2 + rest, trainings + rest))

    _, once = Estimate(1, 15).bound(make_trainer(), step=0.5)
    assert once == pytest.approx(trainings / 2 + rest)
    _, resumed = Estimate(2, 15).bound(make_trainer(current_epoch=4), step=0.5)
    assert resumed == pytest.approx(trainings / 3 + rest)


def test_an_estimate_is_printed_once_even_of_few_steps(capsys):
    estimate = Estimate(2, 15)
    for number in range(20):
        estimate.on_train_batch_end(make_trainer(is_last_batch=number % 5 == 4))
    assert capsys.readouterr().out.count("about") == 1
