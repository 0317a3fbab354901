"""The wrapper: γ = 1 is the plain solver bit for bit, γ minimises what it claims to; frames, divergences, activity, cost."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from steindiff import grids, solvers
from steindiff.analytic import GaussianMixture
from steindiff.corrections import CleanTarget, Corrected, FixedGamma, NoiseConsistent
from steindiff.denoisers import FromEps, FromFlow, FromV, Guided
from steindiff.divergence import Choice, Estimate, Exact, Hutchinson
from steindiff.errors import InputError, NonFiniteError, SteindiffError
from steindiff.noise import generators, initial_noise
from steindiff.sampling import sample, steps
from steindiff.schedules import RectifiedFlow, VPCosine, VPLinear
from steindiff.solvers.base import Grid
from steindiff.solvers.free import FreeRun
from steindiff.solvers.unipc import UniPC

torch.set_num_threads(1)
D64 = torch.float64
CLAMPED = CleanTarget(gamma_max=1.0)
FROZEN = CleanTarget(gamma_max=1.0, history="frozen")
"""The same with the estimator at every step."""


class Mix:
    """Gaussians N(μ_k, s²) of equal weight in the dtype of the state: exact denoiser, and draws of x*."""

    def __init__(self, d=6, k=3, s2=0.05, seed=0):
        means = torch.randn(k, d, generator=torch.Generator().manual_seed(seed), dtype=D64)
        covariances = s2 * torch.eye(d, dtype=D64).expand(k, d, d)
        self.law = GaussianMixture(torch.ones(k, dtype=D64) / k, means, covariances)
        self._laws = {D64: self.law, torch.float32: self.law.to(torch.float32)}

    def __call__(self, y, sigma):
        return self._laws[y.dtype](y, sigma)

    def sample(self, n, generator):
        return self.law.sample(n, generator)


MIX = Mix()


def gaussian(y, sigma, s2=0.5):
    """D of N(0, s²)."""
    return y * (s2 / (s2 + sigma.to(y) ** 2)).reshape(-1, *[1] * (y.ndim - 1) * (sigma.ndim > 0))


def as_eps(model, schedule):
    def network(x, t):
        a, s = (z.to(x)[:, None] for z in (schedule.alpha(t.double()), schedule.sigma(t.double())))
        return (x - a * model(x / a, schedule.ratio(t.double()))) / s

    return FromEps(network, schedule)


def as_v(model, schedule):
    def network(x, t):
        a, s = (z.to(x)[:, None] for z in (schedule.alpha(t.double()), schedule.sigma(t.double())))
        x0 = model(x / a, schedule.ratio(t.double()))
        return a * (x - a * x0) / s - s * x0

    return FromV(network, schedule)


def as_flow(model, schedule):
    def network(x, t):
        a, s = (z.to(x)[:, None] for z in (schedule.alpha(t.double()), schedule.sigma(t.double())))
        x0 = model(x / a, schedule.ratio(t.double()))
        return (x - a * x0) / s - x0

    return FromFlow(network, schedule)


def every_kind(model):
    return {
        "ve": model,
        "vp-linear": as_eps(model, VPLinear()),
        "cosine": as_v(model, VPCosine()),
        "rectified flow": as_flow(model, RectifiedFlow()),
    }


DENOISERS = every_kind(MIX)
SCHEDULES = {"vp-linear": VPLinear(), "cosine": VPCosine(), "rectified flow": RectifiedFlow()}
GRID = torch.tensor([10.0, 4.0, 1.5, 0.6, 0.2], dtype=D64)
TO_ZERO = torch.tensor([10.0, 2.0, 0.5, 0.0], dtype=D64)


def start(batch=3, sigma=10.0, dtype=D64, seed=0, model=MIX):
    g = torch.Generator().manual_seed(seed)
    clean = model.sample(batch, g)
    return (clean + sigma * torch.randn(clean.shape, generator=g, dtype=D64)).to(dtype)


def ones(grid):
    return FixedGamma((1.0,) * (len(grid) - 1))


def alphas(name, *sigmas):
    """α at VE noise levels: 1 for a plain VE denoiser."""
    schedule = SCHEDULES.get(name)
    return [schedule.alpha_of(torch.as_tensor(s, dtype=D64)) if schedule else torch.ones((), dtype=D64) for s in sigmas]


# ---------------------------------------------------------------- γ = 1, γ = 0, and the blend


@pytest.mark.parametrize("name", solvers.names())
@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("frame", ["model", "ve"])
def test_gamma_one_is_the_plain_solver_bit_for_bit(name, kind, frame):
    denoiser = DENOISERS[kind]
    for grid, dtype in ((GRID, torch.float32), (TO_ZERO, torch.float32), (GRID, D64)):
        x = start(dtype=dtype)
        plain = list(steps(name, denoiser, x, grid))
        corrected = list(steps(Corrected(solvers.make(name), ones(grid), frame=frame), denoiser, x, grid))
        for a, b in zip(plain, corrected, strict=True):
            assert torch.equal(a.step.x, b.step.x)
            assert torch.equal(a.step.denoised, b.step.denoised)
            assert a.calls == b.calls


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "unipc_2", "ipndm_3"])
def test_a_measured_gamma_clamped_to_one_is_the_plain_solver_too(name):
    """The proposal taken out of the differentiated evaluation is the plain one, bit for bit (VJP)."""
    x = start(dtype=torch.float32)
    solver = Corrected(solvers.make(name), NoiseConsistent(1.0, 1.0), divergence=Hutchinson(method="vjp"))
    run = sample(solver, MIX, x, GRID)
    assert torch.equal(run.x, sample(name, MIX, x, GRID).x)
    assert any(r.reason != "rule" for r in run.trace)
    assert run.stats.vjps > 0


@pytest.mark.parametrize("name", solvers.names())
@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("frame", ["model", "ve"])
def test_gamma_zero_keeps_the_state_in_its_frame(name, kind, frame):
    x = start()
    frozen = FixedGamma((0.0,) * (len(GRID) - 1))
    out = sample(Corrected(solvers.make(name), frozen, frame=frame), DENOISERS[kind], x, GRID).x
    a, a_end = alphas(kind, GRID[0], GRID[-1]) if frame == "model" else (1.0, 1.0)
    torch.testing.assert_close(a_end * out, a * x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("gamma", [-0.5, 0.3, 0.5, 0.8, 1.7])
def test_the_blend_is_lerp_of_the_models_own_state(kind, gamma):
    """x' = (1−γ) x + γ T(x) with x = α y: in y, lerp(ρ y, T, γ); the two frames differ by (1−γ)(ρ−1) y."""
    x, grid = start(), GRID[:2]
    plain = sample("ddim", DENOISERS[kind], x, grid).x
    out = {
        f: sample(Corrected(solvers.make("ddim"), FixedGamma((gamma,)), frame=f), DENOISERS[kind], x, grid).x
        for f in ("model", "ve")
    }
    a, a_next = alphas(kind, grid[0], grid[1])
    torch.testing.assert_close(a_next * out["model"], (1 - gamma) * a * x + gamma * a_next * plain)
    torch.testing.assert_close(out["ve"], (1 - gamma) * x + gamma * plain)
    torch.testing.assert_close(out["model"] - out["ve"], (1 - gamma) * (a / a_next - 1) * x, rtol=1e-9, atol=1e-9)


