"""The refinement that a validation chooses, and towers that it is applied to."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from datamodules.config import FeaturesConfig
from models.refine import (
    STRENGTH,
    Limits,
    Refinement,
    apply,
    build_weights,
    choose,
    list_estimators,
    list_plans,
)
from models.validation import add_up, mean_of_views, withhold
from serve.index import Neighbours
from tests.models.tiny_towers import make_towers, one_thread
from tests.tiny_data import (
    BASKETS,
    ORDERED,
    N,
    hold_out,
    make_data,
    make_set_world,
    make_world,
)

from models import item_item, refine, validation

SEED, LIMITS = 3, Limits(top_k=5)
LATER = ("next_by_time", "content", "trend", "popularity")  # usual values of 0
WORLDS = {
    "ordered": lambda: make_world(ORDERED),
    "baskets": lambda: make_world(BASKETS),
    "set": lambda: make_set_world(FeaturesConfig(item={"category": "categorical"})),
}


@pytest.fixture(scope="module", autouse=True)
def _alone():
    with one_thread():
        yield


@pytest.fixture(params=WORLDS)
def side(request):
    """Give towers and the data of their training, with a validation."""
    world, held_out = hold_out(WORLDS[request.param]())
    data = make_data(world, validation=held_out)
    return make_towers(world, data, "dot", n_blocks=0 if request.param == "set" else 1), data


def draw_weights(seed: int = 0) -> sp.csr_array:
    return sp.random_array(
        (N, N),
        density=0.3,
        format="csr",
        dtype=np.float32,
        rng=np.random.default_rng(seed),
    )


@pytest.mark.parametrize(("decay", "gain"), [(0.0, 0.0), (0.4, 0.0), (0.4, 3.0)])
def test_histories_add_what_serving_adds(side, decay, gain):
    towers, data = side
    weights = draw_weights()
    batches = [*data.drawn_requests(9), *data.validation_batches]
    assert len(batches) > 1
    for batch in batches:
        found = add_up(batch, weights, decay, gain)
        if towers.user_tower.memory is not None:  # items that the memory scores get nothing
            found = found.masked_fill(batch.mark_owned(N), 0.0)
        towers.neighbours = Neighbours(
            weights.indptr.astype(np.int64), weights.indices, weights.data, decay, gain
        )
        users = torch.zeros(len(found), 4)
        served = towers.score_items(users, torch.zeros(N, 4), batch)
        torch.testing.assert_close(found, served, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_best", [14, N])
def test_a_large_catalogue_is_ranked_by_what_may_be_listed_as_if_all_were_scored(
    side, monkeypatch, n_best
):
    towers, data = side
    weights = {"pairs": draw_weights(1), "trend": sp.csr_array(draw_weights(2)[[0]])}
    sparse = weights["pairs"].multiply(sp.random_array((N, N), density=0.2, rng=3) > 0)
    weights["pairs"] = sp.csr_array(sparse.astype(np.float32))
    trials = [{"pairs": 0.3, "trend": 0.0}, {"pairs": 2.0, "trend": 1.0}]
    figures = []
    for most in (N, N - 1):
        monkeypatch.setattr(validation, "MAX_RANKED", most)
        monkeypatch.setattr(validation, "N_BEST", n_best)
        with torch.no_grad():
            ranked = refine.Validation(towers, data.validation_batches)
            figures.append([ranked.figures, *ranked.rank(weights, trials, 0.3, 1.0)])
    assert sum(values.sum() for trial in figures[0] for values in trial.values()) > 0
    for whole, narrow in zip(*figures, strict=True):
        assert whole.keys() == narrow.keys()
        for view in whole:
            np.testing.assert_allclose(narrow[view], whole[view], rtol=1e-6)


def test_weights_count_by_how_much_the_scores_of_the_towers_vary(side):
    towers, data = side
    requests = list(data.drawn_requests(9))
    with torch.no_grad():
        named = {
            "drawn": lambda: draw_weights(),
            "longer": lambda: 7 * draw_weights(),
        }
        weights = build_weights(named, towers, requests, 0.0)
        products, added = [], []
        for batch in requests:
            items = towers.item_vectors(batch.popularity)
            compared = (
                ~batch.mark_owned(N)
                if towers.user_tower.memory is not None
                else torch.ones(len(batch[1]), N) > 0
            )
            products.append(
                (towers.request_vectors(batch, items)[0] @ items.T)[compared].var(correction=0)
            )
            added.append(add_up(batch, weights["drawn"], 0.0)[compared].var(correction=0))
    assert float(sum(added)) == pytest.approx(float(sum(products)), rel=1e-4)
    np.testing.assert_allclose(weights["longer"].data, weights["drawn"].data, rtol=1e-4)


def test_what_is_chosen_ranks_the_validation_best_and_changes_no_tower(side):
    towers, data = side
    before = copy.deepcopy(towers.state_dict())
    found = choose(towers, data, LIMITS, SEED)
    assert all(torch.equal(value, before[name]) for name, value in towers.state_dict().items())
    assert not len(towers.neighbours.rows)
    assert found == choose(towers, data, LIMITS, SEED)
    assert Refinement(**json.loads(json.dumps(asdict(found)))) == found


def test_shrinkage_that_ranks_no_better_is_not_chosen(side, monkeypatch):
    towers, data = side
    monkeypatch.setattr(refine.Shrinkage, "apply", lambda self, strength: None)
    assert choose(towers, data, LIMITS, SEED).content_events == 0.0


def test_applied_towers_rank_the_validation_as_was_said(side):
    towers, data = side
    found = choose(towers, data, LIMITS, SEED)
    apply(found, towers, data, LIMITS, SEED)
    with torch.no_grad():
        neighbours = towers.neighbours
        end = neighbours.offsets[-1]
        rows, weights = neighbours.rows, neighbours.weights
        matrix = sp.csr_array((weights[:end], rows[:end], neighbours.offsets), (N, N))
        trend = sp.csr_array((weights[end:], rows[end:], [0, len(rows) - end]), (1, N))
        ranked = refine.Validation(towers, data.validation_batches).rank(
            {"all": matrix, "trend": trend},
            [{"all": 1.0, "trend": 1.0}],
            found.decay,
            found.context_gain,
        )
    assert mean_of_views(ranked[0]) == pytest.approx(found.ndcg, abs=1e-6)


def test_an_estimator_that_knows_the_validation_is_trusted_and_one_of_noise_is_not(
    side, monkeypatch
):
    towers, data = side
    wanted = np.zeros((N, N), np.float32)
    for batch in data.validation_batches:
        for user, item in zip(batch.target_users.tolist(), batch.target_rows.tolist(), strict=True):
            wanted[batch.history_rows[user, : batch.arrays["history_lengths"][user]], item] = 1
    planted = {
        "known": lambda: sp.csr_array(wanted),
        "noise": lambda: draw_weights(1),
    }
    plan = replace(list_plans(data)[0], alphas={"known": 0.05, "noise": 0.05})
    monkeypatch.setattr(refine, "list_plans", lambda _: [plan])
    monkeypatch.setattr(refine, "list_estimators", lambda *_: planted)
    found = choose(towers, data, LIMITS, SEED)
    assert found.alphas["known"] >= 0.2 >= found.alphas["noise"]
    assert found.ndcg > 1.2 * found.ndcg_before


@pytest.mark.parametrize("tells", [True, False])
def test_events_in_the_context_of_the_request_count_more_where_that_ranks_better(tells):
    world, held_out = hold_out(WORLDS["set"]())
    data = make_data(world, validation=held_out)
    towers = make_towers(world, data, "dot", n_blocks=0)
    weights = draw_weights()
    rng = np.random.default_rng(3)
    for place, batch in enumerate(
        data.validation_batches
    ):  # targets are what some of the events suggest
        matches = torch.from_numpy(rng.integers(0, 2, batch.history_rows.shape)).float()
        batch.arrays["history_matches"] = matches
        scores = add_up(batch, weights, 0.0, 10.0 if tells else 0.0).masked_fill(
            batch.mark_owned(N), -torch.inf
        )
        data.validation_batches[place] = batch._replace(
            target_users=torch.arange(len(scores)),
            target_rows=scores.argmax(dim=1),
            target_weights=torch.ones(len(scores)),
            target_owned=torch.full((len(scores),), -1),
        )
    with torch.no_grad():
        validation = refine.Validation(towers, data.validation_batches)
    figures = validation.rank({"all": 1e4 * weights}, [{"all": 1.0}])[0]
    start = refine.Candidate(Refinement({"all": 1.0}), figures, {})
    found = refine._choose_gain(validation, {"all": 1e4 * weights}, start)
    assert (found.refinement.context_gain > 0) == tells


def test_items_that_go_together_in_no_order_are_found_where_events_have_one(
    monkeypatch,
):
    world, held_out = hold_out(make_world(ORDERED))
    data = make_data(world, validation=held_out)
    towers = make_towers(world, data, "dot")
    wanted = np.zeros((N, N), np.float32)
    for batch in data.validation_batches:
        for user, item in zip(batch.target_users.tolist(), batch.target_rows.tolist(), strict=True):
            # of the oldest event, which a decay forgets
            wanted[batch.history_rows[user, 0], item] = 1
    planted = {name: lambda: draw_weights(1) for name in ("next_item", "plateau")}
    monkeypatch.setattr(
        refine,
        "list_estimators",
        lambda *_: planted | {"ease": lambda: sp.csr_array(wanted)},
    )
    monkeypatch.setattr(refine, "PLAN_ERRORS", 0.0)  # there are few users
    found = choose(towers, data, LIMITS, SEED)
    assert (found.decay, found.alphas.keys()) == (0.0, {"ease", "plateau"})


def want(data, score):
    """Let each request of a validation want the highest of its scores (B, N) that it does not own."""
    for place, batch in enumerate(data.validation_batches):
        scores = score(batch).masked_fill(batch.mark_owned(N), -torch.inf)
        n_requests = len(scores)
        data.validation_batches[place] = batch._replace(
            target_users=torch.arange(n_requests),
            target_rows=scores.argmax(dim=1),
            target_weights=torch.ones(n_requests),
            target_owned=torch.full((n_requests,), -1),
        )


@pytest.mark.parametrize("gain", [0.02, 0.3])
@pytest.mark.parametrize("world", [ORDERED, BASKETS])
def test_popularity_ranks_alone_where_nothing_else_is_clearly_better_and_no_feature_tells(
    world, gain, monkeypatch
):
    compared = {"user": {"ndcg": 0.5, "without": 0.5 - gain, "error": 0.1}}
    monkeypatch.setattr(refine, "compare_sides", lambda *_: compared)
    world, held_out = hold_out(make_world(world))
    data = make_data(world, validation=held_out)
    towers = make_towers(world, data, "dot")
    # Less than thirty requests tell nothing.
    assert choose(towers, data, LIMITS, SEED).alphas != {"popularity": refine.ALONE}
    monkeypatch.setattr(validation, "MIN_REQUESTS", 1)
    counts = torch.bincount(torch.from_numpy(data.sequences.events.item_row), minlength=N)
    want(data, lambda batch: counts.float().expand(len(batch.history_rows), -1))
    found = choose(towers, data, LIMITS, SEED)
    assert (found.alphas == {"popularity": refine.ALONE}) == (gain < 0.1)
    if gain > 0.1:
        return
    untouched = copy.deepcopy(towers)
    apply(found, towers, data, LIMITS, SEED)
    batches = list(data.drawn_requests(9))
    assert batches
    for batch in batches:
        with torch.no_grad():
            items = towers.item_vectors(batch.popularity)
            users, memory = towers.request_vectors(batch, items)
            served = towers.score_items(users, items, batch)
            usual, of_owned = untouched.request_vectors(batch, items)
        # Scores are as large as those of the towers would be, whose own hardly count.
        assert served.std() < 2 * (usual @ items.T).std()
        torch.testing.assert_close(users * refine.ALONE, usual)
        if memory is not None:
            torch.testing.assert_close(memory * refine.ALONE, of_owned)
        is_more = counts[:, None] > counts
        assert (served[:, :, None] > served[:, None])[:, is_more].all()


def test_towers_stand_alone_where_what_is_added_ranks_lower(monkeypatch):
    world, held_out = hold_out(make_world(ORDERED))
    data = make_data(world, validation=held_out)
    towers = make_towers(world, data, "dot")

    def score(batch):
        items = towers.item_vectors(batch.popularity)
        return towers.request_vectors(batch, items)[0] @ items.T

    with torch.no_grad():
        want(data, score)
    noise = {name: lambda: draw_weights(1) for name in ("next_item", "plateau", "item_knn")}
    monkeypatch.setattr(refine, "list_estimators", lambda *_: noise)
    monkeypatch.setattr(refine, "ALPHAS", (0.05, 0.8))
    found = choose(towers, data, LIMITS, SEED)
    assert (found.alphas, found.ndcg) == ({}, pytest.approx(1.0))


def test_a_trend_counts_for_everybody_as_it_does_when_it_is_served():
    world, held_out = hold_out(make_world(ORDERED))
    data = make_data(world, validation=held_out)
    towers = make_towers(world, data, "dot")
    events, trend = (
        data.sequences.events,
        item_item.find_trend(data.sequences.events, len(data.catalogue)).toarray()[0],
    )
    weight = np.exp(
        -(events.time.max() - events.time)
        / (item_item.TREND_SHARE * (events.time.max() - events.time.min()))
    )
    recent = [np.log1p(weight[events.item_row == row].sum()) for row in range(N)]
    np.testing.assert_allclose(trend, np.array(recent) - min(recent), rtol=1e-5)
    apply(Refinement({"trend": 0.7}), towers, data, LIMITS, SEED)
    for batch in data.drawn_requests(9):
        served = towers.score_items(
            torch.zeros(len(batch.history_rows), 4), torch.zeros(N, 4), batch
        )
        expected = towers.neighbours.weights.sum() * trend / trend.sum()
        np.testing.assert_allclose(
            served.numpy(), np.tile(expected, (len(served), 1)), rtol=1e-4, atol=1e-7
        )


def test_popularity_counts_for_owned_items_too_as_it_does_when_it_is_served():
    world, held_out = hold_out(make_world(BASKETS))
    data = make_data(world, validation=held_out)
    towers = make_towers(world, data, "dot")
    counts = np.bincount(data.sequences.events.item_row, minlength=N)
    popular = sp.csr_array(np.log1p(counts).astype(np.float32)[None])
    estimate = list_estimators(data, LIMITS, SEED)["popularity"]
    stands_out = np.log1p(counts) - np.log1p(counts.min())
    np.testing.assert_allclose(estimate().toarray()[0], stands_out, rtol=1e-5, atol=1e-6)

    with torch.no_grad():
        validation = refine.Validation(towers, data.validation_batches)
    (figures,) = validation.rank({"popularity": 1e6 * popular}, [{"popularity": 1.0}])
    expected = []
    for batch in data.validation_batches:
        for user in range(len(batch.history_rows)):
            wanted = set(batch.target_rows[batch.target_users == user].tolist())
            if wanted:
                scores = counts + validation_noise(validation, batch, user)
                places = np.argsort(-scores, kind="stable")[:10].tolist()
                gain = sum(1 / np.log2(r + 2) for r, row in enumerate(places) if row in wanted)
                best = sum(1 / np.log2(r + 2) for r in range(min(10, len(wanted))))
                expected.append(gain / best)
    assert sum(expected) > 0
    np.testing.assert_allclose(figures["all"], expected, rtol=1e-5)


def validation_noise(validation, batch, user):
    """Return the scores of the towers, far below 1, by which equal counts are ordered."""
    place = next(i for i, one in enumerate(validation.batches) if one is batch)
    users, bonus = validation.users[place]
    scores = (users[user] @ validation.items.T).numpy().astype(float)
    is_mine = (batch.owned_users == user).numpy()
    np.add.at(scores, batch.owned_rows.numpy()[is_mine], bonus.numpy()[is_mine])
    return scores / 1e6


def test_a_bundle_ranks_owned_items_by_popularity_too():
    world, held_out = hold_out(make_world(BASKETS))
    data = make_data(world, validation=held_out)
    towers = make_towers(world, data, "dot")
    apply(Refinement({"popularity": 0.7}), towers, data, LIMITS, SEED)
    stands_out = list_estimators(data, LIMITS, SEED)["popularity"]().toarray()[0]
    batches = list(data.drawn_requests(9))
    assert sum(len(batch.owned_rows) for batch in batches)
    for batch in batches:
        users = torch.zeros(len(batch.history_rows), 4)
        served = towers.score_items(users, torch.zeros(N, 4), batch).numpy()
        share = served / stands_out.clip(1e-9)
        np.testing.assert_allclose(
            share[:, stands_out > 0], served.max() / stands_out.max(), rtol=1e-4
        )


def test_withheld_features_are_those_of_requests_that_never_had_them():
    world, held_out = hold_out(make_world(ORDERED))
    users = world.tables.users
    nameless = replace(world.tables, users=users[["user_id"]])
    bare = replace(world, tables=nameless)
    nowhere = held_out.assign(device=None)
    data = make_data(world, validation=held_out)
    for side, expected in [
        ("user", make_data(bare, validation=held_out)),
        ("context", make_data(world, validation=nowhere)),
    ]:
        pairs = zip(data.validation_batches, expected.validation_batches, strict=True)
        n_changed = 0
        for batch, other in pairs:
            declared = data.schema.features(side)
            arrays = withhold(batch, side, declared).arrays
            n_changed += int((arrays[f"{side}_codes"] != batch.arrays[f"{side}_codes"]).sum())
            first = 1 if side == "context" else None  # the time is stated all the same
            assert torch.equal(
                arrays[f"{side}_codes"][:, :first], other.arrays[f"{side}_codes"][:, :first]
            )
            assert torch.equal(arrays[f"{side}_values"], other.arrays[f"{side}_values"])
            assert side == "user" or not arrays["history_matches"].any()
        assert n_changed


def test_features_that_the_towers_do_not_read_make_no_difference(side):
    towers, data = side
    with torch.no_grad():
        for part in (towers.user_tower.demographics, towers.user_tower.context):
            part.table.weight.zero_()
            part.number_table.zero_()
    found = choose(towers, data, LIMITS, SEED).features
    expected = {"user", "context"} if data.schema.repeats == "exclude" else {"user"}
    declared = {name for name in expected if data.schema.features(name)}
    assert found.keys() == declared
    for name in declared - {"context"}:  # whose events in the same context may count
        assert found[name]["ndcg"] == found[name]["without"]


def test_without_a_validation_the_usual_values_are_taken(side):
    towers, data = side
    data.validation_batches = []
    found = choose(towers, data, LIMITS, SEED)
    assert found.ndcg is None
    assert all(alpha for name, alpha in found.alphas.items() if name not in LATER)
    assert (
        set(found.alphas)
        == list_plans(data)[0].alphas.keys() & list_estimators(data, LIMITS, SEED).keys()
    )
    assert found.content_events == (0.0 if data.schema.repeats == "allow" else STRENGTH)
    before = towers.item_tower.id_table.weight.clone()
    apply(found, towers, data, LIMITS, SEED)
    assert len(towers.neighbours.rows)
    assert towers.neighbours.decay == found.decay
    assert torch.equal(towers.item_tower.id_table.weight, before) == (not found.content_events)


def test_the_same_refinement_gives_the_same_bytes(side):
    towers, data = side
    chosen = Refinement(dict.fromkeys(list_estimators(data, LIMITS, SEED), 0.3), 0.4, 0.0)
    first, second = copy.deepcopy(towers), copy.deepcopy(towers)
    for one in (first, second):
        apply(chosen, one, data, LIMITS, SEED)
    assert first.neighbours.to_bytes() == second.neighbours.to_bytes()


def test_content_is_weighed_where_events_have_an_order_and_the_validation_wants_what_is_alike(side):
    towers, data = side
    estimators = list_estimators(data, LIMITS, SEED)
    assert ("content" in estimators) == data.trains_on_windows
    if data.trains_on_windows:
        alike = estimators["content"]()
        want(data, lambda batch: add_up(batch, alike, list_plans(data)[0].decay))
        found = choose(towers, data, LIMITS, SEED)
        assert found.alphas["content"] > 0
        assert found.ndcg > found.ndcg_before


def judge_naively(towers, batch, depth: int) -> list[float]:
    """Rank what a request does not own by the towers, one request after the other."""
    items = towers.item_vectors(batch.popularity)
    scores = (towers.request_vectors(batch, items)[0] @ items.T).numpy()
    found = []
    for user, values in enumerate(scores):
        owned = set(batch.owned_rows[batch.owned_users == user].tolist())
        wanted = set(batch.target_rows[batch.target_users == user].tolist()) - owned
        listed = [row for row in np.argsort(-values) if row not in owned][:depth]
        gain = sum(1 / np.log2(r + 2) for r, row in enumerate(listed) if row in wanted)
        found.append(gain / sum(1 / np.log2(r + 2) for r in range(min(depth, len(wanted)))))
    return found


@pytest.mark.parametrize(("n_targets", "depth"), [(1, 10), (3, 20)])
def test_sets_are_judged_to_the_depth_that_their_targets_need(n_targets, depth):
    world, held_out = hold_out(WORLDS["set"]())
    data = make_data(world, validation=held_out)
    towers = make_towers(world, data, "dot")
    batch = data.validation_batches[0]
    n_requests, rng = len(batch.history_rows), np.random.default_rng(0)
    free = (~batch.mark_owned(N)).numpy()
    assert free.sum(axis=1).min() > 10
    rows = [rng.choice(np.flatnonzero(one), n_targets, replace=False) for one in free]
    batch = batch._replace(
        target_users=torch.arange(n_requests).repeat_interleave(n_targets),
        target_rows=torch.from_numpy(np.concatenate(rows)),
    )
    with torch.no_grad():
        found = refine.Validation(towers, [batch]).figures["novel"]
        expected = judge_naively(towers, batch, depth)
        assert found == pytest.approx(expected, rel=1e-5)
        assert judge_naively(towers, batch, 10) != judge_naively(towers, batch, 20)


def test_owned_items_are_lifted_by_the_greatest_term_of_another_item_in_a_validation_too():
    world, held_out = hold_out(make_world(BASKETS))
    data = make_data(world, validation=held_out)
    towers = make_towers(world, data, "dot")
    weights = draw_weights().multiply(50).tocsr()
    with torch.no_grad():
        judge = refine.Validation(towers, data.validation_batches)
    (found,) = judge.rank({"pairs": weights}, [{"pairs": 1.0}])
    expected = []
    for batch, (users, memory) in zip(judge.batches, judge.users, strict=True):
        scores = users @ judge.items.T
        added = add_up(batch, weights, 0.0)
        is_owned = batch.mark_owned(N)
        for row, column in is_owned.nonzero().tolist():
            others = added[row][~is_owned[row]]
            scores[row, column] += max(float(others.max()), 0.0)
        scores += added.masked_fill(is_owned, 0.0)
        scores[batch.owned_users, batch.owned_rows] += memory
        wanted = torch.zeros_like(scores, dtype=torch.bool)
        wanted[batch.target_users, batch.target_rows] = True
        for row in range(len(scores)):
            listed = scores[row].argsort(descending=True)[:10].tolist()
            gains = [
                1 / np.log2(place + 2) for place, item in enumerate(listed) if wanted[row, item]
            ]
            best = [1 / np.log2(place + 2) for place in range(min(10, int(wanted[row].sum())))]
            expected.append(sum(gains) / sum(best))
    assert len(expected) > 5
    np.testing.assert_allclose(found["all"], expected, atol=1e-6)
