"""γ* without a derivative: E⟨u, x − D⟩/E‖u‖² is Eq. 9's γ with the clean sample known, for every solver, frame and level."""

import math

import pytest
import torch

from problems import MODEL
from steindiff import grids, solvers
from steindiff.corrections import CleanTarget, Corrected, NoiseConsistent
from steindiff.corrections.blend import Need, _moments
from steindiff.corrections.proposal import Proposal
from steindiff.corrections.stein import stein_ratio
from steindiff.divergence import Exact
from steindiff.errors import InputError
from steindiff.sampling import sample
from steindiff.schedules import VE, VPLinear
from steindiff.solvers.base import Grid
from steindiff.solvers.dpm_v3 import DPMSolverV3
from steindiff.solvers.dpm_v3_statistics import Statistics

torch.set_num_threads(1)
every_schedule = pytest.mark.parametrize("schedule", [VE(), VPLinear()], ids=["ve", "vp"])
D64 = torch.float64
GRID = grids.validate(torch.tensor([40.0, 12.0, 5.0, 2.0, 0.8, 0.3, 0.12], dtype=D64))
FINE = grids.validate(torch.logspace(math.log10(12), math.log10(0.3), 21, dtype=D64))


def v3(d, corrector="off"):
    """DPM-Solver-v3 with statistics that are none of the methods it contains."""
    return DPMSolverV3(Statistics.constant(0.7, -0.2, 0.1, (80.0, 0.002), (d,)), corrector=corrector)


SOLVERS = {
    **{n: solvers.make(f"{n}(stored=refresh)" if n.startswith("unipc") else n) for n in solvers.names()},
    "dpmpp_2m, not lowered": solvers.make("dpmpp_2m(lower_order_final=False)"),
    "dpm_v3": v3(3),
}
"""UniPC with its stored evaluation made again at the corrected state, so that D is D(x) as for all others."""
every_solver = pytest.mark.parametrize("name", SOLVERS)


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
    """x* and ε, with x* and −ε behind them: much of what is odd in ε cancels in a pair."""
    generator = torch.Generator().manual_seed(seed)
    clean = MODEL.sample(n, generator)
    noise = torch.randn(n, 3, generator=generator, dtype=D64)
    return clean.repeat(2, 1), torch.cat([noise, -noise])


CLEAN, NOISE = coupled(2500)


def path(place, sigmas=GRID, count=40):
    """The states at levels 0 … place of the flow through x* + σ ε."""
    states = [CLEAN + sigmas[place] * NOISE]
    for i in range(place, 0, -1):
        states.insert(0, flow(states[0], float(sigmas[i]), float(sigmas[i - 1]), count))
    return states


PATHS = {place: path(place, count=10) for place in range(len(GRID) - 1)}


def proposal(name, states, schedule=VE(), sigmas=GRID, model=MODEL):  # noqa: B008  # a schedule is immutable
    """A step from the marginal, whose history lies on the exact flow."""
    solver, grid, place = SOLVERS.get(name) or solvers.make(name), Grid.of(sigmas), len(states) - 1
    solver = v3(states[0].shape[1]) if name == "dpm_v3" else solver
    state = solver.init(model, states[0], grid)
    for i in range(place):
        state = solver.step(model, states[i], grid.interval(i), state).state
    return Proposal(solver, model, states[-1], grid.interval(place), state, Exact(), schedule)


def regression(step, clean=CLEAN):
    """Eq. 9's γ = E⟨u, x − x*⟩/E‖u‖², x* known."""
    x, u = step.alpha * step.x, step.alpha * step.x - step.alpha_next * step.next
    return (u * (x - clean)).sum() / u.square().sum()


def gamma(step, need=Need.TWEEDIE):
    """γ* from a divergence, however it is found."""
    return stein_ratio(_moments(step, need))


def added(step):
    """What x* − D adds to γ, pair by pair; nothing in expectation."""
    u = step.alpha * step.x - step.alpha_next * step.next
    return ((u * (step.denoised - CLEAN)).sum(1) / u.square().sum(1).mean()).reshape(2, -1).mean(0)


@every_schedule
@pytest.mark.parametrize("place", PATHS)
@every_solver
def test_it_is_the_regression_on_the_known_clean_sample(name, place, schedule):
    """On a mixture, whose D is not linear, from σ = 40 to 0.12."""
    step = proposal(name, PATHS[place], schedule)
    expected, paired = regression(step), added(step)
    torch.testing.assert_close(gamma(step), expected - paired.mean(), rtol=1e-9, atol=1e-9)
    se = float(paired.std()) / len(paired) ** 0.5
    assert 0 < se < 0.1 * abs(float(expected)) + 0.3
    assert abs(float(paired.mean())) < 4 * se


# ---------------------------------------------------------------- a Gaussian, without any sampling

SPREAD = 1 / torch.arange(1, 9, dtype=D64).sqrt()


def linear(x, sigma):
    """D of N(0, diag SPREAD²)."""
    return x * SPREAD**2 / (SPREAD**2 + sigma.to(x) ** 2)


