"""DPM-Solver-v3 on given statistics: the methods it contains, its order, what it is exact for, and what it refuses."""

import math

import pytest
import torch

from problems import MODEL, mixture, noisy_state, run
from research import solver_orders
from steindiff import Corrected, grids, sample, solvers
from steindiff.analytic import Gaussian
from steindiff.denoisers import Counter
from steindiff.errors import InputError, ModelFileError, NonFiniteError
from steindiff.solvers import Grid
from steindiff.solvers.dpm_v3 import DPMSolverV3
from steindiff.solvers.dpm_v3_statistics import Statistics

D64 = torch.float64
LEVELS = grids.log_snr(600).tolist()
DATA, NOISE = (Statistics.constant(*lsb, LEVELS, (3,)) for lsb in ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0)))
PLAIN = {"pseudo": False, "corrector": "off", "lower_order_final": False}


def curved(levels=LEVELS):
    """Statistics that are neither, and differ from coordinate to coordinate."""
    lam = -torch.tensor(levels, dtype=D64).log()[:, None]
    phase = torch.tensor([0.0, 0.5, 1.0], dtype=D64)
    return Statistics(
        tuple(levels), torch.sigmoid(-2 * lam + phase), -0.5 + 0.2 * torch.sin(lam + phase), 0.1 * torch.cos(lam - phase)
    )


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("n", [3, 10])
def test_with_noise_prediction_it_is_the_exponential_integrator_that_deis_is_in_log_sigma(order, n):
    x, sigmas = noisy_state(80.0), grids.karras(n)
    ours = run(DPMSolverV3(NOISE, order, **PLAIN), mixture, x, sigmas)
    assert torch.allclose(ours, run(solvers.DEIS(order, "log_sigma"), mixture, x, sigmas), atol=1e-6)


