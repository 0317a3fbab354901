"""The loop: trace and cost, the noise meter, observers, generators, progress, refusals, dtypes, gradient modes."""

import itertools
import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steindiff import grids, solvers
from steindiff.analytic import GaussianMixture
from steindiff.corrections import CleanTarget, Corrected, FixedGamma, Reason, Sparse
from steindiff.corrections.blend import Moments
from steindiff.denoisers import Counter, Guided
from steindiff.divergence import Exact, Hutchinson
from steindiff.errors import InputError, NonFiniteError, StateWarning, SteindiffError
from steindiff.noise import generators, initial_noise
from steindiff.sampling import Event, Stats, sample, steps

torch.set_num_threads(1)
D64 = torch.float64
GRID = torch.tensor([10.0, 4.0, 1.5, 0.6, 0.2], dtype=D64)
CLAMPED = CleanTarget(gamma_max=1.0)
DDIM = solvers.make("ddim")
LAW = GaussianMixture(
    torch.ones(3, dtype=D64) / 3,
    torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=D64),
    0.05 * torch.eye(6, dtype=D64).expand(3, 6, 6),
)


def gaussian(y, sigma, s2=0.5):
    """D of N(0, s²), any dtype."""
    return y * (s2 / (s2 + sigma.to(y) ** 2))


def start(batch=3, sigma=10.0, dtype=D64, seed=0):
    g = torch.Generator().manual_seed(seed)
    clean = LAW.sample(batch, g)
    return (clean + sigma * torch.randn(clean.shape, generator=g, dtype=D64)).to(dtype)


# ---------------------------------------------------------------- trace and cost


@pytest.mark.parametrize(
    "solver",
    ["heun", Corrected(DDIM, CLAMPED), Corrected(DDIM, FixedGamma((0.5,) * 4)), Corrected(DDIM, Sparse(CLAMPED, steps=[1]))],
)
@pytest.mark.parametrize("dtype", [torch.float32, D64])
def test_the_trace_is_complete_and_plain(solver, dtype):
    run = sample(solver, gaussian, start(dtype=dtype), GRID)
    assert len(run.trace) == 4
    for i, record in enumerate(run.trace):
        assert type(record.index) is int
        assert record.index == i
        assert (record.sigma, record.sigma_next) == (GRID[i].item(), GRID[i + 1].item())  # float64, not rounded
        for value in (record.sigma, record.gamma, record.gamma_raw, record.noise_ratio, *record.moments.values()):
            assert type(value) is float
        assert type(record.reason) is str
        assert record.reason.upper() in Reason.__members__
        assert record.source in ("", "nothing", "full")
        assert tuple(record.moments) in ((), Moments._fields)
        assert (record.moments == {}) == (record.reason in ("plain", "inactive"))
        json.dumps(record.as_json())
    assert run.x.dtype == dtype


def test_a_plain_trace_says_so():
    for record in sample("heun", gaussian, start(), GRID).trace:
        assert (record.gamma, record.gamma_raw, record.reason, record.moments) == (1.0, 1.0, "plain", {})
        assert math.isnan(record.noise_ratio)


@pytest.mark.parametrize("name", solvers.names())
def test_stats_of_a_plain_run(name):
    calls = []

    def network(y, sigma):
        calls.append(1)
        return gaussian(y, sigma)

    run = sample(name, network, start(5), GRID)
    n = solvers.make(name).nfe(GRID)
    assert len(calls) == n
    assert run.stats == Stats(nfe=n, jvps=0, vjps=0, forward_equivalents=float(n), batch=5)
    assert sample(name, Guided(gaussian, gaussian, 2.0), start(5), GRID).stats.forward_equivalents == 2 * n


def test_moments_and_gamma_of_one_step_by_hand():
    x, (s, s_next) = start(4), (10.0, 4.0)
    record = sample(
        Corrected(DDIM, CleanTarget(), divergence=Exact()), gaussian, x, torch.tensor([s, s_next], dtype=D64)
    ).trace[0]
    c = s_next / s + (1 - s_next / s) * 0.5 / (0.5 + s * s)
    yy = float(x.square().sum(1).mean())
    expected = (1.0, s, 1.0, s_next, (1 - c) * yy, (1 - c) ** 2 * yy, 6 * (1 - c), 0.0)
    assert tuple(record.moments.values()) == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert record.gamma == record.gamma_raw == pytest.approx(s * s * 6 / ((1 - c) * yy))


