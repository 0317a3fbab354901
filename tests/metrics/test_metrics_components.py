"""Component weights: exact counts where components lie apart, unbiased where they overlap."""

import math

import pytest
import torch

from steindiff.analytic import FactorMixture, GaussianMixture
from steindiff.errors import InputError
from steindiff.metrics.components import component_weights
from steindiff.metrics.values import Value


def _law(gap: float, variance: float = 0.01) -> GaussianMixture:
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    means = gap * torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    return GaussianMixture(weights, means, (variance * torch.eye(2, dtype=torch.float64)).expand(3, 2, 2).clone())


def _draw(law, n, seed):
    return law.sample(n, torch.Generator().manual_seed(seed))


def test_components_apart_are_counted():
    law = _law(10.0)
    x = law.means[torch.tensor([0, 0, 0, 1, 2])] + 0.01
    got = component_weights(x, law)
    assert [v.value for v in got.values] == pytest.approx([0.6, 0.2, 0.2])
    assert got.values[0].se == pytest.approx(math.sqrt(0.6 * 0.4 / 4))
    assert got.total_variation.distance == pytest.approx(0.1)
    assert got.errors.tolist() == pytest.approx([0.1, -0.1, 0.0])
    assert got.z[0] == pytest.approx(0.1 / math.sqrt(0.6 * 0.4 / 4))
    assert component_weights(law.means[:2], law).z[2] == -math.inf


@pytest.mark.parametrize("gap", [0.15, 1.0])
def test_samples_of_the_law_have_its_weights_and_the_floor(gap):
    law = _law(gap)
    draws = [component_weights(_draw(law, 300, seed), law) for seed in range(60)]
    z = torch.stack([got.z for got in draws])
    assert float(z.mean(0).abs().max()) < 4 / math.sqrt(60)
    assert 0.75 < float(z.std()) < 1.3
    mean = sum(got.total_variation.distance for got in draws) / 60
    assert mean < 1.15 * draws[0].floor
    if gap == 1.0:
        assert mean > 0.85 * draws[0].floor


def test_standard_error_of_the_total_variation():
    law, other = _law(1.0), _law(1.0)
    other.weights = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    draws = [component_weights(_draw(other, 400, seed), law).total_variation.value for seed in range(60)]
    spread = float(torch.tensor([v.value for v in draws]).std())
    assert abs(sum(v.value for v in draws) / 60 - 0.2) < 0.015
    assert 0.75 < sum(v.se for v in draws) / 60 / spread < 1.3


def test_paired_difference():
    law = _law(1.0)
    x = _draw(law, 200, 0)
    moved = torch.where(torch.arange(200)[:, None] < 20, law.means[2], x)
    here, there = component_weights(moved, law).total_variation, component_weights(x, law).total_variation
    got = here.minus(there)
    assert got.value == pytest.approx(here.distance - there.distance)
    assert 0 < got.se < here.value.se
    assert there.minus(there) == Value(0.0, 0.0)


def test_any_dtype_event_and_noise():
    law = FactorMixture(torch.tensor([0.4, 0.6]), torch.tensor([[[-3.0]], [[3.0]]]), torch.ones(2, 1, 1), torch.ones(2, 1))
    x = _draw(law, 50, 0)
    got = component_weights(x, law, sigma=0.5)
    assert got.responsibilities.dtype == torch.float64
    expected = law.to(torch.float64).responsibilities(x.double(), 0.5)
    torch.testing.assert_close(got.responsibilities, expected)
    assert float(got.weights.sum()) == pytest.approx(1.0)


def test_what_has_no_weights_is_refused():
    points = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.zeros(1, 1, 1))
    for call, message in (
        (lambda: component_weights(torch.zeros(1, 2), _law(1.0)), "at least 2"),
        (lambda: component_weights(torch.zeros(4, 3), _law(1.0)), "batch of the model's events"),
        (lambda: component_weights(torch.zeros(4, 1), points), "use sigma > 0"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert component_weights(torch.zeros(4, 1), points, sigma=0.1).total_variation.distance == 0.0