def test_with_data_prediction_it_is_dpm_solver_pp():
    x, grid = noisy_state(80.0), Grid.of(grids.karras(10))
    values = [torch.randn(5, 3, dtype=D64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for order, theirs in ((1, solvers.DDIM()), (3, solvers.DPMpp3M(lower_order_final=False, exact=True))):
        ours, state = DPMSolverV3(DATA, order, **PLAIN), None
        state = ours.init(mixture, x, grid)
        for i, value in enumerate(values):
            step = ours.step(lambda z, s, value=value: value, x, grid.interval(i), state)
            state = step.state
        expected = theirs.step(lambda z, s: values[2], x, grid.interval(2), (values[1], values[0])[: order - 1]).x
        assert torch.allclose(step.x, expected, atol=1e-8)


def test_with_data_prediction_and_many_steps_it_is_dpmpp_2m():
    # 2M evaluates its line in the middle of the step; the difference is of the third order of the step.
    gaps = []
    for n in (40, 80):
        x, grid = noisy_state(2.0), grids.log_snr(n, 0.5, 2.0)
        theirs = run(solvers.DPMpp2M(lower_order_final=False), mixture, x, grid)
        gaps.append(float((run(DPMSolverV3(DATA, 2, **PLAIN), mixture, x, grid) - theirs).norm() / theirs.norm()))
    assert gaps[0] < 1e-4
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(2, abs=0.3)


def test_a_gaussian_with_its_own_statistics_is_exact_in_one_step_even_with_a_mean():
    v, mean = torch.tensor([0.3, 0.02, 2.0], dtype=D64), torch.tensor([0.4, -1.0, 0.2], dtype=D64)
    level = torch.tensor(LEVELS, dtype=D64)[:, None] ** 2
    line = level / (v + level)  # f = −l μ does not depend on x: s is 0 and b is f' = −l' μ
    statistics = Statistics(tuple(LEVELS), line, torch.zeros_like(line), 2 * level * v / (v + level) ** 2 * mean)
    law = Gaussian(mean, torch.diag(v)).to(D64)
    x = 80 * torch.randn(5, 3, dtype=D64, generator=torch.Generator().manual_seed(0))
    exact = mean + (x - mean) * ((v + 0.002**2) / (v + 80**2)).sqrt()
    for n, rounding in ((1, 1e-5), (2, 1e-3), (5, 1e-3)):  # one step has no line between two levels of the statistics
        assert torch.allclose(sample(DPMSolverV3(statistics), law, x, grids.karras(n)).x, exact, rtol=0, atol=rounding)
    assert not torch.allclose(sample("dpmpp_2m", law, x, grids.karras(5)).x, exact, atol=1e-1)


@pytest.mark.parametrize(
    "order, how, expected",
    [
        (2, {}, 2),
        (3, {}, 3),
        (3, {"pseudo": True}, 2),  # the first derivative stays of the lower order
    ],
)
def test_order_of_convergence(order, how, expected):
    solver = DPMSolverV3(curved(grids.log_snr(600, 0.3, 700.0).tolist()), order, **(PLAIN | how))
    errors = [solver_orders.error(solver, "log_snr", n, exact_history=True) for n in (64, 96)]
    assert math.log(errors[0] / errors[1], 1.5) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize("n", [1, 2, 4, 6, 9])
@pytest.mark.parametrize("how", [{}, {"order": 2, "corrector": "pseudo"}, {"pseudo": True, "lower_order_final": False}])
def test_nfe_is_as_declared_and_all_is_finite(n, how):
    solver, sigmas = DPMSolverV3(curved(), **how), grids.karras(n)
    counter = Counter(mixture)
    assert bool(torch.isfinite(run(solver, counter, noisy_state(80.0), sigmas)).all())
    assert counter.calls == n == solver.nfe(sigmas) == sample(solver, mixture, noisy_state(80.0), sigmas).stats.nfe


def test_a_run_to_zero_ends_with_the_denoised_value():
    sigmas = grids.with_zero(grids.karras(4))
    step = sample(DPMSolverV3(curved()), mixture, noisy_state(80.0), sigmas)
    assert step.stats.nfe == 5
    assert bool(torch.isfinite(step.x).all())


def test_the_published_techniques_are_those_of_short_runs():
    x = noisy_state(80.0)
    for n, how in (
        (5, {"pseudo": True, "corrector": "on"}),
        (6, {"pseudo": False, "corrector": "on"}),
        (7, PLAIN | {"lower_order_final": True}),
    ):
        sigmas = grids.log_snr(n)
        assert torch.equal(
            run(DPMSolverV3(curved()), mixture, x, sigmas), run(DPMSolverV3(curved(), **how), mixture, x, sigmas)
        )


def test_its_linear_part_is_the_mean_derivative_with_the_network_held():
    solver, grid, x = DPMSolverV3(curved(), corrector="off"), Grid.of(grids.karras(4)), noisy_state(80.0)
    state = solver.init(mixture, x, grid)
    for i in range(3):
        held = mixture(x, grid.sigmas[i])
        one, other = (solver.step(lambda z, s, held=held: held, z, grid.interval(i), state).x for z in (x, x + 1))
        assert float(solver.linear(grid.interval(i), state)) == pytest.approx(float((other - one).mean()), rel=1e-9)
        step = solver.step(mixture, x, grid.interval(i), state)
        x, state = step.x, step.state


def test_a_correction_wraps_it():
    result = sample(Corrected(DPMSolverV3(curved()), "energy"), mixture, noisy_state(80.0), grids.karras(4))
    assert bool(torch.isfinite(result.x).all())


def test_statistics_go_through_a_file_and_a_damaged_one_is_refused(tmp_path):
    path = curved().save(tmp_path / "s.safetensors", images=7)
    back, about = Statistics.load(path)
    assert repr(back) == repr(curved()) != repr(DATA)
    assert about == {"images": 7}
    made = solvers.make(f"dpm_v3({path}, order=2)")
    x = noisy_state(80.0)
    assert torch.equal(sample(made, mixture, x, nfe=3).x, sample(DPMSolverV3(curved(), 2), mixture, x, grids.karras(3)).x)
    path.write_bytes(path.read_bytes()[:200])
    for damaged in (path, tmp_path / "none.safetensors"):
        with pytest.raises(ModelFileError, match="measure them anew"):
            Statistics.load(damaged)


def test_what_cannot_be_is_refused_with_a_remedy():
    bad = curved().slope.clone()
    bad[3, 1] = math.nan
    with pytest.raises(NonFiniteError, match=r"statistic s .* sigma = "):
        Statistics(tuple(LEVELS), curved().linear, bad, curved().offset)
    with pytest.raises(InputError, match="one number a coordinate"):
        Statistics(tuple(LEVELS), curved().linear, bad[1:], curved().offset)
    with pytest.raises(InputError, match="decrease"):
        Statistics.constant(1.0, 0.0, 0.0, [1.0, 2.0], (3,))
    with pytest.raises(InputError, match="1, 2 or 3"):
        DPMSolverV3(DATA, 4)
    with pytest.raises(InputError, match="off, on or pseudo"):
        DPMSolverV3(DATA, corrector="yes")
    with pytest.raises(InputError, match="events of shape"):
        sample(DPMSolverV3(DATA), MODEL, 80 * torch.randn(2, 4), grids.karras(3))
    with pytest.raises(InputError, match="measure them over"):
        sample(DPMSolverV3(DATA), MODEL, 100 * torch.randn(2, 3), grids.karras(3, 0.002, 100.0))
