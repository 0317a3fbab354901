"""Adapters: a network of any parametrisation, built from a known denoiser, gives that denoiser back in VE coordinates."""

import contextlib
import functools
import re
import warnings
from functools import partial

import pytest
import torch

from problems import MODEL, gaussian
from steindiff import grids, rules, sampling, solvers
from steindiff.corrections import Corrected
from steindiff.denoisers import (
    Counter,
    FromEps,
    FromFlow,
    FromV,
    FromX0,
    Guided,
    Labelled,
    TimeSelected,
    declare,
    expand,
    forwards_per_call,
    schedule_of,
)
from steindiff.errors import InputError, ScheduleWarning
from steindiff.models.networks import EDMPrecond
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


@pytest.mark.parametrize("labels", [torch.tensor(2), torch.tensor([2, 0, 1, 2])])
def test_bound_labels(labels):
    """The network is told every image's class, and its schedule stays known."""

    def network(x, sigma, each):
        return gaussian(x, sigma) * (1 + each[:, None])

    x, sigma = _state(3), torch.tensor(0.7, dtype=torch.float64)
    assert torch.equal(Labelled(network, labels)(x, sigma), network(x, sigma, labels.expand(4)))
    with _silent():
        assert schedule_of(Labelled(EDMPrecond(torch.nn.Identity(), 0.5), labels)) == VE()


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
    with pytest.warns(ScheduleWarning):
        assert schedule_of(gaussian) == VE()


def wrapped(adapter):
    @functools.wraps(adapter)
    def logged(x, sigma):
        return adapter(x, sigma)

    return logged


@pytest.mark.filterwarnings("error::steindiff.errors.ScheduleWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        wrapped,
        partial,
        Counter,
        lambda d: d.__call__,
        lambda d: partial(wrapped(Counter(d).__call__)),
        lambda d: torch.compile(d, backend="eager"),
        lambda d: Counter(torch.compile(d.__call__, backend="eager")),
        lambda d: declare(lambda x, sigma: d(x, sigma), schedule=d.schedule, forwards=2),
    ],
)
def test_wrappers_of_every_kind_pass_on_schedule_and_forwards(wrap):
    adapter = FromV(_network(FromV, VPCosine()), VPCosine())
    guided = wrap(Guided(adapter, gaussian, 2.0))
    assert schedule_of(guided) == schedule_of(wrap(adapter)) == VPCosine()
    assert forwards_per_call(guided) == 2


@pytest.mark.filterwarnings("error::steindiff.errors.ScheduleWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("bind", [lambda m: m, lambda m: torch.compile(m, backend="eager"), lambda m: m.forward])
def test_a_networks_schedule_is_seen_through_compilation(bind):
    """A module may state its own; the preconditioned network and the exact laws do."""
    network = bind(EDMPrecond(torch.nn.Identity(), 0.5))
    assert schedule_of(network) == schedule_of(MODEL) == schedule_of(MODEL.denoise) == VE()
    assert forwards_per_call(network) == forwards_per_call(MODEL) == 1


class Logger:
    schedule = "linear"  # not a Schedule

    def __call__(self, x, sigma):
        return gaussian(x, sigma)


@pytest.mark.parametrize(
    "wrap, name",
    [
        (lambda d: lambda x, sigma: d(x, sigma), "<lambda>"),
        (lambda d: Counter(partial(gaussian, mean=d)), "gaussian"),
        (lambda d: Guided(Logger(), d, 2.0), "Logger"),
    ],
)
def test_what_hides_a_schedule_is_named_where_it_matters(wrap, name):
    hidden = wrap(FromV(_network(FromV, VPCosine()), VPCosine()))
    with pytest.warns(ScheduleWarning, match=rf"schedule of .*{re.escape(name)} is unknown.*declare\(.*frame='ve'"):
        assert schedule_of(hidden) == VE()


def test_the_warning_comes_from_corrections_and_selection_in_the_models_frame_only():
    x, sigmas = 5.0 * _state(3), grids.karras(2, 0.1, 5.0)

    def plain(x, sigma):
        return gaussian(x, sigma)

    for frame in ("model", "ve"):
        corrected = Corrected(solvers.make("ddim"), rules.CleanTarget(), frame=frame)
        for act in (lambda c=corrected: sampling.sample(c, plain, x, sigmas), lambda f=frame: TimeSelected(plain, frame=f)):
            with pytest.warns(ScheduleWarning) if frame == "model" else _silent():
                act()
    with _silent():
        sampling.sample("ddim", plain, x, sigmas)
        forwards_per_call(plain)


@contextlib.contextmanager
def _silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScheduleWarning)
        yield


def test_declare():
    x, sigma = _state(3), torch.tensor(0.7, dtype=torch.float64)
    declared = declare(gaussian, schedule=VPLinear(), forwards=3)
    assert torch.equal(declared(x, sigma), gaussian(x, sigma))
    assert forwards_per_call(Guided(declared, declared, 1.5)) == 6
    with pytest.raises(InputError, match="forwards=0: need a whole number from 1"):
        declare(gaussian, schedule=VE(), forwards=0)
