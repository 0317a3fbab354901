"""Distances against closed forms, and their standard errors against repeated draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from steindiff.errors import InputError
from steindiff.metrics import (
    EnergyTarget,
    FrechetTarget,
    SampleMoments,
    Value,
    distances,
    endpoint_rmse,
    energy_difference,
    energy_distance,
    frechet,
    frechet_distance,
    moments,
    principal_features,
)


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


@pytest.mark.parametrize(
    ("distance", "n", "d"),
    [(energy_distance, 200, 2), (frechet_distance, 200, 2), (lambda x, y: frechet_distance(x, y, groups=10), 50, 70)],
)
def test_standard_errors_agree_with_the_spread_of_repeated_draws(distance, n, d):
    """The last with fewer samples than dimensions."""
    draws = [distance(_normal(2 * i, n, d), _normal(2 * i + 1, n, d, shift=0.7, scale=1.3)) for i in range(50)]
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


def _close(got: SampleMoments, expected: SampleMoments) -> None:
    assert got.n == expected.n
    torch.testing.assert_close(got.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.scatter, expected.scatter, rtol=1e-11, atol=1e-11)


def test_moments_are_those_of_the_samples_far_from_the_origin_too():
    x = _normal(0, 200, 4, shift=1e4)
    got = SampleMoments.of(x)
    torch.testing.assert_close(got.mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(got.covariance, torch.cov(x.T), rtol=1e-9, atol=1e-9)


def test_moments_of_two_points_by_hand():
    got = SampleMoments.of(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    assert got.mean.tolist() == [1.0, 3.0]
    assert got.covariance.tolist() == [[2.0, 4.0], [4.0, 8.0]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.randoms())
@settings(max_examples=25, deadline=None)
def test_moments_do_not_depend_on_parts_or_order(sizes, random):
    x = _normal(sum(sizes), sum(sizes), 3, shift=2.0)
    parts = [SampleMoments.of(part) for part in x.split(sizes)]
    random.shuffle(parts)
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    _close(merged, SampleMoments.of(x))


def test_moments_in_chunks(monkeypatch):
    x = _normal(0, 103, 3)
    whole = SampleMoments.of(x)
    monkeypatch.setattr(moments, "CHUNK", 10)
    _close(SampleMoments.of(x.float()), SampleMoments.of(x.float().double()))
    _close(SampleMoments.of(x), whole)


def test_moments_refuse_what_has_none():
    one = SampleMoments.of(torch.zeros(1, 2))
    for call, message in (
        (lambda: SampleMoments.of(torch.zeros(0, 2)), "at least 1 sample"),
        (lambda: one.covariance, "no covariance"),
        (lambda: one.merge(SampleMoments.of(torch.zeros(1, 3))), "need the same"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_frechet_of_gaussians_with_given_moments():
    """Samples moved and stretched to have exactly the moments of the closed form."""
    z = _normal(0, 50, 3)
    z = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    a, b = torch.diag(torch.tensor([1.0, 2.0, 3.0])).double(), torch.diag(torch.tensor([2.0, 0.5, 3.0])).double()
    expected = 3 * 0.25 + (1 - 2) ** 2 + (2 - 0.5) ** 2  # commuting: Σ(√λ − √μ)²
    assert frechet_distance(z @ a, 0.5 + z @ b).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(60, 50, 8), (44, 90, 60), (90, 44, 60), (44, 46, 300)])
def test_frechet_from_samples_equals_frechet_from_covariances(n, m, d):
    """Rounding of eigenvalues that are zero limits the second to about √ε of the largest, each."""
    scale = torch.linspace(0.1, 2, d, dtype=torch.float64)
    x, y = (FrechetTarget(scale * _normal(i, k, d, shift=0.3 * i)) for i, k in enumerate((n, m)))
    samples, covariances = frechet._by_samples(x, y), frechet._by_moments(x, y)
    assert samples[0] == pytest.approx(covariances[0], rel=1e-6)
    for got, expected in zip(samples[1:], covariances[1:], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    chosen = y.distance(x)
    assert chosen.value == (samples if min(n, m) <= d else covariances)[0]
    assert chosen.se > 0


def test_targets_may_be_used_again_and_on_either_side():
    x, y, z = _normal(0, 50, 3), _normal(1, 60, 3, shift=0.5), _normal(2, 40, 3)
    for make, distance, measure in (
        (FrechetTarget, frechet_distance, lambda target, other: target.distance(other)),
        (EnergyTarget, energy_distance, lambda target, other: target.shares(other).value),
    ):
        target = make(y)
        for other in (x, z):
            assert measure(target, make(other)) == pytest.approx(distance(other, y), rel=1e-12)
            assert measure(target, other) == pytest.approx(distance(other, y), rel=1e-12)
            assert measure(make(other), target) == pytest.approx(distance(y, other), rel=1e-12)
    with pytest.raises(InputError, match="make both with the same"):
        FrechetTarget(x, groups=5).distance(FrechetTarget(y, groups=4))


def test_energy_distance_in_blocks_equals_the_double_sums(monkeypatch):
    x, y = _normal(0, 37, 5), _normal(1, 41, 5, shift=0.4)
    pairs = {name: (p[:, None] - q).norm(dim=-1) for name, p, q in (("xy", x, y), ("xx", x, x), ("yy", y, y))}
    within_x, within_y = pairs["xx"].sum(1) / 36, pairs["yy"].sum(1) / 40
    expected = 2 * pairs["xy"].mean() - within_x.mean() - within_y.mean()
    for rows in (8, 1024):
        monkeypatch.setattr(distances, "ROWS", rows)
        shares = EnergyTarget(y).shares(x)
        assert shares.distance == pytest.approx(float(expected), rel=1e-10)
        torch.testing.assert_close(shares.of_x, 2 * (pairs["xy"].mean(1) - within_x), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(shares.of_y, 2 * (pairs["xy"].mean(0) - within_y), rtol=1e-9, atol=1e-9)


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
        (lambda: energy_distance(torch.zeros(1, 2), torch.zeros(5, 2)), "at least 2 samples"),
        (lambda: energy_distance(torch.zeros(5, 2), torch.zeros(5, 3)), "need equal dimension"),
        (lambda: frechet_distance(torch.zeros(10, 2), torch.zeros(10, 2)), "10 samples.*at least 2 groups"),
        (lambda: frechet_distance(torch.zeros(50, 2), torch.zeros(50, 3)), "need equal dimension"),
        (lambda: FrechetTarget(torch.zeros(50, 2), groups=1), "at least 2"),
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


def test_a_value_comes_back_from_json():
    assert Value.parse([0.5, 1]) == Value(0.5, 1.0)
    assert math.isnan(Value.parse([0.5, None]).se)
    for wrong in ([1.0], [1.0, 2.0, 3.0], ["x", 1.0], None):
        with pytest.raises((TypeError, ValueError)):
            Value.parse(wrong)