def test_guidance_blends_in_the_conditional_models_frame():
    eps = DENOISERS["vp-linear"]
    x = start()
    solver = Corrected(solvers.make("ddim"), FixedGamma((0.5,) * 4))
    guided = sample(solver, Guided(eps, eps, 1.0), x, GRID)
    torch.testing.assert_close(guided.x, sample(solver, eps, x, GRID).x)


# ---------------------------------------------------------------- γ against its closed form and against its purpose


@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("frame", ["model", "ve"])
@pytest.mark.parametrize("method", ["vjp", "jvp", "fd"])
def test_gamma_on_a_gaussian_is_its_closed_form(kind, frame, method):
    """D = g y, T = c y, u = (α − α'c) y: Eq. 11 in every frame, from the batch's own ‖y‖²; Rademacher is exact here."""
    s2, d, (s, s_next) = 0.5, 6, (2.0, 0.7)
    grid = torch.tensor([s, s_next], dtype=D64)
    denoiser = every_kind(gaussian)[kind]
    x = start(5, s)
    run = sample(
        Corrected(solvers.make("ddim"), CleanTarget(), divergence=Hutchinson(method=method), frame=frame), denoiser, x, grid
    )
    a, a_next = (float(z) for z in alphas(kind, s, s_next)) if frame == "model" else (1.0, 1.0)
    r, g = s_next / s, s2 / (s2 + s * s)
    c = r + (1 - r) * g
    yy = float(x.square().sum(1).mean())
    u = a - a_next * c  # u = (a − a'c) y, x = a y
    expected = ((1 - 1 / a) * u * a * yy + (a * s) ** 2 / a * d * u / a) / (u * u * yy)
    record = run.trace[0]
    # the adapters ask the network at a time in the state's dtype: √eps of rounding there
    assert record.gamma_raw == pytest.approx(expected, rel=1e-6)
    assert record.moments["div"] == pytest.approx(d * u / a, rel=1e-6)
    assert record.moments["ux"] == pytest.approx(u * a * yy, rel=1e-6)
    assert record.moments["uu"] == pytest.approx(u * u * yy, rel=1e-6)
    assert record.moments["alpha"] == pytest.approx(a)
    assert record.moments["sigma_next"] == pytest.approx(a_next * s_next)
    assert record.moments["div_se"] == pytest.approx(0, abs=1e-6)
    # σ̂² = E‖y − D‖²/E[∇·(y − D)], whatever the frame
    assert record.noise_ratio == pytest.approx(math.sqrt((1 - g) * yy / d) / s, rel=1e-6)


