"""Parity with diffusers: the same trajectory, on the same grid, for an exact non-linear model.

diffusers steps x = α y, with α = 1/√(1+s²) for its VP schedulers and 1 for its EDM and Heun ones; the noise levels s = σ/α are
its `scheduler.sigmas`. A test sets them to a float64 grid (`_diffuse`), so that both sides compute in float64 and the
agreement is close to rounding; DPMSolverMultistep and EDMEuler cast the state to float32, which sets their tolerance. One test
leaves the schedulers' own grids alone.

Where diffusers is not the published method, or cannot do what ours does:

* DPMSolverSinglestep of order 3: the second stage uses the order-2 "midpoint" weight φ₀/2 where DPM-Solver++ (Lu et al. 2022)
  has φ₁. Its "heun" setting has φ₁ there, but then also changes the third stage. The test switches between the two.
* DEISMultistep fits the polynomial in log ρ and stops at order 3; the published best is in the time of the VP schedule.
* The last step to σ = 0 is NaN in DEISMultistep and in UniPC with bh1; UniPC without `lower_order_final` is infinite there
  (order 2) or raises (order 3). Ours take it with order 1, where every method is DDIM and returns D.
* UniPC of order ≥ 2 raises when torch's default dtype is float64 and its noise levels are float32, as it makes them.
* PNDM adds up the network's outputs of several times as they are, which for a network of v is no sum of noise predictions.
* IPNDM's own grid starts at α = 0, infinite noise in VE coordinates; the test gives it a finite one through `trained_betas`.
* DDIM steps from t to t − N//n, which is the next time of its own grid for "leading" spacing but not for "linspace", nor for
  "trailing" where n does not divide N (diffusers#11347); the test uses "leading".
"""

import warnings

import pytest
import torch

from problems import mixture, noisy_state, run
from steindiff import grids, solvers
from steindiff.denoisers import FromEps, FromFlow, FromV
from steindiff.schedules import DiscreteBetas, RectifiedFlow, VPLinear
from steindiff.solvers import DDIM, DEIS, IPNDM, PNDM, DPMpp2M, DPMpp2S, DPMpp3M, DPMpp3S, Heun, UniPC

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    from diffusers import schedulers as theirs

# diffusers applies numpy functions to tensors, in `set_timesteps` and in DEIS.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

FLOAT64 = {"rtol": 1e-10, "atol": 1e-12}
FLOAT32 = {"rtol": 2e-5, "atol": 2e-6}  # the state rounded to float32 at every step


def _alpha(s):
    return torch.rsqrt(1 + s**2)