def quadrature(place, sigmas):
    """x* and the states of the flow up to a place: 32 points with the exact first and second moments of (x*, ε).

    Every map of x is affine here, so that a mean over these points is an expectation.
    """
    points = 4 * torch.cat([torch.eye(16, dtype=D64), -torch.eye(16, dtype=D64)])
    clean, noise = SPREAD * points[:, :8], points[:, 8:]
    x = clean + sigmas[place] * noise
    scale = [((SPREAD**2 + s**2) / (SPREAD**2 + sigmas[place] ** 2)).sqrt() for s in sigmas[: place + 1]]
    return clean, [c * x for c in scale]


@every_schedule
@every_solver
def test_on_a_gaussian_it_is_equation_9_to_rounding(name, schedule):
    """At every step from σ = 80 to 0.002; so are the default, and the derivative without a history."""
    sigmas = grids.karras(12)
    for place in range(12):
        clean, states = quadrature(place, sigmas)
        step = proposal(name, states, schedule, sigmas, linear)
        needs = [Need.TWEEDIE, CleanTarget().need(1.0).met(step.remembers)]
        for need in needs if step.remembers else [*needs, Need.FROZEN]:
            torch.testing.assert_close(gamma(step, need), regression(step, clean), rtol=1e-7, atol=1e-7)


@every_schedule
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2s", "dpmpp_3s"])
@pytest.mark.parametrize("excess", [1.0, 1.3])
def test_the_noise_meter_is_one_on_the_marginal_for_every_one_step_method(name, schedule, excess):
    """D is linear here, so that states which are `excess` times as large read `excess`."""
    sigmas = grids.karras(12)
    for place in range(12):
        *_, x = quadrature(place, sigmas)[1]
        step = proposal(name, [excess * x], schedule, sigmas[place:], linear)
        outcome = CleanTarget().correct(step, None)
        assert float(outcome.numbers["noise_ratio"]) == pytest.approx(excess, rel=1e-8)


@pytest.mark.parametrize("history", ["total", "frozen"])
def test_a_step_with_a_history_has_no_reading(history):
    trace = sample(Corrected("dpmpp_2m", CleanTarget(history=history)), MODEL, PATHS[0][0][:16], GRID).trace
    assert [math.isnan(r.noise_ratio) for r in trace] == [False, True, True, True, True, False]
    between = {"total": "tweedie", "frozen": "frozen"}[history]
    assert [r.source for r in trace] == ["full", *[between] * 4, "full"]


# ---------------------------------------------------------------- what it is and is not


@pytest.fixture(scope="module")
def long_path():
    """A flow through fifteen levels of the fine grid."""
    return path(14, FINE, 2)


@pytest.mark.parametrize("name", ["unipc_2", "unipc_3"])
def test_a_stored_evaluation_makes_a_small_difference(name, long_path):
    """UniPC keeps the denoised value of its prediction, which is near that of the corrected state."""
    step = proposal(name, long_path, VE(), FINE)
    expected, paired = float(regression(step)), added(step)
    se = float(paired.std()) / len(paired) ** 0.5
    assert abs(float(gamma(step)) / expected - 1) < 0.02 + 4 * se / abs(expected)


@every_schedule
@pytest.mark.parametrize("place", PATHS)
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2s", "dpmpp_3s"])
def test_it_is_the_full_divergence_of_a_one_step_method(name, place, schedule):
    step = proposal(name, PATHS[place], schedule)
    mean, se = step.tweedie_divergence
    assert abs(float(step.divergence.mean - mean)) < 4 * math.hypot(float(se), float(step.divergence.se))


def through_history(name, place, x):
    """The step from x and ∇·(x − T), the history a function of x: the exact flow back is differentiated too."""
    z = x.clone().requires_grad_()
    states = [z]
    for i in range(place, 0, -1):
        states.insert(0, flow(states[0], float(GRID[i]), float(GRID[i - 1]), 3))
    step = proposal(name, states)
    rows = [torch.autograd.grad(step.next[:, i].sum(), z, retain_graph=True)[0][:, i] for i in range(3)]
    return step, 3 - torch.stack(rows).sum(0)


@pytest.mark.parametrize("name", ["dpmpp_2m, not lowered", "dpmpp_3m", "unipc_3", "deis_3", "ipndm_3", "dpm_v3"])
def test_it_is_the_divergence_of_a_step_through_its_history_too(name):
    """On the marginal; the derivative with the history held constant is not."""
    x = PATHS[3][-1]
    step, whole = through_history(name, 3, x)
    values = ((x - step.next) * (x - step.denoised)).sum(1).detach() / GRID[3] ** 2
    off = (whole - values).reshape(2, -1).mean(0)
    se = float(off.std()) / len(off) ** 0.5
    assert abs(float(off.mean())) < 4 * se
    frozen = proposal(name, PATHS[3]).divergence.mean
    assert abs(float(frozen - whole.mean())) > 4 * se


@every_solver
def test_it_costs_nothing(name):
    x, solver = PATHS[0][0][:8], SOLVERS[name]
    plain = sample(solver, MODEL, x, GRID)
    run = sample(Corrected(solver, "clamped(mode=tweedie)"), MODEL, x, GRID)
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
    assert record.source == "tweedie"


def test_an_unknown_mode_is_refused():
    with pytest.raises(InputError, match="choose full or tweedie"):
        NoiseConsistent(mode="analytical")
    assert CleanTarget(mode="tweedie").need(1.0) is NoiseConsistent(mode="tweedie").need(1.0) is Need.TWEEDIE
