"""What determines the images of a run: the job, the solver and the noise grid it names, and its batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from steindiff import corrections, grids, solvers
from steindiff.corrections import CleanTarget
from steindiff.corrections.base import Corrected
from steindiff.divergence import Choice, Hutchinson, Method
from steindiff.errors import InputError
from steindiff.solvers import Solver

__all__ = ["Job", "build_grid", "build_solver", "parse_seeds", "state_dtype"]


@dataclass(frozen=True)
class Job:
    """Everything that determines the images of one run."""

    model: str
    seeds: tuple[int, ...]
    solver: str = "dpmpp_2m"
    grid: str = "karras"
    steps: int | None = None
    nfe: int | None = None
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    to_zero: bool = False
    correction: str = "none"
    gamma_min: float | None = None
    gamma_max: float | None = None
    frame: str = "model"
    divergence: str = "auto"
    probes: int = 1
    probe_kind: str = "rademacher"
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

    @property
    def batches(self) -> range:
        """Their numbers."""
        return range(-(-len(self.seeds) // self.batch))

    def seeds_of(self, batch: int) -> Sequence[int]:
        """The seeds of one batch, counted from the first seed of the list; the last batch may be smaller."""
        return self.seeds[batch * self.batch : (batch + 1) * self.batch]


def parse_seeds(text: str) -> tuple[int, ...]:
    """EDM notation: "1,2,5-10" to (1, 2, 5, 6, 7, 8, 9, 10). Raises InputError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise InputError(f"seeds {text!r}: {part!r} is neither a number nor a range low-high; write 0-63 or 1,2,5-10")
        seeds.extend(range(int(first), int(last or first) + 1))
    return tuple(seeds)


def build_solver(job: Job, choice: Choice | None = None) -> tuple[Solver, int]:
    """The solver, wrapped in its correction, and the number of steps. Raises InputError for unknown names or bad bounds.

    choice: what an earlier probe of the network found; None: every batch probes it anew.
    """
    solver = solvers.make(job.solver)
    steps = job.steps
    if steps is None:
        solver, steps = solver.for_nfe(job.nfe or 0)
    methods: dict[str, Method] = {"auto": "auto", "vjp": "vjp", "jvp": "jvp", "fd": "fd"}
    if job.divergence not in methods or job.probe_kind not in ("rademacher", "gaussian") or job.frame not in ("model", "ve"):
        raise InputError(
            f"divergence={job.divergence!r}, probe kind={job.probe_kind!r}, frame={job.frame!r}: choose auto, vjp, jvp or fd; "
            "rademacher or gaussian; model or ve"
        )
    kind: Literal["rademacher", "gaussian"] = "gaussian" if job.probe_kind == "gaussian" else "rademacher"
    probe = Hutchinson(job.probes, kind, methods[job.divergence], choice=choice)
    frame: Literal["model", "ve"] = "ve" if job.frame == "ve" else "model"
    return _bounded(corrections.apply(job.correction, solver, divergence=probe, frame=frame), job), steps


def _bounded(solver: Solver, job: Job) -> Solver:
    """With the bounds of γ that the job names."""
    low, high = job.gamma_min, job.gamma_max
    if low is None and high is None:
        return solver
    if not isinstance(solver, Corrected) or not isinstance(solver.rule, CleanTarget):
        raise InputError(f"--gamma_min and --gamma_max with correction {job.correction!r}: only the paper's rule takes bounds")
    rule = solver.rule
    bounds = replace(rule, gamma_min=rule.gamma_min if low is None else low, gamma_max=rule.gamma_max if high is None else high)
    return replace(solver, rule=bounds)


def build_grid(job: Job, steps: int) -> Tensor:
    """The noise grid; with `to_zero` one more step, to σ = 0."""
    shape = (steps, job.sigma_min, job.sigma_max)
    sigmas = grids.karras(*shape, rho=job.rho) if job.grid == "karras" else grids.make(job.grid, *shape)
    return grids.with_zero(sigmas) if job.to_zero else sigmas


def state_dtype(job: Job) -> torch.dtype:
    """The solver state's. Raises InputError for any but float32 and float64."""
    dtypes = {"float32": torch.float32, "float64": torch.float64}
    if job.dtype not in dtypes:
        raise InputError(f"dtype {job.dtype!r}: the solver state is float32 or float64")
    return dtypes[job.dtype]
