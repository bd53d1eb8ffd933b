from __future__ import annotations

import torch
from torch.nn import functional

from models.directions import normalise

N, D = 11, 7


def make(seed: int) -> torch.Tensor:
    vectors = torch.randn(N, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vectors.mul_(torch.logspace(-3, 3, N, dtype=torch.float64).unsqueeze(1)).requires_grad_()


def test_values_and_gradients_are_those_of_torch():
    vectors, weights = make(1), torch.randn(N, D, dtype=torch.float64)
    found, expected = normalise(vectors), functional.normalize(vectors, dim=1)
    assert torch.equal(found, expected)
    pairs = [torch.autograd.grad((one * weights).sum(), vectors)[0] for one in (found, expected)]
    torch.testing.assert_close(*pairs, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_that_of_small_steps():
    assert torch.autograd.gradcheck(normalise, (make(2)[4:7],))


def test_a_vector_of_zeros_stays_one():
    vectors = torch.zeros(2, D, requires_grad=True)
    found = normalise(vectors)
    assert not found.any()
    found.sum().backward()
    assert torch.isfinite(vectors.grad).all()


def test_half_precision_has_the_gradient_of_torch():
    vectors, weights = torch.randn(N, D).bfloat16().requires_grad_(), torch.randn(N, D)
    with torch.autocast("cpu", torch.bfloat16):
        pairs = [(one(vectors) * weights).sum() for one in (normalise, functional.normalize)]
    found, expected = (torch.autograd.grad(one, vectors)[0].float() for one in pairs)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