# ---------------------------------------------------------------- the noise meter


def meter(y, sigma, denoiser, seed=1):
    grid = torch.tensor([sigma, sigma / 3], dtype=D64)
    solver = Corrected(DDIM, CLAMPED, divergence=Hutchinson(method="vjp"))
    return sample(solver, denoiser, y, grid, generator=torch.Generator().manual_seed(seed)).trace[0].noise_ratio


@pytest.mark.parametrize("sigma", [10.0, 1.0, 0.2])
def test_the_noise_ratio_is_one_on_the_ideal_marginal(sigma):
    ratios = torch.tensor([meter(start(1500, sigma, seed=i), sigma, LAW, i) for i in range(12)], dtype=D64)
    se = float(ratios.std() / math.sqrt(12))
    assert 0 < se < 0.02
    assert abs(float(ratios.mean()) - 1) < 4.4 * se  # Student's t, 11 degrees of freedom


@pytest.mark.parametrize("excess", [0.5, 0.9, 1.1, 2.0])
def test_the_noise_ratio_measures_excess_noise(excess):
    """N(0, s²): σ̂²/σ² = (1−g) E‖y‖²/(σ² d), so scaling y scales the ratio, and noise b σ gives √((s²+b²σ²)/(s²+σ²))."""
    y = start(200, 2.0)
    assert meter(excess * y, 2.0, gaussian) == pytest.approx(excess * meter(y, 2.0, gaussian), rel=1e-12)
    g = torch.Generator().manual_seed(0)
    noisy = 0.5**0.5 * torch.randn(20_000, 6, generator=g, dtype=D64)
    noisy += excess * 2.0 * torch.randn(20_000, 6, generator=g, dtype=D64)
    expected = math.sqrt((0.5 + excess**2 * 4) / 4.5)
    assert meter(noisy, 2.0, gaussian) == pytest.approx(expected, abs=4 * expected / math.sqrt(2 * noisy.numel()))


def test_the_noise_ratio_does_not_depend_on_step_length_or_frame():
    y = start(50, 2.0)
    seen = {
        round(r.noise_ratio, 10)
        for target in (1.9, 1.0, 0.1, 0.0)
        for r in sample(Corrected(DDIM, CLAMPED, divergence=Exact()), LAW, y, torch.tensor([2.0, target], dtype=D64)).trace
    }
    assert len(seen) == 1


# ---------------------------------------------------------------- observers and the generator form


@pytest.mark.parametrize("solver", ["dpmpp_2m", Corrected(DDIM, CLAMPED)])
def test_observers_see_every_step_in_order(solver):
    first, second = [], []
    run = sample(solver, gaussian, start(), GRID, on_step=[first.append, second.append])
    assert [e.interval.index for e in first] == [0, 1, 2, 3]
    assert [e.interval.last for e in first] == [False, False, False, True]
    assert [e.calls for e in first] == [1, 2, 3, 4]
    assert torch.equal(first[0].x_before, start())
    for a, b in itertools.pairwise(first):
        assert torch.equal(a.step.x, b.x_before)
    assert torch.equal(first[-1].step.x, run.x)
    assert [torch.equal(a.step.x, b.step.x) for a, b in zip(first, second, strict=True)] == [True] * 4
    alone = []
    sample(solver, gaussian, start(), GRID, on_step=alone.append)
    assert len(alone) == 4


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_3m", "unipc_3", "ipndm_4", "heun", Corrected(DDIM, CLAMPED)])
def test_observers_cannot_change_the_run(solver):
    def vandal(event):
        for tensor in (event.x_before, event.step.x, event.step.denoised):
            tensor.fill_(1e6)
        return Event(event.interval, event.x_before, event.step, 0)

    x = start()
    watched = sample(solver, gaussian, x, GRID, on_step=[vandal, vandal])
    assert torch.equal(watched.x, sample(solver, gaussian, x, GRID).x)
    assert torch.equal(x, start())


def test_an_observers_error_is_the_callers():
    def strict(event):
        if event.interval.index == 2:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        sample("ddim", gaussian, start(), GRID, on_step=strict)


