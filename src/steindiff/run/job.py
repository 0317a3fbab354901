"""What determines the images of a run: the job, the solver and the noise grid that it names, and its batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from steindiff import corrections, grids, solvers
from steindiff.divergence import Choice, Hutchinson
from steindiff.errors import InputError
from steindiff.solvers import Solver

__all__ = ["Frame", "Job", "parse_seeds"]

Frame = Literal["model", "ve"]


@dataclass(frozen=True)
class Job:
    """Everything that determines the images of one run.

    Args:
        model: the name of a shipped model, or a model file.
        seeds: every seed makes one image.
        solver: a spec, as `solvers.make` takes.
        grid: a spec, as `grids.make` takes; the grid runs from `sigma_max` to `sigma_min`, and with `to_zero` one step further.
        steps: the number of solver steps; either this or `nfe`.
        nfe: network evaluations to spend; either this or `steps`.
        correction: a spec, as `corrections.make` takes.
        frame: the coordinates of the blend.
        divergence: how a correction estimates its divergence.
        batch: images in a batch; the statistics of a correction are those of a batch.
        class_index: the label, for a class-conditional model.
        dtype: the solver state is "float32" or "float64".
        device: where the model computes.

    Raises:
        InputError: both or neither of `steps` and `nfe`, a seed given twice, or a value outside its range.
    """

    model: str
    seeds: tuple[int, ...]
    solver: str = "dpmpp_2m"
    grid: str = "karras"
    steps: int | None = None
    nfe: int | None = None
    sigma_min: float = grids.SIGMA_MIN
    sigma_max: float = grids.SIGMA_MAX
    to_zero: bool = False
    correction: str = "none"
    frame: Frame = "model"
    divergence: Hutchinson = field(default_factory=Hutchinson)
    batch: int = 64
    class_index: int | None = None
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.nfe is None):
            raise InputError(f"steps={self.steps}, nfe={self.nfe}: give exactly one of --steps and --nfe")
        if self.batch < 1:
            raise InputError(f"batch={self.batch}: need at least one image a batch")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"{len(self.seeds)} seeds, {len(set(self.seeds))} different: need at least one, and none twice")
        if self.frame not in get_args(Frame):
            raise InputError(f"frame={self.frame!r}: choose model or ve")
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype {self.dtype!r}: the solver state is float32 or float64")

    @property
    def state_dtype(self) -> torch.dtype:
        """The data type of the solver state."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def batches(self) -> range:
        """The numbers of the batches."""
        return range(-(-len(self.seeds) // self.batch))

    def seeds_of(self, batch: int) -> Sequence[int]:
        """The seeds of one batch, counted from the first seed of the list; the last batch may be smaller."""
        return self.seeds[batch * self.batch : (batch + 1) * self.batch]

    def prepare(self, choice: Choice | None = None) -> tuple[Solver, Tensor]:
        """The solver under its correction, and the noise levels.

        Args:
            choice: what an earlier probe of the network found; None: the solver probes the network anew.

        Raises:
            InputError: a spec names nothing, or its options or the noise levels are out of range.
        """
        solver, steps = solvers.make(self.solver), self.steps
        if steps is None:
            solver, steps = solver.for_nfe(self.nfe or 0)
        sigmas = grids.make(self.grid, steps, self.sigma_min, self.sigma_max)
        estimator = replace(self.divergence, choice=choice)
        corrected = corrections.apply(self.correction, solver, divergence=estimator, frame=self.frame)
        return corrected, grids.with_zero(sigmas) if self.to_zero else sigmas


def parse_seeds(text: str) -> tuple[int, ...]:
    """EDM's notation: "1,2,5-10" becomes (1, 2, 5, 6, 7, 8, 9, 10). Raises InputError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise InputError(f"seeds {text!r}: {part!r} is neither a number nor a range low-high; write 0-63 or 1,2,5-10")
        seeds.extend(range(int(first), int(last or first) + 1))
    return tuple(seeds)
