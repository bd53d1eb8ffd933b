"""Sums by codes and their gradients are those of a loop, and of codes that come once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.code_bags import CodeBags

from models.features import FeatureEmbedding
from serve.encode import encode_features
from serve.schema import Feature

FEATURES = (
    Feature("title", "text", "title", width=5, buckets=8),
    Feature("tags", "multi_categorical", "tags", ("a", "b", "c"), width=3),
    Feature("brand", "categorical", "brand", ("x", "y")),
    Feature("price", "numeric", "price"),
)


@given(bags=st.lists(st.lists(st.integers(0, 6), max_size=5), max_size=6), dim=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_sums_and_gradients_are_those_of_a_loop(bags, dim):
    rng = np.random.default_rng(len(bags))
    lengths = [len(bag) for bag in bags]
    weights = rng.normal(size=sum(lengths)).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(lengths)])[: len(bags)].astype(np.int64)
    codes = np.array([code for bag in bags for code in bag], np.int64)
    table = torch.from_numpy(rng.normal(size=(7, dim)).astype(np.float32)).requires_grad_()
    found = CodeBags(*map(torch.from_numpy, (codes, weights, np.array(lengths, np.int64)))).sum(table)
    gradient = rng.normal(size=found.shape).astype(np.float32)
    found.backward(torch.from_numpy(gradient))
    expected, of_table = np.zeros((len(bags), dim)), np.zeros((7, dim))
    for row, (bag, start) in enumerate(zip(bags, starts, strict=True)):
        for place, code in enumerate(bag, start):
            expected[row] += weights[place] * table.detach().numpy()[code]
            of_table[code] += weights[place] * gradient[row]
    assert np.abs(found.detach().numpy() - expected).max(initial=0) <= 1e-5
    assert np.abs(table.grad.numpy() - of_table).max(initial=0) <= 1e-5


def draw_items(n, seed):
    """Encode items of which some have no title, no tags and no brand."""
    rng = np.random.default_rng(seed)
    words = np.array(["red", "wine", "big", "box", "", "tea"])
    columns = {
        "title": [" ".join(words[rng.integers(6, size=rng.integers(0, 4))]) for _ in range(n)],
        "tags": ["|".join(np.array(list("abcd"))[rng.integers(4, size=rng.integers(0, 3))]) for _ in range(n)],
        "brand": [rng.choice(["x", "y", "z", ""]) for _ in range(n)],
        "price": rng.normal(size=n),
    }
    encoded = encode_features(FEATURES, columns, n)
    return torch.from_numpy(encoded.codes), torch.from_numpy(encoded.values)


def trace(embed, codes, values):
    """Return the sums and the gradients of the tables; `embed` is a method."""
    tables = embed.__self__
    tables.zero_grad()
    found = embed(codes, values)
    (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
    return [part.detach().clone() for part in (found, tables.table.weight.grad, tables.number_table.grad)]


def assert_alike(found, expected):
    """Compare sums and gradients; in which order torch adds gradients up is its own affair."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.fixture
def tables():
    torch.manual_seed(3)
    tables = FeatureEmbedding(FEATURES, 24)
    torch.nn.init.normal_(tables.table.weight)
    return tables


def test_a_catalogue_is_embedded_as_other_rows_are_and_alike_each_time(tables):
    (codes, values), other = draw_items(60, seed=0), draw_items(9, seed=1)
    assert (codes == 0).any(dim=1).all()
    first, *more = (
        trace(tables.embed_catalogue, *rows) for rows in ((codes, values), (codes, values), other, (codes, values))
    )
    assert_alike(first, trace(tables.forward, codes, values))
    assert_alike(more[1], trace(tables.forward, *other))
    for again in (more[0], more[2], trace(tables.embed_catalogue, codes.clone(), values)):
        assert all(torch.equal(one, two) for one, two in zip(again, first, strict=True))  # however often it came before


def test_a_catalogue_that_comes_again_follows_the_table(tables):
    codes, values = draw_items(60, seed=0)
    first = trace(tables.embed_catalogue, codes, values)
    with torch.no_grad():
        tables.table.weight.mul_(-3)
    changed = trace(tables.embed_catalogue, codes, values)
    assert_alike(changed, trace(tables.forward, codes, values))
    assert (changed[0] - first[0]).abs().max() > 1
    wide = tables.widen(30)
    assert_alike([wide.embed_catalogue(codes, values)[:, :24]], changed[:1])


def test_what_is_found_without_gradients_serves_with_them(tables):
    codes, values = draw_items(60, seed=0)
    with torch.inference_mode():
        found = tables.embed_catalogue(codes, values).numpy()
    traced = trace(tables.embed_catalogue, codes, values)
    assert np.abs(found - traced[0].numpy()).max() <= 1e-6
    assert_alike(traced, trace(tables.forward, codes, values))


def test_codes_that_are_all_padding_are_zeros(tables):
    codes, values = torch.zeros(4, 9, dtype=torch.int64), torch.zeros(4, 2)
    found, of_table, _ = trace(tables.embed_catalogue, codes, values)
    assert found.shape == (4, 24)
    assert found.abs().max() == 0
    assert of_table.abs().max() == 0


@pytest.mark.parametrize("features", [(), FEATURES[3:]])
def test_a_catalogue_may_have_no_codes(features):
    tables, codes, values = FeatureEmbedding(features, 5), torch.zeros(3, 0, dtype=torch.int64), torch.ones(3, 2)
    assert torch.equal(tables.embed_catalogue(codes, values), tables(codes, values))