def _diffuse(scheduler, sigmas, y, alpha=_alpha, before_step=lambda i: None):
    """Run a scheduler that takes data predictions over noise levels `sigmas`; y and the result in VE coordinates."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas
    scheduler.set_begin_index(0)
    assert len(scheduler.timesteps) == len(sigmas) - 1
    x = alpha(sigmas[0]) * y
    for i, t in enumerate(scheduler.timesteps):
        before_step(i)
        x = scheduler.step(mixture(x / alpha(sigmas[i]), sigmas[i]), t, x).prev_sample
    return x / alpha(sigmas[-1])


def _check(solver, scheduler, sigmas, tolerance=FLOAT64, ours=None, **kwargs):
    y = noisy_state(float(sigmas[0]))
    expected = _diffuse(scheduler, sigmas, y, **kwargs)
    torch.testing.assert_close(run(solver, mixture, y, sigmas if ours is None else ours), expected, **tolerance)


def _check_only_ours_ends_at_zero(solver, scheduler, sigmas):
    """Theirs is NaN; ours ends in D at the last node."""
    y = noisy_state(float(sigmas[0]))
    assert bool(_diffuse(scheduler, sigmas, y).isnan().all())
    before, steps = {}, solvers.Grid.of(sigmas).steps
    recorded = run(solver, lambda x, s: before.setdefault(float(s), mixture(x, s)), y, sigmas)
    assert len(before) == steps
    torch.testing.assert_close(recorded, before[float(sigmas[-2])], **FLOAT64)


def _grid(n, zero, sigma_min=0.03, sigma_max=14.0):
    """n steps; uneven, so that every node enters the result."""
    return grids.with_zero(grids.karras(n - 1, sigma_min, sigma_max)) if zero else grids.karras(n, sigma_min, sigma_max)


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("n", [5, 14, 15, 20])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_multistep(order, lower, n, zero):
    scheduler = theirs.DPMSolverMultistepScheduler(
        solver_order=order,
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        lower_order_final=lower,
        final_sigmas_type="zero" if zero else "sigma_min",
    )
    ours = {1: DDIM(), 2: DPMpp2M(lower), 3: DPMpp3M(lower)}[order]
    _check(ours, scheduler, _grid(n, zero), FLOAT32)


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("order", [2, 3])
def test_edm_dpm_solver_multistep(order, n):
    """α = 1 and float64 throughout; takes EDM's F, D = c_skip x + c_out F."""
    scheduler = theirs.EDMDPMSolverMultistepScheduler(solver_order=order, final_sigmas_type="zero")
    sigmas = _grid(n, zero=True, sigma_min=0.002, sigma_max=80.0)
    scheduler.set_timesteps(n)
    torch.testing.assert_close(scheduler.sigmas.double(), sigmas, rtol=2e-6, atol=0)
    scheduler.sigmas = sigmas
    scheduler.set_begin_index(0)
    x = y = noisy_state(80.0)
    for s, t in zip(sigmas, scheduler.timesteps, strict=False):
        c_skip, c_out = 0.25 / (s**2 + 0.25), 0.5 * s / (s**2 + 0.25).sqrt()
        x = scheduler.step((mixture(x, s) - c_skip * x) / c_out, t, x).prev_sample
    ours = {2: DPMpp2M(), 3: DPMpp3M()}[order]
    torch.testing.assert_close(run(ours, mixture, y, sigmas), x, **FLOAT64)


@pytest.mark.parametrize("n", [1, 5, 20])
def test_edm_euler(n):
    scheduler = theirs.EDMEulerScheduler()
    scheduler.set_timesteps(n)
    sigmas = scheduler.sigmas.double()
    x = y = noisy_state(float(sigmas[0]))
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True
    for s, t in zip(sigmas, scheduler.timesteps, strict=False):
        x = scheduler.step(x, t, x, pred_original_sample=mixture(x, s)).prev_sample
    torch.testing.assert_close(run(solvers.make("ddim"), mixture, y, sigmas), x, **FLOAT32)


@pytest.mark.parametrize("pairs", [1, 2, 6])
def test_dpm_solver_singlestep_2(pairs):
    """Their nodes are every evaluation, ours the ends of the intervals: equal on grids uniform in λ."""
    scheduler = theirs.DPMSolverSinglestepScheduler(
        solver_order=2, prediction_type="sample", lower_order_final=False, final_sigmas_type="sigma_min"
    )
    nodes = grids.log_snr(2 * pairs, 0.03, 14.0)
    _check(DPMpp2S(), scheduler, nodes, ours=nodes[::2])


@pytest.mark.parametrize("n", [3, 6, 12])
def test_dpm_solver_singlestep_3(n):
    scheduler = theirs.DPMSolverSinglestepScheduler(
        solver_order=3, prediction_type="sample", lower_order_final=False, final_sigmas_type="sigma_min"
    )

    def published(i):
        scheduler.register_to_config(solver_type="heun" if i % 3 == 1 else "midpoint")

    nodes = grids.log_snr(n, 0.03, 14.0)
    _check(DPMpp3S(), scheduler, nodes, ours=nodes[::3], before_step=published)


