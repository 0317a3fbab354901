"""What an evaluation runs: a fine run and few-step runs, from the same seeds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from steindiff import grids, solvers
from steindiff.errors import InputError, unknown_name
from steindiff.io.processes import local_device
from steindiff.solvers import Solver

__all__ = ["FINE", "RUNS", "SIGMA_MAX", "SIGMA_MIN", "Run", "Settings", "build"]

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
FINE = "fine"
RUNS = (FINE, *(f"{solver}-{nfe}" for solver in ("dpmpp_2m", "unipc_3", "ipndm_3", "heun") for nfe in (5, 6, 8, 10)))
PRECISIONS = ("no", "bf16")


@dataclass(frozen=True)
class Settings:
    """Everything that determines the numbers, besides the model and the images.

    Args:
        n: samples of the fine run, and the most real images of either set.
        n_few: samples of the other runs; None: n.
        runs: "fine", or a solver and its network evaluations: "heun-10".
        first_seed: image i comes from seed first_seed + i in every run.
        fine_steps: steps of the fine run from 80 to 0.002; one more goes to 0.
        precision: of the network's arithmetic: "no" (float32), or "bf16" under autocast; the state is float32.
        checked: samples of each run drawn in float32 too, to state what bf16 changes.
        features: "cifar10", left out where the images do not fit it; "none"; or a classifier file.
        groups: of the Fréchet distances' jackknife; None: 20, or 5 beyond 1000 dimensions.
        batch: images at a time.
        chunk: images between writes to disk.
        device: of the model.

    Raises:
        InputError: a number or a name outside its range, or a device that is not there.
    """

    n: int = 10000
    n_few: int | None = None
    runs: tuple[str, ...] = RUNS
    first_seed: int = 0
    fine_steps: int = 35
    precision: str = "no"
    checked: int = 128
    features: str = "cifar10"
    groups: int | None = None
    batch: int = 250
    chunk: int = 1000
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = {"n": 4, "first_seed": 0, "fine_steps": 2, "checked": 2, "batch": 1, "chunk": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"{name}={getattr(self, name)}: must be at least {low}")
        for name, low in (("n_few", 4), ("groups", 2)):
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise InputError(f"{name}={getattr(self, name)}: must be at least {low}")
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if not self.runs or len(set(self.runs)) != len(self.runs):
            raise InputError(f"runs {list(self.runs)}: need at least one, and none twice")
        for name in self.runs:
            build(name, self)
        local_device(self.device)


@dataclass(frozen=True, eq=False)
class Run:
    """One solver on one grid."""

    name: str
    solver: Solver
    sigmas: Tensor
    n: int

    @property
    def nfe(self) -> int:
        """Network evaluations an image."""
        return self.solver.nfe(self.sigmas)


def build(name: str, settings: Settings) -> Run:
    """The run of a name. Raises InputError for one that is neither "fine" nor SOLVER-NFE."""
    if name == FINE:
        sigmas = grids.with_zero(grids.karras(settings.fine_steps, SIGMA_MIN, SIGMA_MAX))
        return Run(name, solvers.make("heun"), sigmas, settings.n)
    solver_name, dash, nfe = name.rpartition("-")
    if not dash or not nfe.isdecimal():
        raise InputError(f"run {name!r}: write {FINE!r}, or a solver and its evaluations such as 'heun-10'")
    solver, steps = solvers.make(solver_name).for_nfe(int(nfe))
    return Run(name, solver, grids.karras(steps, SIGMA_MIN, SIGMA_MAX), settings.n_few or settings.n)
