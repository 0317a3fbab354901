"""Precision, recall, density and coverage by hand, by scikit-learn's neighbours, in closed form, and over repeated draws."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from steindiff.errors import InputError
from steindiff.metrics import manifold as module
from steindiff.metrics.manifold import ManifoldTarget, precision_recall
from steindiff.metrics.values import Value


def _normal(seed: int, n: int, d: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=g, dtype=torch.float64)


def _by_sklearn(x, y, k):
    """The definitions, by an independent search for neighbours."""
    x, y = x.numpy(), y.numpy()
    reach = [NearestNeighbors(n_neighbors=k).fit(z).kneighbors()[0][:, -1] for z in (x, y)]
    distances = np.linalg.norm(x[:, None] - y, axis=-1)
    in_y, in_x = distances <= reach[1], distances <= reach[0][:, None]
    return [in_y.any(1).mean(), in_x.any(0).mean(), in_y.sum(1).mean() / k, in_y.any(0).mean()]


def test_five_points_by_hand():
    """y = 0, 1, 3, 4 with k = 1: balls [−1, 1], [0, 2], [2, 4], [3, 5]; x in two, one and no ball."""
    y = torch.tensor([[0.0], [1.0], [3.0], [4.0]])
    x = torch.tensor([[0.5], [4.5], [9.0], [9.5]])
    got = precision_recall(x, y, neighbours=1, groups=2)
    # balls of x: [−3.5, 4.5], [0.5, 8.5], [8.5, 9.5], [9, 10]
    assert got.precision.statistic == pytest.approx(2 / 4)
    assert got.density.statistic == pytest.approx(3 / 4)
    assert got.coverage.statistic == pytest.approx(3 / 4)
    assert got.recall.statistic == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "m", "d", "k", "groups"), [(60, 50, 3, 3, 10), (31, 47, 2, 5, 4), (40, 44, 60, 1, 20)])
def test_values_of_the_whole_and_of_halves_are_those_of_sklearn(monkeypatch, n, m, d, k, groups):
    x, y = _normal(0, n, d), _normal(1, m, d, shift=0.4, scale=1.2)
    whole, gaps = _by_sklearn(x, y, k), []
    for half in module._halves(groups, 6).T:
        of_x, of_y = (half[torch.arange(len(z)) % groups] for z in (x, y))
        assert int(half.sum()) == groups // 2
        gaps.append(np.subtract(_by_sklearn(x[of_x], y[of_y], k), _by_sklearn(x[~of_x], y[~of_y], k)))
    for rows in (7, 512):
        monkeypatch.setattr(module, "ROWS", rows)
        for i, got in enumerate(precision_recall(x, y, k, groups, splits=6)):
            assert got.statistic == pytest.approx(whole[i], rel=1e-12)
            assert got.gaps.tolist() == pytest.approx([gap[i] for gap in gaps], rel=1e-12, abs=1e-12)
            assert got.value.se == pytest.approx(math.sqrt(sum(gap[i] ** 2 for gap in gaps) / 6) / 2, rel=1e-12)
            assert got.sizes == (n, m)


def test_equal_laws_in_closed_form():
    """Density 1 and coverage 1 − Π (m − j)/(n + m − j), within 4 standard errors of the mean over draws."""
    n, m, k = 60, 50, 3
    draws = [precision_recall(_normal(2 * i, n, 2), _normal(2 * i + 1, m, 2), k, splits=1) for i in range(80)]
    exact = 1 - math.prod((m - j) / (n + m - j) for j in range(1, k + 1))
    for expected, values in ((1.0, [d.density for d in draws]), (exact, [d.coverage for d in draws])):
        values = torch.tensor([v.statistic for v in values])
        assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / math.sqrt(80)


def _calibration(values: list[Value]) -> float:
    """Stated error over the spread of repeated draws."""
    spread = torch.tensor([v.value for v in values], dtype=torch.float64).std()
    return float(torch.tensor([v.se for v in values], dtype=torch.float64).square().mean().sqrt() / spread)


def test_standard_errors_of_values_and_of_paired_differences_agree_with_the_spread_of_repeated_draws():
    """A jackknife states 1.3 to 2.2 times the spread here."""
    alone, paired = [], []
    for i in range(50):
        x, target = _normal(3 * i, 160, 5, shift=0.4, scale=0.8), ManifoldTarget(_normal(3 * i + 1, 160, 5), 3, splits=12)
        here, there = target.compare(x), target.compare(1.1 * x + 0.05 * _normal(3 * i + 2, 160, 5))
        alone.append([a.value for a in here])
        paired.append([a.minus(b) for a, b in zip(here, there, strict=True)])
        assert paired[-1][0].value == pytest.approx(here.precision.statistic - there.precision.statistic)
    for values, differences in zip(zip(*alone, strict=True), zip(*paired, strict=True), strict=True):
        assert 0.7 < _calibration(values) < 1.35
        assert 0.7 < _calibration(differences) < 1.35
        assert sum(v.se for v in differences) < sum(v.se for v in values)
    assert here.recall.minus(here.recall) == Value(0.0, 0.0)


def test_targets_may_be_used_again_and_samples_that_are_not_finite_are_in_no_ball():
    x, y = _normal(0, 60, 3), _normal(1, 50, 3)
    target, other = ManifoldTarget(y, 3, 10), ManifoldTarget(x, 3, 10)
    one, two = target.compare(x), target.compare(other)
    back = other.compare(target)
    for a, b in zip(one, two, strict=True):
        assert a.value == b.value
        with pytest.raises(InputError, match="same noise"):
            a.minus(ManifoldTarget(y, 3, 10, splits=5).compare(x).precision)
    assert back.precision.value == one.recall.value
    assert back.recall.value == one.precision.value
    lost = x.clone()
    lost[::2] = float("nan")
    kept, part = target.compare(lost), target.compare(x[1::2])
    assert kept.precision.statistic == part.precision.statistic / 2
    assert kept.coverage.statistic == part.coverage.statistic
    assert kept.recall.statistic == part.recall.statistic


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: precision_recall(torch.rand(40, 2), torch.rand(40, 3)), "need the same for both sets"),
        (lambda: precision_recall(torch.rand(40, 2), torch.rand(9, 2)), "the 0 samples of a half"),
        (lambda: ManifoldTarget(torch.rand(19, 2), neighbours=8, groups=4), "from 1 to 7 neighbours"),
        (lambda: ManifoldTarget(torch.rand(40, 2), neighbours=0), "whole number from 1"),
        (lambda: ManifoldTarget(torch.rand(40, 2), groups=5), "an even number"),
        (lambda: ManifoldTarget(torch.rand(40, 2), splits=0), "whole number from 1"),
        (lambda: ManifoldTarget(torch.rand(40, 2)).compare(ManifoldTarget(torch.rand(40, 2), 3)), "need the same"),
    ],
)
def test_bad_sizes_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
