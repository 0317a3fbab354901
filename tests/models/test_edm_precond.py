"""Preconditioning of the four published kinds: the formulas of Table 1, noise ranges, and iDDPM's trained levels."""

import math

import pytest
import torch
from torch import Tensor, nn

from edm_files import trained_levels
from steindiff.denoisers import noise_range_of, schedule_of, sigma_data_of
from steindiff.errors import InputError
from steindiff.models.networks.precond import EDMPrecond, IDDPMPrecond, VEPrecond, VPPrecond
from steindiff.schedules import VE, VPCosine, VPLinear

SIGMA = torch.tensor([0.011, 0.3, 1.7, 40.0], dtype=torch.float64)
X = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """F = 2 (c_in x) + c_noise, so that D shows all four coefficients."""

    def __init__(self, copies: int = 1) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        y = 2 * x + c_noise[:, None, None, None]
        return torch.cat([y, 100 + y], 1) if self.copies == 2 else y


def d(c_skip, c_out, c_in, c_noise):
    wide = [torch.as_tensor(c, dtype=torch.float64).expand(4)[:, None, None, None] for c in (c_skip, c_out, c_in, c_noise)]
    return wide[0] * X + wide[1] * (2 * wide[2] * X + wide[3])


def test_edm():
    r = (SIGMA**2 + 0.25).sqrt()
    torch.testing.assert_close(EDMPrecond(Linear(), 0.5)(X, SIGMA), d(0.25 / r**2, SIGMA * 0.5 / r, 1 / r, SIGMA.log() / 4))


def test_ve():
    torch.testing.assert_close(VEPrecond(Linear(), 0.5)(X, SIGMA), d(1, SIGMA, 1, (SIGMA / 2).log()))


def test_vp():
    """C_noise as the paper writes it, where float64 can afford the difference."""
    t = ((0.1**2 + 2 * 19.9 * (1 + SIGMA**2).log()).sqrt() - 0.1) / 19.9
    found = VPPrecond(Linear(), 0.5, (0.001, 152.0))(X, SIGMA)
    torch.testing.assert_close(found, d(1, -SIGMA, 1 / (1 + SIGMA**2).sqrt(), 999 * t))


def test_vp_at_low_noise_in_float32():
    """The stable form keeps the digits that the difference loses."""
    low = torch.tensor([0.002])
    *_, c = VPPrecond(nn.Identity(), 0.5, (0.001, 152.0)).coefficients(low)
    *_, exact = VPPrecond(nn.Identity(), 0.5, (0.001, 152.0)).coefficients(low.double())
    torch.testing.assert_close(c.double(), exact, rtol=1e-6, atol=0)
    assert float(exact) == pytest.approx(0.039802, abs=1e-5)


LEVELS = trained_levels()


def test_the_trained_levels_are_the_published_ones():
    assert LEVELS[[1, 2, 6, 250, 500, 990, 999, 1000]].tolist() == pytest.approx(
        [641.66, 320.83, 106.94, 2.43544, 1.01239, 0.025131, 0.0064223, 0.0], rel=1e-3
    )


def test_iddpm_tells_the_nearest_trained_level_and_takes_the_noise_that_x_has():
    index = (SIGMA[:, None] - LEVELS.double()).abs().argmin(1)
    found = IDDPMPrecond(Linear(2), 0.5, LEVELS)(X, SIGMA)  # a network of learned variances: they are left out
    torch.testing.assert_close(found, d(1, -SIGMA, 1 / (1 + SIGMA**2).sqrt(), 999.0 - index))


def test_between_two_trained_levels_only_what_the_network_is_told_jumps():
    network, (high, low) = IDDPMPrecond(Linear(), 0.5, LEVELS), LEVELS[500:502].double()
    middle = (high + low) / 2
    above, below = (network.coefficients(middle + e)[3:] for e in (torch.full((1,), 1e-6), torch.full((1,), -1e-6)))
    assert (float(above[0]), float(below[0])) == (499.0, 498.0)
    *scales, _ = network.coefficients(torch.stack([middle + 1e-9, middle - 1e-9]))
    assert all(float((c[0] - c[1]).abs()) < 1e-8 for c in scales)


def test_nearest_gives_a_grid_on_which_nothing_is_rounded():
    network = IDDPMPrecond(Linear(), 0.5, LEVELS)
    asked = torch.tensor([[100.0, 5.0], [0.3, 0.002]], dtype=torch.float64)
    levels = network.nearest(asked)
    assert levels.shape == asked.shape
    assert levels[0, 0] == pytest.approx(106.94, rel=1e-3)
    assert levels[1, 1] == 0
    assert torch.equal(network.nearest(levels), levels)


@pytest.mark.parametrize("levels", [[3.0, 1.0], [3.0, 4.0, 0.0], [3.0, 1.0, 0.5], [[3.0, 1.0, 0.0]]])
def test_levels_that_do_not_fall_to_zero_are_refused(levels):
    with pytest.raises(InputError, match="trained levels that decrease to 0"):
        IDDPMPrecond(Linear(), 0.5, torch.tensor(levels))


def test_every_kind_says_its_range_schedule_and_deviation():
    kinds = {
        EDMPrecond(Linear(), 0.4): ((0.0, math.inf), VE()),
        VEPrecond(Linear(), 0.4): ((0.02, 100.0), VE()),
        VPPrecond(Linear(), 0.4, (0.001, 152.0)): ((0.001, 152.0), VPLinear()),
        IDDPMPrecond(Linear(), 0.4, LEVELS): ((float(LEVELS[999]), float(LEVELS[0])), VPCosine()),
    }
    for network, (ends, schedule) in kinds.items():
        assert noise_range_of(network) == ends
        assert schedule_of(network) == schedule
        assert sigma_data_of(network) == 0.4


def test_no_noise_returns_x():
    for network in (EDMPrecond(Linear(), 0.5), VPPrecond(Linear(), 0.5, (0.0, 152.0)), IDDPMPrecond(Linear(), 0.5, LEVELS)):
        assert torch.equal(network(X, 0.0), X)
    torch.testing.assert_close(VEPrecond(Linear(), 0.5)(X, 0.0), X)


def test_a_range_that_is_none_is_refused():
    with pytest.raises(InputError, match="need 0 ≤ the lowest noise level"):
        VEPrecond(Linear(), 0.5, (2.0, 1.0))