@pytest.mark.parametrize("order, n, tail", [(2, 7, (1,)), (2, 8, (1, 1)), (3, 7, (1,)), (3, 8, (2,)), (3, 9, (2, 1))])
def test_dpm_solver_singlestep_tails(order, n, tail):
    """Budgets the order does not divide, and their way of ending those it does."""
    scheduler = theirs.DPMSolverSinglestepScheduler(
        solver_order=order, prediction_type="sample", lower_order_final=True, final_sigmas_type="sigma_min"
    )
    widths = [order] * ((n - sum(tail)) // order) + list(tail)

    def published(i):
        inner = order == 3 and i % 3 == 1 and i < n - sum(tail)
        scheduler.register_to_config(solver_type="heun" if inner else "midpoint")

    nodes = grids.log_snr(n, 0.03, 14.0)
    ends = torch.tensor([0, *widths]).cumsum(0)
    ours = {2: DPMpp2S, 3: DPMpp3S}[order](tail=tail)
    assert ours.nfe(nodes[ends]) == n
    _check(ours, scheduler, nodes, ours=nodes[ends], before_step=published)


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("n", [2, 5, 20])
@pytest.mark.parametrize("corrector", [True, False])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, variant, corrector, n, zero):
    scheduler = theirs.UniPCMultistepScheduler(
        solver_order=order,
        prediction_type="sample",
        solver_type=variant,
        disable_corrector=[] if corrector else list(range(n)),
        final_sigmas_type="zero" if zero else "sigma_min",
    )
    if variant == "bh1" and zero:
        _check_only_ours_ends_at_zero(UniPC(order, variant, corrector), scheduler, _grid(n, zero))
    else:
        _check(UniPC(order, variant, corrector), scheduler, _grid(n, zero))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_without_lowering(order):
    scheduler = theirs.UniPCMultistepScheduler(
        solver_order=order, prediction_type="sample", lower_order_final=False, final_sigmas_type="sigma_min"
    )
    _check(UniPC(order, lower_order_final=False), scheduler, _grid(8, zero=False))


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order, n, lower):
    scheduler = theirs.DEISMultistepScheduler(solver_order=order, prediction_type="sample", lower_order_final=lower)
    _check(DEIS(order, "log_sigma", lower), scheduler, _grid(n, zero=False))


def test_deis_to_zero():
    scheduler = theirs.DEISMultistepScheduler(solver_order=3, prediction_type="sample")
    _check_only_ours_ends_at_zero(DEIS(3, "log_sigma", lower_order_final=True), scheduler, _grid(6, zero=True))


@pytest.mark.parametrize("n", [1, 2, 6])
def test_heun(n):
    """Two calls for each step but the last, which goes to σ = 0 by Euler."""
    scheduler = theirs.HeunDiscreteScheduler(prediction_type="sample")
    scheduler.set_timesteps(n)
    sigmas = _grid(n, zero=True) if n > 1 else torch.tensor([14.0, 0.0], dtype=torch.float64)
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.set_begin_index(0)
    at = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2)])
    x = y = noisy_state(14.0)
    for s, t in zip(at, scheduler.timesteps, strict=True):
        x = scheduler.step(mixture(x, s), t, x).prev_sample
    torch.testing.assert_close(run(Heun(), mixture, y, sigmas), x, **FLOAT64)


@pytest.mark.parametrize("n", [1, 3, 4, 12])
def test_ipndm(n):
    """x = α y, β = σ: v-prediction in, ε = β x + α v, then y' = y + (s'−s) Σ c ε."""
    sigmas = _grid(n, zero=True) if n > 1 else torch.tensor([14.0, 0.0], dtype=torch.float64)
    scheduler = theirs.IPNDMScheduler(trained_betas=(sigmas * _alpha(sigmas)).tolist())
    scheduler.set_timesteps(n)
    scheduler.betas, scheduler.alphas = sigmas * _alpha(sigmas), _alpha(sigmas)
    scheduler.set_begin_index(0)
    y = noisy_state(14.0)
    x = _alpha(sigmas[0]) * y
    for i, t in enumerate(scheduler.timesteps):
        a, b = scheduler.alphas[i], scheduler.betas[i]
        clean = mixture(x / a, sigmas[i])
        x = scheduler.step(a * (x - a * clean) / b - b * clean, t, x).prev_sample
    torch.testing.assert_close(run(IPNDM(4), mixture, y, sigmas), x, **FLOAT64)


