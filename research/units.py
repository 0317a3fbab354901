"""Testbeds as laws of the recipe's kind: in units of σ_data, over the range that the shipped tables are for.

A table that was fitted on random laws runs on them as it is, and a network's trajectories can join a fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff import initial_noise
from steindiff.calibration import Trajectories, errors, run, trajectories
from steindiff.denoisers import Denoiser
from steindiff.metrics import Value
from steindiff.metrics.distances import root_of_mean
from steindiff.solvers import Tabulated
from steindiff.solvers.universal import LAST
from steindiff.study import testbed

RUNG = 160.0
"""The first level; EDM's 80 at σ_data = 0.5."""


@dataclass(frozen=True, eq=False)
class InUnits:
    """A denoiser of data that are divided by `unit`."""

    denoiser: Denoiser
    unit: float

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(u x, u σ)/u."""
        return self.denoiser(self.unit * x, self.unit * sigma) / self.unit


def law(name: str, seeds: Sequence[int], steps: int = 64) -> Trajectories:
    """The exact flow of a testbed from the noise of these seeds, in units of its σ_data."""
    bed = testbed.make(name)
    noise = initial_noise(seeds, bed.event_shape, RUNG)
    return trajectories(InUnits(bed.denoiser_for(seeds), bed.setting.sigma_data), noise, RUNG, LAST, count=steps)


def relative(table: Tabulated, law: Trajectories) -> Tensor:
    """Each image's squared error at its end, as a fraction of the law's variance, (B,)."""
    return (run(table, law) - law.ends).double().flatten(1).square().mean(1) / law.variance


def energy(table: Tabulated, law: Trajectories) -> Tensor:
    """Each image's share in the energy distance of the ends to those of the exact flow, (B,), whose mean it is.

    It is a fraction of the mean distance between two ends of the exact flow, and zero where all ends are right.
    """
    y = law.ends.double().flatten(1)
    return energy_shares(run(table, law), y) / (torch.cdist(y, y).sum() / (len(y) * (len(y) - 1)))


def energy_shares(x: Tensor, y: Tensor) -> Tensor:
    """Each pair's share in 2 E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖, (B,), where x_i and y_i come from the same noise.

    Only pairs of different noises are compared: the mean is unbiased, and what x_i and y_i have in common cancels.
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()
    cross = torch.cdist(x, y)
    kernel = (cross + cross.mT - torch.cdist(x, x) - torch.cdist(y, y)).fill_diagonal_(0)
    return kernel.sum(1) / (len(x) - 1)


def projected(shares: Tensor) -> Value:
    """The mean of shares, with the standard error of the U-statistic's projection: twice that of a mean."""
    mean, se = Value.mean_of(shares)
    return Value(mean, 2 * se)


def log_changes(table: Tabulated, reference: Tabulated, laws: Sequence[Trajectories]) -> Tensor:
    """The logarithm of the ratio of two tables' errors, one for each law."""
    return (errors(table, laws).log() - errors(reference, laws).log()) / 2


def digits(found: Value, count: int, sign: str = "") -> str:
    """A value and its standard error with so many digits."""
    return f"{found.value:{sign}.{count}f} ± {found.se:.{count}f}"


def beside(table: Tabulated, reference: Tabulated, bed: Trajectories, count: int) -> str:
    """A table's error on a testbed, and its ratio to another table's with so many digits."""
    mine, theirs = relative(table, bed), relative(reference, bed)
    ratio = root_of_mean(mine).value / root_of_mean(theirs).value
    apart = Value.mean_of(mine / mine.mean() - theirs / theirs.mean())  # on the same images
    return f"{digits(root_of_mean(mine), 4)} ({digits(Value(ratio, ratio * apart.se / 2), count)})"
