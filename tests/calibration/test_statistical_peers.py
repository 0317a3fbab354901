"""What DPM-Solver-v3, DC-Solver and PAS find on fine runs, each against what it claims."""

import math
from dataclasses import replace

import pytest
import torch

from exact_paths import D64, normal
from problems import MODEL
from steindiff import grids, sample
from steindiff.analytic import Gaussian
from steindiff.calibration import trajectories
from steindiff.calibration.peers import Bill, Task, dc_solver, dpm_v3, pas
from steindiff.errors import InputError, NonFiniteError
from steindiff.solvers import DDIM, IPNDM, Setting, UniPC
from steindiff.solvers.base import Grid
from steindiff.solvers.dpm_v3 import DPMSolverV3

FINE = 24


@pytest.fixture(scope="module")
def law():
    return trajectories(MODEL, 80 * normal(48, 3, seed=10), count=FINE)


def task(law, nfe, **how):
    return Task.of(law, nfe, Setting(sigma_data=law.variance**0.5), **how)


def miss(solver, sigmas, seed=11):
    noise = 80 * normal(64, 3, seed=seed)
    return trajectories(MODEL, noise, count=48).rmse(sample(solver, MODEL, noise, sigmas).x)


# DPM-Solver-v3


def diagonal_gaussian():
    v, mean = torch.tensor([0.3, 0.05, 1.5], dtype=D64), torch.tensor([0.4, -1.0, 0.2], dtype=D64)
    return v, mean, Gaussian(mean, torch.diag(v)).to(D64)


@pytest.fixture(scope="module")
def statistics():
    fine = trajectories(diagonal_gaussian()[2], 80 * normal(12, 3, seed=0), count=64)
    return dpm_v3.measured(fine, dpm_v3.Measuring(intervals=60, probes=1))


def test_the_statistics_of_a_diagonal_gaussian_are_the_closed_ones(statistics):
    v, mean, _ = diagonal_gaussian()
    level = torch.tensor(statistics.levels, dtype=D64)[:, None] ** 2
    assert torch.allclose(statistics.linear, level / (v + level), atol=1e-9)  # one probe is exact where J is diagonal
    derivative = statistics.slope * (-statistics.linear * mean) + statistics.offset  # f = −l μ is one point for all images
    assert torch.allclose(derivative, 2 * level * v / (v + level) ** 2 * mean, atol=1e-3)


def test_a_gaussian_is_exact_in_one_evaluation(statistics):
    v, mean, gaussian = diagonal_gaussian()
    x = 80 * normal(8, 3, seed=1)
    exact = mean + (x - mean) * ((v + 0.002**2) / (v + 80**2)).sqrt()
    assert torch.allclose(sample(DPMSolverV3(statistics), gaussian, x, grids.karras(1)).x, exact, atol=5e-3)


def test_l_is_the_mean_diagonal_of_the_jacobian(law):
    generator = torch.Generator().manual_seed(0)
    denoised, found = dpm_v3._diagonal(law, 1.0, 100, "jvp", generator, Bill())
    x, sigma = law.at(1.0), torch.tensor(1.0, dtype=D64)
    jacobian = torch.autograd.functional.jacobian(lambda z: MODEL(z, sigma).sum(0), x)
    assert torch.allclose(found, 1 - torch.einsum("kbk->bk", jacobian).mean(0), atol=0.02)
    assert torch.equal(denoised, MODEL(x, sigma))


def test_the_line_is_the_regression_of_the_derivative():
    x, denoised, rate = (normal(50, 4, seed=i) for i in range(3))
    diagonal, bent = 0.3 * normal(4, seed=3), 0.2 * normal(4, seed=4)
    s, b = dpm_v3._line(x, denoised, rate, diagonal, bent)
    f = x - denoised - diagonal * x
    # d/dλ of x − D − l x, with dx/dλ = −(x − D).
    derivative = -(x - denoised) - rate - bent * x + diagonal * (x - denoised)
    for j in range(4):
        columns = torch.stack([f[:, j], torch.ones(50, dtype=D64)], 1)
        assert torch.allclose(torch.linalg.lstsq(columns, derivative[:, j, None]).solution[:, 0], torch.stack([s[j], b[j]]))


