"""Distances against closed forms, and their standard errors against repeated draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from steindiff.errors import InputError
from steindiff.metrics import Value, endpoint_rmse, energy_difference, energy_distance, frechet_distance, principal_features


def _normal(seed: int, n: int, d: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=g, dtype=torch.float64)


def test_energy_distance_closed_form_in_one_dimension():
    """For N(0,1) and N(m,1): E|X−Y| = √2·√(2/π)e^(−m²/4) + m erf(m/2); checked at m = 1 within 4 standard errors."""
    m = 1.0
    s = math.sqrt(2)
    mean_abs = s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * math.erf(m / (s * math.sqrt(2)))
    exact = 2 * mean_abs - 2 * (2 / math.sqrt(math.pi))
    got = energy_distance(_normal(0, 4000, 1), _normal(1, 4000, 1, shift=m))
    assert abs(got.value - exact) < 4 * got.se
    assert got.se < 0.05 * exact


def test_energy_distance_is_unbiased_at_zero_and_symmetric():
    values = [energy_distance(_normal(2 * i, 100, 3), _normal(2 * i + 1, 120, 3)).value for i in range(60)]
    mean, spread = sum(values) / 60, float(torch.tensor(values).std()) / math.sqrt(60)
    assert abs(mean) < 4 * spread
    x, y = _normal(1, 50, 3), _normal(2, 70, 3, shift=0.5)
    assert energy_distance(x, y).value == pytest.approx(energy_distance(y, x).value, rel=1e-12)


@pytest.mark.parametrize("distance", [energy_distance, lambda x, y: frechet_distance(x, y, groups=20)])
def test_standard_errors_agree_with_the_spread_of_repeated_draws(distance):
    draws = [distance(_normal(2 * i, 200, 2), _normal(2 * i + 1, 200, 2, shift=0.7, scale=1.3)) for i in range(80)]
    spread = float(torch.tensor([v.value for v in draws]).std())
    stated = sum(v.se for v in draws) / len(draws)
    assert 0.7 < stated / spread < 1.4


def test_energy_difference_is_the_difference_and_its_paired_error_is_smaller():
    y = _normal(0, 500, 4)
    x = _normal(1, 500, 4, shift=0.3)
    base = x + 0.01 * _normal(2, 500, 4)
    got = energy_difference(x, base, y)
    assert got.value == pytest.approx(energy_distance(x, y).value - energy_distance(base, y).value, abs=1e-12)
    assert got.se < 0.2 * energy_distance(x, y).se
    assert energy_difference(x, x, y) == Value(0.0, 0.0)


def test_frechet_against_scipy_and_against_moments():
    x, y = _normal(0, 300, 5), _normal(1, 300, 5, shift=0.4, scale=1.5)
    cx, cy = torch.cov(x.T).numpy(), torch.cov(y.T).numpy()
    root = sqrtm(cx @ cy).real
    exact = float((x.mean(0) - y.mean(0)).square().sum()) + (cx + cy - 2 * root).trace()
    assert frechet_distance(x, y).value == pytest.approx(exact, rel=1e-9)
    assert frechet_distance(x, x).value == pytest.approx(0.0, abs=1e-9)
    far = frechet_distance(_normal(3, 20000, 2), _normal(4, 20000, 2, shift=1.0, scale=2.0))
    assert abs(far.value - (2 * 1.0 + 2 * 1.0)) < 4 * far.se  # d·shift² + d·(2−1)²


def test_endpoint_rmse_and_its_error():
    x = _normal(0, 400, 6)
    got = endpoint_rmse(x, x + 0.5)
    assert got.value == pytest.approx(0.5)
    assert got.se == pytest.approx(0.0, abs=1e-12)
    noisy = endpoint_rmse(x, x + 0.1 * _normal(1, 400, 6))
    assert abs(noisy.value - 0.1) < 4 * noisy.se
    assert endpoint_rmse(x, x) == Value(0.0, 0.0)


def test_principal_features_are_orthonormal_and_order_variance():
    x = _normal(0, 200, 5) * torch.tensor([5.0, 4.0, 3.0, 0.1, 0.1])
    z = principal_features(x.reshape(200, 1, 5), 3)(x)
    cov = torch.cov(z.T)
    assert torch.allclose(cov, torch.diag(cov.diag()), atol=1e-9)
    assert cov.diag().tolist() == sorted(cov.diag().tolist(), reverse=True)
    with pytest.raises(InputError, match="ask for fewer"):
        principal_features(x, 6)


@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_energy_distance_of_any_size_is_finite(n, m, d):
    assert math.isfinite(energy_distance(_normal(n, n, d), _normal(m, m, d)).value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: energy_distance(torch.zeros(1, 2), torch.zeros(5, 2)), "at least 2 each"),
        (lambda: energy_distance(torch.zeros(5, 2), torch.zeros(5, 3)), "need equal dimension"),
        (lambda: frechet_distance(torch.zeros(10, 2), torch.zeros(10, 2)), "at least 40 each"),
        (lambda: endpoint_rmse(torch.zeros(3, 2), torch.zeros(4, 2)), "same noise"),
        (lambda: energy_difference(torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(4, 2)), "same noise"),
    ],
)
def test_bad_sizes_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_value_prints_its_scale():
    assert str(Value(0.01234, 0.001)) == "0.0123 ± 0.0010"
    assert str(Value(12345.0, 100.0)) == "1.2e+04 ± 1e+02"
    assert str(Value(float("inf"), float("nan"))) == "diverged"
