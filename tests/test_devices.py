"""Training on another device than the CPU: what is on it never meets what is not."""

from dataclasses import replace

import pytest
import torch

import train
from datamodules.config import FeaturesConfig
from models.validation import DEPTH, find_best_items
from tests.models.tiny_towers import one_thread
from tests.pipeline.killed_training import (
    DATA,
    FEATURES,
    MODEL,
    make_tables,
)
from tests.pretend_device import DEVICE, Elsewhere, pretended


@pytest.fixture(autouse=True)
def _alone():
    with one_thread():
        yield


def test_the_pretended_device_refuses_what_a_gpu_refuses(monkeypatch):
    with pretended(monkeypatch):
        there, here = torch.arange(3.0, device=DEVICE), torch.ones(3)
        for mix in (
            lambda: there + here,
            lambda: there.sum() * here,
            lambda: torch.cat([there, here]),
            lambda: here[there.long()],
            lambda: here.add_(there),
            lambda: there.index_put_((torch.tensor([0, 2]),), torch.ones(2)),
        ):
            with pytest.raises(RuntimeError, match="tensors of two devices"):
                mix()
        for convert in (there.numpy, there.__array__):
            with pytest.raises((TypeError, RuntimeError)):
                convert()


def test_it_computes_what_the_cpu_does(monkeypatch):
    with pretended(monkeypatch):
        there = torch.tensor([3.0, 1.0, 2.0], device=DEVICE).requires_grad_()
        made = (
            there,
            there * torch.tensor(2.0),
            there[torch.tensor([0, 2])],
            there.detach().clone().index_put_((torch.tensor([0, 2]),), torch.tensor(7.0)),
            there.new_tensor(5.0),
            there.detach() > 1,
        )
        assert all(isinstance(one, Elsewhere) for one in made)
        (there**2).sum().backward()
        assert there.grad.tolist() == [6, 2, 4]
        assert there.detach().cpu().numpy().tolist() == [3, 1, 2]
        assert (there.sum().item(), f"{there.detach().max():.1f}") == (6, "3.0")
        changed = there.detach().clone()
        assert changed.mul_(2) is changed
        assert torch.add(changed, 1, out=changed) is changed
        assert changed.tolist() == [7, 3, 5]


def test_the_best_of_a_large_catalogue_are_found_where_their_scores_are(monkeypatch):
    scores = torch.rand(3, 7 * DEPTH + 5, generator=torch.Generator().manual_seed(2))
    expected = find_best_items(scores, 4).tolist()
    with pretended(monkeypatch):
        found = find_best_items(scores.to(DEVICE), 4)
        assert isinstance(found, Elsewhere)
        assert found.tolist() == expected


PROTOCOLS = {
    "all items": (DATA["ordered"], MODEL),
    "sampled": (DATA["ordered"], replace(MODEL, negatives=8, in_batch_negatives=8)),
    "baskets": (DATA["baskets"], MODEL),
    "baskets, sampled": (
        replace(DATA["baskets"], repeats="exclude", features=FeaturesConfig()),
        replace(MODEL, negatives=8),
    ),
    "a set": (replace(DATA["ordered"], features=FEATURES), replace(MODEL, similarity="dot")),
}


def train_in(folder, name):
    folder.mkdir()
    data, model = PROTOCOLS[name]
    tables = make_tables(is_baskets="baskets" in name)
    if name == "a set":
        tables = (tables[0].drop(columns="datetime"), *tables[1:])
    trainer = {"enable_progress_bar": False}
    config = train.Config(data, replace(model, max_epochs=1), trainer, folder)
    cleaned, _ = train.read(config, tables, folder)
    config, _ = train.settle(config, cleaned)
    split = train.split_interactions(cleaned.interactions, config.data, config.seed)
    trained, _ = train.train(config, cleaned, split)
    return trained.towers.state_dict()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_training_elsewhere_is_that_of_the_cpu(tmp_path, monkeypatch, name):
    expected = train_in(tmp_path / "cpu", name)
    with pretended(monkeypatch):
        weights = train_in(tmp_path / "elsewhere", name)
    assert {weight.device.type for weight in weights.values()} == {"cpu"}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[key]) for key, weight in weights.items())
