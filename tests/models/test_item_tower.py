from __future__ import annotations

import copy

import pytest
import torch
from datamodules.batch import WindowBatch
from models.features import FeatureEmbedding
from models.losses import (
    no_sparse,
    repeat_loss,
    softmax_loss,
    target_logits,
    window_loss,
)
from serve.kinds import PADDING, UNKNOWN, Feature
from tests.models.tiny_towers import make_module, make_towers
from tests.tiny_data import BASKETS, ORDERED, D, N, batches, make_data, make_world

WITHOUT_CONTENT = [N - 2, N - 1]


@pytest.fixture(scope="module", params=[ORDERED, BASKETS], ids=["ordered", "baskets"])
def side(request):
    world = make_world(request.param)
    data = make_data(world)
    batch = max(batches(data), key=lambda batch: len(batch.history_rows))
    return world, data, batch


def popularity_of(data) -> torch.Tensor:
    return torch.from_numpy(data.trends.popularity[-1])


def gradient(towers, loss: torch.Tensor) -> torch.Tensor:
    towers.zero_grad()
    loss.backward()
    return towers.item_tower.id_table.weight.grad.clone()  # (N, D)


def role_losses(towers, batch, popularity, role: str) -> torch.Tensor:
    """Compute the window loss where the item table is a variable in one role and a constant in the others."""
    items = towers.item_vectors(popularity)
    held = {
        name: items if name == role else items.detach()
        for name in ("history", "target", "negative")
    }
    users = towers.window_vectors(batch, held["history"])
    rows = batch.history_rows[batch.is_target]
    positions = torch.arange(len(rows))
    logits = target_logits(users, held["target"], positions, rows)
    return softmax_loss(
        users,
        held["negative"],
        no_sparse(users),
        logits,
        positions,
        torch.ones(len(rows)),
    )


def test_gradients_reach_the_item_table_through_each_role():
    world = make_world(ORDERED)
    data = make_data(world)
    batch, popularity, towers = (
        batches(data)[0],
        popularity_of(data),
        make_towers(world, data),
    )
    roles = {
        role: gradient(towers, role_losses(towers, batch, popularity, role))
        for role in ("history", "target", "negative")
    }
    items = towers.item_vectors(popularity)
    whole = gradient(towers, window_loss(towers.window_vectors(batch, items), items, batch))
    places = torch.arange(batch.history_rows.shape[1])
    last_target = torch.where(batch.is_target, places, -1).amax(dim=1, keepdim=True)
    wanted = {
        "history": set(
            batch.history_rows[places < last_target].tolist()
        ),  # what follows is nobody's past
        "target": set(batch.history_rows[batch.is_target].tolist()),
        "negative": set(range(N)),
    }
    for role, found in roles.items():
        assert set(found.abs().amax(dim=1).nonzero().flatten().tolist()) == wanted[role], role
    assert (sum(roles.values()) - whole).abs().max() <= 1e-5


def test_gradients_reach_the_item_table_through_history_and_memory():
    world = make_world(BASKETS)
    data = make_data(world)
    batch, towers = (
        max(batches(data), key=lambda batch: len(batch.owned_rows)),
        make_towers(world, data),
    )

    def loss(in_history: bool, in_memory: bool, in_scores: bool) -> torch.Tensor:
        items = towers.item_vectors(batch.popularity)
        history, memory, scored = (
            items if is_variable else items.detach()
            for is_variable in (in_history, in_memory, in_scores)
        )
        shifted = batch._replace(
            owned_rows=batch.owned_rows + N
        )  # the memory reads the second half
        users, bonus = towers.request_vectors(shifted, torch.cat([history, memory]))
        return repeat_loss(users, bonus, scored, batch)

    parts = [gradient(towers, loss(*(place == role for place in range(3)))) for role in range(3)]
    whole = gradient(towers, loss(True, True, True))
    assert all(part.abs().max() > 1e-4 for part in parts)
    assert (sum(parts) - whole).abs().max() <= 1e-5
    outside = torch.ones(N, dtype=torch.bool)
    outside[batch.owned_rows] = False
    assert parts[0][outside].abs().max() == 0
    assert parts[1][outside].abs().max() == 0


def test_id_dropout_drops_only_items_with_content(side):
    world, data, _ = side
    towers, popularity = make_towers(world, data).train(), popularity_of(data)
    tower = towers.item_tower
    share, tower.id_dropout = tower.id_dropout, 0.0
    complete = towers.item_vectors(popularity)
    tower.id_dropout = share
    placed = tower.content.embed_catalogue(towers.item_codes, towers.item_values)
    content = tower.complete(tower.normalise(placed), towers.categories, popularity)
    for seed in range(5):
        torch.manual_seed(seed)
        items = towers.item_vectors(popularity)
        is_kept = (items[:, :D] == complete[:, :D]).all(dim=1)
        assert torch.equal(items, torch.where(is_kept.unsqueeze(1), complete, content))
        assert is_kept[WITHOUT_CONTENT].all()
        assert is_kept[:-2].any()
        assert not is_kept.all()


