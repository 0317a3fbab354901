"""Peers as rules and adapters: each is a γ on first-order VE steps, to rounding."""

import pytest
import torch

import steindiff as sd
from steindiff import grids, rules, solvers
from steindiff.denoisers import EpsilonScaled, FromEps, Guided, TimeShifted, forwards_per_call, schedule_of
from steindiff.errors import InputError
from steindiff.schedules import VPLinear
from steindiff.solvers import Grid

MODEL = sd.analytic.GaussianMixture(
    torch.tensor([0.3, 0.7], dtype=torch.float64),
    torch.tensor([[1.0, -1.0], [-1.0, 0.5]], dtype=torch.float64),
    torch.stack([0.2 * torch.eye(2, dtype=torch.float64), 0.4 * torch.eye(2, dtype=torch.float64)]),
)
X = sd.initial_noise(range(32), (2,), dtype=torch.float64)
SIGMAS = grids.karras(6)
DDIM = solvers.make("ddim")


@pytest.mark.parametrize("b", [1.0048, 0.9985, 1.3])
def test_epsilon_scaling_is_one_over_b(b):
    rule = sd.sample(sd.Corrected(DDIM, rules.EpsilonScaling(b)), MODEL, X, SIGMAS)
    adapter = sd.sample(DDIM, EpsilonScaled(MODEL, b), X, SIGMAS)
    assert torch.allclose(rule.x, adapter.x, rtol=1e-12, atol=1e-12)
    assert [r.gamma for r in rule.trace] == pytest.approx([1 / b] * 6)
    assert rule.stats.nfe == 6
    assert rule.stats.vjps == 0
    x, sigma = X, torch.tensor(3.0, dtype=torch.float64)
    eps = (x - MODEL(x, sigma)) / sigma
    assert torch.allclose((x - EpsilonScaled(MODEL, b)(x, sigma)) / sigma, eps / b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [0.005, -0.02, 0.3])
def test_dcw_in_pixels(scale):
    """x' + λ (x' − D), λ = scale σ/σ_max, step by step."""
    result = sd.sample(sd.Corrected(DDIM, rules.DCW(scale)), MODEL, X, SIGMAS)
    x, grid = X, Grid.of(SIGMAS)
    for i in range(grid.steps):
        interval = grid.interval(i)
        plain = DDIM.step(MODEL, x, interval, None)
        x = plain.x + scale * interval.sigma / 80.0 * (plain.x - plain.denoised)
    assert torch.allclose(result.x, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("gamma", [0.9, 1.1])
def test_a_shifted_timestep_is_a_gamma(gamma):
    """γ on DDIM is DDIM to σ' + (1−γ)(σ−σ') while the network is told σ': the time-shift reading."""
    sigma, sigma_next = SIGMAS[2], SIGMAS[3]
    x = sigma / 80 * X
    denoised = MODEL(x, sigma)
    blended = torch.lerp(x, sigma_next / sigma * x + (1 - sigma_next / sigma) * denoised, gamma)
    reached = sigma_next + (1 - gamma) * (sigma - sigma_next)
    assert torch.allclose(blended, reached / sigma * x + (1 - reached / sigma) * denoised, rtol=1e-12)
    told = TimeShifted(MODEL, float(sigma_next / reached) - 1)
    assert torch.allclose(told(blended, reached), MODEL(blended, sigma_next), rtol=1e-10)


def test_adapters_are_seen_through_and_bad_options_refused():
    eps = FromEps(lambda x, t: x, VPLinear())
    for wrapped in (EpsilonScaled(eps, 1.01), TimeShifted(eps, 0.1)):
        assert schedule_of(wrapped) == VPLinear()
        assert forwards_per_call(Guided(wrapped, eps, 2.0)) == 2
    for make in (lambda: EpsilonScaled(eps, 0.0), lambda: TimeShifted(eps, -1.0), lambda: rules.EpsilonScaling(-1.0),
                 lambda: rules.DCW(sigma_max=0.0)):  # fmt: skip
        with pytest.raises(InputError, match="need"):
            make()
