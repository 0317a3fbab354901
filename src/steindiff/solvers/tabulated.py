"""A solver whose every number is in a table: levels, weights, and the noise level that the network is told.

    x' − m = a (x − m) + Σ_j w_j (D_j − m),        D_j = D(x_j, q_j σ_j) of this step and of earlier ones, newest first

It is a linear multistep method like the others, with rows that were fitted instead of derived. m is the data's mean. A row
without values is a *free* step, x' − m = a (x − m), which evaluates nothing: at σ₀ the denoised value is nearly m.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from numbers import Real

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import InputError, require
from steindiff.io.files import digest
from steindiff.solvers.base import USUAL, Grid, Interval, Setting, Solver, Step
from steindiff.solvers.multistep import History, Multistep, Row, weighted
from steindiff.solvers.purpose import Purpose

TOLERANCE = 1e-6
"""How far, relatively, a level of a grid may be from the table's."""
_LOWEST = 0.5
"""The highest last level, in units of the level before it, to which a run may be ended."""


@dataclass(frozen=True, eq=False)
class Tabulated(Multistep):
    """x' = a x + Σ_j w_j D_j + (1 − a − Σ_j w_j) m, with the numbers of a table, on the table's own grid.

    Args:
        levels: σ_0 > … > σ_n, the only grid that the rows are for.
        rows: one row a step; one without values costs no evaluation.
        told: q_i, one number a step: the network is told q_i σ_i.
        mean: m, the data's mean, broadcastable to an event; None is zero.
        name: what kind of table it is, in a word, for `str`.
        purpose: what the table was calibrated for; a run of anything else is refused. None is anything.

    Raises:
        InputError: the parts do not fit each other, a number is not finite, the levels do not decrease, or a step uses a value
            that the steps before it have not evaluated.
    """

    plans = True

    levels: tuple[float, ...]
    rows: tuple[Row, ...]
    told: tuple[float, ...]
    mean: Tensor | None = None
    name: str = "table"
    purpose: Purpose | None = None

    def __post_init__(self) -> None:
        n = len(self.levels) - 1
        fits = n >= 1 and len(self.rows) == n and len(self.told) == n
        counts = {"levels": len(self.levels), "rows": len(self.rows), "told": len(self.told)}
        require(fits, "n + 1 ≥ 2 levels need n rows and n told levels", **counts)
        falling = all(math.inf > s > t >= 0 for s, t in pairwise(self.levels))
        require(falling, "need finite levels that decrease and are not negative", levels=self.levels)
        require(all(0 < q < math.inf for q in self.told), "need finite told levels above 0", told=self.told)
        finite = self.mean is None or (isinstance(self.mean, Tensor) and bool(self.mean.isfinite().all()))
        require(finite, "the mean must be a tensor of finite numbers, or None", mean=self.mean)
        known = 0
        for i, row in enumerate(self.rows):
            known += bool(row.values)
            require(
                all(map(_is_finite, (row.a, *row.values))),
                f"the weights of step {i} are not finite real numbers",
                row=tuple(row),
            )
            require(len(row.values) <= known, f"step {i} has {known} values by then", values=len(row.values))

    def __repr__(self) -> str:
        """Every number as it is, since results are kept under this text; a mean, which may be an image, by its digest."""
        mean = None if self.mean is None else digest(shape=tuple(self.mean.shape), numbers=self.mean.flatten().tolist())
        rows = [(row.a, *row.values) for row in self.rows]
        return f"Tabulated(levels={self.levels}, rows={rows}, told={self.told}, mean={mean})"

    def __str__(self) -> str:
        return f"{self.name} of {self.evaluations} evaluations"

    @cached_property
    def order(self) -> int:  # type: ignore[override]
        """The number of values in the longest row."""
        return max(1, *(len(row.values) for row in self.rows))

    def weights(self, grid: Grid, index: int) -> Row:
        """The row of step `index`.

        Raises:
            InputError: the grid is not the table's.
        """
        if grid.levels == self.levels:
            return self.rows[index]
        own, given = self.levels[index : index + 2], grid.levels[index : index + 2]
        if grid.steps != len(self.rows) or any(abs(s - t) > TOLERANCE * max(t, 1e-3) for s, t in zip(given, own, strict=True)):
            raise InputError(
                f"the grid has {grid.steps} steps, from {given[0]:g} to {given[1]:g} at step {index}, and the table "
                f"{len(self.rows)}, from {own[0]:g} to {own[1]:g}: a table's rows are for its own grid, table.sigmas"
            )
        return self.rows[index]

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> History:
        """No earlier values. Raises InputError as `weights`, where the mean does not fit x, or the run is not the purpose."""
        if self.purpose is not None:
            self.purpose.check(denoiser, x.shape[1:])
        mean, event = () if self.mean is None else self.mean.shape, x.shape[1:]
        fits = len(mean) <= len(event) and all(m in (1, n) for m, n in zip(reversed(mean), reversed(event), strict=False))
        require(fits, f"the mean must be broadcastable to an event, {tuple(event)}", shape=tuple(mean))
        if self.mean is not None:
            self._mean(x)
        self.weights(grid, 0)
        grid.told(self.told)
        return super().init(denoiser, x, grid)

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: History) -> Step:
        """The row's weighted sum of what the network says at the told level; without an evaluation where the row is free."""
        row = self.weights(interval.grid, interval.index)
        if not row.values:
            return Step(self._centred(row, weighted(row, x, ())), self._at_mean(x), state)
        step = super().step(denoiser, x, interval, state)
        return step if self.mean is None else step._replace(x=self._centred(row, step.x))

    def nfe(self, sigmas: Tensor) -> int:
        """One for each row with values; `sigmas` is the table's own grid."""
        return self.evaluations

    @property
    def evaluations(self) -> int:
        """The number of rows with values."""
        return sum(bool(row.values) for row in self.rows)

    @property
    def own_grid(self) -> Tensor:
        """The table's levels, float64."""
        return torch.tensor(self.levels, dtype=torch.float64)

    @property
    def event(self) -> tuple[int, ...] | None:
        """The shape that it was calibrated for, or else that of its mean."""
        calibrated = None if self.purpose is None else self.purpose.event
        return tuple(self.mean.shape) if calibrated is None and self.mean is not None else calibrated

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> tuple[Solver, int]:
        """This solver and its number of steps. Raises InputError where the table is for another number of evaluations."""
        super().for_nfe(nfe)
        own = self.evaluations
        require(nfe == own, f"the table is for {own} evaluations: take the table of that number", nfe=nfe)
        return self, len(self.rows)

    def scaled(self, factor: float) -> "Tabulated":
        """The same table for data that are `factor` times as large: σ and m scale, the weights stay."""
        mean = None if self.mean is None else factor * self.mean
        return replace(self, levels=tuple(factor * s for s in self.levels), mean=mean)

    @property
    def highest_end(self) -> float:
        """The highest last level to which a run may be ended."""
        before, end = self.levels[-2:]
        return max(_LOWEST * before, 1.1 * end)

    def ended(self, sigma: float) -> "Tabulated":
        """The same to another last level σ, 0 included, by the noise that the last evaluation sees.

            x ← x + (σ − σ_n) (x_N − D_N)/(q_N σ_{n-1})

        It evaluates nothing. Raises InputError where σ is too far above the last level, or the last step evaluates nothing.
        """
        before, end = self.levels[-2:]
        limit, last = self.highest_end, self.rows[-1]
        require(0 <= sigma <= limit, f"the last level of this table can lie between 0 and {limit:.3g}", sigma_min=sigma)
        require(bool(last.values), "the last step evaluates nothing: only its own last level is served", sigma_min=sigma)
        share = (sigma - end) / (self.told[-1] * before)
        row = Row(last.a + share, (last.values[0] - share, *last.values[1:]))
        return replace(self, levels=(*self.levels[:-1], sigma), rows=(*self.rows[:-1], row))

    def anyway(self, *names: str) -> "Tabulated":
        """The same table for any network, event or guidance, whichever is named."""
        return replace(self, purpose=(self.purpose or Purpose()).anyway(*names))

    def _evaluated(self, denoiser: Denoiser, x: Tensor, interval: Interval) -> Tensor:
        """At the told level; where that is the step's own, it is the same tensor, by which a correction knows it."""
        return denoiser(x, interval.grid.told(self.told)[interval.index])

    def _centred(self, row: Row, x: Tensor) -> Tensor:
        """Add (1 − a − Σ w) m."""
        return x if self.mean is None else torch.add(x, self._mean(x), alpha=1 - row.a - sum(row.values))

    def _at_mean(self, x: Tensor) -> Tensor:
        """What stands for the denoised value of a free step: m."""
        return self._mean(x).expand_as(x)

    def _mean(self, x: Tensor) -> Tensor:
        """M where x is, moved there once."""
        if self.mean is None:
            return x.new_zeros(())
        # a compiler keeps constants by itself, and warns of caches
        return self.mean.to(x) if torch.compiler.is_compiling() else _moved(self, x.dtype, x.device)


@lru_cache(maxsize=64)
def _moved(table: Tabulated, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return table.mean.to(device, dtype) if table.mean is not None else torch.zeros((), dtype=dtype, device=device)


def _is_finite(weight: object) -> bool:
    return isinstance(weight, Real) and math.isfinite(float(weight))
