"""The jackknife by hand, on a mean, and paired Fréchet differences."""

import math

import pytest
import torch

from steindiff.errors import InputError
from steindiff.metrics import FrechetTarget, Value, frechet_distance
from steindiff.metrics.resampling import Replicates, dealt, jackknife, jackknife_difference


def _normal(seed: int, n: int, d: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=g, dtype=torch.float64)


def _frechet(x, y):
    return frechet_distance(x, y, groups=2).value


def test_of_a_difference_of_means_it_is_the_classical_error():
    """With one sample a group the jackknife of a mean is s²/n; with groups of two, that of the means of pairs."""
    x, y = _normal(0, 40, 1), _normal(1, 60, 1)
    got = jackknife(lambda a, b: float(a.mean() - b.mean()), x, y, groups=20)
    pairs = [torch.stack([z[dealt(len(z), 20) == i].mean() for i in range(20)]) for z in (x, y)]
    assert got.value.value == pytest.approx(float(x.mean() - y.mean()))
    assert got.value.se == pytest.approx(math.sqrt(sum(float(p.var()) / 20 for p in pairs)), rel=1e-9)


def test_frechet_replicates_are_those_of_the_distance():
    x, y = _normal(0, 60, 4, shift=0.3), _normal(1, 50, 4)
    target = FrechetTarget(y, groups=5)
    got = target.replicates(x)
    assert got.value == pytest.approx(target.distance(x), rel=1e-9)
    assert got.value == pytest.approx(target.replicates(FrechetTarget(x, 5)).value, rel=1e-9)


def test_paired_frechet_difference_and_its_error():
    def pair(i):
        x = _normal(3 * i, 200, 3, shift=0.5)
        base = 1.05 * x + 0.02 * _normal(3 * i + 1, 200, 3)
        target = FrechetTarget(_normal(3 * i + 2, 250, 3), groups=10)
        return target.replicates(x).minus(target.replicates(base)), target.distance(x)

    draws = [pair(i) for i in range(50)]
    spread = float(torch.tensor([difference.value for difference, _ in draws]).std())
    stated = sum(difference.se for difference, _ in draws) / 50
    assert 0.75 < stated / spread < 1.35
    assert stated < 0.5 * sum(alone.se for _, alone in draws) / 50


def test_differences_of_callables():
    x, y = _normal(0, 60, 2, shift=0.4), _normal(1, 70, 2)
    base, target = 1.1 * x, FrechetTarget(y, groups=6)
    expected, got = target.replicates(x).minus(target.replicates(base)), jackknife_difference(_frechet, x, base, y, groups=6)
    assert got.value == pytest.approx(expected.value, rel=1e-7)
    assert got.se == pytest.approx(expected.se, rel=0.1)
    assert jackknife_difference(_frechet, x, x, y, groups=6) == Value(0.0, 0.0)


def test_a_fixed_set_adds_no_error():
    empty = torch.zeros(0, dtype=torch.float64)
    r = Replicates(1.0, torch.tensor([1.0, 3.0], dtype=torch.float64), empty, (4, 0))
    assert r.value == Value(1.0, 1.0)  # (2−1)/2 · (1 + 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dealt(9, 5), "at least 2 samples"),
        (lambda: dealt(9, 1), "at least 2 groups"),
        (lambda: jackknife_difference(_frechet, torch.rand(20, 1), torch.rand(22, 1), torch.rand(20, 1), 5), "same noise"),
        (lambda: FrechetTarget(torch.rand(20, 3), 5).replicates(torch.rand(20, 2)), "need equal dimension"),
        (
            lambda: FrechetTarget(torch.rand(20, 2), 5).replicates(FrechetTarget(torch.rand(20, 2), 4)),
            "make both with the same",
        ),
    ],
)
def test_unequal_numbers_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