def test_steps_can_be_abandoned_interleaved_and_resumed():
    x = start()
    whole = sample("dpmpp_2m", gaussian, x, GRID).x
    a, b = (steps("dpmpp_2m", gaussian, x, GRID) for _ in range(2))
    next(a)
    for event in b:
        final = event
    assert torch.equal(final.step.x, whole)
    next(a)
    a.close()
    assert torch.is_grad_enabled()
    *_, last = steps("dpmpp_2m", gaussian, x, GRID)
    assert torch.equal(last.step.x, whole)


def test_the_callers_gradient_mode_is_its_own_between_steps():
    for _ in steps(Corrected(DDIM, CLAMPED), gaussian, start(), GRID):
        assert torch.is_grad_enabled()
    with torch.no_grad():
        for _ in steps("ddim", gaussian, start(), GRID):
            assert not torch.is_grad_enabled()


def test_bad_arguments_are_refused_at_the_call_not_at_the_first_step():
    with pytest.raises(InputError):
        steps("ddim", gaussian, start().half(), GRID)
    with pytest.raises(InputError):
        steps("dim", gaussian, start(), GRID)
    with pytest.raises(InputError):
        steps("ddim", gaussian, start(), GRID.flip(0))


# ---------------------------------------------------------------- generators


@pytest.mark.parametrize(
    "generator", [None, torch.Generator().manual_seed(0), generators([1, 2, 3]), tuple(generators([1, 2, 3]))]
)
@pytest.mark.parametrize("solver", ["ddim", Corrected(DDIM, CLAMPED, divergence=Hutchinson(kind="gaussian"))])
def test_generators_of_every_form(generator, solver):
    run = sample(solver, gaussian, start(), GRID, generator=generator)
    assert torch.isfinite(run.x).all()
    if solver == "ddim":
        assert torch.equal(run.x, sample(solver, gaussian, start(), GRID).x)  # the state is not random


@pytest.mark.parametrize("solver", ["ddim", Corrected(DDIM, CLAMPED)])
def test_the_wrong_number_of_generators_is_refused(solver):
    with pytest.raises(InputError, match="2 generators for a batch of 3"):
        sample(solver, gaussian, start(), GRID, generator=generators([1, 2]))


@pytest.mark.parametrize("generator", [7, [1, 2, 3], "seed", [None] * 3])
def test_what_is_no_generator_is_refused(generator):
    with pytest.raises(InputError, match=r"give one torch\.Generator, or a list"):
        sample("ddim", gaussian, start(), GRID, generator=generator)


def test_an_images_divergence_does_not_depend_on_its_batch():
    """With one generator per image; γ itself is a batch statistic, so the divergence is looked at, image by image."""
    x, seeds = start(4), [5, 6, 7, 8]
    solver = Corrected(DDIM, CLAMPED, divergence=Hutchinson(kind="gaussian", method="vjp"))

    def div(rows):
        run = sample(solver, LAW, x[rows], GRID[:2], generator=generators([seeds[i] for i in rows]))
        return run.trace[0].moments["div"]

    single = [div([i]) for i in range(4)]
    assert len(set(single)) == 4
    assert div([0, 1, 2, 3]) == pytest.approx(sum(single) / 4)
    assert div([3, 1]) == pytest.approx((single[3] + single[1]) / 2)


# ---------------------------------------------------------------- progress


def test_progress_is_a_bar_on_stderr(capsys):
    run = sample("ddim", gaussian, start(), GRID, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "4/4" in err
    assert "step" in err
    assert torch.equal(run.x, sample("ddim", gaussian, start(), GRID).x)
    assert capsys.readouterr() == ("", "")


def test_progress_without_tqdm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(InputError, match=r"pip install 'steindiff\[cli\]'"):
        sample("ddim", gaussian, start(), GRID, progress=True)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.ones(3, 4, dtype=torch.int64), "x is torch.int64: the state must be float32 or float64"),
        (torch.ones(3, 4, dtype=torch.bool), "x is torch.bool"),
        (torch.ones(3, 4, dtype=torch.float16), r"x is torch.float16.*x\.float\(\)"),
        (torch.ones(3, 4, dtype=torch.bfloat16), "x is torch.bfloat16"),
        (torch.ones(3, 4, dtype=torch.complex64), "x is torch.complex64"),
        ([[1.0]], "x is list"),
        (torch.ones(0, 4), r"x of shape \(0, 4\): need a batch of at least one"),
        (torch.ones(3, 0), r"x of shape \(3, 0\)"),
        (torch.ones(3), r"x of shape \(3,\)"),
        (torch.tensor(1.0), r"x of shape \(\)"),
        (torch.tensor([[1.0, math.nan], [math.inf, -math.inf]]), "x holds 3 NaN or infinite values of 4"),
    ],
)
@pytest.mark.parametrize("progress", [False, True])
def test_bad_states_are_refused(bad, message, progress):
    with pytest.raises(InputError, match=message):
        sample("ddim", gaussian, bad, GRID, progress=progress)


