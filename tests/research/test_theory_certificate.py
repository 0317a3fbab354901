"""Prop. 4.1 (C.1), the contraction certificate, and Eqs. 38–46, its form through the noise network, on exact models.

research/theory/certificate.py has both bounds.
"""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from research.theory import certificate, core

from problems import PROPERTY
from steindiff.diagnostics import step_bound
from steindiff.solvers import DDIM, Grid

torch.set_num_threads(1)

D64 = torch.float64
LAWS = ("gaussian", "mixture")
Case = core.Case
LIPSCHITZ = [Case(law, name, level=i) for law in LAWS for name in core.SCHEDULES for i in (0, 1)]


@cache
def stretched(case):
    """The certificate's numbers on 200 states."""
    return certificate.lipschitz(case, 200, 1)


@pytest.mark.parametrize("case", LIPSCHITZ, ids=str)
def test_the_lipschitz_bound_is_attained(case):
    """J_D of an exact denoiser is symmetric and positive: ‖J_T‖ = σ_t/σ_s + σ_t h ‖J_D‖ at every state."""
    found = stretched(case)
    assert abs(found.bound_gap) < 1e-9
    assert (found.step >= 1) == (found.denoiser >= found.threshold) == (found.lost > 0)
    if case.law == "gaussian":
        assert found.lost == 0


@pytest.mark.parametrize("case", LIPSCHITZ, ids=str)
def test_the_threshold_is_at_most_one_over_alpha(case):
    found, (_, a_t) = stretched(case), case.alphas
    assert found.threshold <= 1 / float(a_t) + 1e-12
    if case.schedule == "edm":
        assert found.threshold == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("schedule", ["edm", "vp-linear"])
@pytest.mark.parametrize("level", [0, 1])
def test_an_extrapolating_step_loses_the_certificate_earlier(schedule, level):
    """2M counts D 1 + h/(2h₁) times: its bound is attained too, and there are laws that DDIM alone is certified on."""
    first, second = (stretched(Case("gaussian", schedule, solver=s, level=level)) for s in ("ddim", "dpmpp_2m"))
    assert abs(second.bound_gap) < 1e-9
    assert first.step < second.step
    assert (second.lost == 1) == (level == 1)
    assert first.lost == 0


@pytest.mark.parametrize("case", LIPSCHITZ, ids=str)
def test_through_the_noise_network_nothing_is_ever_certified(case):
    """Eqs. 38–46: the bound through L_ε holds, and at every state it is above α_t/α_s ≥ 1, where L_T may be far below."""
    found, (a_s, a_t) = stretched(case), map(float, case.alphas)
    assert found.noise_gap < 1e-9
    assert found.noise_least > a_t / a_s >= 1
    if case.law == "gaussian":
        assert found.noise_least > 1.35 > 1 > found.step


@PROPERTY
@given(st.floats(0.05, 50), st.floats(0, 0.99), st.floats(0.01, 1), st.floats(0.2, 1), st.floats(0, 100), st.floats(0, 1))
def test_both_ways_to_the_noise_network_meet(sigma, ratio, alpha_next, ratio_alpha, noise, c):
    """L_D ≤ (1 + σ_s L_ε)/α_s in Prop. 4.1 is the bound that the step in ε gives, and never below 1 for any L_ε."""
    step = (sigma, ratio * sigma, alpha_next * ratio_alpha, alpha_next)
    through = (1 + sigma * noise) / step[2]
    bound = certificate.noise_bound(noise, *step, c)
    assert bound == pytest.approx(step_bound((1 + c) * through, *step), rel=1e-9)
    assert bound >= 1 - 1e-12
    assert certificate.noise_bound(0.0, *step) == pytest.approx(1 / ratio_alpha)


@pytest.mark.parametrize("schedule", core.SCHEDULES)
def test_a_constant_noise_network_does_expand(schedule):
    """L_ε = 0: T(x) = (α_t/α_s) x + a constant. The bound is attained, so no sharper one in L_ε alone could certify."""
    case = Case("gaussian", schedule)
    (a_s, a_t), grid = case.alphas, Grid.of(case.sigmas)
    noise, y = torch.linspace(-1, 1, core.DIM, dtype=D64), torch.randn(2, core.DIM, dtype=D64)
    near, far = (DDIM().step(lambda z, s: z - s * noise, z, grid.interval(1), ()).x for z in y)
    torch.testing.assert_close(a_t * (near - far), a_t / a_s * a_s * (y[0] - y[1]))
    assert float(a_t / a_s) >= 1
    assert (float(a_t / a_s) > 1) == (schedule != "edm")


def test_an_expansive_step_need_not_be_a_wrong_one():
    """Where DDIM is certified the exact flow expands; where it is not, random directions still shrink."""
    certified, lost = (certificate.lipschitz(Case("mixture", level=i), 1000, 1) for i in (0, 1))
    assert certified.step < 1 < certified.flow
    assert lost.step > 1
    assert lost.random < 1
