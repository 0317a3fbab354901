"""Thm 4.8 (Eqs. 14 and 15) and Cor. 4.9 along whole runs, and Thm 4.10, Cor. 4.12, Eq. 174 with the law that a run really has.

research/theory/trajectory.py and research/theory/drift.py compute both sides.
"""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from research.theory import core, drift, trajectory
from research.theory.trajectory import Setting

from problems import PROPERTY
from steindiff import grids
from steindiff.corrections.variants import compatibility

torch.set_num_threads(1)

D64 = torch.float64
Z = 4
EXACT = [
    Setting("gaussian"),
    Setting("mixture"),
    Setting("mixture", "dpmpp_2m"),
    Setting("mixture", "heun"),
    Setting("gaussian", "ipndm_3", steps=10),
    Setting("mixture", "unipc_2"),
    Setting("mixture", "ddim", "vp-linear"),
    Setting("mixture", "ddim", "vp-linear", "ve"),
    Setting("mixture", "dpmpp_2m", "vp-linear"),
    Setting("gaussian", "dpmpp_3m", "vp-cosine", steps=10),
    Setting("mixture", "dpmpp_2m", steps=10, first=1.0),
]
COLLAPSING = [s for s in EXACT if s.first == 80 and (s.schedule == "edm" or s.frame == "ve")]
"""From pure noise, blended in VE coordinates."""


def named(setting):
    """A setting in a few words."""
    return " ".join(map(str, (setting.law, setting.solver, setting.schedule, setting.frame, setting.rule, setting.first)))


@cache
def run(setting):
    """A run of 1000 draws."""
    return trajectory.whole_run(setting, 1000, 1)


# ---------------------------------------------------------------- Thm 4.8 and Cor. 4.9 along a run


@pytest.mark.parametrize("setting", EXACT, ids=named)
def test_with_the_clean_sample_known_the_recursion_telescopes(setting):
    """Eq. 14 at every step and Eq. 15 over all of them, by the distances of the states themselves."""
    found = run(setting)
    for step in found.steps:
        assert 0 <= step.rho <= 1
        assert step.left == pytest.approx((1 - step.rho) * step.error, rel=1e-10)
        assert step.left <= step.error
    assert found.product == pytest.approx(found.end, rel=1e-10)
    assert all(b.error == pytest.approx(a.left, rel=1e-12) for a, b in zip(found.steps, found.steps[1:], strict=False))


@pytest.mark.parametrize("setting", EXACT, ids=named)
def test_no_run_ends_below_the_mmse_at_its_start(setting):
    """x_0 is a function of x_K: whatever the γ, E_0 ≥ MMSE(σ_K)."""
    found = run(setting)
    assert found.excess.value > -Z * found.excess.se
    assert found.mmse.value < found.steps[0].error
    assert found.mmse.value + found.excess.value == pytest.approx(found.end, rel=1e-10)


@pytest.mark.parametrize("setting", COLLAPSING, ids=named)
def test_in_ve_the_exact_method_collapses_to_the_mean(setting):
    """E_0 = Var(x*), all of it lost: every sample ends at the mean, within a hundredth of the law's variance."""
    found = run(setting)
    assert abs(found.excess.value) < Z * found.excess.se + 1e-3 * found.variance
    assert abs(found.mmse.value - found.variance) < Z * found.mmse.se + 1e-3 * found.variance
    assert found.spread < 0.01 * found.variance


def test_from_less_noise_it_ends_at_the_posterior_mean():
    """σ_K = 1 keeps some of x*: E_0 = MMSE(1), well below Var(x*), and the ends differ as the posterior means do."""
    found = run(EXACT[-1])
    assert abs(found.excess.value) < Z * found.excess.se + 1e-3 * found.mmse.value
    assert found.mmse.value < 0.3 * found.variance
    assert found.spread == pytest.approx(found.variance - found.mmse.value, rel=0.1)


