"""Noise grids: formulas, ends, and what `validate` refuses."""

import math
import re
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from problems import PROPERTY
from steindiff import grids
from steindiff.errors import InputError
from steindiff.schedules import RectifiedFlow, VPLinear

counts = st.integers(1, 60)
levels = st.floats(1e-4, 200.0)
FORMULAS = {name: getattr(grids, name) for name in grids.names()}


def test_karras_by_hand():
    """σ_i = (A + i/n (B − A))^ρ with ρ = 2, A = 4, B = 1, n = 3: 16, 9, 4, 1. And EDM's own numbers at n = 2."""
    torch.testing.assert_close(grids.karras(3, 1.0, 16.0, rho=2.0), torch.tensor([16.0, 9.0, 4.0, 1.0], dtype=torch.float64))
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7  # 2.5152…
    torch.testing.assert_close(grids.karras(2), torch.tensor([80.0, middle, 0.002], dtype=torch.float64))
    assert middle == pytest.approx(2.5152, abs=1e-4)


@pytest.mark.parametrize("n", [2, 5, 18])
def test_karras_against_diffusers(n):
    """EDM counts n evaluations with the step to zero: n − 1 steps to σ_min, then one more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedulers = pytest.importorskip("diffusers.schedulers")
        theirs = schedulers.EDMEulerScheduler()
    theirs.set_timesteps(n)
    torch.testing.assert_close(grids.with_zero(grids.karras(n - 1)), theirs.sigmas.double(), rtol=2e-6, atol=0)


@PROPERTY
@given(n=counts, ends=st.tuples(levels, levels).filter(lambda z: z[0] * 1.5 < z[1]))
def test_log_snr_is_uniform_in_lambda(n, ends):
    steps = grids.log_snr(n, *ends).log().diff()
    torch.testing.assert_close(steps, torch.full_like(steps, math.log(ends[0] / ends[1]) / n), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", [VPLinear(), VPLinear(0.5, 10.0), RectifiedFlow()])
@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_time_grids_are_uniform_in_time(n, schedule):
    for make, power in ((grids.time_uniform, 1), (grids.time_quadratic, 0.5)):
        steps = (schedule.time(make(n, schedule=schedule)) ** power).diff()
        torch.testing.assert_close(steps, steps.mean().expand(n), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grids.time_uniform(n), grids.time_uniform(n, schedule=VPLinear()))


@pytest.mark.parametrize("name", FORMULAS)
@PROPERTY
@given(n=counts, ends=st.tuples(levels, levels).filter(lambda z: z[0] * 1.5 < z[1]))
def test_ends_are_exact_and_grids_valid(name, n, ends):
    sigmas = FORMULAS[name](n, *ends)
    assert sigmas.shape == (n + 1,)
    assert sigmas.dtype == torch.float64
    assert (float(sigmas[-1]), float(sigmas[0])) == ends
    assert torch.equal(grids.validate(sigmas), sigmas)
    assert torch.equal(grids.make(name, n, *ends), sigmas)


def test_with_zero():
    sigmas = grids.karras(3)
    longer = grids.with_zero(sigmas)
    assert torch.equal(longer[:-1], sigmas)
    assert float(longer[-1]) == 0
    with pytest.raises(InputError, match="already ends at sigma = 0"):
        grids.with_zero(longer)


def test_from_list():
    assert grids.from_list([3, 1, 0.5]).tolist() == [3.0, 1.0, 0.5]
    with pytest.raises(InputError, match=re.escape("sigmas[1] = 3 is not below the one before it")):
        grids.from_list([3, 3, 1])


def test_unknown_name_has_a_suggestion():
    with pytest.raises(InputError, match="unknown grid 'karas': did you mean 'karras'"):
        grids.make("karas", 5)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("n", [0, -3, 2.5, True, float("nan"), "5"])
def test_bad_counts_are_refused(name, n):
    with pytest.raises(InputError, match=re.escape(f"n={n!r}")):
        FORMULAS[name](n)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("ends", [(0.0, 80.0), (-1.0, 80.0), (5.0, 5.0), (80.0, 0.002), (0.002, math.inf), (math.nan, 80.0)])
def test_bad_ends_are_refused(name, ends):
    with pytest.raises(InputError, match=re.escape(f"sigma_min={ends[0]}, sigma_max={ends[1]}")):
        FORMULAS[name](5, *ends)


@pytest.mark.parametrize("rho", [0.0, -7.0, math.nan])
def test_bad_rho_is_refused(rho):
    with pytest.raises(InputError, match=f"rho={rho}"):
        grids.karras(5, rho=rho)


# What `validate` accepts: strictly decreasing, positive, the last may be 0. Bounded ratios keep every case clear of rounding.
valid = st.builds(
    lambda start, ratios, zero: [start * math.prod(ratios[:i]) for i in range(len(ratios) + 1)] + [0.0] * zero,
    st.floats(1e-2, 1e3),
    st.lists(st.floats(0.2, 0.99), min_size=1, max_size=12),
    st.booleans(),
)


@PROPERTY
@given(values=valid)
def test_valid_grids_come_back_unchanged(values):
    sigmas = torch.tensor(values, dtype=torch.float64)
    assert torch.equal(grids.validate(sigmas), sigmas)
    assert torch.equal(grids.validate(sigmas.float()), sigmas.float().double())


@PROPERTY
@given(values=valid, data=st.data())
def test_non_finite_is_refused(values, data):
    i = data.draw(st.integers(0, len(values) - 1))
    values[i] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    _refused(values, i, "is not finite")


@PROPERTY
@given(values=valid, data=st.data())
def test_non_positive_is_refused(values, data):
    i = data.draw(st.integers(0, len(values) - 1))
    values[i] = data.draw(st.floats(-100.0, -1e-6) if i == len(values) - 1 else st.floats(-100.0, 0.0))
    _refused(values, i, "is not positive")


@PROPERTY
@given(values=valid, data=st.data())
def test_non_decreasing_is_refused(values, data):
    i = data.draw(st.integers(1, len(values) - 1))
    values[i] = values[i - 1] * data.draw(st.floats(1.0, 3.0))
    _refused(values, i, "is not below the one before it")


def _refused(values, position, why):
    message = re.escape(f"sigmas[{position}] = {values[position]:g} {why}")
    with pytest.raises(InputError, match=message):
        grids.validate(torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (3, 1)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(InputError, match=re.escape(str(shape))):
        grids.validate(torch.ones(shape, dtype=torch.float64))


def test_wrong_types_are_refused():
    with pytest.raises(InputError, match="list"):
        grids.validate([3.0, 2.0])
    with pytest.raises(InputError, match=re.escape("torch.int64")):
        grids.validate(torch.tensor([3, 2, 1]))