def measured(solver_step, state_of, kind, frame, sigma, sigma_next, n=4000, batches=10):
    """Per batch: γ_raw of the wrapper, the regression on the known x*, and J on a grid of γ, in the frame of the blend."""
    a, a_next = alphas(kind, sigma, sigma_next) if frame == "model" else (1.0, 1.0)
    grid, candidates = torch.tensor([2 * sigma, sigma, sigma_next], dtype=D64), torch.linspace(-0.5, 2.5, 61, dtype=D64)
    interval = Grid.of(grid).interval(1)
    raw, direct, losses = [], [], []
    for i in range(batches):
        g = torch.Generator().manual_seed(i)
        clean = MIX.sample(n, g)
        y = clean + sigma * torch.randn(clean.shape, generator=g, dtype=D64)
        inner = state_of(grid, clean, g)
        rule = CleanTarget(history="frozen")
        corrected = Corrected(solver_step, rule, divergence=Hutchinson(method="vjp", seed=i), frame=frame)
        begun = corrected.init(DENOISERS[kind], y, Grid.of(grid))
        with torch.no_grad():
            state = replace(begun, inner=inner)
            record = corrected.step(DENOISERS[kind], y, interval, state).note
            T = solver_step.step(DENOISERS[kind], y, interval, inner).x
        x, u = a * y, a * y - a_next * T
        raw.append(record.numbers["gamma_raw"])
        direct.append((u * (x - clean)).sum() / u.square().sum())
        losses.append(torch.stack([(x - c * u - clean).square().sum(1).mean() for c in candidates]))
    return torch.stack(raw), torch.stack(direct), candidates, torch.stack(losses).mean(0)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("kind, frame", [("ve", "ve"), ("vp-linear", "model"), ("rectified flow", "model")])
