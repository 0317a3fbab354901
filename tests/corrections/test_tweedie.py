"""γ* without a derivative: E⟨u, x − D⟩/E‖u‖² is Eq. 9's γ with the clean sample known, for every solver, frame and level."""

import math

import pytest
import torch

from problems import MODEL
from steindiff import grids, solvers
from steindiff.corrections import CleanTarget, Corrected, NoiseConsistent
from steindiff.corrections.base import Proposal
from steindiff.corrections.blend import Need, _moments
from steindiff.corrections.stein import stein_ratio
from steindiff.divergence import Exact
from steindiff.errors import InputError
from steindiff.sampling import sample
from steindiff.schedules import VE, VPLinear
from steindiff.solvers.base import Grid

torch.set_num_threads(1)
D64 = torch.float64
GRID = grids.validate(torch.tensor([12.0, 5.0, 2.0, 0.8, 0.3, 0.12], dtype=D64))
FINE = grids.validate(torch.logspace(math.log10(12), math.log10(0.3), 21, dtype=D64))
SOLVERS = [f"{name}(stored=refresh)" if name.startswith("unipc") else name for name in solvers.names()]
"""UniPC with its stored evaluation made again at the corrected state, so that D is D(x) as for all others."""


def flow(x, start, end, count=40):
    """The exact flow dx/dσ = (x − D)/σ from one level to another, by Runge–Kutta steps of order four in log σ."""
    h = math.log(end / start) / count
    for i in range(count):
        s = [start * math.exp(h * (i + part)) for part in (0, 0.5, 1)]

        def slope(y, sigma):
            return y - MODEL(y, torch.tensor(sigma, dtype=D64))

        k1 = slope(x, s[0])
        k2 = slope(x + h / 2 * k1, s[1])
        k3 = slope(x + h / 2 * k2, s[1])
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, s[2]))
    return x


def coupled(n, seed=0):
    """x*, and for every place of the grid the states up to there of the flow that ends in x* + σ ε."""
    generator = torch.Generator().manual_seed(seed)
    clean = MODEL.sample(n, generator)
    noise = torch.randn(n, 3, generator=generator, dtype=D64)
    return clean, noise


CLEAN, NOISE = coupled(10_000)


def path(place, sigmas=GRID, count=40):
    """The states at levels 0 … place of the flow through x* + σ ε."""
    states = [CLEAN + sigmas[place] * NOISE]
    for i in range(place, 0, -1):
        states.insert(0, flow(states[0], float(sigmas[i]), float(sigmas[i - 1]), count))
    return states


PATHS = {place: path(place) for place in (0, 1, 2, 4)}


def proposal(name, states, schedule, sigmas=GRID):
    """A step from the marginal, whose history lies on the exact flow."""
    solver, grid, place = solvers.make(name), Grid.of(sigmas), len(states) - 1
    state = solver.init(MODEL, states[0], grid)
    for i in range(place):
        state = solver.step(MODEL, states[i], grid.interval(i), state).state
    return Proposal(solver, MODEL, states[-1], grid.interval(place), state, Exact(), schedule)


def by_both(step):
    """γ without a derivative, Eq. 9's with x* known, and what x* − D adds to it, image by image."""
    x, u = step.alpha * step.x, step.alpha * step.x - step.alpha_next * step.next
    regression = (u * (x - CLEAN)).sum() / u.square().sum()
    added = (u * (step.denoised - CLEAN)).sum(1) / u.square().sum(1).mean()
    return stein_ratio(_moments(step, Need.TWEEDIE)), regression, added


@pytest.mark.parametrize("schedule", [VE(), VPLinear()], ids=["ve", "vp"])
@pytest.mark.parametrize("place", PATHS)
@pytest.mark.parametrize("name", SOLVERS)
def test_it_is_the_regression_on_the_known_clean_sample(name, place, schedule):
    gamma, regression, paired = by_both(proposal(name, PATHS[place], schedule))
    torch.testing.assert_close(gamma, regression - paired.mean(), rtol=1e-9, atol=1e-9)
    se = float(paired.std()) / len(paired) ** 0.5
    assert 0 < se < 0.1 * abs(float(regression)) + 0.3
    assert abs(float(paired.mean())) < 4 * se


