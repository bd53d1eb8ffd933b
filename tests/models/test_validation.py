from __future__ import annotations

import numpy as np
import pytest
import torch
from datamodules import datamodule as interactions
from models.validation import Limit, is_better, join_figures, rank_views, request_ndcg
from tests.models.tiny_towers import make_module, make_towers
from tests.tiny_data import BASKETS, ORDERED, N, hold_out, make_data, make_world


def test_ndcg_of_requests_equals_a_loop():
    world, held_out = hold_out(make_world(BASKETS))
    (batch,) = make_data(world, validation=held_out).validation_batches
    generator = torch.Generator().manual_seed(3)
    users, items = (
        torch.randn(len(batch.history_rows), 5, generator=generator),
        torch.randn(N, 5, generator=generator),
    )
    bonus = torch.randn(len(batch.owned_rows), generator=generator)
    found = request_ndcg(users, bonus, items, batch)
    expected: dict[str, list[float]] = {"all": [], "novel": []}
    for b in range(len(users)):
        scores = (users[b] @ items.T).tolist()
        owned = batch.owned_rows[batch.owned_users == b].tolist()
        wanted = set(batch.target_rows[batch.target_users == b].tolist())
        mine = bonus[batch.owned_users == b].tolist()
        everything = [
            score + (mine[owned.index(row)] if row in owned else 0)
            for row, score in enumerate(scores)
        ]
        orders = {
            "all": (sorted(range(N), key=lambda row: -everything[row]), wanted),
            "novel": (
                sorted(set(range(N)) - set(owned), key=lambda row: -scores[row]),
                wanted - set(owned),
            ),
        }
        for view, (order, targets) in orders.items():
            gain = sum(
                1 / np.log2(rank + 2) for rank, row in enumerate(order[:10]) if row in targets
            )
            best = sum(1 / np.log2(rank + 2) for rank in range(min(10, len(targets))))
            expected[view] += [gain / best] if targets else []
    for view, values in expected.items():
        assert sum(values) > 0
        assert found[view].tolist() == pytest.approx(values)


@pytest.mark.parametrize("most", [1, 2])
def test_few_of_the_listed_items_share_a_value_where_that_is_limited(most):
    world, held_out = hold_out(make_world(ORDERED))
    (batch,) = make_data(world, validation=held_out).validation_batches
    generator = torch.Generator().manual_seed(most)
    scores = torch.randn(len(batch.history_rows), N, generator=generator)
    codes = torch.arange(N) % 4 - 1  # -1: without a value
    found = rank_views(scores.clone(), None, batch, 5, Limit(codes, most))["novel"]
    expected = []
    for b in range(len(scores)):
        owned = set(batch.owned_rows[batch.owned_users == b].tolist())
        wanted = set(batch.target_rows[batch.target_users == b].tolist()) - owned
        order = [row for row in scores[b].argsort(descending=True).tolist() if row not in owned]
        listed: list[int] = []
        for row in order:
            n_alike = sum(codes[row] == codes[other] for other in listed)
            if len(listed) < 5 and (codes[row] < 0 or n_alike < most):
                listed.append(row)
        gain = sum(1 / np.log2(rank + 2) for rank, row in enumerate(listed) if row in wanted)
        best = sum(1 / np.log2(rank + 2) for rank in range(min(5, len(wanted))))
        expected += [gain / best] if wanted else []
    assert sum(expected) > 0
    assert found.tolist() == pytest.approx(expected)
    assert found.tolist() != rank_views(scores, None, batch, 5)["novel"].tolist()


@pytest.mark.parametrize("config", [BASKETS, ORDERED], ids=["baskets", "ordered"])
def test_batches_of_a_validation_share_the_vectors_of_items(config, monkeypatch):
    monkeypatch.setattr(interactions, "REQUESTS_PER_BATCH", 2)
    world, held_out = hold_out(make_world(config))
    data = make_data(world, validation=held_out)
    towers = make_towers(world, data, "dot", n_blocks=1)
    module, found = make_module(towers), []
    assert len(data.validation_batches) > 1
    for _ in range(2):
        expected: dict[str, list[float]] = {}
        module.on_validation_epoch_start()
        with torch.no_grad():
            for place, batch in enumerate(data.validation_batches):
                module.validation_step(batch, place)
                items = towers.item_vectors(batch.popularity)
                users, bonus = towers.request_vectors(batch, items)
                for view, values in request_ndcg(users, bonus, items, batch).items():
                    expected.setdefault(view, []).extend(values.tolist())
        figures = join_figures(module.validation_figures)
        found.append({view: values.tolist() for view, values in figures.items()})
        assert found[-1].keys() == ({"all", "novel"} if config is BASKETS else {"novel"})
        assert found[-1] == {view: expected[view] for view in found[-1]}
        with torch.no_grad():
            towers.item_tower.id_table.weight.neg_()  # the next validation is of other items
    assert found[0] != found[1]


@pytest.mark.parametrize("n_novel", [0, 1, 5, 200])
def test_a_few_novel_targets_hide_no_gain_of_repeats_and_make_none(n_novel):
    rng = np.random.default_rng(n_novel)
    novel = rng.random(n_novel)
    plain = {"all": rng.random(2000) * 0.6, "novel": novel}
    better = {"all": plain["all"] + rng.normal(0.15, 0.3, 2000), "novel": novel}
    lucky = {"all": plain["all"] + rng.normal(0, 0.3, 2000) - 0.02, "novel": 1 + novel}
    assert is_better(better, plain, 1.0)
    assert is_better(lucky, plain, 1.0) == (n_novel == 200)
