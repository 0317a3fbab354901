"""Multistep solvers: one step is a row of weights.

    x' = a x + Σ_j w_j v_j

The values v are data predictions D, or noise predictions (x − D)/σ, of this step and of the steps before it, newest first. A
method writes its `order` and `weights`; the step, its linear part, the history and the cost follow from them.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import InputError
from steindiff.solvers.base import Grid, Interval, Solver, Step
from steindiff.solvers.coefficients import times, transformed

History = tuple[Tensor, ...]


class Row(NamedTuple):
    """The weights of one step: `a` of the state, `values` of v_0 (this step), v_1 (the step before) and so on."""

    a: float
    values: tuple[float, ...]


class Multistep(Solver):
    """A multistep method in data prediction: v = D(x, σ). One evaluation a step."""

    @abstractmethod
    def weights(self, grid: Grid, index: int) -> Row:
        """The row of step `index`, computed on the host in float64; at most `order` and at most `index` + 1 values."""

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> History:
        """No earlier values."""
        return ()

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: History) -> Step:
        """Evaluate once and take the weighted sum.

        Raises:
            InputError: the state holds fewer earlier values than the step needs.
        """
        row = self._row(interval.grid, interval.index)
        if len(row.values) > len(state) + 1:
            raise InputError(
                f"step {interval.index} needs {len(row.values) - 1} earlier values and the state holds {len(state)}: start the "
                "run at step 0 of its grid"
            )
        denoised = self._evaluated(denoiser, x, interval)
        values = (self._value(x, denoised), *state)
        return Step(weighted(row, x, values), denoised, values[: self.order - 1])

    def nfe(self, sigmas: Tensor) -> int:
        """One evaluation a step."""
        return len(sigmas) - 1

    def linear(self, interval: Interval, state: History) -> Tensor:
        """a, since a data prediction is a network output."""
        return interval.sigma.new_full((), self.weights(interval.grid, interval.index).a)

    def remembers(self, interval: Interval, state: History) -> bool:
        """Whether the row of this step uses an earlier value; it does not at a first step, nor where the order is 1."""
        return len(self.weights(interval.grid, interval.index).values) > 1

    def first_order(self, x: Tensor, denoised: Tensor, interval: Interval) -> Tensor:
        """T₁ = r x + (1−r) D."""
        return weighted(ddim_row(interval.grid, interval.index), x, (denoised,))

    def _evaluated(self, denoiser: Denoiser, x: Tensor, interval: Interval) -> Tensor:
        return denoiser(x, interval.sigma)

    def _row(self, grid: Grid, index: int) -> Row:
        """The weights of what `_value` keeps."""
        return self.weights(grid, index)

    def _value(self, x: Tensor, denoised: Tensor) -> Tensor:
        return denoised


class NoiseMultistep(Multistep):
    """A multistep method in noise prediction: v = (x − D(x, σ))/σ. One evaluation a step.

    It keeps the residuals x − D, whose σ is a matter of the weights: a division less over the state. A method of order 1 keeps
    none, and is DDIM.
    """

    def linear(self, interval: Interval, state: History) -> Tensor:
        """a + w₀/σ, since the noise prediction of this step contains x/σ."""
        row = self.weights(interval.grid, interval.index)
        return interval.sigma.new_full((), row.a + row.values[0] / interval.grid.levels[interval.index])

    def _row(self, grid: Grid, index: int) -> Row:
        if self.order == 1:
            return ddim_row(grid, index)
        row = self.weights(grid, index)
        return of_residuals(row, grid.levels[index - len(row.values) + 1 : index + 1])

    def _value(self, x: Tensor, denoised: Tensor) -> Tensor:
        return denoised if self.order == 1 else x - denoised


@dataclass(frozen=True)
class DDIM(Multistep):
    """x' = r x + (1−r) D(x, σ), r = σ'/σ (Song, Meng & Ermon 2021). In VE coordinates this is also Euler's method in σ."""

    order = 1

    def weights(self, grid: Grid, index: int) -> Row:
        """(r, 1−r)."""
        return ddim_row(grid, index)


def ddim_row(grid: Grid, index: int) -> Row:
    """(r, 1−r): the first-order step in data prediction."""
    r = grid.levels[index + 1] / grid.levels[index]
    return Row(r, (1 - r,))


def of_residuals(row: Row, levels: Sequence[float]) -> Row:
    """The weights of x − D at these levels, oldest first, from those of the noise predictions (x − D)/σ, newest first."""
    return Row(row.a, tuple([w / sigma for w, sigma in zip(row.values, reversed(levels), strict=True)]))


def weighted(row: Row, x: Tensor, values: Sequence[Tensor]) -> Tensor:
    """a x + Σ_j w_j v_j in one new tensor, with one pass over the data for each term; x and the values stay as they are.

    Values beyond the row's are not used.
    """
    if not row.values:
        return times(row.a, x)
    a, weights = row
    first, known = weights[0], min(len(weights), len(values))
    if a == 1:
        out, done = torch.add(x, values[0], alpha=first), 1
    elif known == 1 and a + first == 1:
        return torch.lerp(x, values[0], first)
    else:
        out, done = times(a, x), 0
    in_place = not transformed()
    for j in range(done, known):
        out = out.add_(values[j], alpha=weights[j]) if in_place else torch.add(out, values[j], alpha=weights[j])
    return out
