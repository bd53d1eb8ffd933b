from __future__ import annotations

import numpy as np
import pytest
import torch
from serve.events import Events, history_arrays, request_arrays
from tests.models.tiny_towers import Side
from tests.tiny_data import BASKETS, DAY, FIRST, ORDERED, N, batches, draw_events

CLOSE, FAR = 1e-6, 1e-4


@pytest.fixture(
    scope="module",
    params=[(ORDERED, "dot"), (BASKETS, "cosine")],
    ids=["ordered", "baskets"],
)
def side(request):
    return Side(*request.param)


@pytest.fixture(scope="module")
def ordered():
    return Side(ORDERED, "cosine")


@pytest.fixture(scope="module")
def baskets():
    return Side(BASKETS)


def change(events: Events, position: int, row: int) -> Events:
    rows = events.item_row.copy()
    rows[position] = row
    return Events(rows, events.time, events.event, events.weight, events.offsets)


def reorder(events: Events, order: np.ndarray) -> Events:
    columns = (events.item_row, events.time, events.event, events.weight)
    return Events(*(column[order] for column in columns), events.offsets)


@torch.no_grad()
def window_vectors(side: Side, batch) -> np.ndarray:
    """Lay the vectors of targets out by window and place, (B, L, W), nan where there is no target."""
    vectors = side.towers.window_vectors(batch, side.items).numpy()
    laid_out = np.full((*batch.history_rows.shape, vectors.shape[1]), np.nan)
    laid_out[batch.is_target.numpy()] = vectors
    return laid_out


def test_nothing_at_or_after_a_target_changes_its_vector(ordered):
    batch = max(batches(ordered.data), key=lambda batch: batch.history_rows.shape[1])
    before = window_vectors(ordered, batch)
    length = batch.history_rows.shape[1]
    assert length > 1
    for position in range(length):
        rows = batch.history_rows.clone()
        rows[:, position:] = (rows[:, position:] + 7) % N
        arrays = dict(batch.arrays)
        for name, amount in (
            ("history_events", 1),
            ("history_weights", 0.7),
            ("history_times", 9 * DAY),
        ):
            arrays[name] = arrays[name].clone()
            arrays[name][:, position:] += amount
        arrays["history_events"] %= 4
        after = window_vectors(ordered, batch._replace(history_rows=rows, arrays=arrays))
        difference, is_target = (
            np.abs(after - before).max(axis=2),
            batch.is_target.numpy(),
        )
        is_later = np.arange(length) > position
        assert difference[is_target & ~is_later].max() <= CLOSE
        assert (difference[is_target & is_later] > FAR).all()


def test_every_event_before_the_request_changes_its_vector(side):
    events = draw_events([4], side.world.schema, np.random.default_rng(0))
    before = side.of(events)
    for position in range(4):
        other = (int(events.item_row[position]) + 5) % N
        assert np.abs(side.of(change(events, position, other)) - before).max() > FAR


def test_a_basket_is_a_set(baskets):
    rng = np.random.default_rng(3)
    days = np.array([1, 4, 4, 9, 9])
    events = Events(
        np.array([3, 8, 1, 12, 5]), FIRST + DAY * days, np.array([1, 2, 3, 1, 2]),
        rng.integers(1, 6, 5).astype(np.float32), np.array([0, 5]),
    )  # fmt: skip
    expected = baskets.of(events)
    for order in ([0, 2, 1, 3, 4], [0, 1, 2, 4, 3], [0, 2, 1, 4, 3]):
        assert np.abs(baskets.of(reorder(events, np.array(order))) - expected).max() <= CLOSE


def test_all_of_the_last_basket_is_seen(baskets):
    events = draw_events([5], baskets.world.schema, np.random.default_rng(2))
    same = Events(events.item_row, np.full(5, FIRST), events.event, events.weight, events.offsets)
    arrays, rows, owned_rows = baskets.arrays(same)
    expected = baskets.vectors(arrays, rows, owned_rows)
    for position in range(5):
        changed = rows.copy()
        changed[0, position] = (
            changed[0, position] + 5
        ) % N  # in the history alone, not in the memory
        assert np.abs(baskets.vectors(arrays, changed, owned_rows) - expected).max() > FAR


