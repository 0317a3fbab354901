"""Noise levels that a factor mixture keeps: the same numbers, a bounded memory, and nothing that a derivative would miss."""

import pytest
import torch
from torch.func import jvp, vmap

from steindiff.analytic import FactorMixture
from steindiff.analytic.recent import Recent

LEVELS = torch.tensor([80.0, 3.0, 0.5, 0.02], dtype=torch.float64)


def mixture():
    g = torch.Generator().manual_seed(0)
    loadings, means = torch.randn(3, 12, 4, generator=g), torch.randn(3, 12, generator=g)
    return FactorMixture(torch.full((3,), 1 / 3), means, loadings, torch.full((3, 12), 0.1))


def kept(law):
    return law._components._recent._kept


def test_a_kept_level_gives_the_same_numbers():
    law, x = mixture(), torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    first = [law(x, sigma) for sigma in LEVELS]
    assert list(kept(law)) == LEVELS.tolist()
    before = {level: id(noisy) for level, noisy in kept(law).items()}
    again = [law(x, sigma) for sigma in LEVELS]
    assert {level: id(noisy) for level, noisy in kept(law).items()} == before
    for a, b, c in zip(first, again, [mixture()(x, sigma) for sigma in LEVELS], strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_the_oldest_go_when_the_memory_is_full():
    made = []
    recent = Recent[int](size=lambda value: value, limit=10)
    for sigma in (1.0, 2.0, 1.0, 3.0, 2.0, 20.0):
        recent.get(torch.tensor(sigma), lambda s: [made.append(float(s)), 4][1])
    assert made == [1.0, 2.0, 3.0, 2.0, 20.0]
    assert list(recent._kept) == [2.0, 20.0]
    Recent[int](size=lambda value: value, limit=3).get(torch.tensor(1.0), lambda s: 4)  # larger than all there may be


def test_a_moved_law_has_levels_of_its_own():
    law, x = mixture(), torch.zeros(1, 12)
    law(x, LEVELS[1])
    moved = law.to(torch.float64)
    assert not kept(moved)
    assert moved(x.double(), LEVELS[1]).dtype == torch.float64


def test_derivatives_and_vmaps_of_a_kept_level_see_sigma():
    law, x = mixture().to(torch.float64), torch.randn(2, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigma, h = torch.tensor(0.7, dtype=torch.float64), 1e-6
    law(x, sigma)
    want = (law(x, sigma + h) - law(x, sigma - h)) / (2 * h)
    _, forward = jvp(lambda s: law(x, s), (sigma,), (torch.ones_like(sigma),))
    torch.testing.assert_close(forward, want, rtol=1e-6, atol=1e-8)
    leaf = sigma.clone().requires_grad_()
    (backward,) = torch.autograd.grad(law(x, leaf).sum(), leaf)
    assert float(backward) == pytest.approx(float(want.sum()), rel=1e-6)
    assert all(not noisy.solve.requires_grad for noisy in kept(law).values())


def test_a_batch_of_noise_levels_is_not_read_as_a_number():
    recent = Recent[torch.Tensor](size=lambda value: 1)
    got = vmap(lambda s: recent.get(s, torch.square))(torch.tensor([1.0, 2.0]))
    assert got.tolist() == [1.0, 4.0]
    assert not recent._kept
