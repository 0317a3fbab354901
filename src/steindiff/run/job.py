"""What determines the images of a run: the job, the solver and the noise grid that it names, and its batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from steindiff import corrections, grids, solvers
from steindiff.divergence import Choice, Hutchinson
from steindiff.errors import InputError, at_least, require
from steindiff.solvers import Solver

Frame = Literal["model", "ve"]


@dataclass(frozen=True)
class Job:
    """Everything that determines the images of one run.

    Args:
        model: the name of a shipped model, or a .safetensors file.
        seeds: every seed makes one image.
        solver: a name, or a spec with options.
        grid: a name or a spec, of noise levels from `sigma_max` to `sigma_min`.
        steps: the number of solver steps; either this or `nfe`.
        nfe: network evaluations to spend; either this or `steps`.
        sigma_min: the lowest noise level.
        sigma_max: the highest noise level.
        to_zero: add one more step, to sigma = 0, as EDM's sampler does.
        correction: a name, a spec, or a .json table of gamma.
        frame: the coordinates of the blend, model or ve.
        divergence: how a correction estimates its divergence.
        batch: images in a batch; the statistics of a correction are those of a batch.
        class_index: the class label, for a class-conditional model.
        dtype: the solver state and shipped models are float32 or float64.
        device: the model computes on cpu, cuda, cuda:1, …; with cuda, several processes take one device each.

    Raises:
        InputError: both or neither of `steps` and `nfe`, a seed given twice, or a value outside its range.
    """

    LEAST: ClassVar[Any] = {"steps": 1, "nfe": 1, "batch": 1}

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
        one = (self.steps is None) != (self.nfe is None)
        require(one, "give exactly one of --steps and --nfe", steps=self.steps, nfe=self.nfe)
        at_least(self, self.LEAST)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"{len(self.seeds)} seeds, {len(set(self.seeds))} different: need at least one, and none twice")
        require(self.frame in get_args(Frame), "choose model or ve", frame=self.frame)
        require(self.dtype in ("float32", "float64"), "the solver state is float32 or float64", dtype=self.dtype)

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
