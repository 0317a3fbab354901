"""Networks in half precision, as the check of wrong numbers runs them."""

import pytest
import torch
from research.universal_robustness import halves

from exact_paths import normal
from problems import MODEL
from steindiff import Table, sample
from steindiff.errors import NonFiniteError
from steindiff.models import load


class Network(torch.nn.Module):
    """A linear layer that notes the dtypes of its input, weights and output."""

    def __init__(self, size):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(4, 4), set()
        torch.nn.init.constant_(self.layer.weight, size)

    def forward(self, x, sigma):
        y = self.layer(x)
        self.seen.add((self.layer.weight.dtype, y.dtype))
        return y / (4 * self.layer.weight[0, 0])


def test_layers_compute_in_half_precision_and_states_stay_in_float32():
    x, network = torch.ones(2, 4), Network(1.0)
    found = dict(halves(network))
    assert list(found) == ["layers in bfloat16", "layers in float16", "layers and weights in float16"]
    for name, low in found.items():
        network.seen.clear()
        assert low(x, torch.tensor(1.0)).dtype == torch.float32
        if "weights" not in name:
            assert network.seen == {(torch.float32, getattr(torch, name.split()[-1]))}
    assert network.layer.weight.dtype == torch.float32
    assert list(halves(MODEL)) == []


def test_the_shipped_network_runs_in_float16_and_an_overflow_stops_the_run():
    model, x, table = load("digits"), 80 * normal(2, 1, 8, 8).float(), Table.universal(3)
    exact = sample(table.solver, model.denoiser, x, table.sigmas).x
    gaps = [(sample(table.solver, low, x, table.sigmas).x - exact).abs().max() for _, low in halves(model.denoiser)]
    assert 0 < max(gaps[1:]) < gaps[0] < 0.1
    too_large = dict(halves(Network(1e5)))["layers in float16"]
    with pytest.raises(NonFiniteError):
        sample(table.solver, too_large, x.flatten(1)[:, :4], table.sigmas)
