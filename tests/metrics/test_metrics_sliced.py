"""Sliced Wasserstein distances against scipy on a line, closed forms for Gaussians, and repeated draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance

from steindiff.errors import InputError
from steindiff.metrics import sliced
from steindiff.metrics.sliced import SlicedTarget, directions, sliced_wasserstein
from steindiff.metrics.values import Value


def _normal(seed: int, n: int, d: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=g, dtype=torch.float64)


def test_directions_are_orthonormal_in_runs_and_fixed_by_the_seed():
    theta = directions(5, 12, seed=3)
    assert theta.shape == (12, 5)
    for run in (theta[:5], theta[5:10], theta[10:]):
        torch.testing.assert_close(run @ run.mT, torch.eye(len(run), dtype=torch.float64))
    assert torch.equal(theta, directions(5, 12, seed=3))
    assert not torch.equal(theta, directions(5, 12, seed=4))
    assert directions(1, 4).abs().flatten().tolist() == pytest.approx([1.0] * 4)
    many = directions(3, 6000)
    assert float(many.mean(0).abs().max()) < 4 / math.sqrt(3 * 6000)
    torch.testing.assert_close(many.mT @ many / 6000, torch.eye(3, dtype=torch.float64) / 3)


@given(st.integers(2, 12), st.integers(2, 12))
@settings(max_examples=25, deadline=None)
def test_on_a_line_any_numbers_of_samples_are_exact(n, m):
    x, y = _normal(n, n, 1), _normal(100 + m, m, 1, shift=0.5, scale=2.0)
    first = sliced_wasserstein(x, y, count=3, power=1).value
    assert first == pytest.approx(wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy()), rel=1e-10)
    a, b = x[:, 0].sort().values.repeat_interleave(m), y[:, 0].sort().values.repeat_interleave(n)
    assert sliced_wasserstein(x, y, count=3).value == pytest.approx(float((a - b).square().mean()), rel=1e-10)


def test_each_line_is_the_optimal_assignment(monkeypatch):
    x, y = _normal(0, 30, 4), _normal(1, 30, 4, shift=0.3)
    costs = []
    for theta in directions(4, 6, seed=1):
        cost = ((x @ theta)[:, None] - y @ theta).square()
        rows, columns = linear_sum_assignment(cost.numpy())
        costs.append(float(cost[rows, columns].mean()))
    for block in (4, 16):
        monkeypatch.setattr(sliced, "BLOCK", block)
        assert sliced_wasserstein(x, y, count=6, seed=1).value == pytest.approx(sum(costs) / 6, rel=1e-10)


def test_potentials_solve_the_dual_problem():
    """φ(x) + ψ(y) ≤ |x − y|², equal on matched pairs; their means sum to the distance up to a constant."""
    x, y = _normal(0, 40, 1), _normal(1, 40, 1, shift=1.0, scale=1.5)
    shares = SlicedTarget(y, count=1).shares(x)
    order, other = x[:, 0].argsort(), y[:, 0].argsort()
    phi, psi = shares.of_x[order], shares.of_y[other]
    gap = (x[order] - y[other, 0]).square() - phi[:, None] - psi
    gap = gap - gap[0, 0]
    matched = gap.diagonal()
    assert float(matched.abs().max()) < 1e-9
    assert float(gap.min()) > -1e-9
    assert shares.distance == pytest.approx(float((phi + psi).mean() + (x[order[0]] - y[other[0]]).square() - phi[0] - psi[0]))


@pytest.mark.parametrize("power", [1, 2])
def test_a_shift_is_exact_and_independent_of_directions_in_full_runs(power):
    x = _normal(0, 50, 6)
    v = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, 1.0], dtype=torch.float64)
    got = sliced_wasserstein(x, x + v, count=12, power=power)
    if power == 2:
        assert got.value == pytest.approx(float(v.square().sum()) / 6, rel=1e-12)
    else:
        assert got.value == pytest.approx(float((directions(6, 12) @ v).abs().mean()), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(6000, 6000), (6000, 4000)])
def test_gaussians_in_closed_form(n, m):
    """W_2² of N(0, θᵀAθ) and N(θ·v, θᵀBθ) is (θ·v)² + (√θᵀAθ − √θᵀBθ)²."""
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 1.0, 1.0]).double()
    v = torch.tensor([1.0, 0.0, -1.0]).double()
    theta = directions(3, 30, seed=5)
    spreads = [(theta.square() @ variance).sqrt() for variance in (a, b)]
    exact = float(((theta @ v).square() + (spreads[0] - spreads[1]).square()).mean())
    got = sliced_wasserstein(_normal(0, n, 3) * a.sqrt(), v + _normal(1, m, 3) * b.sqrt(), count=30, seed=5)
    assert abs(got.value - exact) < 4 * got.se
    assert got.se < 0.03 * exact


@pytest.mark.parametrize("power", [1, 2])
def test_standard_errors_agree_with_the_spread_of_repeated_draws(power):
    draws = [
        sliced_wasserstein(_normal(2 * i, 300, 3), _normal(2 * i + 1, 200, 3, shift=0.7, scale=1.4), count=12, power=power)
        for i in range(60)
    ]
    spread = float(torch.tensor([v.value for v in draws]).std())
    assert 0.75 < sum(v.se for v in draws) / len(draws) / spread < 1.3


def test_paired_differences_and_their_error():
    def pair(i):
        x = _normal(3 * i, 200, 3, shift=0.5)
        base = x * 1.05 + 0.02 * _normal(3 * i + 1, 200, 3)
        target = SlicedTarget(_normal(3 * i + 2, 250, 3), count=12)
        got = target.shares(x).minus(target.shares(base))
        assert got.value == pytest.approx(target.shares(x).distance - target.shares(base).distance, abs=1e-12)
        return got, target.shares(x).value

    draws = [pair(i) for i in range(60)]
    spread = float(torch.tensor([got.value for got, _ in draws]).std())
    stated = sum(got.se for got, _ in draws) / len(draws)
    assert 0.75 < stated / spread < 1.3
    assert stated < 0.5 * sum(alone.se for _, alone in draws) / len(draws)
    target, x = SlicedTarget(_normal(0, 20, 2)), _normal(1, 20, 2)
    assert target.shares(x).minus(target.shares(x)) == Value(0.0, 0.0)
    with pytest.raises(InputError, match="same noise"):
        target.shares(x).minus(target.shares(x[:10]))


def test_shares_stay_with_their_samples_and_sides_may_be_swapped():
    x, y = _normal(0, 40, 3), _normal(1, 30, 3, shift=0.4)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    one, two = SlicedTarget(y).shares(x), SlicedTarget(y).shares(SlicedTarget(x[order]))
    torch.testing.assert_close(one.of_x[order] - one.of_x[order][0], two.of_x - two.of_x[0], rtol=1e-9, atol=1e-9)
    back = SlicedTarget(x).shares(y)
    assert back.distance == pytest.approx(one.distance, rel=1e-12)
    assert back.value.se == pytest.approx(one.value.se, rel=1e-9)
    assert sliced_wasserstein(x, x).value == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sliced_wasserstein(torch.zeros(5, 2), torch.zeros(5, 3)), "need the same dimension"),
        (lambda: sliced_wasserstein(torch.zeros(5, 2), torch.zeros(1, 2)), "at least 2"),
        (lambda: sliced_wasserstein(torch.zeros(5, 2), torch.zeros(5, 2), count=0), "from 1"),
        (lambda: directions(0, 3), "dimensions=0.*from 1"),
        (lambda: sliced_wasserstein(torch.zeros(5, 2), torch.zeros(5, 2), power=3), "need 1, for W_1"),
        (lambda: SlicedTarget(torch.zeros(5, 2)).shares(SlicedTarget(torch.zeros(5, 2), seed=1)), "the same rule"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
