from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from datamodules.config import FeaturesConfig
from models import blending
from models.blending import SHARES, Correlate, Judged, blend_in, choose_blend, pick
from models.correlated_history import CorrelatedHistory, CorrelatedOwned
from models.correlated_scores import ByVectors
from models.item_correlations import RIDGES, Factors
from models.jury import Figures
from models.pair_correlations import PairCorrelations
from models.towers import Towers
from models.trials import (
    BESIDE_MEMORY,
    KINDS,
    SETS,
    Blend,
    Kind,
    neighbours_of_events,
    neighbours_of_sets,
)
from models.validation import rank_views, request_ndcg
from models.yardstick import Yardstick
from tests.models.tiny_towers import make_towers, one_thread
from tests.tiny_data import BASKETS, ORDERED, N, hold_out, make_data, make_set_world, make_world

R = 5
FACTORS = torch.from_numpy(np.random.default_rng(3).normal(size=(N, R)).astype(np.float32))
LIFTING = FACTORS.abs()
"""With these all items go together, so that those that a user does not have rise."""
DIFFERENT = (LIFTING, -FACTORS.flip(0), FACTORS.flip(1), FACTORS)
SPREAD = torch.linspace(0.5, 1.5, N)


def rank(novel: float, every: float | None) -> Figures:
    """Rank the items of one user, who owns some if all items have a figure."""
    of_all = {} if every is None else {"all": np.array([every])}
    return Figures({"novel": np.array([novel])} | of_all)


@pytest.fixture(scope="module", autouse=True)
def _alone():
    with one_thread():
        yield


@pytest.fixture(params=["cosine", "dot", "a set", "repeats", "repeats by cosine"])
def side(request):
    """Give towers and their data; those of sets have popularity behind all else, those of repeats affinities too."""
    is_set, is_repeated = request.param == "a set", request.param.startswith("repeats")
    if is_set:
        world, held_out = hold_out(make_set_world(FeaturesConfig(item={"category": "categorical"})))
    else:
        world, held_out = hold_out(make_world(BASKETS if is_repeated else ORDERED))
    data = make_data(world, validation=held_out)
    similarity = "cosine" if "cosine" in request.param else "dot"
    return data, make_towers(world, data, similarity, n_blocks=0 if is_set else 2)


def make(factors: Tensor) -> Correlate:
    """Let correlations of any ridge have these factors."""
    return lambda ridge, decay: Factors(factors, SPREAD)


@torch.no_grad()
def score(towers: Towers, batch: RequestBatch) -> np.ndarray:
    """Score all items for each request."""
    items = towers.item_vectors(batch.popularity)  # (N, W)
    return (towers.request_vectors(batch, items)[0] @ items.T).numpy()  # (B, N)


def correlate(towers: Towers, batch: RequestBatch, kind: Kind) -> np.ndarray:
    """Score all items by the correlation part: by all of a history, or by all that a user owns."""
    factors, summed = FACTORS.numpy(), np.zeros((len(batch.history_rows), R))
    if kind == "covariances":
        factors = factors * SPREAD.numpy()[:, None]
    if has_memory(towers):
        return add_up(batch, factors) @ factors.T
    for user, length in enumerate(batch.arrays["history_lengths"].tolist()):
        rows = batch.history_rows[user, :length].numpy()
        summed[user] = factors[rows].sum(axis=0) / max(length, 1) ** 0.5
    return summed @ factors.T


def add_up(batch: RequestBatch, factors: np.ndarray) -> np.ndarray:
    """Sum the factors of all items that a user owns, (B, R)."""
    rows = [batch.owned_rows[batch.owned_users == user].numpy() for user in range(len(batch.history_rows))]
    return np.stack([factors[mine].sum(axis=0) / max(len(mine), 1) ** 0.5 for mine in rows])


def has_memory(towers: Towers) -> bool:
    return towers.user_tower.memory is not None


def take_out(towers: Towers) -> None:
    """Leave nothing blended in."""
    towers.item_tower.correlations = FACTORS[:, :0]
    towers.user_tower.correlated_history = towers.user_tower.correlated_owned = None


