from __future__ import annotations

import math

import pytest
import torch
from models.attention import FARTHEST, EventBlocks


@pytest.mark.parametrize("n_blocks", [1, 2, 3])
@pytest.mark.parametrize("n_heads", [1, 2])
def test_one_token_is_encoded_as_it_is_among_all(n_blocks, n_heads):
    torch.manual_seed(5)
    blocks = EventBlocks(8, n_blocks, n_heads, 0.0).eval()
    tokens, times = (
        torch.randn(3, 7, 8),
        torch.randint(0, 10**6, (3, 7)).sort(dim=1).values,
    )
    places = torch.tensor([0, 6, 3])
    for groups in (
        torch.arange(7).unsqueeze(0),
        torch.tensor([0, 1, 1, 2, 3, 3, 4]).repeat(3, 1),
    ):
        among_all = blocks(tokens, times, groups)[torch.arange(3), places]
        torch.testing.assert_close(
            blocks.encode_at(tokens, times, groups, places),
            among_all,
            atol=1e-5,
            rtol=0,
        )


def test_training_looks_weights_up_as_serving_does():
    torch.manual_seed(6)
    blocks = EventBlocks(8, 2, 2, 0.0)
    tokens, times = (
        torch.randn(3, 7, 8),
        torch.randint(0, 10**6, (3, 7)).sort(dim=1).values,
    )
    groups = torch.arange(7).unsqueeze(0)
    torch.testing.assert_close(
        blocks.train()(tokens, times, groups),
        blocks.eval()(tokens, times, groups),
        atol=1e-6,
        rtol=0,
    )


def naive_bias(block, gap: int, distance: int, head: int) -> torch.Tensor:
    """Add what a gap in seconds weighs, between the knots, to what a distance in groups does."""
    place = min(math.log1p(max(gap, 0)), 20.0) / (20.0 / 11)
    weighed = [
        max(0.0, 1 - abs(place - knot)) * block.gap_bias.weight[head, knot] for knot in range(12)
    ]
    return sum(weighed) + block.distance_bias.weight[min(distance, FARTHEST), head]


@torch.no_grad()
def naive_block(
    block, tokens: torch.Tensor, times: list[int], groups: list[int], n_heads: int
) -> torch.Tensor:
    """Go token by token, (T, D): each mixes the values of those that it sees, and is fed forward alone."""
    query, key, value = block.project_in(block.attention_norm(tokens)).chunk(3, dim=1)
    size, states = tokens.shape[1] // n_heads, []
    for asking in range(len(tokens)):
        seen, parts = (
            [one for one in range(len(tokens)) if groups[one] <= groups[asking]],
            [],
        )
        for head in range(n_heads):
            mine = slice(head * size, (head + 1) * size)
            logits = [query[asking, mine] @ key[one, mine] / size**0.5 for one in seen]
            for place, one in enumerate(seen):
                distance = groups[asking] - groups[one]
                gap = block.distance_bias.weight[
                    min(distance, FARTHEST), head
                ]  # to the start token: no time
                gap = (
                    gap
                    if one == 0
                    else naive_bias(block, times[asking] - times[one], distance, head)
                )
                logits[place] = logits[place] + gap
            parts.append(torch.stack(logits).softmax(dim=0) @ value[seen, mine])
        state = tokens[asking] + block.project_out(torch.cat(parts))
        states.append(state + block.feed_forward(state))
    return torch.stack(states)


@pytest.mark.parametrize("n_heads", [1, 2])
def test_tokens_are_those_of_attention_one_by_one(n_heads):
    torch.manual_seed(7)
    blocks = EventBlocks(6, 2, n_heads, 0.5).eval()
    with torch.no_grad():
        for parameter in blocks.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape))
    times, groups = [0, 50, 50, 3_000, 10**6], [0, 1, 1, 2, 70]
    tokens = torch.randn(5, 6)
    expected = tokens
    for block in blocks.blocks:
        expected = naive_block(block, expected, times, groups, n_heads)
    expected = (expected - expected.mean(dim=1, keepdim=True)) / (
        expected.var(dim=1, keepdim=True, correction=0) + 1e-5
    ) ** 0.5
    expected = expected * blocks.norm.weight + blocks.norm.bias
    found = blocks(tokens.unsqueeze(0), torch.tensor([times]), torch.tensor([groups]))[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
