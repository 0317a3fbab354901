"""Schedules: the forward law, its inverse, and agreement with diffusers' tables."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from problems import PROPERTY
from steindiff.errors import InputError
from steindiff.schedules import VE, DiscreteBetas, LogNoise, RectifiedFlow, VPCosine, VPLinear

CONTINUOUS = {
    "ve": VE(), "vp": VPLinear(), "cosine": VPCosine(), "flow": RectifiedFlow(), "flow of 1000": RectifiedFlow(1000.0),
    "edm": LogNoise(0.7),
}  # fmt: skip
DISCRETE = {"linear": DiscreteBetas.linear(), "scaled_linear": DiscreteBetas.scaled_linear()}
ALL = {**CONTINUOUS, **DISCRETE}

log_levels = st.floats(math.log(1e-3), math.log(150.0))


def _ends(schedule):
    table = schedule.ratio(torch.tensor([0.0, len(schedule.betas) - 1], dtype=torch.float64))
    return float(table[0]), float(table[1])


@pytest.mark.parametrize("name", CONTINUOUS)
@PROPERTY
@given(log_s=log_levels)
def test_time_inverts_ratio(name, log_s):
    schedule = CONTINUOUS[name]
    s = torch.tensor(log_s, dtype=torch.float64).exp()
    t = schedule.time(s)
    torch.testing.assert_close(schedule.ratio(t), s, rtol=1e-10, atol=0)
    torch.testing.assert_close(schedule.time(schedule.ratio(t)), t, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", DISCRETE)
@PROPERTY
@given(position=st.floats(0, 999))
def test_time_inverts_ratio_of_a_table(name, position):
    schedule = DISCRETE[name]
    t = torch.tensor(position, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.ratio(t)), t, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
@PROPERTY
@given(log_s=log_levels)
def test_time_of_lam_inverts_lam(name, log_s):
    schedule = ALL[name]
    if name in DISCRETE:
        low, high = _ends(schedule)
        log_s = min(max(log_s, math.log(low)), math.log(high))
    lam = torch.tensor(-log_s, dtype=torch.float64)
    torch.testing.assert_close(schedule.lam(schedule.time_of_lam(lam)), lam, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_ratio_increases_and_lam_decreases(name):
    schedule = ALL[name]
    end = {**dict.fromkeys((*DISCRETE, "flow of 1000"), 999.0), "ve": 150.0}.get(name, 0.999)
    t = torch.linspace(end / 1e4, end, 2000, dtype=torch.float64)
    assert bool((schedule.ratio(t).diff() > 0).all())
    assert bool((schedule.lam(t).diff() < 0).all())


@pytest.mark.parametrize("name", ALL)
def test_alpha_sigma_ratio_agree(name):
    schedule = ALL[name]
    s = torch.logspace(-1.4, 1, 50, dtype=torch.float64)
    t = schedule.time(s)
    torch.testing.assert_close(schedule.sigma(t) / schedule.alpha(t), s, rtol=1e-10, atol=0)
    torch.testing.assert_close(schedule.alpha(t), schedule.alpha_of(s), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["vp", "cosine", *DISCRETE])
def test_variance_is_preserved(name):
    schedule = ALL[name]
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64) * (999 if name in DISCRETE else 1)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t), rtol=1e-12, atol=0)


def test_ve_and_flow_laws():
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(VE().alpha(t), torch.ones_like(t))
    torch.testing.assert_close(VE().sigma(t), t)
    torch.testing.assert_close(RectifiedFlow().alpha(t), 1 - t)
    torch.testing.assert_close(RectifiedFlow().sigma(t), t)


def test_published_formulas():
    """α(t) as the papers write it: VP-SDE (Song et al. 2021, Eq. 33) and the cosine schedule (Nichol & Dhariwal, Eq. 17)."""
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(VPLinear().alpha(t), torch.exp(-(t**2) * 19.9 / 4 - t * 0.1 / 2), rtol=1e-10, atol=0)
    f = [torch.cos((u + 0.008) / 1.008 * math.pi / 2) for u in (t, torch.zeros_like(t))]
    torch.testing.assert_close(VPCosine().alpha(t), f[0] / f[1], rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_betas_against_diffusers(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedulers = pytest.importorskip("diffusers.schedulers")
    ends = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = schedulers.DDPMScheduler(beta_schedule=name, beta_start=ends[0], beta_end=ends[1])
    index = torch.arange(1000)
    ours = DISCRETE[name]
    torch.testing.assert_close(ours.betas, theirs.betas.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.alpha(index) ** 2, theirs.alphas_cumprod.double(), rtol=2e-5, atol=0)
    # The same betas, float32 as theirs are: what is left is the rounding of their float32 product.
    torch.testing.assert_close(
        DiscreteBetas(theirs.betas).alpha(index) ** 2, torch.cumprod(1 - theirs.betas.double(), 0), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", DISCRETE)
def test_table_is_clamped_outside(name):
    schedule = DISCRETE[name]
    low, high = _ends(schedule)
    t = torch.tensor([-5.0, 0.0, 999.0, 2000.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.ratio(t), torch.tensor([low, low, high, high], dtype=torch.float64))
    s = torch.tensor([0.0, low / 3, low, high, 3 * high], dtype=torch.float64)
    torch.testing.assert_close(schedule.time(s), torch.tensor([0.0, 0.0, 0.0, 999.0, 999.0], dtype=torch.float64))


def test_table_is_linear_in_log_between_indices():
    schedule = DISCRETE["scaled_linear"]
    low, high = schedule.ratio(torch.tensor([7, 8])).log()
    torch.testing.assert_close(schedule.ratio(torch.tensor(7.25, dtype=torch.float64)).log(), 0.75 * low + 0.25 * high)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_elementwise_in_shape_and_dtype(name, dtype, shape):
    schedule = ALL[name]
    s = torch.full(shape, 0.7, dtype=dtype)
    t = schedule.time(s)
    for z in (t, schedule.ratio(t), schedule.alpha_of(s), schedule.alpha(t), schedule.sigma(t)):
        assert z.shape == shape
        assert z.dtype == dtype


@pytest.mark.parametrize(
    "make, value",
    [
        (lambda: VPLinear(0.0, 20.0), "beta_min=0.0"),
        (lambda: VPLinear(3.0, 2.0), "beta_max=2.0"),
        (lambda: VPLinear(float("nan"), 2.0), "beta_min=nan"),
        (lambda: VPCosine(0.0), "offset=0.0"),
        (lambda: VPCosine(-0.1), "offset=-0.1"),
        (lambda: RectifiedFlow(0.0), "scale=0.0"),
        (lambda: LogNoise(-1.0), "sigma_data=-1.0"),
        (lambda: DiscreteBetas(torch.tensor([0.1])), r"\(1,\)"),
        (lambda: DiscreteBetas(torch.tensor([[0.1, 0.2]])), r"\(1, 2\)"),
        (lambda: DiscreteBetas(torch.tensor([0.1, 1.0])), "inside"),
        (lambda: DiscreteBetas(torch.tensor([0.0, 0.5])), "inside"),
        (lambda: DiscreteBetas(torch.tensor([0.1, float("nan")])), "inside"),
    ],
)
def test_bad_input_is_refused(make, value):
    with pytest.raises(InputError, match=value):
        make()
