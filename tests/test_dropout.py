from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.attention import LEVELS, Dropout

SHARES = (0.1, 0.2, 0.5, 0.9)
shapes = st.lists(st.integers(0, 7), max_size=4)


@pytest.mark.parametrize("p", SHARES)
def test_that_share_is_dropped_and_the_mean_kept(p):
    torch.manual_seed(1)
    values = torch.ones(400_003)
    dropped = Dropout(p)(values)
    share = (dropped == 0).double().mean().item()
    error = 5 * (p * (1 - p) / len(values)) ** 0.5
    assert share == pytest.approx(round(p * 256) / 256, abs=error)
    assert dropped.double().mean().item() == pytest.approx(1.0, abs=error / (1 - p))


@given(shape=shapes, p=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_an_entry_of_any_shape_is_dropped_or_scaled(shape, p, seed):
    torch.manual_seed(seed)
    values = torch.randn(shape)
    dropped = Dropout(p)(values)
    assert dropped.shape == values.shape
    assert dropped.dtype == values.dtype
    n_dropped = min(round(p * 256), 255)
    is_kept = dropped != 0
    assert torch.allclose(dropped[is_kept], (values * (256 / (256 - n_dropped)))[is_kept])
    assert n_dropped or torch.equal(dropped, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_type_stays(dtype):
    assert Dropout(0.5)(torch.ones(3, 5, dtype=dtype)).dtype == dtype


def test_values_that_do_not_lie_in_order_are_dropped_one_by_one():
    torch.manual_seed(3)
    values = torch.ones(90, 70).T
    dropped = Dropout(0.5)(values)
    assert (dropped == 0).any(dim=0).all()
    assert (dropped == 2).any(dim=1).all()
    assert values.eq(1).all()


def test_the_gradient_is_the_mask():
    torch.manual_seed(5)
    values = torch.full((13, 11), 3.0, requires_grad=True)
    dropped = Dropout(0.3)(values)
    (gradient,) = torch.autograd.grad(dropped.sum(), values)
    assert torch.equal(gradient, (dropped / 3.0).detach())
    assert set(torch.unique(gradient).tolist()) == {0.0, torch.tensor(256 / (256 - round(0.3 * 256))).item()}


def test_nothing_is_dropped_in_evaluation_or_without_a_share():
    values = torch.randn(7, 5)
    assert Dropout(0.5).eval()(values) is values
    assert Dropout(0.0)(values) is values


def test_the_seed_decides_what_is_dropped():
    layer, values = Dropout(0.5), torch.ones(501)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(layer(values))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("p", "rounded"), [(0.0, 0), (0.001, 0), (0.3, 77), (0.5, 128), (0.9999, LEVELS - 1)])
def test_the_share_is_a_number_of_bytes(p, rounded):
    assert Dropout(p).extra_repr() == f"p={rounded / 256:g}"


def test_entries_are_dropped_independently_of_their_neighbours():
    torch.manual_seed(7)
    is_dropped = (Dropout(0.5)(torch.ones(200_000)) == 0).double() - 0.5
    for lag in (1, 2, 4, 8, 16):
        assert abs((is_dropped[lag:] * is_dropped[:-lag]).mean().item()) < 5 * 0.25 / 200_000**0.5
