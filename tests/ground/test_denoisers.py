"""Adapters: a network of any parametrisation, built from a known denoiser, gives that denoiser back in VE coordinates."""

import functools
import re
from functools import partial

import pytest
import torch

from problems import gaussian
from steindiff import grids, sampling
from steindiff.denoisers import (
    Counter,
    FromEps,
    FromFlow,
    FromV,
    FromX0,
    Guided,
    expand,
    forwards_per_call,
    schedule_of,
)
from steindiff.errors import InputError
from steindiff.schedules import VE, DiscreteBetas, RectifiedFlow, VPCosine, VPLinear

SCHEDULES = {
    "ve": VE(),
    "vp": VPLinear(),
    "cosine": VPCosine(),
    "flow": RectifiedFlow(),
    "linear": DiscreteBetas.linear(),
    "scaled_linear": DiscreteBetas.scaled_linear(),
}
# The prediction a perfect network makes at x = α x* + σ ε, from x̂0 and ε̂ = (x − α x̂0)/σ.
PREDICTIONS = {
    FromEps: lambda clean, noise, a, b: noise,
    FromV: lambda clean, noise, a, b: a * noise - b * clean,
    FromX0: lambda clean, noise, a, b: clean,
    FromFlow: lambda clean, noise, a, b: noise - clean,
}


def _network(kind, schedule, dtypes=None):
    """F(x, t) in the model's own coordinates; t (B,)."""

    def network(x, t):
        assert t.shape == x.shape[:1], "networks are given one time for each sample"
        if dtypes is not None:
            dtypes.append((x.dtype, t.dtype))
        a, b = (z.reshape(-1, *[1] * (x.ndim - 1)) for z in (schedule.alpha(t).double(), schedule.sigma(t).double()))
        clean = gaussian(x.double() / a, schedule.ratio(t))
        return PREDICTIONS[kind](clean, (x.double() - a * clean) / b, a, b).to(x.dtype)

    return network


def _state(*event, batch=4):
    return torch.randn(batch, *event, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("s", [0.05, 0.7, 9.0])
@pytest.mark.parametrize("event", [(3,), (2, 4, 4)])
def test_gives_the_denoiser_back(kind, name, s, event):
    schedule = SCHEDULES[name]
    adapter = kind(_network(kind, schedule), schedule)
    sigma = torch.tensor(s, dtype=torch.float64)
    x = 0.3 + s * _state(*event)
    expected = gaussian(x, sigma)
    torch.testing.assert_close(adapter(x, sigma), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(adapter(x, sigma.expand(4)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_sigma_for_each_sample(kind, name):
    schedule = SCHEDULES[name]
    adapter = kind(_network(kind, schedule), schedule)
    sigma = torch.tensor([0.05, 0.4, 2.0, 9.0], dtype=torch.float64)
    x = sigma[:, None] * _state(3)
    together = adapter(x, sigma)
    alone = torch.cat([adapter(x[i : i + 1], sigma[i]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("dtype, time", [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (None, None)])
@pytest.mark.parametrize("state", [torch.float32, torch.float64])
def test_network_dtype(kind, dtype, time, state):
    """The network sees its own dtype, the time never less than float32; the state keeps its own."""
    seen = []
    schedule = VPLinear()
    adapter = kind(_network(kind, schedule, seen), schedule, dtype=dtype)
    sigma = torch.tensor(0.7, dtype=torch.float64)
    x = (0.7 * _state(3)).to(state)
    out = adapter(x, sigma)
    assert seen == [(dtype or state, time or state)]
    assert out.dtype == state
    torch.testing.assert_close(out, gaussian(x, sigma), rtol=3e-2, atol=3e-2)


def test_times_are_exact_for_a_float32_state():
    """A discrete schedule's times are computed in float64: at an integer index the network is asked at that index."""
    schedule = DiscreteBetas.linear()
    asked = []

    def network(x, t):
        asked.append(float(t[0]))
        return x

    for i in (0, 1, 500, 998, 999):
        FromEps(network, schedule)(torch.zeros(1, 2), schedule.ratio(torch.tensor(i)))
    assert asked == pytest.approx([0, 1, 500, 998, 999], abs=1e-4)


@pytest.mark.parametrize("shape", [(3,), (1,), (4, 1), (2, 2)])
def test_bad_sigma_shape(shape):
    schedule = VPLinear()
    with pytest.raises(InputError, match=re.escape(f"{shape} for a batch of 4: need () or (4,)")):
        FromEps(_network(FromEps, schedule), schedule)(_state(3), torch.ones(shape, dtype=torch.float64))


def test_expand():
    x = _state(2, 4, 4)
    assert expand(torch.tensor(1.0), x).shape == ()
    assert expand(torch.ones(4), x).shape == (4, 1, 1, 1)
    with pytest.raises(InputError, match=re.escape("sigma of shape (5,) for a batch of 4")):
        expand(torch.ones(5), x)


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.5])
def test_guidance(scale):
    conditional, unconditional = functools.partial(gaussian, mean=1.0), functools.partial(gaussian, mean=-0.5)
    x, sigma = _state(3), torch.tensor(0.7, dtype=torch.float64)
    c, u = conditional(x, sigma), unconditional(x, sigma)
    torch.testing.assert_close(Guided(conditional, unconditional, scale)(x, sigma), (1 - scale) * u + scale * c)


def test_guidance_costs_two_forwards():
    guided = Guided(gaussian, gaussian, 2.0)
    stats = sampling.sample("ddim", guided, 5.0 * _state(3), grids.karras(4, 0.1, 5.0)).stats
    assert stats.nfe == 4
    assert stats.forward_equivalents == 8
    assert forwards_per_call(gaussian) == 1
    assert forwards_per_call(Counter(guided)) == 2
    assert forwards_per_call(Guided(guided, gaussian, 1.0)) == 3


def test_counter():
    counter = Counter(gaussian)
    x, sigma = _state(3), torch.tensor(0.7, dtype=torch.float64)
    assert torch.equal(counter(x, sigma), gaussian(x, sigma))
    counter(x, sigma)
    assert counter.calls == 2


def test_schedule_through_wrappers():
    schedule = VPCosine()
    adapter = FromV(_network(FromV, schedule), schedule)
    assert schedule_of(adapter) is schedule
    assert schedule_of(Counter(Guided(Counter(adapter), gaussian, 2.0))) is schedule
    assert schedule_of(partial(adapter)) is schedule
    assert schedule_of(gaussian) == VE()
