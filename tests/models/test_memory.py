from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from datamodules.batch import Tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from models.config import TEMPERATURE
from models.memory import (
    FIRST_TASTE,
    PRIOR_EVENTS,
    Memory,
    MemorySample,
    Standardise,
)
from serve.events import (
    USER_STATISTICS,
    Events,
    owned_arrays,
    statistic_names,
    summarise_owned,
)
from tests.models.tiny_towers import RECIPE
from tests.tiny_data import BASKETS, DAY, FIRST, A, D, N, draw_events, make_world

DECAYS = (2.0, 5.0, 40.0, 90.0)
TYPES = ("view", "buy")
P, Q = 2, 9  # popularity entries, categories
RATES = np.linspace(-1, 1, N).astype(np.float32)
SCHEMA = make_world(BASKETS).schema


def lists_by_item(events: Events, user: int) -> dict[int, list[tuple[int, int]]]:
    """Return (time, event code) of each of a user's items, oldest first."""
    found = defaultdict(list)
    for place in range(events.offsets[user], events.offsets[user + 1]):
        found[int(events.item_row[place])].append(
            (int(events.time[place]), int(events.event[place]))
        )
    return dict(sorted(found.items()))


def days(later: int, earlier: int) -> float:
    return max(later - earlier, 0) / DAY


def naive_statistics(
    happened: list[tuple[int, int]], moment: int, n_events: int, row: int
) -> dict[str, float]:
    since = [days(moment, time) for time, _ in happened]
    count, last, first = len(since), since[-1], since[0]
    gap = (first - last) / (count - 1) if count > 1 else 0.0
    values = {
        **{f"decayed_{c:g}": math.log(sum(math.exp(-s / c) for s in since) + 0.01) for c in DECAYS},
        "count": math.log(1 + count),
        "since_last": math.log(1 + last),
        "since_first": math.log(1 + first),
        "is_repeated": float(count > 1),
        "due": math.log((last + 1) / (gap + 1)) if count > 1 else 0.0,
        "mean_gap": math.log(1 + gap),
        "just_bought": math.exp(-last / (0.7 * DECAYS[0])),
        "share": math.log(count / n_events),
        "repeat_rate": float(RATES[row]),
    }
    types = {
        f"event_{name}": sum(code == 2 + i for _, code in happened) for i, name in enumerate(TYPES)
    }
    return values | {name: math.log(1 + number) for name, number in types.items()}


def naive_user(happened: dict[int, list[tuple[int, int]]], moment: int) -> dict[str, float]:
    times = [time for mine in happened.values() for time, _ in mine]
    recent = [time for time in times if days(moment, time) < DECAYS[1]]
    values = {
        "items": len(happened),
        "recent_events": len(recent),
        "events": len(times),
        "recent_visits": len(set(recent)),
        "days_since_visit": days(moment, max(times)) if times else 0.0,
        "days_of_membership": days(moment, min(times)) if times else 0.0,
    }
    return {name: math.log(1 + value) for name, value in values.items()}