def test_gamma_minimises_the_distance_to_the_clean_sample(name, kind, frame):
    """Over the true coupling; the history of 2M comes from another noise and is no function of x: constant is right there."""
    solver = solvers.make(name)
    if name == "dpmpp_2m":
        solver = type(solver)(lower_order_final=False)

    def state_of(grid, clean, g):
        if name != "dpmpp_2m":
            return solver.init(MIX, clean, Grid.of(grid))
        other = clean + grid[0] * torch.randn(clean.shape, generator=g, dtype=D64)
        return (MIX(other, grid[0]),)

    raw, direct, candidates, loss = measured(solver, state_of, kind, frame, 0.8, 0.3)
    se = float((raw - direct).std() / math.sqrt(len(raw)))
    assert 0 < se < 0.1
    assert abs(float((raw - direct).mean())) < 4.6 * se  # Student's t, 9 degrees of freedom
    best = float(candidates[loss.argmin()])
    assert -0.4 < best < 2.4, "the minimum must be inside the grid for the comparison to mean anything"
    assert abs(best - float(raw.mean())) < 0.025 + 4.6 * float(raw.std() / math.sqrt(len(raw)))


# ---------------------------------------------------------------- the divergence


def jacobian_trace(solver, denoiser, y, interval, inner):
    J = torch.autograd.functional.jacobian(lambda z: solver.step(denoiser, z, interval, inner).x.sum(0), y)
    return J.permute(1, 0, 2).diagonal(dim1=1, dim2=2).sum(1)


def third_step(solver, denoiser, grid=GRID):
    """State and interval of step 2, after two plain steps."""
    x = start(sigma=float(grid[0]))
    plan = Grid.of(grid)
    state = solver.init(denoiser, x, plan)
    with torch.no_grad():
        for i in (0, 1):
            step = solver.step(denoiser, x, plan.interval(i), state)
            x, state = step.x, step.state
    return x, plan.interval(2), state


@pytest.mark.parametrize("name", [*solvers.names(), "unipc refresh"])
@pytest.mark.parametrize("kind", ["ve", "vp-linear"])
@pytest.mark.parametrize("frame", ["model", "ve"])
def test_the_divergence_is_that_of_the_finished_step_with_its_history_constant(name, kind, frame):
    """∇·u = d − tr(∂T/∂y)/ρ with ∂T/∂y the Jacobian of the whole step at fixed state; and by finite differences."""
    solver = UniPC(order=2, stored="refresh") if name == "unipc refresh" else solvers.make(name)
    denoiser = DENOISERS[kind]
    x, interval, inner = third_step(solver, denoiser)
    rho = 1.0
    if frame == "model":
        a, a_next = alphas(kind, interval.sigma, interval.sigma_next)
        rho = float(a / a_next)
    expected = x.shape[1] - jacobian_trace(solver, denoiser, x, interval, inner) / rho
    h, differences = 1e-5, torch.zeros(len(x), dtype=D64)
    with torch.no_grad():
        for e in torch.eye(x.shape[1], dtype=D64):
            plus, minus = (solver.step(denoiser, x + s * h * e, interval, inner).x @ e for s in (1, -1))
            differences += (plus - minus) / (2 * h)
    torch.testing.assert_close(x.shape[1] - differences / rho, expected, rtol=1e-6, atol=1e-6)
    corrected = Corrected(solver, FROZEN, divergence=Exact(), frame=frame)
    begun = corrected.init(denoiser, x, Grid.of(GRID))
    with torch.no_grad():
        last = corrected.step(denoiser, x, interval, replace(begun, inner=inner)).note.numbers
    assert float(last["div"]) == pytest.approx(float(expected.mean()), rel=1e-9)
    assert float(last["div_se"]) == pytest.approx(float(expected.std() / math.sqrt(3)), rel=1e-6)


def test_heuns_derivative_goes_through_both_evaluations():
    """T's trace differs from that of the Euler half alone, by far more than rounding."""
    x, interval, inner = third_step(solvers.make("heun"), MIX)
    full = jacobian_trace(solvers.make("heun"), MIX, x, interval, inner)
    euler = jacobian_trace(solvers.make("ddim"), MIX, x, interval, ())
    assert ((full - euler).abs() > 0.01).all()


