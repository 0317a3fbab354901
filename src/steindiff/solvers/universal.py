"""The universal tables: fitted on random exact laws alone, for networks they have never seen (`docs/universal.md`).

A table is in units of σ_data: data, noise levels and states scale together, and weights have no unit. There are tables for a
few first levels, the *rungs*; a run starts on the nearest rung below its own first level, with its first step, which evaluates
nothing, stretched by the flow of a Gaussian of variance one,

    a ← a √((1 + rung²)/(1 + s_0²)),      s_0 = σ_max/σ_data,

and it ends at its own last level s, by the noise that the last evaluation sees: x ← x + (s − s_n)(x_N − D_N)/told level.
"""

import math
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from torch import Tensor

from steindiff.errors import InputError, require
from steindiff.solvers import table_files
from steindiff.solvers.base import USUAL, Interval, Setting, Solver, Step
from steindiff.solvers.multistep import Row
from steindiff.solvers.tabulated import Tabulated

FILE = Path(__file__).parent / "universal.safetensors"
_HIGHEST, _LOWEST = 1e6, 0.25


@cache
def shipped() -> dict[tuple[float, int], table_files.Entry]:
    """The shipped tables by rung and number of evaluations."""
    entries = table_files.load(FILE).values()
    return {(solver.levels[0], solver.nfe(solver.own_grid)): (solver, report) for solver, report in entries}


def entry(nfe: int, setting: Setting = USUAL) -> table_files.Entry:
    """The universal table for this number of evaluations and these noise levels.

    Raises:
        InputError: there is no table for this number of evaluations or these levels; the error names what there is.
    """
    s = setting.sigma_data
    require(0 < s < math.inf, "need a positive standard deviation", sigma_data=s)
    known, (top, bottom) = shipped(), (setting.sigma_max / s, setting.sigma_min / s)
    rungs = sorted({rung for rung, n in known if n == nfe})
    if not rungs:
        have = ", ".join(map(str, sorted({n for _, n in known})))
        raise InputError(f"nfe={nfe}: there are universal tables for {have} evaluations; take one of them, or a plain solver")
    below = [rung for rung in rungs if rung <= top * (1 + 1e-6)]
    if not below or not top <= _HIGHEST:
        raise InputError(
            f"sigma_max/sigma_data = {top:g}: universal tables with {nfe} evaluations start between {rungs[0]:g} and "
            f"{_HIGHEST:g}; check sigma_data, or take a plain solver"
        )
    solver, report = known[below[-1], nfe]
    return _ended(_started(solver, top), bottom).scaled(s), {**report, "setting": asdict(setting)}


def _started(solver: Tabulated, top: float) -> Tabulated:
    """The same from another first level."""
    rung, first = solver.levels[0], solver.rows[0]
    stretched = Row(first.a * math.sqrt((1 + rung**2) / (1 + top**2)), ())
    return replace(solver, levels=(top, *solver.levels[1:]), rows=(stretched, *solver.rows[1:]))


def _ended(solver: Tabulated, bottom: float) -> Tabulated:
    """The same to another last level."""
    *levels, before, end = solver.levels
    limit = _LOWEST * before
    require(0 <= bottom <= limit, f"need sigma_min/sigma_data between 0 and {limit:.3g} here", sigma_min_in_units=bottom)
    last, per_level = solver.rows[-1], (bottom - end) / (solver.told[-1] * before)
    row = Row(last.a + per_level, (last.values[0] - per_level, *last.values[1:]))
    return replace(solver, levels=(*levels, before, bottom), rows=(*solver.rows[:-1], row))


@dataclass(frozen=True)
class Universal(Solver):
    """The universal table of whatever number of evaluations is asked for: `for_nfe` gives it."""

    order = 1

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> tuple[Solver, int]:
        """The table for this setting, and its steps: one more than evaluations, since the first evaluates nothing."""
        solver, _ = entry(nfe, setting)
        return solver, len(solver.rows)

    def step(self, denoiser: object, x: Tensor, interval: Interval, state: object) -> Step:
        """Refused: rows belong to a number of evaluations."""
        raise InputError("the universal solver has a table for each number of evaluations: give nfe=, not a grid")

    def nfe(self, sigmas: Tensor) -> int:
        """Refused, as a step is."""
        raise InputError("the universal solver has grids of its own: give nfe=, not a grid")
