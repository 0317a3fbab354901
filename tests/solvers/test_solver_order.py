"""Order of convergence of every solver on a non-linear exact model, by research/solver_orders.py (the problem is stated there).

Two orders: the method's own (exact history, no lowering at the end), and that of a run as published, whose first step is of
first order: an error O(n⁻²) made once, so no multistep run is of higher order than 2 in the end, however high the method.
"""

import pytest
import torch

from research import solver_orders
from steindiff import solvers
from steindiff.analytic import GaussianMixture

torch.set_num_threads(1)

TOLERANCE = 0.25

# Own order on (log_snr, karras, uniform σ). What theory says, and why where it is not the number in the name:
OWN = {
    "ddim": (1, 1, 1),
    "heun": (2, 2, 2),
    "dpmpp_2s": (2, 2, 2),
    "dpmpp_3s": (3, 3, 3),
    "dpmpp_2m": (2, 2, 2),
    "dpmpp_3m": (2, 2, 2),  # the published weight of the second difference is half the exact one
    "dpmpp_3m, exact=True": (3, 3, 3),
    "unipc_1": (2, 2, 2),  # the corrector adds an order
    "unipc_2": (3, 3, 3),
    "unipc_3": (4, 4, 4),
    "unipc_1, bh1": (2, 2, 2),
    "unipc_2, bh1": (3, 3, 3),
    "unipc_3, bh1": (4, 4, 4),
    "unipc_1, no corrector": (1, 1, 1),
    "unipc_2, no corrector": (2, 2, 2),
    "unipc_3, no corrector": (3, 3, 3),
    **{f"deis_{k}": (k, k, k) for k in (1, 2, 3, 4)},
    **{f"deis_{k}, {v}": (k, k, k) for k in (2, 3, 4) for v in ("sigma", "log_sigma")},
    "ipndm_1": (1, 1, 1),
    "ipndm_2": (2, 2, 2),
    "ipndm_3": (2, 2, 3),  # the coefficients are those of equal steps
    "ipndm_4": (2, 2, 4),
    "pndm": (2, 2, 4),
    "pndm, sigma": (2, 2, 4),
    "pndm, order=2": (2, 2, 2),
}

# Runs as published: where the start-up error has not yet taken over at these n, the slope lies between 2 and the order.
STILL_BETWEEN = {
    "deis_3",
    "deis_3, sigma",
    "deis_3, log_sigma",
    "deis_4, sigma",
    "dpmpp_3m, exact=True",
}


@pytest.fixture(scope="module")
def orders():
    return solver_orders


def test_every_solver_has_an_expected_order(orders):
    assert set(orders.CASES) == set(OWN)
    assert set(solvers.names()) <= set(OWN)


RAMPS = ("log_snr", "karras", "uniform")


# The other settings of a class do not change what a uniform grid does.
@pytest.mark.parametrize("case, ramp", [(c, r) for c in OWN for r in RAMPS if r != "uniform" or c in solvers.names()])
def test_own_order(orders, case, ramp):
    expected = OWN[case][RAMPS.index(ramp)]
    assert orders.order(case, ramp, exact_history=True) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("case", OWN)
@pytest.mark.parametrize("ramp", ["log_snr", "karras"])
def test_order_of_a_run_as_published(orders, case, ramp):
    singlestep = case in ("ddim", "heun", "dpmpp_2s", "dpmpp_3s")
    own = OWN[case][0]
    expected = own if singlestep else min(own, 2)
    measured = orders.order(case, ramp, exact_history=False)
    upper = own if case in STILL_BETWEEN else expected
    assert expected - TOLERANCE <= measured <= upper + TOLERANCE


def test_the_reference_is_converged(orders, monkeypatch):
    fine = orders.flow("karras")
    monkeypatch.setattr(orders, "SUBSTEPS", 1)
    coarse = orders.flow.__wrapped__("karras")
    assert float((fine.states[-1] - coarse.states[-1]).abs().max()) / 4**4 < 1e-10
    smallest = min(orders.error(orders.CASES[c], "karras", max(orders.COUNTS), True) for c in ("unipc_3", "dpmpp_3s"))
    assert smallest > 1e-9


def test_the_problem_is_exact_and_not_linear(orders):
    """The script writes its denoiser out, so that the orders rest on nothing but the solvers; here it meets the package's."""
    means = torch.tensor([[1.5, 0.0, -0.5], [-1.0, 1.2, 0.3], [-0.3, -1.4, 0.9]], dtype=torch.float64)
    covariances = torch.tensor([0.36, 0.64, 0.5], dtype=torch.float64)[:, None, None] * torch.eye(3, dtype=torch.float64)
    model = GaussianMixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), means, covariances)
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for level in (0.4, 2.0, 10.0):
        sigma = torch.tensor(level, dtype=torch.float64)
        torch.testing.assert_close(orders.denoiser(level * x, sigma), model(level * x, sigma), rtol=1e-12, atol=1e-12)
    x = torch.tensor([[0.4, 0.2, -0.3]], dtype=torch.float64)
    sigma = torch.tensor(1.0, dtype=torch.float64)
    ends = [orders.denoiser(x + d, sigma) for d in (-0.5, 0.0, 0.5)]
    assert float((ends[0] - 2 * ends[1] + ends[2]).abs().max()) > 1e-3