def test_differences_between_levels_are_exact_for_a_quartic():
    at = torch.arange(9, dtype=D64) * 0.3
    assert torch.allclose(dpm_v3._slopes(at**4 - 2 * at, 0.3), 4 * at**3 - 2)


def test_products_are_billed_and_statistics_are_measured_once_in_a_folder(law, tmp_path):
    how = dpm_v3.Measuring(intervals=16, probes=2)
    first, bare = task(law, 3, folder=tmp_path), task(law, 3)
    again = task(law, 5, folder=tmp_path)
    for one in (first, bare, again):
        one_statistics = dpm_v3.kept(one, how)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert first.bill.images == bare.bill.images == again.bill.images
    assert first.bill.images >= 17 * 2 * 48 * 2  # at every level, for both probes, a product beside its evaluation
    assert repr(one_statistics) == repr(dpm_v3.kept(bare, how))


def test_more_noises_share_the_classes_in_turn(law):
    seen = []

    def conditioned(places):
        seen.extend(places.tolist())
        return MODEL

    four = trajectories(MODEL, law.noise[:4], count=8, conditioned=conditioned)
    wide = dpm_v3.more(four, 10, seed=3)
    assert wide.noise.shape == (10, 3)
    assert torch.equal(wide.noise[:4], four.noise)
    seen.clear()
    wide.denoise(wide.noise, 80.0)
    assert seen == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert torch.equal(dpm_v3.more(four, 2, seed=3).noise, four.noise[:2])


def test_a_network_that_is_not_finite_somewhere_is_named(law):
    def broken(x, sigma):
        return MODEL(x, sigma) / (0.0 if sigma < 0.01 else 1.0)

    with pytest.raises(NonFiniteError, match=r"sigma = 0\.00"):
        dpm_v3.measured(replace(law, denoiser=broken), dpm_v3.Measuring(intervals=16))


@pytest.mark.parametrize("how", [{"intervals": 4}, {"probes": 0}, {"count": 1}])
def test_what_cannot_be_measured_is_refused(how):
    with pytest.raises(InputError, match="need"):
        dpm_v3.Measuring(**how)


def test_it_ends_nearer_than_the_methods_that_it_contains(law):
    found = dpm_v3.measured(law, dpm_v3.Measuring(intervals=40, probes=2))
    rivals = [miss(name, grids.log_snr(5)) for name in ("dpmpp_2m", "dpmpp_3m", "unipc_3")]
    assert miss(DPMSolverV3(found), grids.log_snr(5)) < min(rivals)


# DC-Solver


def test_ratios_of_one_are_unipc_and_others_keep_the_cost():
    sigmas, x = grids.karras(6), 80 * normal(4, 3, seed=2)
    for base in (UniPC(3), UniPC(2, "bh1")):
        ones = dc_solver.Compensated(base, (1.0,) * 6)
        assert torch.equal(sample(ones, MODEL, x, sigmas).x, sample(base, MODEL, x, sigmas).x)
    moved = sample(dc_solver.Compensated(UniPC(3), (0.3, 0.3, 0.8, 1.2, 0.9, 1.1)), MODEL, x, sigmas)
    assert moved.stats.nfe == 6
    assert not torch.equal(moved.x, sample(UniPC(3), MODEL, x, sigmas).x)


def test_the_moved_value_lies_on_the_parabola_of_the_last_three():
    interval = Grid.of(grids.karras(6)).interval(3)
    assert dc_solver.lagrange(interval, 1.0) == pytest.approx([1, 0, 0])
    assert dc_solver.lagrange(interval, 0.0) == pytest.approx([0, 1, 0])
    assert sum(dc_solver.lagrange(interval, 0.37)) == pytest.approx(1)


def test_every_ratio_is_the_best_of_its_step(law):
    sigmas = grids.karras(5)
    found = dc_solver.compensated(UniPC(3), sigmas, law)
    assert found.ratios[:2] == (1.0, 1.0)
    assert any(ratio != 1 for ratio in found.ratios[2:])

    def first_moved(ratio):
        x, grid, state = law.noise, Grid.of(sigmas), ()
        for i in range(3):
            solver = dc_solver.Compensated(UniPC(3), (1.0, 1.0, ratio, 1.0, 1.0))
            x, _, state, _ = solver.step(MODEL, x, grid.interval(i), state)
        return float((x - law.at(grid.levels[3])).square().mean())

    tried = [first_moved(found.ratios[2]), *(first_moved(r) for r in torch.linspace(-1, 3, 41).tolist())]
    assert min(tried) == pytest.approx(tried[0], rel=1e-4)