@pytest.mark.parametrize("name", [*solvers.names(), "unipc refresh"])
def test_the_analytical_divergence_is_the_trace_at_a_constant_network(name):
    def constant(y, sigma):
        return torch.ones_like(y) / 3 + 0 * y

    solver = UniPC(order=2, stored="refresh") if name == "unipc refresh" else solvers.make(name)
    for kind in ("ve", "vp-linear"):
        denoiser = constant if kind == "ve" else DENOISERS[kind]
        exact, linear = (
            Corrected(solver, FROZEN, divergence=Exact()),
            Corrected(solver, CleanTarget(gamma_max=1.0, mode="analytical")),
        )
        if kind == "ve":
            a, b = (sample(c, denoiser, start(), GRID).trace for c in (exact, linear))
            assert [r.moments["div"] for r in b] == pytest.approx([r.moments["div"] for r in a], rel=1e-9)
        else:  # the frame's factor: 1 − linear/ρ
            r = sample(linear, denoiser, start(), GRID).trace[0]
            rho = r.moments["alpha"] / r.moments["alpha_next"]
            assert r.moments["div"] == pytest.approx(6 * (1 - r.sigma_next / r.sigma / rho))


def test_unipc_keep_and_refresh_are_different_maps():
    """Kept: the stored evaluation is a constant, free. Refreshed: evaluated at the moved state, one more each step."""
    x, gammas = start(), FixedGamma((0.8,) * 4)
    keep, refresh = (sample(Corrected(UniPC(order=2, stored=s), gammas), MIX, x, GRID) for s in ("keep", "refresh"))
    assert (keep.stats.nfe, refresh.stats.nfe) == (4, 7)
    assert (keep.x - refresh.x).abs().max() > 1e-4
    moved = next(iter(steps(Corrected(UniPC(order=2), gammas), MIX, x, GRID))).step
    ahead = moved.state.inner[0]
    assert (ahead - MIX(moved.x, GRID[1])).abs().max() > 1e-3  # the kept value does not belong to the blended state


def test_an_unknown_frame_is_refused():
    with pytest.raises(InputError, match="frame='pixel': choose"):
        Corrected(solvers.make("ddim"), CLAMPED, frame="pixel")


# ---------------------------------------------------------------- what the paper's rule does


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_printed_literally_it_diverges_and_clamped_it_does_not(name):
    """docs/method.md §3: on exact models error × 10³ and more; γ ≤ 1 stays within reach of the plain solver."""
    model = Mix(d=16, k=6, s2=0.01, seed=1)
    grid = grids.karras(10)
    x = 80 * torch.randn(64, 16, generator=torch.Generator().manual_seed(0), dtype=D64)
    exact = model.law.flow(x, 80.0, 0.002, tol=1e-4)
    estimator = Hutchinson(method="vjp")

    def error(rule):
        solver = solvers.make(name) if rule is None else Corrected(solvers.make(name), rule, divergence=estimator)
        return float((sample(solver, model, x, grid).x - exact).square().mean().sqrt())

    plain = error(None)
    assert plain < 0.5
    assert error(CleanTarget()) > 10 * plain
    assert error(CLAMPED) < 2 * plain


def test_a_state_driven_to_overflow_is_an_error_that_names_the_remedy():
    x = start(dtype=torch.float32)
    runaway, last = (Corrected(solvers.make("ddim"), FixedGamma((g,) * n)) for g, n in ((1e30, 4), (3e38, 1)))
    with pytest.raises(NonFiniteError, match=r"at step [12], sigma = .*gamma_max=1"):
        sample(runaway, lambda y, s: 0.5 * y, x, GRID)
    with pytest.raises(NonFiniteError, match=r"state is NaN or infinite after step 0, sigma = 4.*gamma_max=1"):
        sample(last, MIX, x, GRID[:2])