def test_a_dropped_id_learns_in_no_role(side):
    world, data, batch = side
    towers = make_towers(world, data).train()
    drawn = []
    make_vectors = towers.item_vectors

    def spy(popularity):
        items = make_vectors(popularity)
        (grad,) = torch.autograd.grad(
            items[:, :D].sum(), towers.item_tower.id_table.weight, retain_graph=True
        )
        drawn.append((grad != 0).any(dim=1))
        return items

    towers.item_vectors = spy
    torch.manual_seed(3)
    step = make_module(towers)
    loss = step.window_step(batch) if isinstance(batch, WindowBatch) else step.request_step(batch)
    found = gradient(towers, loss).abs().amax(dim=1) > 0
    assert len(drawn) == 1
    assert torch.equal(found, drawn[0])


def test_cosine_makes_the_taste_part_unit_and_leaves_the_rest(side):
    world, data, _ = side
    popularity = popularity_of(data)
    plain = make_towers(world, data, "dot").item_vectors(popularity)
    unit = make_towers(world, data, "cosine").item_vectors(popularity)
    assert (unit[:, :D].norm(dim=1) - 1).abs().max() <= 1e-6
    assert (unit[:, :D] - plain[:, :D] / plain[:, :D].norm(dim=1, keepdim=True)).abs().max() <= 1e-6
    assert torch.equal(unit[:, D:], plain[:, D:])
    assert (plain[:, :D].norm(dim=1) - 1).abs().max() > 0.01


def test_what_is_unknown_says_nothing_before_training():
    features = (
        Feature("brand", "categorical", "brand", ("x", "y")),
        Feature("hour", "hour_of_day", "t", ("0", "1")),
    )
    embed = FeatureEmbedding(features, D)
    assert embed(torch.full((2, 2), UNKNOWN), torch.zeros(2, 0)).abs().max() == 0
    assert embed(torch.full((2, 2), PADDING), torch.zeros(2, 0)).abs().max() == 0


def test_a_catalogue_is_embedded_as_its_rows_are_with_the_same_gradient(side):
    world, data, _ = side
    towers = make_towers(world, data)
    content, weights = (
        towers.item_tower.content,
        torch.randn(N, D, generator=torch.Generator().manual_seed(4)),
    )
    gradients = []
    for embed in (content, content.embed_catalogue):
        found = embed(towers.item_codes, towers.item_values)
        gradients.append(
            [
                found,
                *torch.autograd.grad((found * weights).sum(), list(content.parameters())),
            ]
        )
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    copied = copy.deepcopy(content)  # sparse matrices are made again
    torch.testing.assert_close(
        copied.embed_catalogue(towers.item_codes, towers.item_values), gradients[0][0]
    )


def test_texts_and_vectors_are_embedded_in_training_as_in_what_is_exported():
    features = (
        Feature("title", "text", "title", width=5, buckets=8),
        Feature("image", "vector", "image", width=3),
        Feature("brand", "categorical", "brand", ("x", "y")),
    )
    embed = FeatureEmbedding(features, D)
    torch.nn.init.normal_(embed.table.weight)
    codes, values = (
        torch.tensor([[2, 9, 5, 0, 0, 3], [1, 0, 0, 0, 0, 2]]),
        torch.tensor([[0.5, -2, 0, 0], [0.0, 0, 0, 1]]),
    )
    words, brand, numbers = (
        embed.table.weight[:10],
        embed.table.weight[10:],
        embed.number_table,
    )
    first = (words[2] + words[9] + words[5]) / 3 + brand[3] + 0.5 * numbers[0] - 2 * numbers[1]
    expected = torch.stack([first, words[1] + brand[2] + numbers[3]])
    weights = torch.arange(2.0 * D).view(2, D)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), embed.table.weight)
    for is_training in (True, False):
        found = embed.train(is_training)(codes, values)
        assert (found - expected).abs().max() <= 1e-6
        (found_gradient,) = torch.autograd.grad((found * weights).sum(), embed.table.weight)
        assert (found_gradient - gradient).abs().max() <= 1e-5


def test_content_is_any_known_value():
    features = (
        Feature("title", "text", "title", width=2, buckets=4),
        Feature("price", "numeric", "price"),
        Feature("image", "vector", "image", width=3),
    )
    codes = torch.tensor([[1, 0], [2, 0], [1, 0], [1, 0], [1, 3]])
    values = torch.tensor([[0.0, 1, 0, 0, 0, 1]] * 5)
    values[2, 1] = 0.0  # a price of 0 is known
    values[3, 2:] = torch.tensor([0.0, 5, 0, 0])
    embed = FeatureEmbedding(features, D)
    assert embed.has_content(codes, values).tolist() == [False, True, True, True, True]
