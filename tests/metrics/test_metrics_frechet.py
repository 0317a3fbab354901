"""The Fréchet distance and its first-order jackknife: against derivatives by autograd, leaving out, and repeated draws."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from steindiff.errors import InputError
from steindiff.metrics import FrechetTarget, SampleMoments, frechet, frechet_distance, jackknife
from steindiff.metrics.fid.references import Reference, grouped_moments
from steindiff.metrics.frechet import Law


def _normal(seed: int, n: int, d: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=g, dtype=torch.float64)


def _exact(x, y):
    return frechet_distance(x, y, groups=2).value


@pytest.mark.parametrize("least, known", [(0.1, 4), (1e-7, 4), (0.0, 3)])
def test_roots_of_a_covariance(least, known):
    """By Cholesky, by eigenvalues, and by those that are not zero."""
    x = _normal(0, 200, 4, shift=1e4) @ torch.diag(torch.tensor([3.0, 1.0, 0.1, least], dtype=torch.float64))
    c = torch.cov(x.T)
    root, inverse = Law(x.mean(0), c).roots
    torch.testing.assert_close(root.mT @ root, c, rtol=1e-9, atol=1e-9)
    ones = (torch.arange(4) >= 4 - known).double()
    torch.testing.assert_close(inverse @ root.mT, torch.diag(ones), rtol=0, atol=1e-6)


def _weighted(x, y, means, weights):
    """The distance where samples of x have weights of their own in the mean and in the covariance."""
    mean = (means[:, None] * x).sum(0) / means.sum()
    a, b = x - x.mean(0), y - y.mean(0)
    cross = torch.linalg.svdvals(weights.sqrt()[:, None] * (a @ b.mT)).sum() / math.sqrt((len(a) - 1) * (len(b) - 1))
    spread = (weights * a.square().sum(1)).sum() / (len(a) - 1) + b.square().sum() / (len(b) - 1)
    return (mean - y.mean(0)).square().sum() + spread - 2 * cross


@pytest.mark.parametrize(("n", "m", "d"), [(60, 50, 4), (50, 60, 30), (24, 30, 40), (24, 90, 40)])
def test_groups_are_left_out_to_first_order(n, m, d):
    """Autograd has the derivative by a sample's weight; removing group i takes its share off, and spreads it over the rest."""
    x, y, groups = _normal(0, n, d, shift=0.3, scale=1.2), _normal(1, m, d), 5
    got = FrechetTarget(y, groups).replicates(x)
    for a, b, without in ((x, y, got.without_x), (y, x, got.without_y)):
        means, weights = (torch.ones(len(a), dtype=torch.float64, requires_grad=True) for _ in range(2))
        value = _weighted(a, b, means, weights)
        by_mean, by_weight = torch.autograd.grad(value, (means, weights))
        value = float(value.detach())
        shares = len(a) * by_mean + (len(a) - 1) * by_weight
        centred = shares - shares.mean()
        expected = [value - float(centred[i::groups].sum()) / (len(a) - len(a[i::groups])) for i in range(groups)]
        assert got.statistic == pytest.approx(value, rel=1e-9)
        assert without.tolist() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("d", [1, 4])
def test_where_samples_are_many_the_error_is_that_of_leaving_groups_out(d):
    x, y = _normal(0, 2000, d, shift=0.5, scale=1.3), _normal(1, 1500, d)
    got, slow = FrechetTarget(y).replicates(x), jackknife(_exact, x, y)
    for fast, full in ((got.without_x, slow.without_x), (got.without_y, slow.without_y)):
        gap = (fast - fast.mean()) - (full - full.mean())
        assert float(gap.norm()) < 0.05 * float((full - full.mean()).norm())
    assert got.value.value == pytest.approx(slow.value.value, rel=1e-9)
    assert got.value.se == pytest.approx(slow.value.se, rel=0.02)


def test_two_standard_errors_cover_a_known_distance():
    """Of N(0.3, 1.3² I) and N(0, I) in d = 3: d (0.3² + 0.3²); the bias at n = 3000 is a tenth of an error."""
    found = [frechet_distance(_normal(2 * i, 3000, 3, 0.3, 1.3), _normal(2 * i + 1, 3000, 3)) for i in range(200)]
    values, exact = torch.tensor([v.value for v in found]), 3 * (0.3**2 + 0.3**2)
    spread = float(values.std())
    assert abs(float(values.mean()) - exact) < 4 * spread / math.sqrt(200) + 0.1 * spread
    assert sum(v.se for v in found) / 200 == pytest.approx(spread, rel=0.15)
    covered = sum(abs(v.value - exact) < 2 * v.se for v in found)
    assert 0.95 * 200 - 4 * math.sqrt(200 * 0.95 * 0.05) < covered < 200


@pytest.mark.parametrize("n, d", [(25, 20), (40, 60), (20, 60)])
def test_with_few_samples_the_error_is_no_worse_than_that_of_leaving_groups_out(n, d):
    """Near the noise floor both are too large, leaving out more so."""
    draws, slow = [], []
    for i in range(30):
        x, y = _normal(2 * i, n, d), _normal(2 * i + 1, n, d)
        draws.append(frechet_distance(x, y, groups=5))
        slow.append(jackknife(_exact, x, y, 5).value.se)
    spread = float(torch.tensor([v.value for v in draws]).std())
    stated = sum(v.se for v in draws) / 30
    assert 0.7 * spread < stated < 1.1 * sum(slow) / 30


def test_features_that_never_change_and_sets_without_spread_add_nothing():
    x, y = _normal(0, 90, 3, shift=0.5), _normal(1, 80, 3)
    wide = [torch.cat([z, torch.full((len(z), 2), 7.0)], 1) for z in (x, y)]
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert frechet_distance(wide[0], y=torch.full((90, 5), 7.0)).se > 0
    still = torch.full((40, 2), 3.0)
    assert frechet_distance(still, still + 1) == (2.0, 0.0)


class _Decompositions(TorchDispatchMode):
    """Counts eigenvalue problems and singular values."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += any(name in str(func) for name in ("eig", "svd"))
        return func(*args, **(kwargs or {}))


def test_an_error_costs_one_eigenvalue_problem():
    x, y = _normal(0, 150, 60, shift=0.2), _normal(1, 160, 60)
    with _Decompositions() as of_two:
        frechet_distance(x, y)
    target, reference = FrechetTarget(y), Reference.of(SampleMoments.of(y))
    with _Decompositions() as of_more:
        target.distance(x), target.distance(2 * x)
    with _Decompositions() as of_groups:
        reference.frechet(grouped_moments([x], 20))
    with _Decompositions() as of_few:
        frechet_distance(x[:50], y)
    assert (of_two.count, of_more.count, of_groups.count, of_few.count) == (1, 2, 1, 1)


def test_blocks_of_samples_change_nothing(monkeypatch):
    x, y = _normal(0, 60, 3, shift=0.5), _normal(1, 50, 3)
    whole = frechet_distance(x, y)
    monkeypatch.setattr(frechet, "ROWS", 7)
    assert frechet_distance(x, y) == pytest.approx(whole, rel=1e-12)


def test_a_matrix_that_is_no_covariance():
    with pytest.raises(InputError, match=r"eigenvalue -0\.1"):
        _ = Law(torch.zeros(2), torch.diag(torch.tensor([1.0, -0.1]))).roots
