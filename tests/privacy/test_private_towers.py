"""Gradients of towers under privacy are exact user by user: compared with a plain loop over users."""

import numpy as np
import pytest
import torch
from tests.benchmarks import private_towers
from tests.benchmarks.private_towers import (
    N_POSITIONS,
    REACH,
    count_users,
    draw_examples,
    make_towers,
    score,
    sum_clipped,
)

pytestmark = pytest.mark.slow
N, U, CLIP = 23, 7, 0.05
SHARE = 0.3


def draw_batch(n_users=U, seed=0):
    """Draw users with 2 to 60 events, so that some give all positions and some have short pasts."""
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(N, size=length) for length in np.linspace(2, 60, n_users).astype(int)]
    examples = [draw_examples(sequence, N, rng) for sequence in sequences]
    return [torch.as_tensor(np.stack(part)) for part in zip(*examples, strict=True)]


def make_tables(has_content, seed=1):
    """Return tables, and what is known of items: popularity, and content or rows of their own."""
    torch.manual_seed(seed)
    towers = make_towers(5 if has_content else N, seed)
    towers = {name: table + 0.3 * torch.randn_like(table) for name, table in towers.items()}
    return towers, (torch.arange(1.0, N + 1).log(), torch.rand(N, 5) if has_content else None)


def loop_over_users(towers, known, batch, clip):
    """Add the gradients of users one after the other, by backpropagation of each one's loss alone."""
    sums = {name: torch.zeros_like(table) for name, table in towers.items()}
    lengths = []
    for histories, targets, weights in zip(*batch, strict=True):
        leaves = {name: table.clone().requires_grad_() for name, table in towers.items()}
        losses = torch.nn.functional.cross_entropy(
            score(leaves, known, histories), targets, reduction="none"
        )
        (losses * weights).sum().backward()
        length = sum(leaf.grad.square().sum() for leaf in leaves.values()).sqrt().item()
        lengths.append(length)
        for name, leaf in leaves.items():
            sums[name] += leaf.grad * min(1.0, clip / length)
    return sums, lengths


@pytest.mark.parametrize("has_content", [True, False])
def test_clipped_gradients_of_users_are_those_of_a_plain_loop(has_content):
    towers, known = make_tables(has_content)
    batch = draw_batch()
    _, lengths = loop_over_users(towers, known, batch, 1.0)
    between = float(np.median(lengths))  # half of them are cut
    for limit in (between, CLIP, 100.0):
        expected, _ = loop_over_users(towers, known, batch, limit)
        found = sum_clipped(towers, known, batch, limit)
        for name, table in expected.items():
            torch.testing.assert_close(found[name], table, rtol=1e-4, atol=1e-6)


def test_one_user_moves_the_sum_by_no_more_than_the_limit_whatever_their_events():
    towers, known = make_tables(has_content=False)
    everybody = draw_batch()
    whole = sum_clipped(towers, known, everybody, CLIP)
    for user in range(U):
        others = [torch.cat([part[:user], part[user + 1 :]]) for part in everybody]
        rest = sum_clipped(towers, known, others, CLIP)
        moved = sum((whole[name] - rest[name]).square().sum() for name in whole).sqrt()
        assert 0 < moved <= CLIP * (1 + 1e-4)


def test_a_step_reads_a_bounded_number_of_a_users_own_events():
    rng = np.random.default_rng(0)
    sequence = np.arange(50) % N
    histories, targets, weights = draw_examples(sequence, N, rng)
    assert (histories.shape, targets.shape) == ((N_POSITIONS, REACH), (N_POSITIONS,))
    assert weights.sum() == pytest.approx(1)
    for history, target in zip(histories, targets, strict=True):
        own = history[history < N]
        assert (own[-1] + 1) % N == target  # the event before it
    assert draw_examples(sequence[:2], N, rng)[2].tolist() == [1.0] + [0.0] * (N_POSITIONS - 1)


def test_one_user_moves_popularity_by_a_length_of_1():
    sequences = [np.arange(9), np.array([3, 3, 3, 5]), np.array([2])]
    whole = count_users(sequences, N)
    for user in range(len(sequences)):
        rest = count_users(sequences[:user] + sequences[user + 1 :], N)
        assert np.linalg.norm(whole - rest) == pytest.approx(1)


def test_the_noise_of_an_epsilon_covers_all_releases():
    pytest.importorskip("dp_accounting")
    noise = private_towers.find_noise(8.0, SHARE)
    assert (
        private_towers.measure_epsilon(noise, SHARE)
        <= 8.0
        < private_towers.measure_epsilon(noise - 0.02, SHARE)
    )
    pytest.importorskip("opacus")
    steps_alone = private_towers.ask_opacus(noise, SHARE)
    assert 0.7 * 8.0 < steps_alone < 1.1 * 8.0  # RDP bounds from above what is composed exactly