# ---------------------------------------------------------------- degenerate steps


class Stub(Exact):
    """An estimator that reports what it is told."""

    def __init__(self, value):
        object.__setattr__(self, "choice", None)
        object.__setattr__(self, "value", value)

    def resolve(self, denoiser, x, sigma):
        return self

    def __call__(self, g, x, index, contract=None):
        _, aux = g(x)
        return Estimate(torch.full((1, len(x)), self.value, dtype=x.dtype), 1, 0, 0), aux


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_divergence_that_is_not_finite_leaves_the_step_plain(value):
    x = start(dtype=torch.float32)
    rule = CleanTarget(history="frozen")
    run = sample(Corrected(solvers.make("dpmpp_2m"), rule, divergence=Stub(value)), MIX, x, GRID)
    assert torch.equal(run.x, sample("dpmpp_2m", MIX, x, GRID).x)
    assert [(r.reason, r.gamma) for r in run.trace] == [("non_finite", 1.0)] * 4


@pytest.mark.parametrize("dtype", [torch.float32, D64])
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m"])
def test_a_residual_of_rounding_alone_leaves_the_step_plain(dtype, name):
    """D(x) = x: T(x) = x up to rounding, and rounding over rounding is no coefficient."""
    x = start(dtype=dtype)
    run = sample(Corrected(solvers.make(name), CleanTarget()), lambda y, s: y * 1, x, GRID)
    assert [(r.reason, r.gamma) for r in run.trace] == [("zero_residual", 1.0)] * 4
    torch.testing.assert_close(run.x, x)


@pytest.mark.parametrize("name", solvers.names())
@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("dtype", [torch.float32, D64])
def test_the_step_to_noise_zero_has_finite_statistics(name, kind, dtype):
    x = start(8, dtype=dtype)
    for frame in ("model", "ve"):
        for rule in (CLAMPED, CleanTarget(gamma_max=1.0, mode="analytical"), NoiseConsistent(0.0, 2.0)):
            run = sample(
                Corrected(solvers.make(name), rule, divergence=Hutchinson(method="vjp"), frame=frame),
                DENOISERS[kind],
                x,
                TO_ZERO,
            )
            assert run.x.dtype == dtype
            assert torch.isfinite(run.x).all()
            last = run.trace[-1]
            assert last.sigma_next == last.moments["sigma_next"] == 0
            assert all(math.isfinite(v) for v in last.moments.values())
            assert math.isfinite(last.gamma_raw)
            assert last.reason in ("rule", "clamped_low", "clamped_high")


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_3m", "unipc_3"])
@pytest.mark.parametrize("kind", DENOISERS)
def test_a_batch_of_one_works(name, kind):
    run = sample(Corrected(solvers.make(name), FROZEN, divergence=Hutchinson(3)), DENOISERS[kind], start(1), GRID)
    assert run.stats.batch == 1
    assert torch.isfinite(run.x).all()
    assert all(math.isfinite(r.moments["div"]) for r in run.trace)
    assert all(math.isfinite(r.moments["div_se"]) for r in run.trace)  # over probes
    single = sample(Corrected(solvers.make(name), CLAMPED), DENOISERS[kind], start(1), GRID)
    assert all(math.isnan(r.moments["div_se"]) for r in single.trace)


def test_images_of_any_shape():
    x = 10 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    run = sample(Corrected(solvers.make("heun"), CLAMPED), gaussian, x, GRID)
    flat = sample(Corrected(solvers.make("heun"), CLAMPED), gaussian, x.flatten(1), GRID)
    torch.testing.assert_close(run.x.flatten(1), flat.x)


# ---------------------------------------------------------------- composition and differentiation


def test_one_correction_per_step():
    inner = Corrected(solvers.make("ddim"), CLAMPED)
    with pytest.raises(InputError, match="corrected already"):
        Corrected(inner, CLAMPED)