@pytest.mark.parametrize("scale", [0.0, 1 / 80, 0.2, 0.45, 4.1, 80.0])
@pytest.mark.parametrize("run", [sample, lambda *args: list(steps(*args))], ids=["sample", "steps"])
def test_a_state_of_another_noise_level_than_the_grids_is_named(scale, run):
    x = scale * initial_noise(range(8), (3, 8, 8), float(GRID[0]))
    with pytest.warns(
        StateWarning, match=r"root mean square is .* sigma = 10: .*initial_noise\(.*sigmas\[0\].*or start the grid"
    ):
        run("ddim", gaussian, x, GRID)


@pytest.mark.parametrize(
    "x, sigmas",
    [
        (initial_noise(range(8), (3, 8, 8), 10.0), GRID),
        (0.55 * initial_noise(range(8), (3, 8, 8), 10.0), GRID),  # a mean of two noises has 0.71 σ
        (3.8 * initial_noise(range(8), (3, 8, 8), 10.0), GRID),
        (torch.zeros(4, 16), GRID),  # 64 numbers: too few to tell
        (40 * initial_noise([0], (3, 8, 8), 1.0), grids.karras(3, 0.1, 1.0)),  # a small σ: the data may be large
    ],
)
def test_a_state_that_fits_passes_without_a_word(x, sigmas):
    sample("ddim", gaussian, x, sigmas)  # warnings are errors in these tests


@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.tensor([1.0, 2.0]), r"sigmas\[1\] = 2 is not below"),
        (torch.tensor([2.0, 1.0, 1.0]), r"sigmas\[2\] = 1 is not below"),
        (torch.tensor([2.0, 0.0, -1.0]), r"sigmas\[1\] = 0 is not positive"),
        (torch.tensor([2.0, math.nan]), r"sigmas\[1\] = nan is not finite"),
        (torch.tensor([math.inf, 1.0]), r"sigmas\[0\] = inf is not finite"),
        (torch.tensor([2, 1]), "dtype torch.int64"),
        (torch.tensor([2.0]), r"shape \(1,\)"),
        (torch.tensor(2.0), r"shape \(\)"),
        (torch.ones(2, 2), r"shape \(2, 2\)"),
        ([2.0, 1.0], "shape list"),
        (None, "exactly one of sigmas and nfe"),
    ],
)
@pytest.mark.parametrize("progress", [False, True])
def test_bad_grids_are_refused(bad, message, progress):
    with pytest.raises(InputError, match=message):
        sample("ddim", gaussian, start(), bad, progress=progress)


# ---------------------------------------------------------------- a number of evaluations instead of a grid


@pytest.mark.parametrize("name", ["ddim", "dpmpp_3m", "unipc_2", "ipndm_4", "heun", "dpmpp_2s", "dpmpp_3s"])
@pytest.mark.parametrize("nfe", [1, 4, 7])
def test_without_levels_a_solver_spends_its_evaluations_on_edms_grid(name, nfe):
    planned = sample(name, gaussian, start(sigma=80.0), nfe=nfe)
    assert planned.stats.nfe == nfe
    assert (planned.trace[0].sigma, planned.trace[-1].sigma_next) == (80.0, 0.002)
    solver, n = solvers.make(name).for_nfe(nfe)
    assert torch.equal(planned.x, sample(solver, gaussian, start(sigma=80.0), grids.karras(n)).x)


def test_a_setting_says_the_levels():
    setting = solvers.Setting(sigma_max=10.0, sigma_min=0.1)
    planned = sample("dpmpp_2m", gaussian, start(), nfe=3, setting=setting)
    assert torch.equal(planned.x, sample("dpmpp_2m", gaussian, start(), grids.karras(3, 0.1, 10.0)).x)


