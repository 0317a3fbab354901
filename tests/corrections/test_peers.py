"""Peers as rules and adapters: each is a γ on first-order VE steps, to rounding."""

import math
import re

import pytest
import torch

import steindiff as sd
from problems import gaussian
from steindiff import grids, rules, solvers
from steindiff.denoisers import (
    Counter,
    EpsilonScaled,
    FromEps,
    FromFlow,
    FromV,
    Guided,
    TimeSelected,
    TimeShifted,
    forwards_per_call,
    schedule_of,
)
from steindiff.divergence import Hutchinson
from steindiff.errors import InputError
from steindiff.schedules import DiscreteBetas, RectifiedFlow, VPLinear
from steindiff.solvers import Grid

MODEL = sd.analytic.GaussianMixture(
    torch.tensor([0.3, 0.7], dtype=torch.float64),
    torch.tensor([[1.0, -1.0], [-1.0, 0.5]], dtype=torch.float64),
    torch.stack([0.2 * torch.eye(2, dtype=torch.float64), 0.4 * torch.eye(2, dtype=torch.float64)]),
)
X = sd.initial_noise(range(32), (2,), dtype=torch.float64)
SIGMAS = grids.karras(6)
DDIM = solvers.make("ddim")


@pytest.mark.parametrize("b", [1.0048, 0.9985, 1.3])
def test_epsilon_scaling_is_one_over_b(b):
    rule = sd.sample(sd.Corrected(DDIM, rules.EpsilonScaling(b)), MODEL, X, SIGMAS)
    adapter = sd.sample(DDIM, EpsilonScaled(MODEL, b), X, SIGMAS)
    assert torch.allclose(rule.x, adapter.x, rtol=1e-12, atol=1e-12)
    assert [r.gamma for r in rule.trace] == pytest.approx([1 / b] * 6)
    assert rule.stats.nfe == 6
    assert rule.stats.vjps == 0
    x, sigma = X, torch.tensor(3.0, dtype=torch.float64)
    eps = (x - MODEL(x, sigma)) / sigma
    assert torch.allclose((x - EpsilonScaled(MODEL, b)(x, sigma)) / sigma, eps / b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [0.005, -0.02, 0.3])
def test_dcw_in_pixels(scale):
    """x' + λ (x' − D), λ = scale σ/σ_max, step by step."""
    result = sd.sample(sd.Corrected(DDIM, rules.DCW(scale)), MODEL, X, SIGMAS)
    x, grid = X, Grid.of(SIGMAS)
    for i in range(grid.steps):
        interval = grid.interval(i)
        plain = DDIM.step(MODEL, x, interval, ())
        x = plain.x + scale * interval.sigma / 80.0 * (plain.x - plain.denoised)
    assert torch.allclose(result.x, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("gamma", [0.9, 1.1])
def test_a_shifted_timestep_is_a_gamma(gamma):
    """γ on DDIM is DDIM to σ' + (1−γ)(σ−σ') while the network is told σ': the time-shift reading."""
    sigma, sigma_next = SIGMAS[2], SIGMAS[3]
    x = sigma / 80 * X
    denoised = MODEL(x, sigma)
    blended = torch.lerp(x, sigma_next / sigma * x + (1 - sigma_next / sigma) * denoised, gamma)
    reached = sigma_next + (1 - gamma) * (sigma - sigma_next)
    assert torch.allclose(blended, reached / sigma * x + (1 - reached / sigma) * denoised, rtol=1e-12)
    told = TimeShifted(MODEL, float(sigma_next / reached) - 1)
    assert torch.allclose(told(blended, reached), MODEL(blended, sigma_next), rtol=1e-10)


def test_adapters_are_seen_through_and_bad_options_refused():
    eps = FromEps(lambda x, t: x, VPLinear())
    for wrapped in (EpsilonScaled(eps, 1.01), TimeShifted(eps, 0.1), TimeSelected(eps), Counter(TimeSelected(eps))):
        assert schedule_of(wrapped) == VPLinear()
        assert forwards_per_call(Guided(wrapped, eps, 2.0)) == 2
    for make in (lambda: EpsilonScaled(eps, 0.0), lambda: TimeShifted(eps, -1.0), lambda: rules.EpsilonScaling(-1.0),
                 lambda: rules.DCW(sigma_max=0.0)):  # fmt: skip
        with pytest.raises(InputError, match="need"):
            make()


V0 = 0.25
"""Variance of `problems.gaussian`'s data, mean 0.3: every image's coordinates are independent draws."""

DDPM = DiscreteBetas.linear()
VP = FromEps(lambda x, t: (x - (a := DDPM.alpha(t)[:, None]) * gaussian(x / a, DDPM.ratio(t))) / DDPM.sigma(t)[:, None], DDPM)
"""That data's exact denoiser, as a noise prediction under DDPM's schedule."""


def level(t):
    """σ/α at DDPM's index t."""
    return DDPM.ratio(torch.tensor(t, dtype=torch.float64))


def noisy(s, images=400, d=1024, seed=0):
    """x* + s ε of that data, in VE coordinates."""
    draw = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, images, d, generator=draw, dtype=torch.float64)
    return 0.3 + V0**0.5 * clean + s * noise