def test_a_corrected_step_has_no_linear_part_before_its_gamma():
    """With the network's outputs held, the blend's is (1−γ) ρ + γ r. The wrapped solver's r would be another step's."""
    inner, x, interval = Corrected("ddim", FixedGamma((0.5,) * 4)), start(), Grid.of(GRID).interval(0)
    state = inner.init(MIX, x, Grid.of(GRID))
    near, far = (inner.step(lambda z, s: torch.zeros_like(z), y, interval, state).x for y in (x, 2 * x))
    torch.testing.assert_close(far - near, (0.5 + 0.5 * 0.4) * x)
    run = FreeRun(inner, 0.5, (20.0, *GRID.tolist()))  # a wrapper that asks its method
    for ask in (lambda: inner.linear(interval, state), lambda: sample(Corrected(run, "analytical"), MIX, x, run.own_grid)):
        with pytest.raises(InputError, match=r"no linear part before its γ is decided: correct the outermost solver"):
            ask()


@pytest.mark.parametrize("how", ["grad", "dual", "vjp", "jvp"])
def test_differentiating_a_measured_step_is_refused_not_wrong(how):
    solver = Corrected(solvers.make("ddim"), CLAMPED, divergence=Hutchinson(method="vjp"))
    x = start()
    state, interval = solver.init(MIX, x, Grid.of(GRID)), Grid.of(GRID).interval(0)

    def T(z):
        return solver.step(MIX, z, interval, state).x

    attempts = {
        "grad": lambda: T(x.clone().requires_grad_(True)),
        "vjp": lambda: torch.func.vjp(T, x),
        "jvp": lambda: torch.func.jvp(T, (x,), (x,)),
        "dual": lambda: torch.autograd.functional.jvp(T, x, x),
    }
    with pytest.raises(SteindiffError, match="FixedGamma"):
        attempts[how]()
    with torch.no_grad():
        T(x.clone().requires_grad_(True))  # no derivative asked for