@pytest.mark.parametrize("law", ["gaussian", "mixture"])
def test_after_the_first_step_nothing_is_left_to_gain(law):
    """The first γ is 1/(1−r): x becomes D(x_K), and E⟨u,e⟩ = 0 for every later residual, a function of D(x_K)."""
    first, *later = run(Setting(law)).steps
    assert first.gamma == pytest.approx(1 / (1 - later[0].sigma / 80), rel=0.02)
    assert first.rho > 0.999
    assert all(step.rho < 0.01 for step in later)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_in_the_vp_frame_it_ends_farther_than_the_mean(solver):
    """One γ cannot both rescale x and reach D: E_0 telescopes, and is above the Var(x*) of answering the mean."""
    found = run(Setting("mixture", solver, "vp-linear"))
    assert found.excess.value > 10 * found.excess.se
    assert found.end > 1.4 * found.variance


@pytest.mark.parametrize("rule", ["eq11", "tweedie"])
def test_with_what_a_sampler_knows_it_does_not_telescope(rule):
    """The corrected state is not coupled to x* as Stein's identity needs: where a step promises (1−ρ) E_k, E_k grows."""
    found, exact = (run(Setting("mixture", rule=r)) for r in (rule, "eq9"))
    assert found.steps[0].gamma == pytest.approx(exact.steps[0].gamma, rel=0.02)  # the first step is coupled
    assert found.steps[1].gamma > exact.steps[1].gamma + 0.5
    assert any(step.rho > 0.1 and step.left > 1.2 * step.error for step in found.steps[1:])
    assert found.end > 1.2 * exact.end


@pytest.mark.parametrize("setting", EXACT, ids=named)
def test_along_a_run_the_displacement_is_within_the_plain_error(setting):
    """Cor. 4.9 needs no coupling either: with Eq. 9's γ it holds at every step of every run."""
    for step in run(setting).steps:
        assert 0 < step.moved <= step.plain
    printed = run(replace(setting, rule="eq11", law="mixture", solver="ddim", schedule="edm", frame="model", first=80.0)).steps
    assert max(step.moved / step.plain for step in printed) > 10  # and with Eq. 11's it does not


# ---------------------------------------------------------------- Thm 4.10 with the run's own law

RUNS = [
    (law, solver, schedule)
    for law in ("gaussian", "line")
    for solver in ("ddim", "dpmpp_2m", "heun", "unipc_2", "ipndm_3")
    for schedule in ("edm", "vp-linear")
]


@cache
def drifts(law, solver, schedule):
    """The steps of a run of five."""
    return tuple(drift.drifts(law, solver, schedule))


@pytest.mark.parametrize(("law", "solver", "schedule"), RUNS)
def test_the_runs_own_law_moves_gamma_within_the_bound(law, solver, schedule):
    """|γ̃ − γ*| ≤ |Ã−A|/B̃ + |γ*||B̃−B|/B̃ ≤ C S, and Stein's equation gives γ̃ − γ* itself."""
    for found in drifts(law, solver, schedule):
        gap = found.drifted - found.star
        assert found.identity == pytest.approx(gap, rel=1e-3, abs=1e-9)
        assert abs(gap) <= found.two_terms * (1 + 1e-9) + 1e-12
        assert found.two_terms <= found.bound * (1 + 1e-3)
        assert 0 < found.score < math.inf


@pytest.mark.parametrize(("law", "solver", "schedule"), RUNS)
def test_its_gamma_costs_what_the_corollary_says(law, solver, schedule):
    """Cor. 4.12: J(γ̃) − J(γ*) = B(γ̃−γ*)² ≤ B C² S², with x* known. Its γ* is thus the minimiser, history and all."""
    for found in drifts(law, solver, schedule):
        measured = drift.excess(found, law, 4000, 3)
        predicted = found.there.B * (found.drifted - found.star) ** 2
        assert abs(measured.value - predicted) < Z * measured.se
        assert predicted <= found.there.B * found.bound**2 * (1 + 1e-3)