@pytest.fixture(scope="module")
def long_path():
    """A flow through fifteen levels of the fine grid."""
    return path(14, FINE, 2)


@pytest.mark.parametrize("name", ["unipc_2", "unipc_3"])
def test_a_stored_evaluation_makes_a_small_difference(name, long_path):
    """UniPC keeps the denoised value of its prediction, which is near that of the corrected state."""
    gamma, regression, paired = by_both(proposal(name, long_path, VE(), FINE))
    se = float(paired.std()) / len(paired) ** 0.5
    assert abs(float(gamma / regression) - 1) < 0.02 + 4 * se / abs(float(regression))


@pytest.mark.parametrize("schedule", [VE(), VPLinear()], ids=["ve", "vp"])
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2s"])
def test_it_is_the_full_divergence_of_a_one_step_method(name, schedule):
    step = proposal(name, PATHS[2], schedule)
    mean, se = step.tweedie_divergence
    assert abs(float(step.divergence.mean - mean)) < 4 * math.hypot(float(se), float(step.divergence.se))


@pytest.mark.parametrize("name", ["dpmpp_2m(lower_order_final=False)", "ipndm_3"])
def test_it_is_not_the_divergence_with_a_history_held_constant(name):
    step = proposal(name, PATHS[4], VE())
    full, free = (stein_ratio(_moments(step, need)) for need in (Need.FULL, Need.TWEEDIE))
    assert abs(float(full - free)) > 0.5


@pytest.mark.parametrize("name", SOLVERS)
def test_it_costs_nothing(name):
    x = PATHS[0][0][:8]
    plain = sample(name, MODEL, x, GRID)
    run = sample(Corrected(name, "clamped(mode=tweedie)"), MODEL, x, GRID)
    assert (run.stats.nfe, run.stats.jvps, run.stats.vjps) == (plain.stats.nfe, 0, 0)
    assert run.stats.forward_equivalents == plain.stats.forward_equivalents
    assert all(r.gamma <= 1 for r in run.trace)


@pytest.mark.parametrize("denoiser", [MODEL, lambda x, sigma: 0.3 * x.sin()], ids=["exact", "anything"])
def test_a_first_order_step_has_one_over_one_minus_r_whatever_the_denoiser(denoiser):
    """u = (1−r)(x − D), so that γ* is an identity there: it measures nothing, and the noise meter needs the derivative."""
    run = sample(Corrected("ddim", CleanTarget(mode="tweedie")), denoiser, PATHS[0][0][:16], GRID[:2])
    assert run.trace[0].gamma_raw == pytest.approx(1 / (1 - float(GRID[1] / GRID[0])), rel=1e-12)
    assert math.isnan(run.trace[0].noise_ratio)
    aimed = sample(Corrected("ddim", NoiseConsistent(mode="tweedie")), denoiser, PATHS[0][0][:16], GRID[:2])
    assert aimed.trace[0].gamma_raw == pytest.approx(1, rel=1e-12)


def test_one_image_has_a_coefficient_without_a_standard_error():
    record = sample(Corrected("dpmpp_2m", "clamped(mode=tweedie)"), MODEL, PATHS[0][0][:1], GRID).trace[1]
    assert math.isfinite(record.gamma_raw)
    assert math.isnan(record.moments["div_se"])


def test_an_unknown_mode_is_refused():
    with pytest.raises(InputError, match="choose full or tweedie"):
        NoiseConsistent(mode="analytical")
    assert CleanTarget(mode="tweedie").need(1.0) is NoiseConsistent(mode="tweedie").need(1.0) is Need.TWEEDIE