def marginal(s, frame):
    """Variance of a coordinate at level s."""
    return (DDPM.alpha_of(s) ** 2 if frame == "model" else 1) * (V0 + s**2)


def agrees(values, expected, resolution=0.0):
    """The mean within 4 standard errors of what is expected, and the grid's resolution."""
    return (values.mean() - expected).abs() < 4 * values.std() / len(values) ** 0.5 + resolution


@pytest.mark.parametrize("t, actual", [(400, 430), (400, 370), (400, 400), (450, 480)])
@pytest.mark.parametrize("frame", ["model", "ve"])
def test_the_selected_time_is_the_states_own(frame, t, actual):
    """Too much and too little noise are found; on the true marginal (t = actual) the nominal level is."""
    # In the model's own x, a state of another time has that time's α too.
    scale = DDPM.alpha_of(level(actual)) / DDPM.alpha_of(level(t)) if frame == "model" else 1.0
    select = TimeSelected(VP, window=400, cutoff=100.0, data_variance=V0, frame=frame)
    told = select.told(scale * noisy(level(actual)), level(t))
    grid = marginal(level(actual + 1), frame) - marginal(level(actual), frame)
    assert told.std() > 0  # every image has a time of its own
    assert agrees(marginal(told, frame), marginal(level(actual), frame), grid / 4)


@pytest.mark.parametrize("frame", ["model", "ve"])
def test_told_the_states_own_time_the_denoiser_is_exact(frame):
    scale = DDPM.alpha_of(level(430)) / DDPM.alpha_of(level(400)) if frame == "model" else 1.0
    y = noisy(level(430), images=8, d=100_000)
    select = TimeSelected(VP, window=200, data_variance=V0, frame=frame)
    exact = gaussian(y, level(430))
    error = {name: (D(scale * y, level(400)) - exact).norm() for name, D in (("plain", VP), ("told", select))}
    assert error["told"] < 0.1 * error["plain"]


@pytest.mark.parametrize("frame, excess", [("model", 36.0), ("ve", 6.0)])
def test_as_published_the_datas_own_variance_counts_as_noise(frame, excess):
    """v0 = 0: on the true marginal, indices too many are told; 36 is beyond the published half window of 20."""
    told = TimeSelected(VP, window=400, frame=frame).told(noisy(level(400)), level(400))
    assert agrees(DDPM.time(told) - 400, excess, 1.0)


def test_at_large_times_sampling_noise_fills_the_window():
    """In a variance-preserving x the spread over images is beyond the half window of 20 indices; in VE it is not."""
    y = noisy(level(500), images=100, d=3072)
    spread = {f: DDPM.time(TimeSelected(VP, window=400, frame=f).told(y, level(500))).std() for f in ("model", "ve")}
    assert spread["ve"] < 4 < 40 < spread["model"]


@pytest.mark.parametrize("v0", [0.0, V0])
def test_the_models_own_x_and_ve_coordinates_select_different_times(v0):
    """σ_τ²/α_τ² is (V − v0) in VE and (α²V − v0)/(1 − α²V) in a variance-preserving x: equal on the marginal, not off it."""
    s = level(400)
    found = {f: TimeSelected(VP, window=500, data_variance=v0, frame=f) for f in ("model", "ve")}
    for excess in (-0.1, 0.0, 0.1):
        y = noisy(1.0, images=1)
        y = (y - y.mean()) / y.std() * (v0 + s**2 + excess).sqrt()
        V, a2 = y.var(), DDPM.alpha_of(s) ** 2
        for frame, closed in (("ve", V - v0), ("model", (a2 * V - v0) / (1 - a2 * V))):
            nearest = DDPM.time(found[frame].told(y, s))
            assert (nearest - DDPM.time(closed.sqrt())).abs() <= 0.5 + 1e-9