@pytest.mark.parametrize("n", [4, 5, 10, 50])
def test_pndm(n):
    """Their Runge–Kutta start and integer times, on the linear VP schedule, so that the middle of a step is an integer too."""
    scheduler = theirs.PNDMScheduler(timestep_spacing="leading", steps_offset=1000 // n)
    schedule = VPLinear()
    sigmas = schedule.ratio(torch.arange(1001, dtype=torch.float64) / 1000)
    scheduler.alphas_cumprod = _alpha(sigmas) ** 2
    scheduler.set_timesteps(n)
    times = torch.arange(n, -1, -1) * (1000 // n)
    y = noisy_state(float(sigmas[times[0]]))
    x = _alpha(sigmas[times[0]]) * y
    for t in scheduler.timesteps:
        a, b = _alpha(sigmas[t]), sigmas[t] * _alpha(sigmas[t])
        clean = mixture(x / a, sigmas[t])
        x = scheduler.step((x - a * clean) / b, int(t), x).prev_sample
    assert len(scheduler.timesteps) == PNDM().nfe(sigmas[times[:-1]]) + 1
    torch.testing.assert_close(run(PNDM(), mixture, y, sigmas[times]), x / _alpha(sigmas[times[-1]]), **FLOAT64)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim_through_a_network(prediction, to_one):
    """End to end: one ε or v network at integer times; theirs by DDIMScheduler, ours by an adapter on a grid of those times."""
    n, offset = 10, 1
    scheduler = theirs.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=to_one,
        steps_offset=offset,
        timestep_spacing="leading",
    )
    schedule = DiscreteBetas.scaled_linear()
    scheduler.alphas_cumprod = schedule.alpha(torch.arange(1000)) ** 2
    if not to_one:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(n)

    def network(x, t):
        assert float((t - t.round()).abs().max()) < 1e-8, "the network is asked at its own integer times"
        s = schedule.ratio(t.round())
        a = _alpha(s)[:, None]
        clean = mixture(x / a, s)
        noise = (x - a * clean) / (a * s[:, None])
        return noise if prediction == "epsilon" else a * noise - a * s[:, None] * clean

    s0 = schedule.ratio(scheduler.timesteps[0].double())
    y = noisy_state(float(s0))
    x = _alpha(s0) * y
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.double().expand(len(x))), int(t), x).prev_sample
    end = torch.zeros(1, dtype=torch.float64) if to_one else schedule.ratio(torch.zeros(1, dtype=torch.float64))
    sigmas = torch.cat([schedule.ratio(scheduler.timesteps.double()), end])
    adapter = {"epsilon": FromEps, "v_prediction": FromV}[prediction](network, schedule)
    ours = run(solvers.make("ddim"), adapter, y, sigmas)
    torch.testing.assert_close(ours, x / _alpha(sigmas[-1]), **FLOAT64)


def test_flow_match_euler_is_ddim():
    """Euler in the flow's time is the exact step for constant D, which is DDIM in VE coordinates."""
    schedule = RectifiedFlow()
    scheduler = theirs.FlowMatchEulerDiscreteScheduler()
    times = torch.linspace(0.95, 0, 9, dtype=torch.float64)
    scheduler.set_timesteps(8)
    scheduler.sigmas = times
    scheduler.set_begin_index(0)

    def network(x, t):
        s = schedule.ratio(t)
        clean = mixture(x / schedule.alpha(t)[:, None], s)
        return (x - clean) / t[:, None]

    sigmas = schedule.ratio(times)
    y = noisy_state(float(sigmas[0]))
    x = schedule.alpha_of(sigmas[0]) * y
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, times[i].expand(len(x))), t, x).prev_sample
    torch.testing.assert_close(run(solvers.make("ddim"), FromFlow(network, schedule), y, sigmas), x.double(), **FLOAT32)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("karras", [True, False])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3"])
def test_their_own_grids(name, karras, spacing):
    """The scheduler left as it is, float32 noise levels included; ours on those levels."""
    order = int(name.split("_")[1][0])
    kind = theirs.UniPCMultistepScheduler if name.startswith("unipc") else theirs.DPMSolverMultistepScheduler
    scheduler = kind(
        solver_order=order,
        prediction_type="sample",
        use_karras_sigmas=karras,
        timestep_spacing=spacing,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(10)
    sigmas = scheduler.sigmas.double()
    y = noisy_state(float(sigmas[0]))
    x = _alpha(sigmas[0]) * y
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(mixture(x / _alpha(sigmas[i]), sigmas[i]), t, x).prev_sample
    torch.testing.assert_close(run(solvers.make(name), mixture, y, sigmas), x, rtol=1e-4, atol=1e-5)