def test_the_denoiser_says_what_a_planning_solver_needs_to_know():
    """σ_data of the law, through whatever wraps it; a setting overrides it."""
    x = start(sigma=80.0)
    spread = LAW.sigma_data
    for denoiser in (LAW, Counter(LAW)):
        planned = sample("auto", denoiser, x, nfe=30, setting=None)
        assert planned.stats.nfe == 30
        named = [record.sigma for record in sample("universal(sigma_data=0.25)", denoiser, x, nfe=4).trace]
        told = [r.sigma for r in sample("universal", denoiser, x, nfe=4, setting=solvers.Setting(sigma_data=0.25)).trace]
        assert named == told
    assert solvers.Setting.of(Counter(LAW)).sigma_data == spread
    assert solvers.Setting.of(Guided(gaussian, gaussian, 2.5)).guidance == 2.5
    assert solvers.Setting.of(gaussian) == replace(solvers.USUAL, conditioned=False)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "universal"])
def test_a_correction_spends_the_evaluations_of_what_it_wraps(solver):
    x, corrected = start(sigma=80.0, batch=8), Corrected(solver, CLAMPED, divergence=Hutchinson(method="vjp"))
    run = sample(corrected, gaussian, x, nfe=4)
    sources = [r.source for r in run.trace]
    assert (run.stats.nfe, run.stats.vjps) == (4, sources.count("full") - (solver == "universal"))  # a free step calls nothing
    assert len(run.trace) == 4 + (solver == "universal")
    assert set(sources) == {"full", "tweedie"}


@pytest.mark.parametrize("both", [{}, {"sigmas": GRID, "nfe": 4}])
def test_a_run_has_either_levels_or_a_number_of_evaluations(both):
    with pytest.raises(InputError, match="give exactly one of sigmas and nfe"):
        sample("ddim", gaussian, start(), **both)


@pytest.mark.parametrize("nfe", [0, -1, True, 2.5, "4", math.nan])
def test_what_is_no_number_of_evaluations_is_refused(nfe):
    for solver in ("ddim", "heun", "dpmpp_3s", "auto", Corrected("universal", CLAMPED)):
        with pytest.raises(InputError, match="whole number of network evaluations, at least one"):
            sample(solver, gaussian, start(sigma=80.0), nfe=nfe)


@pytest.mark.parametrize(
    "bad", [{"sigma_max": 0.001}, {"sigma_max": math.inf}, {"sigma_min": -1.0}, {"sigma_data": 0.0}, {"sigma_data": math.nan}]
)
def test_a_setting_that_is_none_is_refused(bad):
    with pytest.raises(InputError, match="need"):
        solvers.Setting(**bad)


def test_a_plain_solver_plans_no_grid_to_zero():
    with pytest.raises(InputError, match="need 0 < sigma_min"):
        sample("ddim", gaussian, start(sigma=80.0), nfe=4, setting=solvers.Setting(sigma_min=0.0))
    end = sample("universal", gaussian, start(sigma=80.0), nfe=4, setting=solvers.Setting(sigma_min=0.0))
    assert end.trace[-1].sigma_next == 0


@pytest.mark.parametrize("name, guess", [("dpm_2m", "dpmpp_2m"), ("DDIM", "ddim"), ("unipc", "unipc_")])
def test_an_unknown_solver_is_named_with_a_suggestion(name, guess):
    with pytest.raises(InputError, match=rf"unknown solver '{name}'.*{guess}.*Known: auto, calibrated, ddim"):
        sample(name, gaussian, start(), GRID)


def spoiled(make, at):
    """A denoiser whose output is spoiled at noise levels ≤ at."""

    def network(y, sigma):
        out = gaussian(y, sigma)
        return make(out) if sigma <= at else out

    return network


SPOILS = {
    "shape": (lambda d: d[:, :3], r"returned \(3, 3\) torch.float64 for \(3, 6\) torch.float64"),
    "broadcast": (lambda d: d[:1], r"returned \(1, 6\)"),
    "dtype": (lambda d: d.float(), r"returned \(3, 6\) torch.float32 for \(3, 6\) torch.float64"),
    "tuple": (lambda d: (d,), "returned tuple"),
    "none": (lambda d: None, "returned NoneType"),
}