def test_compensation_ends_nearer_than_unipc_on_new_noise(law):
    sigmas = grids.karras(5)
    for base in (UniPC(3), UniPC(2, "bh1")):
        assert miss(dc_solver.compensated(base, sigmas, law), sigmas) < miss(base, sigmas)


def test_it_refuses_ratios_that_do_not_fit():
    with pytest.raises(InputError, match="finite ratios"):
        dc_solver.Compensated(UniPC(3), (math.nan,))
    with pytest.raises(InputError, match="one ratio"):
        sample(dc_solver.Compensated(UniPC(3), (1.0,)), MODEL, 80 * normal(2, 3, seed=0), grids.karras(3))


# PAS


@pytest.mark.parametrize("order, plain", [(1, DDIM()), (3, IPNDM(3))])
def test_without_coordinates_it_is_the_method(order, plain):
    x, sigmas = 80 * normal(4, 3, seed=2), grids.karras(5)
    assert torch.allclose(sample(pas.Directed(order), MODEL, x, sigmas).x, sample(plain, MODEL, x, sigmas).x, atol=1e-10)


def test_the_directions_are_orthonormal_and_span_the_trajectory():
    past = [80 * normal(6, 10, seed=0), normal(6, 10, seed=1), normal(6, 10, seed=2), normal(6, 10, seed=3)]
    d, x = normal(6, 10, seed=4), 3 * normal(6, 10, seed=5)
    basis = torch.stack(pas.spanned(x, d, tuple(past)), 1)
    assert torch.allclose(basis @ basis.transpose(1, 2), torch.eye(4, dtype=D64).expand(6, 4, 4), atol=1e-8)
    assert torch.allclose(basis[:, 0], d / d.norm(dim=1, keepdim=True))
    assert bool((((x - past[0])[:, None] * basis[:, 1:]).sum(-1) > 0).all())
    # With two directions behind, everything is in the span: here is nothing left over.
    few = torch.stack(pas.spanned(x, d, tuple(past[:2])), 1)
    for z in (d, past[0] - past[1]):
        assert torch.allclose(torch.einsum("bkd,bk->bd", few, torch.einsum("bkd,bd->bk", few, z)), z, atol=1e-6)
    assert float(few[:, 3].abs().max()) == 0


def test_least_absolute_errors_pass_through_most_points_and_ignore_an_outlier():
    columns, c = normal(2, 50, seed=0), torch.tensor([0.7, -0.2], dtype=D64)
    wanted = c @ columns
    wanted[7] += 100
    assert torch.allclose(pas.least_absolute(columns, wanted, torch.zeros(2, dtype=D64)), c, atol=1e-6)


def test_it_corrects_some_steps_of_euler_and_ends_nearer_on_new_noise(law):
    sigmas = grids.karras(6)
    for relative in (False, True):
        found, _ = pas.searched(law, sigmas, 1, relative)
        assert found.coordinates[0] == ()
        assert any(found.coordinates)
        assert miss(found, sigmas) < 0.7 * miss(DDIM(), sigmas)


def test_no_step_is_corrected_where_the_method_is_exact():
    # D hardly depends on x, so that Euler's steps end on the flow.
    gaussian = Gaussian(torch.ones(3), 1e-9 * torch.eye(3)).to(D64)
    paths = trajectories(gaussian, 80 * normal(8, 3, seed=0), count=FINE)
    assert pas.searched(paths, grids.karras(4), 1, relative=True)[0].coordinates == ((),) * 4


def test_it_costs_one_evaluation_a_step_and_refuses_broken_coordinates(law):
    made = pas.make(task(law, 4))
    run = sample(made.solver, MODEL, law.noise, torch.tensor(made.levels, dtype=D64))
    assert run.stats.nfe == 4
    with pytest.raises(InputError, match="finite coordinates"):
        pas.Directed(1, ((1.0, math.inf, 0.0, 0.0),))
    with pytest.raises(InputError, match="finite coordinates"):
        pas.Directed(1, ((1.0,),))
