"""`SteinDiff` beside loops that know nothing of this package makes what `Corrected` makes of the same solver, to rounding."""

import copy
import itertools
import warnings

import pytest
import torch
from torch import nn

from problems import mixture, noisy_state
from steindiff import SteinDiff, grids
from steindiff.corrections import CleanTarget, Corrected, FixedGamma
from steindiff.denoisers import declare
from steindiff.divergence import Exact, Hutchinson
from steindiff.errors import DerivativeWarning, InputError, NonFiniteError, SteindiffError
from steindiff.noise import generators
from steindiff.sampling import sample
from steindiff.schedules import VE, VPLinear

torch.set_num_threads(1)
D64 = torch.float64
GRID = grids.karras(5, 0.05, 6.0)
X = noisy_state(6.0, batch=6)
SCHEDULES = {"ve": VE(), "vp": VPLinear()}
MODES = ("full", "analytical", "adaptive", "tweedie")


# Three solvers as their users write them, in the loop's own x = αx* + σε: (x', D) from x; `old` is what a step remembers.


def ddim(model, x, a, s, a_next, s_next, old=None):
    denoised = model(x, a, s)
    return s_next / s * x + (a_next - a * s_next / s) * denoised, denoised


def heun(model, x, a, s, a_next, s_next, old=None):
    """k-diffusion's, in y = x/α."""
    y, sigma, sigma_next = x / a, s / a, s_next / a_next
    denoised = model(x, a, s)
    d = (y - denoised) / sigma
    euler = y + (sigma_next - sigma) * d
    d_2 = (euler - model(a_next * euler, a_next, s_next)) / sigma_next
    return a_next * (y + (sigma_next - sigma) * (d + d_2) / 2), denoised


def dpm_solver_2m(model, x, a, s, a_next, s_next, old=None):
    """DPM-Solver++ 2M from its paper: λ = log(α/σ), and D of the step before with its λ."""
    denoised, lam, lam_next = model(x, a, s), (a / s).log(), (a_next / s_next).log()
    mixed, h = denoised, lam_next - lam
    if old is not None:
        previous, lam_previous = old
        r = (lam - lam_previous) / h
        mixed = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * previous
    return s_next / s * x - a_next * torch.expm1(-h) * mixed, denoised


SOLVERS = {"ddim": ddim, "heun": heun, "dpmpp_2m(lower_order_final=False)": dpm_solver_2m}


def beside(stein, solver, schedule, y, sigmas, parts=("step", "denoised", "linear"), candidate=True):
    """Somebody's loop with `apply` after each step; y and the result in VE coordinates."""
    alphas = schedule.alpha_of(sigmas)

    def model(x, a, s):
        return mixture(x / a, s / a)

    x, old = alphas[0] * y, None
    for i in range(len(sigmas) - 1):
        a, a_next = alphas[i], alphas[i + 1]
        s, s_next = a * sigmas[i], a_next * sigmas[i + 1]

        def step(z, args=(a, s, a_next, s_next, old)):
            return solver(model, z, *args)[0]

        proposed, denoised = solver(model, x, a, s, a_next, s_next, old)
        given = {"step": step, "denoised": denoised, "linear": s_next / s}
        x_next = stein.apply(x, proposed if candidate else None, a, s, **{name: given[name] for name in parts})
        x, old = x_next, (denoised, (a / s).log())
    return x / alphas[-1]


def inside(solver, rule, schedule, y, sigmas, probes=5, generator=None):
    """The same by `Corrected`."""
    model = declare(mixture, schedule=schedule)
    corrected = Corrected(solver, rule, divergence=Hutchinson(probes, method="vjp"))
    return sample(corrected, model, y, sigmas, generator=generator)


def agree(x, stein, run, rtol=1e-9):
    torch.testing.assert_close(x, run.x, rtol=rtol, atol=rtol)
    for ours, theirs in zip(stein.trace, run.trace, strict=True):
        assert ours.reason == theirs.reason
        assert (ours.index, ours.sigma) == (theirs.index, pytest.approx(theirs.sigma, rel=1e-12))
        assert ours.gamma_raw == pytest.approx(theirs.gamma_raw, rel=rtol)
        for name in ("alpha", "sigma", "ux", "uu", "div", "div_se"):
            assert ours.moments[name] == pytest.approx(theirs.moments[name], rel=rtol, abs=rtol, nan_ok=True)