@pytest.mark.parametrize("kind", ["ve", "vp-linear"])
def test_a_frozen_step_can_be_differentiated(kind):
    solver = Corrected(solvers.make("heun"), FixedGamma((0.7,) * 4))
    x = start(2)
    state, interval = solver.init(DENOISERS[kind], x, Grid.of(GRID)), Grid.of(GRID).interval(0)

    def T(z):
        return solver.step(DENOISERS[kind], z, interval, state).x

    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=D64)
    _, pulled = torch.autograd.functional.vjp(T, x, v)
    difference = ((T(x + 1e-5 * v) - T(x - 1e-5 * v)) * v).sum() / 2e-5
    torch.testing.assert_close((pulled * v).sum(), difference, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- randomness


def test_switching_it_on_changes_neither_the_noise_nor_the_global_generator():
    seeds = [3, 4, 5]
    before = torch.get_rng_state()
    noise = initial_noise(seeds, (6,), 10.0)
    copy = noise.clone()
    for solver in (solvers.make("ddim"), Corrected(solvers.make("ddim"), CLAMPED), Corrected(solvers.make("ddim"), ones(GRID))):
        event = next(iter(steps(solver, MIX, noise, GRID, generator=generators(seeds))))
        assert torch.equal(event.x_before, copy)
        sample(solver, MIX, noise, GRID, generator=generators(seeds))
        assert torch.equal(noise, copy)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_generator_decides_the_probes_and_nothing_else_does():
    x = start(4)
    solver = Corrected(solvers.make("ddim"), CLAMPED, divergence=Hutchinson(kind="gaussian", method="vjp"))

    def divs(generator):
        return [r.moments["div"] for r in sample(solver, MIX, x, GRID, generator=generator).trace]

    def one(seed):
        return torch.Generator().manual_seed(seed)

    assert divs(None) == divs(None)
    assert divs(one(1)) == divs(one(1)) != divs(one(2))
    assert divs(generators([1, 2, 3, 4])) == divs(generators([1, 2, 3, 4])) != divs(generators([4, 3, 2, 1]))
    moving = one(1)
    assert divs(moving) != divs(moving)  # a generator moves on: two runs are two draws
    torch.manual_seed(0)
    first = divs(None)
    torch.manual_seed(1)
    assert divs(None) == first


def test_steps_have_probes_of_their_own():
    solver = Corrected(solvers.make("ddim"), ones(GRID), divergence=Hutchinson(kind="gaussian", method="vjp"))
    probe = solver.divergence
    drawn = [next(iter(probe._draw(torch.zeros(2, 3), i))) for i in range(4)]
    assert all(not torch.isclose(drawn[i], drawn[j]).any() for i in range(4) for j in range(i))


# ---------------------------------------------------------------- cost


COSTS = Choice("vjp", {"vjp": 2.5, "jvp": 1.5, "fd": 2.0}, {})


def stages_of(solver, grid):
    """Evaluations of each step of a plain run."""
    calls = [0, *(event.calls for event in steps(solver, MIX, start(), grid))]
    return [b - a for a, b in itertools.pairwise(calls)]


@pytest.mark.parametrize("name", [*solvers.names(), "unipc refresh"])
@pytest.mark.parametrize("method", ["vjp", "jvp", "fd"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("grid", [GRID, TO_ZERO], ids=["", "to zero"])
def test_the_bill_is_exact(name, method, k, grid):
    """With a derivative at every step: every call of the network, stages × probes; derivatives at the measured cost."""
    solver = UniPC(order=2, stored="refresh") if name == "unipc refresh" else solvers.make(name)
    stages = stages_of(solver, grid)
    plain = sum(stages)
    assert plain == solver.nfe(grid)
    calls = []

    def network(y, sigma):
        calls.append(1)
        return MIX(y, sigma)

    run = sample(Corrected(solver, FROZEN, divergence=Hutchinson(k, method=method, choice=COSTS)), network, start(), grid)
    evaluations = {"vjp": 1, "jvp": k, "fd": 1 + 2 * k}[method]
    assert run.stats.nfe == len(calls) == evaluations * plain
    assert run.stats.vjps == (k * plain if method == "vjp" else 0)
    assert run.stats.jvps == (k * plain if method == "jvp" else 0)
    extra = {"vjp": 2.5 * k * plain, "jvp": 1.5 * k * plain, "fd": 0.0}[method]
    assert run.stats.forward_equivalents == pytest.approx(run.stats.nfe + extra)


@pytest.mark.parametrize("name", solvers.names())
def test_steps_with_a_history_are_billed_as_plain_ones(name):
    """By default the estimator works at steps that depend on x alone: all of a one-step method, the first of the others."""
    solver, grid = solvers.make(name), torch.tensor([10.0, 6.0, 4.0, 1.5, 0.6, 0.2], dtype=D64)
    probes = Hutchinson(2, method="vjp", choice=COSTS)
    run = sample(Corrected(solver, CLAMPED, divergence=probes), MIX, start(), grid)
    spent = [evaluations for evaluations, r in zip(stages_of(solver, grid), run.trace, strict=True) if r.source == "full"]
    assert run.stats.nfe == solver.nfe(grid)
    assert run.stats.vjps == 2 * sum(spent)
    assert len(spent) < len(run.trace) or solver.init(MIX, start(), Grid.of(grid)) in (None, ())
    assert run.trace[0].source == "full"


def test_guided_calls_are_billed_twice():
    guided = Guided(MIX, MIX, 2.0)
    run = sample(Corrected(solvers.make("heun"), CLAMPED, divergence=Hutchinson(choice=COSTS)), guided, start(), GRID)
    assert (run.stats.nfe, run.stats.vjps) == (8, 8)
    assert run.stats.forward_equivalents == pytest.approx(2 * (8 + 8 * 2.5))


def test_exact_is_billed_by_the_dimension():
    run = sample(Corrected(solvers.make("ddim"), CLAMPED, divergence=Exact(choice=COSTS)), MIX, start(), GRID)
    assert (run.stats.nfe, run.stats.vjps) == (4, 4 * 6)