def changed(towers: Towers, scores: np.ndarray, batch: RequestBatch) -> np.ndarray:
    """Return the scores that correlations change: with a memory those of items that the user does not have."""
    is_owned = np.zeros(scores.shape, dtype=bool)
    is_owned[batch.owned_users, batch.owned_rows] = has_memory(towers)
    return scores[~is_owned]


def test_a_history_is_summed_up_to_its_length():
    rng = np.random.default_rng(1)
    parts, lengths = rng.normal(size=(4, 6, R)).astype(np.float32), [0, 1, 4, 6]
    found = CorrelatedHistory()(torch.from_numpy(parts), torch.tensor(lengths)).numpy()
    for history, length, summed in zip(parts, lengths, found, strict=True):
        assert np.allclose(summed, history[:length].sum(axis=0) / max(length, 1) ** 0.5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_correlations_count_by_their_share_of_what_scores_vary(side, kind):
    data, towers = side
    requests = list(data.drawn_requests(50))
    (batch,) = data.validation_batches
    plain = score(towers, batch)
    learned = [changed(towers, score(towers, one), one).var() for one in requests]
    correlated = [changed(towers, correlate(towers, one, kind), one).var() for one in requests]
    unit = np.sqrt(np.mean(learned) / np.mean(correlated))
    blend_in(towers, make(FACTORS), Blend(0.3, 0.0, RIDGES[0], kind), requests)
    expected = plain + 0.3 * unit * correlate(towers, batch, kind)
    assert np.allclose(score(towers, batch), expected, rtol=1e-4, atol=1e-4)
    assert not np.allclose(expected, plain, atol=0.05)


def test_nothing_is_blended_in_with_a_share_of_zero(side):
    data, towers = side
    blend_in(towers, make(FACTORS), Blend(0.0, 0.0, RIDGES[0], "correlations"), list(data.drawn_requests(9)))
    assert towers.user_tower.correlated_history is None
    assert towers.user_tower.correlated_owned is None
    assert towers.item_tower.history_dim == towers.item_tower.dim


def judge(towers: Towers, batches: list[RequestBatch]) -> float:
    """Validate towers as they are: by what is new, and where there is a memory by all items as much."""
    views = ("all", "novel") if has_memory(towers) else ("novel",)
    found: dict[str, list[float]] = {view: [] for view in views}
    with torch.no_grad():
        for batch in batches:
            items = towers.item_vectors(batch.popularity)
            users, bonus = towers.request_vectors(batch, items)
            measured = request_ndcg(users, bonus, items, batch)
            for view in views:
                found[view] += measured[view].tolist()
    return float(np.mean([np.mean(values) for values in found.values()]))


def test_each_blend_is_judged_as_it_ranks_once_it_is_blended_in(side, monkeypatch):
    data, towers = side
    requests, batches = list(data.drawn_requests(50)), data.validation_batches
    factors = {(ridge, 0.0): Factors(part, SPREAD) for ridge, part in zip(RIDGES, DIFFERENT, strict=True)}
    judged = {}

    def watch(found, none):
        judged.update(found)
        return pick(found, none)

    monkeypatch.setattr(blending, "pick", watch)
    trials = BESIDE_MEMORY if has_memory(towers) else SETS
    chosen = choose_blend(towers, lambda *asked: factors[asked], trials, requests, batches)
    tried, leads = {}, []
    for parts in [(0.0, 0.0, RIDGES[0], KINDS[0]), *itertools.product(SHARES, [0.0], RIDGES, KINDS)]:
        blend = Blend(*parts)
        blend_in(towers, lambda *asked: factors[asked], blend, requests)
        tried[blend] = judge(towers, batches)
        owned = towers.user_tower.correlated_owned
        leads.append(owned.lead if owned else 0.0)
        take_out(towers)
    assert {blend: figures.mean for blend, figures in judged.items()} == pytest.approx(tried)
    assert len(set(tried.values())) > 3  # they are told apart
    assert any(leads) == has_memory(towers)
    assert tried[chosen.blend] == pytest.approx(chosen.ndcg)


def test_a_blend_that_ranks_what_is_new_worse_is_not_chosen():
    none, small, large = (
        Blend(0.0, 0.0, 30.0, "correlations"),
        Blend(0.1, 0.0, 30.0, "correlations"),
        Blend(0.8, 0.0, 1000.0, "covariances"),
    )
    found = {none: rank(0.30, 0.50), small: rank(0.31, 0.50), large: rank(0.29, 0.60)}
    assert pick(found, none) == Judged(small, pytest.approx(0.405), pytest.approx(0.4))
    assert pick(found | {small: rank(0.29, None)}, none).blend == none
    assert pick({none: rank(0.30, None), small: rank(0.32, None)}, none) == Judged(small, 0.32, 0.30)


def test_of_blends_that_gain_nearly_as_much_the_smallest_share_is_chosen_and_the_best_of_it():
    none = Blend(0.0, 0.0, 30.0, "correlations")
    gains = {(0.1, 30.0): 0.0094, (0.2, 30.0): 0.0096, (0.2, 100.0): 0.0097, (0.4, 30.0): 0.01, (0.8, 300.0): 0.0099}
    found = {Blend(share, 0.0, ridge, "covariances"): rank(0.3 + gain, None) for (share, ridge), gain in gains.items()}
    assert pick(found | {none: rank(0.3, None)}, none) == Judged(Blend(0.2, 0.0, 100.0, "covariances"), 0.3097, 0.3)


def test_of_blends_that_gain_nearly_as_much_the_fewest_neighbours_are_chosen():
    none = Blend(0.0, 0.0, 30.0, "correlations")
    gains = {(256, 0.4): 0.0094, (256, 0.8): 0.0096, (1024, 0.2): 0.0097, (1024, 0.4): 0.01, (4096, 0.1): 0.0099}
    found = {
        Blend(share, 0.0, 30.0, "regressions", count): rank(0.3 + gain, None) for (count, share), gain in gains.items()
    }
    assert pick(found | {none: rank(0.3, None)}, none).blend == Blend(0.8, 0.0, 30.0, "regressions", 256)
    del found[Blend(0.8, 0.0, 30.0, "regressions", 256)]
    assert pick(found | {none: rank(0.3, None)}, none).blend == Blend(0.2, 0.0, 30.0, "regressions", 1024)


def test_correlations_that_know_what_comes_next_are_blended_in(side):
    data, towers = side
    (batch,) = data.validation_batches
    knowing = torch.zeros(N, N)  # each item goes with what its users take next
    for user, target in zip(batch.target_users.tolist(), batch.target_rows.tolist(), strict=True):
        history = batch.history_rows[user, : batch.arrays["history_lengths"][user]]
        knowing[history, target] += 1
        knowing[target, history] += 1
    values, columns = torch.linalg.eigh(knowing)  # (N,), (N, N)
    factors = columns * values.clamp(min=0).sqrt()  # (N, N)
    judged = choose_blend(towers, make(factors), SETS, list(data.drawn_requests(50)), [batch])
    assert judged.blend.share > 0
    assert judged.ndcg > judged.ndcg_alone


@pytest.fixture
def of_a_set():
    """Give the towers of a set, their data and their items pair by pair."""
    world, held_out = hold_out(make_set_world(FeaturesConfig(item={"category": "categorical"})))
    data = make_data(world, validation=held_out)
    pairs = np.random.default_rng(4).standard_normal((N - 1, N - 1)).astype(np.float32)
    made = PairCorrelations(pairs, np.random.default_rng(5).permutation(N)[:-1], N)
    return data, make_towers(world, data, "cosine", n_blocks=0), made


def count_pairs(made: PairCorrelations, batch: RequestBatch) -> np.ndarray:
    """Count, by their places in `made`, how often a target (columns) is taken after an item (rows) of the history."""
    counts = np.zeros(made.numbers.shape, np.float32)
    place_of = {row: place for place, row in enumerate(made.rows.tolist())}
    for user, target in zip(batch.target_users.tolist(), batch.target_rows.tolist(), strict=True):
        for item in batch.history_rows[user, : batch.arrays["history_lengths"][user]].tolist():
            if item in place_of and target in place_of:
                counts[place_of[item], place_of[target]] += 1
    return counts


@torch.no_grad()
def score_by_neighbours(made: PairCorrelations, blend: Blend, batch: RequestBatch) -> np.ndarray:
    """Add up, an item at a time, what items of a history say of their two neighbours."""
    neighbours, scores = made.find_neighbours(2), np.zeros((len(batch.history_rows), N))
    for user, length in enumerate(batch.arrays["history_lengths"].tolist()):
        counts = [np.exp(-blend.decay * later) for later in reversed(range(length))]
        for count, item in zip(counts, batch.history_rows[user, :length].tolist(), strict=True):
            for place in range(neighbours.offsets[item], neighbours.offsets[item + 1]):
                scores[user, neighbours.rows[place]] += count / sum(counts) ** 0.5 * neighbours.weights[place]
    return scores


@pytest.mark.parametrize(("kind", "decay"), [("regressions", 0.0), ("transitions", 0.4)])
def test_neighbours_count_by_their_share_of_what_scores_vary(of_a_set, kind, decay):
    data, towers, made = of_a_set
    requests, blend = list(data.drawn_requests(50)), Blend(0.3, decay, RIDGES[0], kind, 2)
    (batch,) = data.validation_batches
    plain, width = score(towers, batch), towers.item_tower.history_dim
    learned = np.mean([score(towers, one).var() for one in requests])
    told = np.mean([score_by_neighbours(made, blend, one).var() for one in requests])
    blend_in(towers, lambda ridge, decay: made, blend, requests)
    expected = plain + 0.3 * np.sqrt(learned / told) * score_by_neighbours(made, blend, batch)
    items = towers.item_vectors(batch.popularity)  # (N, W)
    users, _ = towers.request_vectors(batch, items)  # (B, W)
    np.testing.assert_allclose(towers.score_items(users, items, batch).detach(), expected, atol=1e-4)
    assert towers.item_tower.history_dim == width  # vectors are what they were


def test_the_ridge_and_share_of_neighbours_are_the_validations(of_a_set):
    data, towers, made = of_a_set
    (batch,) = data.validation_batches
    knowing = count_pairs(made, batch)
    by_ridge = {ridge: replace(made, numbers=-knowing) for ridge in RIDGES}
    by_ridge[RIDGES[2]] = replace(made, numbers=knowing)
    requests = list(data.drawn_requests(50))
    judged = choose_blend(towers, lambda ridge, _: by_ridge[ridge], neighbours_of_sets(N), requests, [batch])
    assert judged.blend.share > 0
    assert judged.blend.ridge == RIDGES[2]
    assert judged.blend.n_neighbours == N
    blend_in(towers, lambda ridge, _: by_ridge[ridge], judged.blend, requests)
    items = towers.item_vectors(batch.popularity)  # (N, W)
    users, _ = towers.request_vectors(batch, items)  # (B, W)
    ranked = rank_views(towers.score_items(users, items, batch), None, batch)
    assert ranked["novel"].mean() == pytest.approx(judged.ndcg)


def test_how_many_neighbours_is_the_validations_with_the_ridge_that_is_best(of_a_set):
    data, towers, made = of_a_set
    (batch,) = data.validation_batches
    telling = count_pairs(made, batch).clip(max=1)  # one number of each item tells, all others mislead
    telling = np.where(np.arange(N - 1) == telling.argmax(axis=1)[:, None], 3 * telling, -telling)
    asked = []

    def correlate(ridge, _):
        asked.append(ridge)
        return replace(made, numbers=telling * (ridge == RIDGES[1]))

    trials = replace(neighbours_of_sets(N), counts=[2, 1, N])
    judged = choose_blend(towers, correlate, trials, list(data.drawn_requests(50)), [batch])
    assert judged.blend.n_neighbours == 1
    assert judged.blend.ridge == RIDGES[1]
    assert asked == [*RIDGES[:3], RIDGES[1]]  # the third is worse than the second: larger ones are not tried


def test_the_users_that_scores_are_measured_by_have_events(side):
    data, _ = side
    strangers = sum(int((batch.arrays["history_lengths"] == 0).sum()) for batch in data.final_requests())
    (drawn,) = data.drawn_requests(50)
    assert strangers > 0
    assert (drawn.arrays["history_lengths"] > 0).all()
    assert len(drawn.history_rows) == len(data.sequences.user_ids) - strangers


def test_nothing_is_blended_in_where_correlations_say_the_same_of_all(side):
    data, towers = side
    requests = list(data.drawn_requests(50))
    blend_in(towers, make(torch.zeros(N, R)), Blend(0.3, 0.0, RIDGES[0], "correlations"), requests)
    assert towers.item_tower.history_dim == towers.item_tower.dim


def test_with_a_memory_only_what_users_do_not_have_shows_how_much_correlations_vary():
    world, _ = hold_out(make_world(BASKETS))
    data = make_data(world)
    towers, requests = make_towers(world, data, "dot"), list(data.drawn_requests(50))
    yardstick = Yardstick(towers, requests)
    assert yardstick.measure(ByVectors(CorrelatedOwned(), FACTORS)).unit > 0
    yardstick.is_owned = [torch.ones_like(is_owned) for is_owned in yardstick.is_owned]
    assert yardstick.measure(ByVectors(CorrelatedOwned(), FACTORS)).unit == 0


def test_where_nothing_new_is_taken_the_blend_is_the_usual_one(side):
    data, towers = side
    (batch,) = data.validation_batches
    owned = batch._replace(target_owned=torch.zeros_like(batch.target_owned))
    for validation in ([], [owned]):
        assert choose_blend(towers, make(FACTORS), SETS, [], validation) == Judged(SETS.usual)


def test_correlations_that_only_mislead_are_left_out(side):
    data, towers = side
    (batch,) = data.validation_batches
    targets = np.bincount(batch.target_rows.numpy(), minlength=N)
    misleading = torch.from_numpy(np.where(targets > 0, 0.0, 1.0).astype(np.float32))[:, None]  # (N, 1)
    judged = choose_blend(towers, make(misleading), SETS, list(data.drawn_requests(50)), [batch])
    assert judged.blend.share == 0
    assert judged.ndcg == judged.ndcg_alone


@pytest.mark.parametrize(
    "trials",
    [
        SETS,
        BESIDE_MEMORY,
        neighbours_of_sets(7),
        neighbours_of_sets(999),
        neighbours_of_events(7, is_long=False),
        neighbours_of_events(7, is_long=True),
    ],
)
def test_what_is_usual_is_a_little_and_one_of_what_is_tried(trials):
    assert 0 < trials.usual.share < max(SHARES)
    assert trials.usual.ridge in trials.ridges
    assert trials.usual.kind in trials.kinds
    assert trials.usual.decay in trials.decays
    assert trials.usual.n_neighbours == trials.counts[0]


@pytest.mark.parametrize(("most", "counts"), [(1024, [256, 1024]), (257, [256, 257]), (256, [256]), (5, [5])])
def test_the_most_neighbours_of_sets_are_tried_beside_what_is_usual(most, counts):
    assert neighbours_of_sets(most).counts == counts


@pytest.mark.parametrize("best", [(100.0, 0.2), (300.0, 0.05)])
def test_events_count_in_a_history_as_the_transitions_were_fitted_that_are_best(of_a_set, best):
    data, towers, made = of_a_set
    (batch,) = data.validation_batches
    knowing = count_pairs(made, batch)
    asked = []

    def correlate(*fit):
        asked.append(fit)
        return replace(made, numbers=knowing if fit == best else -knowing)

    requests = list(data.drawn_requests(50))
    judged = choose_blend(towers, correlate, neighbours_of_events(N, is_long=True), requests, [batch])
    assert (judged.blend.ridge, judged.blend.decay) == best
    assert sorted(pair for pair in asked if pair[1]) == list(itertools.product([100.0, 300.0], [0.05, 0.1, 0.2]))
    asked.clear()
    blend_in(towers, correlate, judged.blend, requests)
    assert asked == [best]
    assert towers.neighbours.decay == best[1]


@pytest.mark.parametrize("is_long", [False, True])
def test_an_order_may_say_nothing(of_a_set, is_long):
    data, towers, made = of_a_set
    (batch,) = data.validation_batches
    knowing = count_pairs(made, batch)
    asked = []

    def correlate(ridge, decay):
        asked.append((ridge, decay))
        return replace(made, numbers=knowing if (ridge, decay) == (RIDGES[1], 0.0) else -knowing)

    judged = choose_blend(towers, correlate, neighbours_of_events(N, is_long), list(data.drawn_requests(50)), [batch])
    assert judged.blend == Blend(judged.blend.share, 0.0, RIDGES[1], "regressions", N)
    assert asked[:3] == [(ridge, 0.0) for ridge in RIDGES[:3]]  # the third is worse than the second
    assert all(decay > 0 for _, decay in asked[3:])


def test_what_comes_next_is_told_unless_what_goes_together_is_worth_more():
    none, after = Blend(0.0, 0.2, 9.0, "transitions"), Blend(0.8, 0.2, 9.0, "transitions")
    beside = Blend(0.1, 0.0, 9.0, "regressions")
    for figure, best in [(0.295, after), (0.28, beside)]:
        found = {none: 0.1, after: figure, beside: 0.3}
        assert pick({blend: rank(ndcg, None) for blend, ndcg in found.items()}, none).blend == best


@torch.no_grad()
def score_all(towers: Towers, batch: RequestBatch) -> tuple[np.ndarray, np.ndarray]:
    """Score all items (B, N), owned ones by all that there is, and mark those (B, N)."""
    items = towers.item_vectors(batch.popularity)  # (N, W)
    users, bonus = towers.request_vectors(batch, items)  # (B, W), (E,)
    scores = (users @ items.T).numpy()  # (B, N)
    is_owned = np.zeros(scores.shape, dtype=bool)
    pairs = batch.owned_users.numpy(), batch.owned_rows.numpy()
    is_owned[pairs] = True
    scores[pairs] += bonus.numpy()
    return scores, is_owned


def count_owned_places(scores: np.ndarray, is_owned: np.ndarray) -> int:
    best = np.argsort(-scores, axis=1)[:, :10]
    return int(np.take_along_axis(is_owned, best, axis=1).sum())


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_owned_items_keep_their_order_and_lists_hold_as_many_of_them(similarity):
    world, held_out = hold_out(make_world(BASKETS))
    data = make_data(world, validation=held_out)
    towers = make_towers(world, data, similarity)
    requests = list(data.drawn_requests(50))
    before = [score_all(towers, batch) for batch in requests]
    blend_in(towers, make(LIFTING), Blend(3.0, 0.0, RIDGES[0], "correlations"), requests)
    after = [score_all(towers, batch) for batch in requests]
    without = []
    for batch, (old, is_owned), (new, _) in zip(requests, before, after, strict=True):
        leads = np.where(is_owned, new - old, 0)
        ratios = leads / np.linalg.norm(add_up(batch, LIFTING.numpy()), axis=1, keepdims=True)
        assert np.allclose(ratios[is_owned], ratios[is_owned][0], rtol=1e-3, atol=1e-3)
        without.append((new - leads, is_owned))
    wanted, found, unled = (sum(count_owned_places(*one) for one in scored) for scored in (before, after, without))
    assert abs(found - wanted) <= 1  # places are whole
    assert unled < wanted - 10


def test_owned_items_are_summed_for_their_owners():
    rng = np.random.default_rng(2)
    parts, owners = rng.normal(size=(7, R)).astype(np.float32), np.array([0, 0, 0, 2, 2, 3, 3])
    side = CorrelatedOwned(0.5)
    summed = side(torch.from_numpy(parts), torch.from_numpy(owners), 5)
    for user in range(5):
        mine = parts[owners == user]
        assert np.allclose(summed[user], mine.sum(axis=0) / max(len(mine), 1) ** 0.5, atol=1e-5)
    change = side.change(summed, torch.from_numpy(parts), torch.from_numpy(owners)).numpy()
    sums = summed.numpy()[owners]
    assert np.allclose(change, 0.5 * np.linalg.norm(sums, axis=1) - (sums * parts).sum(axis=1), atol=1e-5)


def test_users_without_items_have_no_correlations(side):
    data, towers = side
    blend_in(towers, make(FACTORS), Blend(0.5, 0.0, RIDGES[0], "correlations"), list(data.drawn_requests(50)))
    dim = towers.item_tower.dim
    with torch.no_grad():
        for batch in data.final_requests():
            items = towers.item_vectors(batch.popularity)
            users, _ = towers.request_vectors(batch, items)
            is_empty = batch.arrays["history_lengths"] == 0
            assert is_empty.any()
            assert not users[is_empty, dim : dim + R].any()
            assert users[~is_empty, dim : dim + R].any(dim=1).all()