def frozen(mode):
    """The rule whose derivative holds a history constant, as that of a loop's function does."""
    return CleanTarget(gamma_max=1.5, mode=mode, history="frozen" if mode in ("full", "adaptive") else "total")


@pytest.mark.parametrize("frame", SCHEDULES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_it_is_corrected_to_rounding(solver, mode, frame):
    schedule = SCHEDULES[frame]
    stein = SteinDiff(mode, gamma_max=1.5)
    x = beside(stein, SOLVERS[solver], schedule, X, GRID)
    run = inside(solver, frozen(mode), schedule, X, GRID)
    agree(x, stein, run)
    for ours, theirs in zip(stein.trace, run.trace, strict=True):
        assert ours.source == ("full" if theirs.source == "frozen" else theirs.source)
        if frame == "ve" and theirs.source == "full":
            assert ours.noise_ratio == pytest.approx(theirs.noise_ratio, rel=1e-9)


def test_a_multistep_loop_that_wants_eq_9_takes_the_form_without_a_derivative():
    """`Corrected` does so of itself; a loop says it by the mode."""
    solver = "dpmpp_2m(lower_order_final=False)"
    by_mode = inside(solver, CleanTarget(gamma_max=1.5, mode="tweedie"), VE(), X, GRID[1:])
    stein, full = SteinDiff("tweedie", gamma_max=1.5), SteinDiff("full", Exact(), gamma_max=1.5)
    agree(beside(stein, dpm_solver_2m, VE(), X, GRID[1:]), stein, by_mode)
    beside(full, dpm_solver_2m, VE(), X, GRID[1:])
    assert abs(full.trace[-1].gamma_raw - stein.trace[-1].gamma_raw) > 0.5


def test_without_an_upper_bound_it_is_the_rule_as_printed():
    stein = SteinDiff()
    agree(beside(stein, ddim, VE(), X, GRID[:4]), stein, inside("ddim", CleanTarget.printed(), VE(), X, GRID[:4]))
    assert max(r.gamma for r in stein.trace) > 1


def test_the_lower_bound_is_the_only_one_unless_another_is_given():
    """A first-order step has γ* = 1/(1−r), here 4/3 and then 2."""
    sigmas = torch.tensor([4.0, 1.0, 0.5], dtype=D64)
    for bounds, gammas in ({}, (4 / 3, 2)), ({"gamma_min": 1.5}, (1.5, 2)), ({"gamma_max": 1.5}, (4 / 3, 1.5)):
        stein = SteinDiff("tweedie", **bounds)
        beside(stein, ddim, VE(), X, sigmas)
        assert [r.gamma for r in stein.trace] == pytest.approx(gammas, rel=1e-12)
    assert SteinDiff().rule == CleanTarget.printed()


@pytest.mark.parametrize("seeds", [7, list(range(6))], ids=["one", "one per image"])
def test_probes_are_those_of_a_run_with_the_same_generators(seeds):
    """The whole batch from one generator, or every image from its own."""

    def fresh():
        return generators(seeds) if isinstance(seeds, list) else generators([seeds])[0]

    stein = SteinDiff(probes=2, gamma_max=1.0).reset(generator=fresh())
    x = beside(stein, ddim, VE(), X, GRID)
    agree(x, stein, inside("ddim", "clamped", VE(), X, GRID, 2, fresh()))
    gammas = [r.gamma_raw for r in stein.trace]
    beside(stein.reset(generator=fresh()), ddim, VE(), X, GRID)
    assert [r.gamma_raw for r in stein.trace] == gammas
    beside(stein.reset(), ddim, VE(), X, GRID)
    assert [r.gamma_raw for r in stein.trace] == gammas


def test_a_seed_picks_the_probes_and_none_is_the_estimators():
    def gamma(*seed):
        stein = SteinDiff(probes=1, seed=seed[0]) if seed else SteinDiff(probes=1)
        return float(stein.compute_optimal_gamma(X, None, 1.0, 2.0, step=lambda z: z.sin().cumsum(1)))

    assert gamma() == gamma(None) == gamma(0)
    assert len({gamma(0), gamma(3), gamma(tuple(range(6)))}) == 3


def test_a_run_that_was_stopped_goes_on_with_its_probes():
    whole = SteinDiff(probes=1, gamma_max=1.0)
    x = beside(whole, ddim, VE(), X, GRID)
    first = SteinDiff(probes=1, gamma_max=1.0)
    half = beside(first, ddim, VE(), X, GRID[:3])
    rest = SteinDiff(probes=1, gamma_max=1.0).reset(index=first.index)
    torch.testing.assert_close(beside(rest, ddim, VE(), half, GRID[2:]), x, rtol=1e-12, atol=1e-12)
    assert [r.index for r in rest.trace] == [2, 3, 4]

    def coupled(z):
        return z.sin().cumsum(1)

    assert rest.apply(half, None, 1.0, 1.0, step=coupled, index=7) is not None
    assert (rest.trace[-1].index, rest.index) == (7, 8)
    again = [SteinDiff(probes=1).compute_optimal_gamma(half, None, 1.0, 1.0, step=coupled, index=i) for i in (7, 7, 8)]
    assert again[0] == rest.trace[-1].gamma_raw == again[1] != again[2]


def test_the_gammas_of_a_trace_replay_by_a_table():
    stein = SteinDiff("tweedie", gamma_max=1.3)
    x = beside(stein, dpm_solver_2m, VE(), X, GRID)
    table = FixedGamma.from_gammas([r.gamma for r in stein.trace])
    torch.testing.assert_close(inside("dpmpp_2m(lower_order_final=False)", table, VE(), X, GRID).x, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("probes", [Exact(), Hutchinson(2, "gaussian", "fd"), Hutchinson(3, method="jvp", batched=True)])
def test_any_estimator_takes_the_place_of_the_probes(probes):
    stein = SteinDiff(probes=probes, gamma_max=1.2)
    x = beside(stein, heun, VE(), X, GRID[:3])
    run = sample(Corrected("heun", CleanTarget(gamma_max=1.2), divergence=probes), mixture, X, GRID[:3])
    agree(x, stein, run, 1e-5 if "fd" in str(probes) else 1e-9)


def test_auto_finds_a_method_for_a_step_that_takes_whole_batches_only():
    """A loop's function holds a history of the whole batch; the probe of a network is made on a part of one."""
    x, old = noisy_state(2.0, batch=11), noisy_state(2.0, batch=11, seed=1)

    def step(z):
        return 0.3 * z + 0.5 * mixture(z, torch.tensor(2.0)) + 0.1 * old

    auto = SteinDiff(probes=Hutchinson(2))
    assert auto.compute_optimal_gamma(x, None, 1.0, 2.0, step=step) == SteinDiff(probes=2).compute_optimal_gamma(
        x, None, 1.0, 2.0, step=step
    )
    assert auto.estimator.method == "vjp"


def test_the_step_makes_the_candidate_where_none_is_given():
    """One evaluation then serves the candidate and the derivative."""
    counts = []
    for candidate in (True, False):
        calls = []

        def counted(model, *args, calls=calls):
            calls.append(1)
            return ddim(model, *args)

        stein = SteinDiff(probes=3, gamma_max=1.0)
        counts.append((beside(stein, counted, VE(), X, GRID[:2], candidate=candidate), len(calls)))
    (with_it, n), (without, same) = counts
    torch.testing.assert_close(with_it, without, rtol=0, atol=0)
    assert n == same == 2  # the loop's own, and the derivative's
    tweedie = SteinDiff("tweedie", gamma_max=1.0)
    torch.testing.assert_close(
        beside(tweedie, ddim, VE(), X, GRID, ("step", "denoised"), candidate=False),
        beside(SteinDiff("tweedie", gamma_max=1.0), ddim, VE(), X, GRID, ("denoised",)),
    )


@pytest.mark.parametrize(("off", "same"), [(0.04, True), (0.06, False)])
def test_the_step_may_differ_from_its_candidate_by_a_twentieth_of_its_length(off, same):
    """A network that is not quite repeatable is no stateful solver; a residual of rounding alone has no length to compare."""
    stein, candidate = SteinDiff(gamma_min=1.0, gamma_max=1.0, probes=1), 0.4 * X
    slope = (X + (1 + off) * (candidate - X)) / X

    def step(z, x=X, slope=slope):
        return slope * z + 0.01 * (z.square() - x.square())  # not linear, so that images have derivatives of their own

    if same:
        assert torch.equal(stein.apply(X, candidate, 1.0, 2.0, step=step), candidate)
    else:
        with pytest.raises(InputError, match="is not the candidate"):
            stein.apply(X, candidate, 1.0, 2.0, step=step)
    x = X.float()
    assert torch.equal(stein.apply(x, x, 1.0, 2.0, step=lambda z: step(z, x, 1 + 4e-7)), x)


def test_gamma_alone_records_nothing_and_is_that_of_the_blend():
    x, s, s_next = X, GRID[0], GRID[1]
    candidate, denoised = ddim(lambda x, a, s: mixture(x, s), x, 1, s, 1, s_next)
    stein = SteinDiff("tweedie")
    gamma = stein.compute_optimal_gamma(x, candidate, 1.0, s, denoised=denoised)
    assert stein.trace == ()
    assert float(gamma) == pytest.approx(1 / (1 - float(s_next / s)), rel=1e-12)
    torch.testing.assert_close(stein.apply(x, candidate, 1.0, s, denoised=denoised), torch.lerp(x, candidate, gamma))
    assert len(stein.trace) == stein.index == 1


def test_beside_a_loop_as_in_k_diffusion():
    """Its Euler sampler: the network sees a noise level for each image."""
    x, s_in, stein = X.float(), X.new_ones(len(X)), SteinDiff("tweedie", gamma_max=1.0)
    for sigma, sigma_next in itertools.pairwise(GRID):
        denoised = mixture(x, sigma * s_in)
        d = (x - denoised) / sigma
        dt = sigma_next - sigma
        x = stein.apply(x, x + d * dt, 1.0, sigma, denoised=denoised)
    agree(x, stein, inside("ddim", "clamped(mode=tweedie)", VE(), X.float(), GRID), 1e-4)


# Somebody else's schedulers.


@pytest.fixture(scope="module")
def theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("diffusers")
        from diffusers import schedulers
    return schedulers


ARRAYS = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")


@ARRAYS
@pytest.mark.parametrize("mode", ["full", "analytical", "tweedie"])
def test_beside_a_scheduler_of_diffusers(theirs, mode):
    """DPM-Solver++ 2M of a network that predicts ε, in x = αy. The scheduler keeps D; a step changes it, and `step` a copy."""
    scheduler = theirs.DPMSolverMultistepScheduler(lower_order_final=False, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(5)
    scheduler.sigmas = GRID
    scheduler.set_begin_index(0)
    stein, x = SteinDiff(mode, gamma_max=1.5), torch.rsqrt(1 + GRID[0] ** 2) * X

    def network(x, sigma):
        a = torch.rsqrt(1 + sigma**2)
        return (x / a - mixture(x / a, sigma)) / sigma

    for i, t in enumerate(scheduler.timesteps):
        before, sigma = copy.deepcopy(scheduler), GRID[i]

        def step(z, before=before, sigma=sigma, t=t):
            return copy.deepcopy(before).step(network(z, sigma), t, z).prev_sample

        alpha, noise = scheduler._sigma_to_alpha_sigma_t(sigma)
        candidate = scheduler.step(network(x, sigma), t, x).prev_sample
        linear = scheduler._sigma_to_alpha_sigma_t(GRID[i + 1])[1] / noise
        x = stein.apply(x, candidate, alpha, noise, step=step, denoised=scheduler.model_outputs[-1], linear=linear)
    run = inside("dpmpp_2m(lower_order_final=False)", frozen(mode), VPLinear(), X, GRID)
    agree(x / scheduler._sigma_to_alpha_sigma_t(GRID[-1])[0], stein, run, 2e-4)


@ARRAYS
def test_a_stateful_scheduler_that_has_moved_on_is_noticed(theirs):
    scheduler = theirs.EDMEulerScheduler()
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True
    x, sigma, t = noisy_state(80.0), scheduler.sigmas[0], scheduler.timesteps[0]

    def step(z):
        return scheduler.step(z, t, z, pred_original_sample=mixture(z, sigma)).prev_sample

    with pytest.raises(InputError, match="a deep copy, where a step changes it"):
        SteinDiff(probes=1).apply(x, step(x), 1.0, sigma, step=step)


# What a PyTorch module is.


class Sampler(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(3, 3)
        self.stein = SteinDiff("tweedie")


def test_it_is_a_module_without_weights():
    sampler = Sampler()
    seen = []
    assert sampler.apply(lambda module: seen.append(type(module).__name__)) is sampler
    assert seen == ["Linear", "SteinDiff", "Sampler"]  # nn.Module's own apply goes on working
    assert sampler.stein.apply(lambda module: None) is sampler.stein
    assert set(sampler.state_dict()) == {"network.weight", "network.bias"}  # checkpoints load with or without it
    sampler.load_state_dict(Sampler().state_dict(), strict=True)
    assert "gamma_min=1e-06" in repr(sampler.to(torch.float64))
    assert "Hutchinson(probes=5" in repr(SteinDiff())
    hooked = []
    sampler.stein.register_forward_hook(lambda module, args, out: hooked.append(out))
    out = sampler.stein.apply(X, 0.5 * X, 1.0, 2.0, denoised=0.1 * X)
    assert hooked[0] is out
    assert copy.deepcopy(sampler.stein).trace == sampler.stein.trace


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_states_keep_their_dtype_and_sums_are_wide(dtype):
    x, candidate, denoised = (z.to(dtype) for z in (X, 0.4 * X, 0.2 * X))
    stein = SteinDiff("tweedie", gamma_max=0.9)
    out = stein.apply(x, candidate, 1.0, 6.0, denoised=denoised)
    assert out.dtype is dtype
    exact = SteinDiff("tweedie", gamma_max=0.9)
    expected = exact.apply(x.double(), candidate.double(), 1.0, 6.0, denoised=denoised.double())
    torch.testing.assert_close(out.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
    assert stein.trace[0].gamma_raw == pytest.approx(exact.trace[0].gamma_raw, rel=1e-6)
    same = stein.apply(x, x, 1.0, 6.0, denoised=denoised)
    assert torch.equal(same, x)
    assert stein.trace[1].reason == "zero_residual"


def test_a_narrow_state_is_blended_with_a_wide_gamma():
    """γ = 0.999 is 1 in bfloat16, and would leave nothing of x."""
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    out = SteinDiff("analytical", gamma_min=0.999, gamma_max=0.999).apply(x, 0 * x, 1.0, 2.0, linear=0.5)
    assert torch.equal(out, 0.001 * x)


def test_one_product_alone_is_no_constant():
    stein = SteinDiff(probes=1)
    assert stein.compute_optimal_gamma(X[:1], None, 1.0, 2.0, step=lambda z: 0.4 * z) > 0  # a warning would be an error here


def test_adaptive_takes_the_step_up_to_its_own_threshold():
    parts = {"step": lambda z: 0.4 * z + 0.01 * z.square(), "linear": 0.4}
    for threshold, source in ((2.0, "full"), (1.9, "linear")):
        stein = SteinDiff("adaptive", threshold=threshold)
        stein.apply(X, None, 1.0, 2.0, **parts)
        assert stein.trace[0].source == source


def test_gamma_one_is_the_candidate_itself():
    x, candidate = X.float(), (0.3 * X).float()
    assert torch.equal(SteinDiff("analytical", gamma_min=1.0, gamma_max=1.0).apply(x, candidate, 1, 2, linear=0.5), candidate)


# What is refused.

GOOD = {"candidate": 0.4 * X, "alpha": 1.0, "sigma": 2.0}
BAD = X.clone()
BAD[1, 2] = float("nan")


@pytest.mark.parametrize(
    ("mode", "change", "error", "words"),
    [
        ("tweedie", {"x": X[0]}, InputError, "need a floating-point tensor"),
        ("tweedie", {"x": X.long()}, InputError, "int64: need a floating-point tensor"),
        ("tweedie", {"x": X.numpy()}, InputError, "x is ndarray"),
        ("tweedie", {"candidate": X[:1]}, InputError, r"candidate is \(1, 3\) torch.float64 on cpu where x is \(6, 3\)"),
        ("tweedie", {"candidate": X.float()}, InputError, "candidate is .* torch.float32"),
        ("tweedie", {"candidate": None}, InputError, "pass candidate=T"),
        ("tweedie", {"denoised": X[:, :1]}, InputError, "denoised is"),
        ("tweedie", {"denoised": 0.1}, InputError, "denoised is float"),
        ("tweedie", {"sigma": 0.0}, InputError, "sigma=0.0: need α > 0 and σ > 0"),
        ("tweedie", {"alpha": -1.0}, InputError, "alpha=-1.0"),
        ("tweedie", {"sigma": float("inf")}, InputError, "sigma=inf: need a finite number"),
        ("tweedie", {"sigma": torch.ones(6)}, InputError, r"sigma of shape \(6,\): need one number"),
        ("tweedie", {"alpha": "one"}, InputError, "alpha='one': need one number"),
        ("tweedie", {"candidate": BAD}, NonFiniteError, "candidate holds NaN"),
        ("tweedie", {"x": BAD}, NonFiniteError, "x holds NaN"),
        ("tweedie", {"denoised": BAD}, NonFiniteError, "denoised holds NaN"),
        ("tweedie", {}, InputError, "mode='tweedie' at σ/α = 2 needs what was not given: pass denoised=D"),
        ("analytical", {}, InputError, "pass linear=a"),
        ("full", {}, InputError, "pass step=f"),
        ("full", {"step": X}, InputError, "need a function"),
        ("tweedie", {"candidate": None, "step": lambda z: z[:1], "denoised": X}, InputError, r"step\(x\) is \(1, 3\)"),
        ("tweedie", {"candidate": None, "step": lambda z: BAD, "denoised": X}, NonFiniteError, r"step\(x\) holds NaN"),
        ("full", {"step": lambda z: z[:1]}, InputError, r"step\(x\) is \(1, 3\)"),
        ("full", {"step": lambda z: 0.4 * z * float("nan")}, NonFiniteError, r"step\(x\) holds NaN"),
        (
            "full",
            {"step": lambda z: 0.8 * z},
            InputError,
            r"step\(x\) is not the candidate: it is 0.67 of the step's length away",
        ),
        ("full", {"step": lambda z: 0.4 * z.detach()}, SteindiffError, "no derivative comes through"),
        ("adaptive", {"step": lambda z: 0.4 * z}, InputError, "pass linear=a"),
        ("adaptive", {"linear": 0.4, "sigma": 0.5}, InputError, "pass step=f"),
    ],
)
def test_a_malformed_step_names_what_to_do(mode, change, error, words):
    with pytest.raises(error, match=words):
        SteinDiff(mode).apply(**{"x": X, **GOOD, **change})


@pytest.mark.parametrize("cut", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_a_network_without_gradients_is_noticed(cut):
    """The linear part still has a derivative, so that nothing raises: full would be analytical in silence."""

    @cut()
    def network(x, a, s):
        return mixture(x / a, s / a)

    def step(z):
        return ddim(network, z, 1, GRID[1], 1, GRID[2])[0]

    stein = SteinDiff()
    with pytest.warns(DerivativeWarning, match="every image and probe, as if the network had no derivative"):
        stein.apply(X, None, 1.0, GRID[1], step=step)
    assert stein.trace[0].moments["div"] == pytest.approx((1 - float(GRID[2] / GRID[1])) * 3, rel=1e-12)
    stein.apply(X, None, 1.0, GRID[1], step=step)  # says it once a run
    narrow = X.bfloat16()  # where the network's part may be lost in rounding, a constant says nothing
    assert SteinDiff().compute_optimal_gamma(narrow, None, 1.0, 2.0, step=lambda z: 0.5 * z) > 0


def test_a_trace_keeps_no_graph():
    candidate = (0.4 * X).requires_grad_()
    stein = SteinDiff("tweedie")
    assert stein.apply(X, candidate, 1.0, 2.0, denoised=0.1 * X).requires_grad
    assert not stein._trace._buffer.requires_grad


def test_gamma_is_that_of_the_whole_batch():
    """Several processes join their images: here the others hold copies of ours."""

    def doubled(z, dim=0):
        return torch.cat([z, z], dim)

    for mode in MODES:
        alone, joined = SteinDiff(mode, gamma_max=1.5), SteinDiff(mode, gamma_max=1.5, gather=doubled)
        x, y = (beside(stein, heun, VE(), X, GRID[:4]) for stein in (alone, joined))
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
        if mode in ("full", "tweedie"):
            assert joined.trace[-1].moments["div_se"] < 0.8 * alone.trace[-1].moments["div_se"]


def test_a_step_without_a_forward_derivative_is_refused_too():
    with pytest.raises(SteindiffError, match="no derivative comes through"):
        SteinDiff(probes=Hutchinson(method="jvp")).apply(X, **GOOD, step=lambda z: 0.4 * z.detach())


def test_a_step_with_a_derivative_is_not_differentiated():
    with pytest.raises(SteindiffError, match="cannot itself be differentiated"):
        SteinDiff().apply(X.clone().requires_grad_(), **GOOD, step=lambda z: 0.4 * z)


@pytest.mark.parametrize("options", [{"mode": "fast"}, {"probes": 0}, {"gamma_min": 0.0}, {"gamma_min": 2.0, "gamma_max": 1.0}])
def test_options_are_checked(options):
    with pytest.raises(InputError, match=r"choose full|at least one probe|need 0 < gamma_min"):
        SteinDiff(**options)
    with pytest.raises(InputError, match="need the number of a step"):
        SteinDiff().reset(index=-1)
