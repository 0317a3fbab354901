"""What a peer of `calibrate` is: a published way to make a few-step method to measure for one network.

A peer sees what our own calibration sees: fine runs from some noises, the network, and the number of evaluations. It returns
a solver with its grid. Every image that the network evaluates is billed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from steindiff.calibration.bill import Bill
from steindiff.calibration.calibrate import divided
from steindiff.calibration.refine import run
from steindiff.calibration.teacher import Trajectories
from steindiff.errors import require
from steindiff.solvers import USUAL, Setting, Solver, Tabulated
from steindiff.solvers.base import whole

BACKWARD = 2
"""What a derivative with respect to all numbers of a run costs beside the run itself, in evaluations."""


@dataclass(frozen=True, eq=False)
class Task:
    """What a peer is given.

    Attributes:
        law: fine runs from all noises of the calibration, with the network behind them (`Trajectories.denoise`).
        nfe: the network evaluations of a run of the method to be made.
        setting: the range of levels, σ_data and the guidance scale.
        budget: how many images an iteration to convergence may evaluate, about; closed forms do not ask.
        seed: of whatever is drawn.
        folder: keeps what a peer needs for every number of evaluations alike; None keeps nothing.
        bill: what was evaluated; `law` writes into it, a derivative must be added.
    """

    law: Trajectories
    nfe: int
    setting: Setting = USUAL
    budget: int = 100_000
    seed: int = 0
    bill: Bill = field(default_factory=Bill)
    folder: Path | None = None

    def __post_init__(self) -> None:
        require(whole(self.nfe) and self.nfe >= 1, "need a whole number of network evaluations, at least one", nfe=self.nfe)
        require(self.budget >= 1, "need a budget of at least one image", budget=self.budget)

    @classmethod
    def of(
        cls,
        law: Trajectories,
        nfe: int,
        setting: Setting = USUAL,
        budget: int = 100_000,
        seed: int = 0,
        folder: Path | None = None,
    ) -> "Task":
        """A task with a bill of its own."""
        bill = Bill()
        return cls(bill.law(law), nfe, setting, budget, seed, bill, folder)

    @cached_property
    def parts(self) -> tuple[Trajectories, Trajectories]:
        """The noises that are fitted, and those that choose between results: five eighths and three eighths."""
        fitted, *held = divided(self.law.noise)
        return self.law.part(fitted), self.law.part(torch.cat(held))

    def some(self, count: int) -> Trajectories:
        """Trajectories of so many of the noises at most, evenly spaced."""
        n = len(self.law.noise)
        places = torch.arange(min(count, n)) * n // min(count, n)
        return self.law.part(places)


class Made(NamedTuple):
    """A solver, and the only noise levels that it is for."""

    solver: Solver
    levels: tuple[float, ...]

    @classmethod
    def table(cls, table: Tabulated) -> "Made":
        """A table with its levels."""
        return cls(table, table.levels)


Peer = Callable[[Task], Made]
"""Makes a method for the task; raises InputError where the task is none for it."""


def nearest(tables: Sequence[Tabulated], law: Trajectories) -> Tabulated:
    """The table whose run ends nearest the exact flow."""
    if len(tables) == 1:
        return tables[0]
    errors = [law.rmse(run(table, law)) for table in tables]
    finite = [error if math.isfinite(error) else math.inf for error in errors]
    return tables[finite.index(min(finite))]