@pytest.mark.parametrize("kind", SPOILS)
@pytest.mark.parametrize("solver, step, sigma", [("ddim", 2, "1.5"), ("heun", 1, "1.5"), (Corrected(DDIM, CLAMPED), 2, "1.5")])
def test_a_malformed_output_is_an_error_that_says_where(kind, solver, step, sigma):
    make, message = SPOILS[kind]
    with pytest.raises(InputError, match=rf"{message}.* at step {step}, sigma = {sigma}: shape and dtype"):
        sample(solver, spoiled(make, 1.5), start(), GRID)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("solver, step", [("ddim", 2), ("heun", 1), ("unipc_2", 1), (Corrected(DDIM, CLAMPED), 2)])
def test_an_output_that_is_not_finite_is_an_error_that_says_where(value, solver, step):
    def make(d):
        d = d.clone()
        d[1, 4] = value
        return d

    with pytest.raises(NonFiniteError, match=rf"at step {step}, sigma = 1\.5: check its dtype"):
        sample(solver, spoiled(make, 1.5), start(), GRID)


def test_a_network_that_fails_from_the_start_is_not_blamed_on_its_derivative():
    for solver in ("ddim", Corrected(DDIM, CLAMPED)):
        with pytest.raises(NonFiniteError, match="at step 0, sigma = 10"):
            sample(solver, lambda y, s: y * math.nan, start(), GRID)
        with pytest.raises(InputError, match="at step 0, sigma = 10"):
            sample(solver, lambda y, s: y.float(), start(), GRID)


@pytest.mark.parametrize("run", [sample, lambda *args: list(steps(*args))], ids=["sample", "steps"])
def test_the_check_waits_for_the_end_and_names_the_first_bad_step(run):
    """No step waits for the device to know what the network returned: the run is repeated to say which output was the first."""
    seen = []

    def network(y, sigma):
        seen.append(float(sigma))
        return spoiled(lambda d: d * math.nan, 1.5)(y, sigma)

    with pytest.raises(NonFiniteError, match=r"output is NaN or infinite at step 2, sigma = 1\.5"):
        run("ddim", network, start(), GRID)
    assert seen == [*GRID.tolist()[:-1], *GRID.tolist()[:3]]


def test_a_large_state_whose_sum_overflows_is_finite():
    with pytest.warns(StateWarning):
        end = sample("ddim", lambda y, s: y.clone(), torch.full((1, 400), 1e38), GRID)
    assert math.isinf(end.x.sum())
    assert end.x.isfinite().all()


def test_the_trace_of_a_result_is_read_when_it_is_asked_for():
    result = sample(Corrected(DDIM, CLAMPED), LAW, start(), GRID)
    assert "trace" not in vars(result)
    assert result.trace is result.trace


def test_a_last_state_that_is_not_finite_is_an_error():
    """No network sees it."""
    with pytest.raises(NonFiniteError, match="the state is NaN or infinite after step 3, sigma = 200"):
        sample(Corrected(DDIM, FixedGamma((1.0, 1.0, 1.0, 1e308))), lambda y, s: 0 * y, 1e3 * start(), 1e3 * GRID)


def test_a_network_that_fails_once_is_not_blamed_on_a_correction():
    """A plain solver has none; the run is repeated to find the first bad output, and finds none."""
    calls = itertools.count()

    def denoiser(x, sigma):
        return x / (1 + sigma**2) * (math.nan if next(calls) == 1 else 1.0)

    with pytest.raises(NonFiniteError, match=r"another run had finite outputs only; check that the network is reproducible"):
        sample("ddim", denoiser, 10.0 * torch.ones(1, 2), torch.tensor([10.0, 1.5, 0.5]))


# ---------------------------------------------------------------- gradients and inference mode


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from tensors(part)
    elif hasattr(tree, "__dataclass_fields__"):
        for name in tree.__dataclass_fields__:
            yield from tensors(getattr(tree, name))


@pytest.mark.parametrize(
    "solver",
    [
        *solvers.names(),
        Corrected(DDIM, CLAMPED),
        Corrected(solvers.make("dpmpp_3m"), CLAMPED, divergence=Hutchinson(method="jvp")),
    ],
)
def test_no_graph_survives(solver):
    layer = torch.nn.Linear(6, 6, dtype=D64)

    def network(y, sigma):
        return gaussian(layer(y), sigma)

    x = start().requires_grad_(True)
    events = []
    run = sample(solver, network, x, GRID, on_step=events.append)
    leaked = [t for e in events for t in tensors((e.step, e.x_before)) if t.grad_fn is not None]
    assert not leaked
    assert not run.x.requires_grad
    assert layer.weight.grad is None
    assert x.grad is None
    for event in steps(solver, network, x, GRID):
        assert event.step.x.grad_fn is None