def test_the_bound_is_nearly_reached_and_the_drift_is_real():
    """In VP the initial noise, without αx*, already takes γ from above 40 to below 9; at the end of a run γ̃ > 2γ*."""
    first, *_, last = drifts("gaussian", "ddim", "vp-linear")
    assert first.star > 40 > 9 > first.drifted
    assert abs(first.drifted - first.star) > 0.99 * first.bound
    assert last.drifted > 2 * last.star
    folded = drifts("line", "dpmpp_2m", "edm")[-1]
    assert folded.star > 1 > 0.5 > folded.drifted  # the clamp acts on a mixture, though γ* asks for more than the step


def test_more_steps_bring_the_run_back_to_its_marginal():
    """S and the error of γ fall together."""
    few, many = (list(drift.drifts("gaussian", "dpmpp_2m", steps=n)) for n in (5, 40))
    assert max(d.score * d.level for d in many) < 0.1 * max(d.score * d.level for d in few)
    assert max(abs(d.drifted - d.star) for d in many) < 0.5 * max(abs(d.drifted - d.star) for d in few)


def test_the_score_of_a_run_is_that_of_its_density():
    """On the line log p̃_k = log φ(z) − log F', by differences; on the Gaussian the initial noise is N(0, 80²)."""
    grid, z = grids.karras(5), torch.linspace(-6, 6, 4001, dtype=D64)
    law, weight = core.law("line"), torch.exp(-(z**2) / 2) * 12 / 4000 / math.sqrt(2 * math.pi)
    for step, x in zip(drifts("line", "ddim", "edm"), drift.states("line", "ddim", "edm", grid, 80 * z[:, None]), strict=False):
        (slope,) = torch.gradient(x[:, 0], spacing=(z,))
        (own,) = torch.gradient(-(z**2) / 2 - slope.log(), spacing=(x[:, 0],))
        shift = own - law.score(x, step.level)[:, 0]
        assert step.score == pytest.approx(float((shift**2 @ weight).sqrt()), rel=0.02)
    first, model = drifts("gaussian", "ddim", "edm")[0], core.law("gaussian")
    noise = 80 * torch.randn(4000, core.DIM, generator=torch.Generator().manual_seed(0), dtype=D64)
    direct = (model.score(noise, 80.0) + noise / 80**2).square().sum(1)
    assert first.score**2 == pytest.approx(float(direct.mean()), rel=4 * float(direct.std() / direct.mean()) / 4000**0.5)


# ---------------------------------------------------------------- Eq. 174, in App. D.6 or D.7


@given(st.floats(0.1, 10), st.floats(0.1, 10), *[st.floats(-10, 10)] * 2)
@PROPERTY
def test_a_quotient_moves_by_two_terms(below, other, above, moved):
    """D.7: A'/B' − A/B = (A' − A)/B' − (A/B)(B' − B)/B', so by at most two terms where B' is bounded below."""
    gap = moved / other - above / below
    assert gap == pytest.approx((moved - above) / other - above / below * (other - below) / other, abs=1e-9)
    step = drift.Drift(1.0, 1.0, 1.0, drift.Pair(above, below), drift.Pair(moved, other), drift.Pair(0, 0), gap, torch.sin)
    assert abs(gap) <= step.two_terms + 1e-9


def test_a_look_ahead_moves_a_proposal_by_less_than_tau():
    """D.6: the deviation ω‖δ‖ is at most τ e^(−1/2), where ‖δ‖ = τ; it vanishes for a small δ and for a large one."""
    sizes, tau = torch.linspace(0, 12, 1201, dtype=D64), torch.tensor(1.5, dtype=D64)
    moved = sizes * compatibility(sizes[:, None] * torch.tensor([[0.6, 0.8]], dtype=D64), tau)
    assert float(moved.max()) == pytest.approx(1.5 * math.exp(-0.5), rel=1e-9)
    assert float(sizes[moved.argmax()]) == pytest.approx(1.5)
    assert float(moved[0]) == 0 < float(moved[-1]) < 1e-9