def test_the_window_clips():
    loud, quiet = 5 * noisy(level(400), images=3), noisy(level(400), images=3) / 5
    for w, k in ((40, 20), (8, 4), (9, 4), (0, 0)):
        select = TimeSelected(VP, window=w)
        assert torch.allclose(select.told(loud, level(400)), level(400 + k), rtol=1e-12)
        assert torch.allclose(select.told(quiet, level(400)), level(400 - k), rtol=1e-12)
    # Beyond the ends of the schedule there is nothing to tell; σ itself stays as it was.
    assert torch.equal(TimeSelected(VP).told(5 * noisy(level(999), images=3), level(999)), level(999).expand(3))
    assert torch.equal(TimeSelected(gaussian).told(noisy(1e4, images=3), torch.tensor(1e3)), torch.full((3,), 1e3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", [DDPM, VPLinear(), RectifiedFlow()])
def test_up_to_the_cutoff_it_is_the_plain_denoiser(dtype, schedule):
    plain = FromV(lambda x, t: torch.tanh(x) * t[:, None], schedule)
    y = noisy(3.0, images=5, d=16).to(dtype)
    for t in (300.0, 120.5, 0.0):
        assert torch.equal(TimeSelected(plain)(y, level(t)), plain(y, level(t)))
        assert torch.equal(TimeSelected(plain)(y, level(t).float()), plain(y, level(t).float()))
    assert not torch.equal(TimeSelected(plain)(y, level(301)), plain(y, level(301)))
    # The cutoff is each image's own where σ is.
    s = torch.stack([level(t) for t in (500, 100, 400, 300, 299)])
    same = [torch.equal(a, b) for a, b in zip(TimeSelected(plain)(3 * y, s), plain(3 * y, s), strict=True)]
    assert same == [False, True, False, True, True]


def test_published_defaults():
    """Li et al. 2024, Fig. 7: CIFAR-10, 10 steps, window 40 and cutoff 300 of 1000; and no variance of the data."""
    select = TimeSelected(VP)
    assert (select.window, select.cutoff, select.data_variance, select.frame) == (40, 300, 0, "model")


def test_every_image_selects_for_itself():
    y, s = torch.cat([noisy(f * level(500), images=2) for f in (0.95, 1.0, 1.05)]), level(500)
    select = TimeSelected(VP, window=200, data_variance=V0)
    told = select.told(y, s)
    assert told.shape == (6,)
    assert told[:2].max() < told[-2:].min()
    for i in range(6):
        assert torch.equal(select.told(y[i : i + 1], s), told[i : i + 1])
        assert torch.equal(select.told(y[i : i + 1], s.expand(1)), told[i : i + 1])
    assert torch.equal(select(y, s), select(y, s.expand(6)))


def test_the_network_is_given_the_same_x_and_the_selected_time():
    """Algorithm 3: ε(x_t, τ) with x_t as it is; x0-hat by τ's α and σ. In "ve", τ's α takes y to x."""
    seen = []

    def network(x, t):
        seen.append((x, t))
        return torch.tanh(x)

    y, s = 1.1 * noisy(level(600), images=4), level(600)
    for frame in ("model", "ve"):
        select = TimeSelected(FromEps(network, DDPM), frame=frame)
        told, denoised = select.told(y, s), select(y, s)
        x, t = seen.pop()
        alpha, sigma = DDPM.alpha_of(told)[:, None], (told * DDPM.alpha_of(told))[:, None]
        assert torch.allclose(t, DDPM.time(told), rtol=1e-12)
        assert torch.allclose(t, t.round(), atol=1e-6)
        assert torch.allclose(x, (DDPM.alpha_of(s) if frame == "model" else alpha) * y, rtol=1e-12)
        assert torch.allclose(denoised, (x - sigma * torch.tanh(x)) / alpha, rtol=1e-10)


def test_a_first_order_step_from_the_selected_level_is_a_gamma():
    """Stepping from σ_τ too, as Algorithm 3 does, is the adapter's DDIM step blended: γ = (1 − σ'/σ_τ)/(1 − σ'/σ)."""
    y, grid = 1.05 * noisy(level(600), images=6, d=64), Grid.of(torch.stack([level(600), level(500)]))
    select = TimeSelected(gaussian, data_variance=V0)
    told = select.told(y, grid.sigmas[0])[:, None]
    proposed = DDIM.step(select, y, grid.interval(0), ()).x
    r, r_told = level(500) / level(600), level(500) / told
    gamma = (1 - r_told) / (1 - r)
    assert torch.equal(gamma > 1, told > level(600))  # told more noise: a longer step
    assert 1 < (gamma > 1).sum() < 6
    assert torch.allclose(torch.lerp(y, proposed, gamma), r_told * y + (1 - r_told) * gaussian(y, told[:, 0]), rtol=1e-12)


@pytest.mark.parametrize("network", [VP, gaussian])
def test_derivatives_take_the_selected_time_as_constant(network):
    y, s = 1.05 * noisy(level(600), images=5, d=8), level(600)
    select = TimeSelected(network, data_variance=V0, frame="ve")
    told, v = select.told(y, s), torch.ones_like(y)
    expected = torch.func.jvp(lambda z: network(z, told), (y,), (v,))
    for ours, theirs in zip(torch.func.jvp(lambda z: select(z, s), (y,), (v,)), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12)
    z = y.clone().requires_grad_()
    assert torch.allclose(torch.autograd.grad(select(z, s).sum(), z)[0], expected[1], rtol=1e-12)  # J is diagonal
    tangents = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    many = torch.func.vmap(lambda w: torch.func.jvp(lambda z: select(z, s), (y,), (w,))[1])(tangents)
    assert torch.allclose(many, tangents * expected[1], rtol=1e-10)
    alone = torch.func.vmap(lambda z: select(z[None], s)[0])(y)
    assert torch.allclose(alone, select(y, s), rtol=1e-12)


@pytest.mark.parametrize("method", ["vjp", "jvp", "fd"])
@pytest.mark.parametrize("batched", [True, False])
def test_a_selected_time_under_the_correction(method, batched):
    divergence = Hutchinson(2, method=method, batched=batched and method != "fd")
    corrected = sd.Corrected(DDIM, rules.CleanTarget(gamma_max=1.0), divergence=divergence)
    result = sd.sample(corrected, TimeSelected(MODEL), X, SIGMAS)
    assert torch.isfinite(result.x).all()
    assert result.stats.nfe >= 6
    one = sd.sample(DDIM, TimeSelected(MODEL), X[:1], SIGMAS)
    assert one.stats.nfe == 6
    assert torch.allclose(one.x, sd.sample(DDIM, TimeSelected(MODEL), X, SIGMAS).x[:1], rtol=1e-12)


@pytest.mark.parametrize("options, value", [
    ({"window": -2}, "window=-2"), ({"window": 2.5}, "window=2.5"), ({"window": math.inf}, "window=inf"),
    ({"cutoff": -1.0}, "cutoff=-1.0"), ({"cutoff": math.nan}, "cutoff=nan"),
    ({"data_variance": -0.1}, "data_variance=-0.1"), ({"frame": "vp"}, "frame='vp'"),
])  # fmt: skip
def test_bad_options_of_the_selection(options, value):
    with pytest.raises(InputError, match=re.escape(value)):
        TimeSelected(VP, **options)


def test_bad_states_of_the_selection():
    for x in (torch.zeros(3), torch.zeros(3, 1)):
        with pytest.raises(InputError, match=r"one coordinate has no variance; need"):
            TimeSelected(VP)(x, level(500))
    with pytest.raises(InputError, match=re.escape("sigma of shape (2,) for a batch of 3")):
        TimeSelected(VP)(torch.zeros(3, 4), torch.ones(2))


def test_a_flow_model_selects_in_its_own_coordinates():
    """x = (1−t) x* + t ε: the marginal's variance is (1−t)² v0 + t², and a state that has it keeps its time."""
    flow = RectifiedFlow()
    select = TimeSelected(FromFlow(lambda x, t: x, flow), window=400, data_variance=V0)
    s = level(600)
    a = flow.alpha_of(s)
    told = select.told(noisy(s), s)
    assert agrees(flow.alpha_of(told) ** 2 * (V0 + told**2), a**2 * (V0 + s**2), 1e-3 * a**2 * s**2)