def test_an_empty_history_is_the_start_token(side):
    events = draw_events([0, 4, 0], side.world.schema, np.random.default_rng(4))
    arrays, rows, _ = side.arrays(events)
    tower = side.towers.user_tower
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        history = side.items[torch.from_numpy(rows)][..., : tower.dim]
        encoded = tower.encode_events(history, tensors)
        weights = tower.last_weights(tensors["history_groups"], tensors["history_lengths"])
        states = (weights.unsqueeze(-1) * encoded).sum(dim=1)
        token = tower.start_token.view(1, 1, -1)
        alone = tower.blocks(
            token,
            torch.zeros(1, 1, dtype=torch.int64),
            torch.zeros(1, 1, dtype=torch.int64),
        )
    assert np.isfinite(side.of(events)).all()
    assert (states[[0, 2]] - alone[0, 0]).abs().max() <= CLOSE
    assert (states[1] - alone[0, 0]).abs().max() > FAR


def test_the_state_of_a_request_is_that_of_its_last_events_among_all_states(side, monkeypatch):
    events = draw_events([3, 0, 5, 1], side.world.schema, np.random.default_rng(8))
    found = side.of(events)
    monkeypatch.setattr(
        side.towers.user_tower, "is_ordered", False
    )  # all states are computed, the last ones pooled
    assert np.abs(side.of(events) - found).max() <= CLOSE


@pytest.mark.parametrize(
    ("config", "is_set"),
    [(ORDERED, False), (BASKETS, False), (BASKETS, True)],
    ids=["ordered", "baskets", "sets"],
)
def test_the_state_without_blocks_is_the_weighted_sum_of_the_last_tokens(config, is_set):
    side = Side(config, n_blocks=0)
    tower = side.towers.user_tower
    tower.is_set = is_set
    arrays, rows, _ = side.arrays(
        draw_events([3, 0, 5, 1], side.world.schema, np.random.default_rng(9))
    )
    if is_set:  # one group at one time
        arrays["history_groups"][:], arrays["history_times"][:] = 1, FIRST
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        tower.pool_power.fill_(0.4)
        history = side.items[torch.from_numpy(rows)][..., : tower.dim]
        tokens = tower.encode_events(history, tensors)
        found = tower.pool_events(history, tensors)
    for user, groups in enumerate(arrays["history_groups"].tolist()):
        events = groups[: arrays["history_lengths"][user]]
        last = [place + 1 for place, group in enumerate(events) if group == events[-1]] or [0]
        torch.testing.assert_close(found[user], tokens[user, last].sum(dim=0) / len(last) ** 0.4)


def test_a_batch_answers_as_one_by_one(side):
    counts = [3, 0, 5, 1, 4]
    events = draw_events(counts, side.world.schema, np.random.default_rng(6))
    together = side.of(events)
    arrays, _, _ = side.arrays(events)
    for number in range(len(counts)):
        alone, rows, owned_rows = side.arrays(
            events.between(
                events.offsets[number : number + 1],
                events.offsets[number + 1 : number + 2],
            )
        )
        for name in ("user_codes", "user_values", "context_codes", "context_values"):
            alone[name] = arrays[name][number : number + 1]
        assert np.abs(side.vectors(alone, rows, owned_rows)[0] - together[number]).max() <= 1e-5


def test_padding_is_never_read(side):
    arrays, rows, owned_rows = side.arrays(
        draw_events([3, 5], side.world.schema, np.random.default_rng(7))
    )
    expected = side.vectors(arrays, rows, owned_rows)
    for name in (
        "history_events",
        "history_weights",
        "history_times",
        "history_groups",
    ):
        arrays[name][0, 3:] = 3
    rows[0, 3:] = 9
    assert np.abs(side.vectors(arrays, rows, owned_rows) - expected).max() <= CLOSE


def test_one_window_pass_equals_a_request_per_position(ordered):
    plans = ordered.data.examples.plan(7, 0)
    sequences, n_checked = ordered.data.sequences, 0
    for plan in plans:
        batch = ordered.data.examples[plan]
        found = window_vectors(ordered, batch)
        for b, i in np.argwhere(batch.is_target.numpy()):
            stop = plan.starts[[b]] + i
            events = sequences.events.between(plan.starts[[b]], stop)
            arrays, rows = history_arrays(events, ordered.world.schema)
            user, context = (
                sequences.user.take(plan.users[[b]]),
                sequences.context.take(stop),
            )
            arrays |= request_arrays(
                sequences.events.time[stop], user, context, ordered.world.schema
            )
            assert np.abs(ordered.vectors(arrays, rows, rows) - found[b, i]).max() <= 1e-5
            n_checked += 1
    pairs = ordered.world.tables.interactions[["user_id", "item_id"]].drop_duplicates()
    assert n_checked == len(pairs)  # what comes again can never be recommended