counts_of_users = st.lists(st.integers(0, 9), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(counts=counts_of_users, seed=st.integers(0, 1000))
def test_statistics_equal_a_loop_over_users_and_items(counts, seed):
    rng = np.random.default_rng(seed)
    events = draw_events(counts, SCHEMA, rng)
    moment = FIRST + DAY * rng.integers(0, 30, len(counts))  # some events come after it
    owned = summarise_owned(events, moment, DECAYS, len(TYPES), RATES)
    by_user = [lists_by_item(events, user) for user in range(len(counts))]
    pairs = [(user, row) for user, mine in enumerate(by_user) for row in mine]
    assert list(zip(owned.user.tolist(), owned.item_row.tolist(), strict=True)) == pairs
    assert owned.statistics.shape == (len(pairs), len(statistic_names(DECAYS, TYPES)))
    for line, preference, (user, row) in zip(
        owned.statistics, owned.preference, pairs, strict=True
    ):
        mine = by_user[user][row]
        expected = naive_statistics(mine, int(moment[user]), counts[user], row)
        found = dict(zip(statistic_names(DECAYS, TYPES), line.tolist(), strict=True))
        assert found == pytest.approx(expected, abs=1e-5)
        decayed = sum(math.exp(-days(int(moment[user]), time) / DECAYS[2]) for time, _ in mine)
        assert preference == pytest.approx(math.log(1 + 3 * decayed), abs=1e-5)
    for line, mine, at in zip(owned.user_statistics, by_user, moment.tolist(), strict=True):
        assert dict(zip(USER_STATISTICS, line.tolist(), strict=True)) == pytest.approx(
            naive_user(mine, at), abs=1e-5
        )


OWNED = ("owned_vectors", "owned_statistics", "owned_preferences")
OF_USER = ("user_statistics", "category_preferences")


def make_inputs(seed: int = 2) -> tuple[Tensors, Events, np.ndarray]:
    rng = np.random.default_rng(seed)
    events = draw_events([17, 0, 9, 13], SCHEMA, rng)
    moment = np.full(4, FIRST + 60 * DAY)
    owned = summarise_owned(events, moment, DECAYS, len(TYPES), RATES)
    arrays = owned_arrays(owned, rng.integers(0, Q, (N, 1)), Q)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    vectors = torch.from_numpy(rng.normal(size=(N, D + A + P)).astype(np.float32))
    tensors["owned_vectors"] = vectors[owned.item_row]
    return tensors, events, owned.item_row


def make_memory(inputs: Tensors, similarity: str = "dot") -> Memory:
    schema = replace(SCHEMA, decay_days=DECAYS, popularity_days=(1.0, 7.0))
    sample = MemorySample(
        inputs["owned_statistics"], inputs["user_statistics"], inputs["category_preferences"]
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        memory = Memory(schema, replace(RECIPE, similarity=similarity), A, sample)
    return memory.requires_grad_(False)


def test_statistics_are_counted_in_standard_deviations_and_extreme_ones_as_five_of_them():
    rows = np.random.default_rng(9).normal(3, 2, (11, 3)).astype(np.float32)
    rows[:, 1] = 7  # of no deviation: its own difference from the mean
    asked = np.array([[1, 7, 4], [1e6, 9, -1e6], [3, -1e6, 2]], np.float32)
    scale = np.where(rows.std(axis=0) > 0, rows.std(axis=0), 1)
    expected = np.clip((asked - rows.mean(axis=0)) / scale, -5, 5)
    assert Standardise(torch.from_numpy(rows))(torch.from_numpy(asked)).numpy() == pytest.approx(
        expected, abs=1e-5
    )


def randomise(memory: Memory) -> Memory:
    generator = torch.Generator().manual_seed(5)
    for parameter in memory.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return memory


@pytest.mark.parametrize("decay", range(len(DECAYS)))
def test_memory_set_to_it_ranks_as_decayed_personal_frequency(decay):
    inputs, events, rows = make_inputs()
    memory = make_memory(inputs)
    memory.skip.weight.zero_()
    memory.skip.weight[0, decay] = 0.5
    generator = torch.Generator().manual_seed(6)
    users = torch.randn(4, D + A + P, generator=generator)
    scores = memory.score_owned(torch.randn(4, D, generator=generator), users, inputs)
    total = scores + (users[inputs["owned_users"]] * inputs["owned_vectors"]).sum(dim=1)
    assert max(len(lists_by_item(events, user)) for user in range(4)) > 1
    for user in range(4):
        mine = inputs["owned_users"] == user
        naive = {
            row: sum(
                math.exp(-days(FIRST + 60 * DAY, time) / DECAYS[decay]) for time, _ in happened
            )
            for row, happened in lists_by_item(events, user).items()
        }
        found = dict(zip(rows[mine].tolist(), total[mine].tolist(), strict=True))
        for one in naive:
            for other in naive:
                if math.log(naive[one] + 0.01) > math.log(naive[other] + 0.01) + 1e-3:
                    assert found[one] > found[other]


def test_memory_starts_as_a_rising_function_of_every_decayed_count():
    inputs, _, _ = make_inputs()
    memory, state = make_memory(inputs), torch.zeros(4, D)
    vectors = torch.zeros(4, D + A + P)
    before = memory.score_owned(state, vectors, inputs)
    assert before.mean() == pytest.approx(4, abs=0.5)  # they begin above most of what is not owned
    for decay in range(len(DECAYS)):
        statistics = inputs["owned_statistics"].clone()
        statistics[:, decay] += 0.1 * memory.standardise.scale[decay]
        raised = inputs | {"owned_statistics": statistics}
        assert (memory.score_owned(state, vectors, raised) > before).all()


def test_a_start_says_the_same_in_logits_whatever_their_unit():
    inputs, _, _ = make_inputs()
    generator = torch.Generator().manual_seed(10)
    taste, users = (
        torch.randn(4, D, generator=generator),
        torch.randn(4, D + A + P, generator=generator),
    )
    (plain, small), unit = (
        (make_memory(inputs, one) for one in ("dot", "cosine")),
        TEMPERATURE,
    )
    expected = unit * plain.complete_vector(taste, inputs)
    assert small.complete_vector(unit * taste, inputs) == pytest.approx(expected, abs=1e-6)
    expected = unit * plain.score_owned(taste, users, inputs)
    assert small.score_owned(taste, unit * users, inputs) == pytest.approx(expected, abs=1e-6)
    profile = (plain.complete_vector(taste, inputs)[:, :D] - taste).norm(dim=1)
    has_items = [bool((inputs["owned_users"] == user).any()) for user in range(4)]
    assert profile.tolist() == pytest.approx(
        [FIRST_TASTE * D**0.5 if one else 0.0 for one in has_items], abs=1e-5
    )


def test_a_user_is_scored_among_others_as_alone():
    inputs, _, _ = make_inputs()
    memory, generator = (
        randomise(make_memory(inputs)),
        torch.Generator().manual_seed(11),
    )
    state, users = (
        torch.randn(4, D, generator=generator),
        torch.randn(4, D + A + P, generator=generator),
    )
    found, vectors = (
        memory.score_owned(state, users, inputs),
        memory.complete_vector(state, inputs),
    )
    for user in range(4):
        mine, only = inputs["owned_users"] == user, slice(user, user + 1)
        alone = {name: inputs[name][mine] for name in OWNED}
        alone |= {name: inputs[name][only] for name in OF_USER}
        alone["owned_users"] = torch.zeros(int(mine.sum()), dtype=torch.long)
        scores = memory.score_owned(state[only], users[only], alone).tolist()
        assert found[mine].tolist() == pytest.approx(scores, abs=1e-5)
        assert vectors[only] == pytest.approx(memory.complete_vector(state[only], alone), abs=1e-5)


def test_category_lift_is_the_log_ratio_of_smoothed_shares():
    inputs, _, _ = make_inputs()
    memory = make_memory(inputs)
    found = memory.category_lift(inputs["category_preferences"])
    shares = memory.category_shares
    for user in range(4):
        total = float(inputs["category_preferences"][user].sum())
        for category in range(Q):
            prior = PRIOR_EVENTS * float(shares[category])
            smoothed = (float(inputs["category_preferences"][user, category]) + prior) / (
                total + PRIOR_EVENTS
            )
            untouched = prior / (total + PRIOR_EVENTS)
            share = float(shares[category])
            ratio = math.log(smoothed / share) - math.log(untouched / share)
            assert float(found[user, category]) == pytest.approx(ratio, abs=1e-4)


def test_profile_and_vector_equal_a_loop():
    inputs, _, _ = make_inputs()
    memory = randomise(make_memory(inputs))
    taste = torch.randn(4, D, generator=torch.Generator().manual_seed(8))
    found = memory.complete_vector(taste, inputs)
    statistics = (
        (inputs["owned_statistics"] - memory.standardise.mean) / memory.standardise.scale
    ).clamp(-5, 5)
    for user in range(4):
        summed = torch.zeros(D)
        for place in (inputs["owned_users"] == user).nonzero().flatten().tolist():
            correction = float(memory.profile_weight(statistics[place]).clamp(-3, 3))
            weight = float(inputs["owned_preferences"][place]) * math.exp(correction)
            summed += weight * inputs["owned_vectors"][place, :D]
        profile = summed / max(float(summed.norm()), 1e-6)
        of_user = memory.standardise_user(inputs["user_statistics"])[user]
        gates = memory.first_gates * memory.gates(of_user).clamp(-4, 4).exp()
        affinity = gates[1] * (
            memory.category_lift(inputs["category_preferences"])[user] @ memory.affinity_table
        )
        expected = torch.cat([taste[user] + gates[0] * profile, affinity, gates[2:]])
        assert (found[user] - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(("similarity", "unit"), [("dot", 1.0), ("cosine", TEMPERATURE)])
def test_memory_takes_back_its_share_of_the_product(similarity, unit):
    inputs, _, _ = make_inputs()
    memory = make_memory(inputs, similarity)
    memory.product_share.fill_(0.25)
    users = torch.randn(4, D + A + P, generator=torch.Generator().manual_seed(7)) * unit
    product = (users[inputs["owned_users"]] * inputs["owned_vectors"]).sum(dim=1)
    state = torch.zeros(4, D)
    alone = memory.score_owned(state, torch.zeros_like(users), inputs)
    found = memory.score_owned(state, users, inputs)
    assert (found - (alone - 0.25 * product)).abs().max() <= 1e-5 * unit + 1e-6