@pytest.mark.parametrize("name", solvers.names())
def test_a_plain_solver_runs_in_inference_mode(name):
    with torch.inference_mode():
        run = sample(name, gaussian, start(), GRID)
    assert torch.equal(run.x, sample(name, gaussian, start(), GRID).x)


def test_a_correction_in_inference_mode_uses_finite_differences_or_says_why_not():
    with torch.inference_mode():
        run = sample(Corrected(DDIM, CLAMPED), LAW, start(), GRID)
        assert run.stats.choice.method == "fd"
        assert run.stats.nfe == 3 * 4
        assert sample(Corrected(DDIM, FixedGamma((0.5,) * 4)), LAW, start(), GRID).stats.nfe == 4
        for method in ("vjp", "jvp"):
            with pytest.raises(SteindiffError, match=r"inference.*method='auto'"):
                sample(Corrected(DDIM, CLAMPED, divergence=Hutchinson(method=method)), LAW, start(), GRID)
    outside = sample(Corrected(DDIM, CLAMPED, divergence=Hutchinson(method="fd")), LAW, start(), GRID)
    assert torch.equal(run.x, outside.x)
    reference = sample(Corrected(DDIM, CLAMPED), LAW, start(), GRID)
    assert [r.gamma for r in run.trace] == pytest.approx([r.gamma for r in reference.trace], rel=1e-3)


@pytest.mark.parametrize("method", ["auto", "vjp", "jvp", "fd"])
def test_states_and_grids_made_in_inference_mode_work_outside_it(method):
    with torch.inference_mode():
        x, grid = start(), GRID * 1.0
    run = sample(Corrected(DDIM, CLAMPED, divergence=Hutchinson(method=method)), LAW, x, grid)
    assert not run.x.is_inference()
    torch.testing.assert_close(
        run.x, sample(Corrected(DDIM, CLAMPED, divergence=Hutchinson(method=method)), LAW, start(), GRID).x
    )


# ---------------------------------------------------------------- dtypes, batches, determinism


@pytest.mark.parametrize("solver", [*solvers.names(), Corrected(solvers.make("dpmpp_2m"), CLAMPED)])
def test_float32_follows_float64(solver):
    fine = sample(solver, gaussian, start(), GRID)
    coarse = sample(solver, gaussian, start(dtype=torch.float32), GRID)
    assert coarse.x.dtype == torch.float32
    torch.testing.assert_close(coarse.x.double(), fine.x, rtol=2e-5, atol=2e-5)
    assert [r.gamma for r in coarse.trace] == pytest.approx([r.gamma for r in fine.trace], rel=1e-4)
    low = sample(solver, gaussian, start(), GRID.float())  # a float32 grid is taken as float64
    assert low.x.dtype == D64


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(solvers.names()),
    st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=7, unique=True).map(lambda v: sorted(v, reverse=True)),
    st.booleans(),
    st.permutations(range(4)),
)
def test_any_grid_gives_a_finite_run_that_treats_images_alike(name, levels, to_zero, order):
    levels = [a for a, b in zip(levels, [*levels[1:], 0.0], strict=True) if a > 1.001 * b]
    grid = torch.tensor([*levels, 0.0] if to_zero or len(levels) < 2 else levels, dtype=D64)
    x = start(4, levels[0])
    run = sample(name, gaussian, x, grid)
    assert torch.isfinite(run.x).all()
    assert run.stats.nfe == solvers.make(name).nfe(grid)
    assert [r.sigma for r in run.trace] == grid.tolist()[:-1]
    assert [r.sigma_next for r in run.trace] == grid.tolist()[1:]
    permuted = sample(name, gaussian, x[list(order)], grid)
    torch.testing.assert_close(permuted.x, run.x[list(order)], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: Corrected(DDIM, CLAMPED), lambda: solvers.make("unipc_3")])
def test_a_run_can_be_repeated_with_the_same_solver_object(make):
    solver, x = make(), start()
    first = sample(solver, gaussian, x, GRID)
    sample(solver, LAW, start(2, 80.0), grids.karras(3))
    again = sample(solver, gaussian, x, GRID)
    assert torch.equal(first.x, again.x)
    assert [r.gamma for r in first.trace] == [r.gamma for r in again.trace]
    assert torch.equal(x, start())
