"""What a correction does where no option is given: the documented constants, seen in runs rather than read off the class."""

import pytest
import torch

from problems import MODEL
from steindiff import grids
from steindiff.corrections import CleanTarget, Corrected, Sparse
from steindiff.corrections.blend import inner_products
from steindiff.divergence import Exact, Hutchinson
from steindiff.sampling import sample

torch.set_num_threads(1)
D64 = torch.float64
X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=D64)


@pytest.mark.parametrize("rule", ["adaptive", CleanTarget(mode="adaptive")], ids=["name", "class"])
def test_adaptive_takes_derivatives_from_noise_level_one_on(rule):
    """Levels on both sides of 1: only the steps from 1 and below it take a product, and only these read the noise."""
    sigmas = grids.validate(torch.tensor([5.0, 1.01, 1.0, 0.99, 0.1], dtype=D64))
    run = sample(Corrected("ddim", rule, divergence=Hutchinson(method="vjp")), MODEL, 5 * X, sigmas)
    assert run.stats.vjps == 2
    assert [r.noise_ratio == r.noise_ratio for r in run.trace] == [False, False, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, D64], ids=str)
@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_a_residual_counts_from_a_few_roundings_on(dtype, rho):
    """Up to 4 ε ρ ‖x‖ it is what rounding leaves of nothing, and counts as 0; from 5 on it is a residual."""
    x, eps = torch.ones(2, 5, dtype=dtype), torch.finfo(dtype).eps
    sizes = [float(inner_products(x, rho * x * (1 - k * eps), torch.tensor(rho, dtype=dtype))[1]) for k in (1, 4, 5, 100)]
    assert [size > 0 for size in sizes] == [False, False, True, True]


def test_a_history_is_counted_by_default():
    """At a step of 2M with a past: γ is the one without a derivative, at its cost, and not that of a frozen history."""
    sigmas = grids.validate(torch.tensor([5.0, 2.0, 0.8, 0.3], dtype=D64))

    def second(rule):
        run = sample(Corrected("dpmpp_2m", Sparse(rule, steps=(1,)), divergence=Exact()), MODEL, 5 * X, sigmas)
        return run.trace[1].gamma_raw, run.stats.vjps

    rules = CleanTarget(), CleanTarget(mode="tweedie"), CleanTarget(history="frozen")
    (counted, cost), (free, _), (held, more) = map(second, rules)
    assert counted == pytest.approx(free, rel=1e-12)
    assert abs(held - counted) > 1e-3
    assert cost == 0 < more
