"""The universal tables: fitted on random exact laws alone, for networks they have never seen (`docs/universal.md`).

A table is in units of σ_data: data, noise levels and states scale together, and weights have no unit. There are tables for a
few first levels, the *rungs*; a run takes the rung nearest its own first level s_0 = σ_max/σ_data, with its first step, which
evaluates nothing, stretched by the flow of a Gaussian of variance one,

    a ← a √((1 + rung²)/(1 + s_0²)),      s_0 ≥ rung/2 and s_0 ≥ 5/4 of the level after that step, or s_0 ≥ rung,

and it ends at its own last level s, by the noise that the last evaluation sees: x ← x + (s − s_n)(x_N − D_N)/told level. Tables
of many evaluations evaluate low; a run that ends near or above their last evaluation takes one that was fitted to end higher.

Under classifier-free guidance there are other tables, for a few scales w, fitted on guided laws. A run above w = 1 takes the
scale whose ratio to w is nearest to one, and none beyond √2 times the highest.
"""

import math
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from steindiff.errors import InputError, require
from steindiff.solvers import table_files
from steindiff.solvers.base import USUAL, Setting, Solver, whole
from steindiff.solvers.multistep import Row
from steindiff.solvers.planned import Planned
from steindiff.solvers.tabulated import Tabulated

FILE, GUIDED = (Path(__file__).parent / f"{name}.safetensors" for name in ("universal", "guided"))
Tables = dict[tuple[float, int], table_files.Entry]
LAST = 0.004
"""The last level of most tables, in units of σ_data: 0.002 of 0.5."""
BAND = math.sqrt(2)
"""The factor above the highest scale of guidance up to which its tables are taken."""
_HIGHEST = 1e6


def shipped() -> Tables:
    """The shipped tables that end at `LAST`, by rung and number of evaluations."""
    return by_end()[LAST]


@cache
def by_end() -> dict[float, Tables]:
    """All shipped tables without guidance, by their last level."""
    found = dict[float, Tables]()
    for solver, report in table_files.load(FILE).values():
        end = float(f"{solver.levels[-1]:.6g}")  # levels that were resampled have rounding in the last digit
        found.setdefault(end, {})[solver.levels[0], solver.nfe(solver.own_grid)] = solver, report
    return found


@cache
def guided() -> dict[float, Tables]:
    """The shipped tables for guidance by scale; a name in the file is rung/evaluations/scale."""
    found = dict[float, Tables]()
    for name, entry in table_files.load(GUIDED).items():
        solver, scale = entry[0], float(name.split("/")[2])
        found.setdefault(scale, {})[solver.levels[0], solver.nfe(solver.own_grid)] = entry
    return found


def highest() -> float:
    """The highest scale of guidance that has tables."""
    return BAND * max(guided())


def tables(guidance: float) -> dict[float, Tables]:
    """The tables of the nearest scale of guidance by its ratio, by last level. Raises InputError beyond the highest band."""
    if guidance <= 1:
        return by_end()
    known = guided()
    if not guidance <= highest() * (1 + 1e-6):
        raise InputError(
            f"guidance={guidance:g}: there are universal tables up to a scale of {highest():.3g}; take a lower one, or a plain "
            "solver such as ddim"
        )
    return {LAST: known[min(sorted(known), key=lambda scale: round(abs(math.log(scale / guidance)), 6))]}


def entry(nfe: int, setting: Setting = USUAL) -> table_files.Entry:
    """The universal table for this number of evaluations and these noise levels.

    Raises:
        InputError: there is no table for this number of evaluations, these levels or this scale of guidance; the error names
            what there is.
    """
    s, ends = setting.sigma_data, tables(setting.guidance)
    top, bottom = setting.sigma_max / s, setting.sigma_min / s
    known = ends[LAST]
    rungs = sorted({rung for rung, n in known if whole(nfe) and n == nfe})
    if not rungs:
        have = ", ".join(map(str, sorted({n for _, n in known})))
        under = f" under guidance of {setting.guidance:g}" if setting.guidance > 1 else ""
        raise InputError(
            f"nfe={nfe}: there are universal tables for {have} evaluations{under}; take one of them, or a plain solver"
        )
    lowest = {rung: _lowest(known[rung, nfe][0]) for rung in rungs}
    usable = [rung for rung in rungs if lowest[rung] <= top * (1 + 1e-6)]
    if not usable or not top <= _HIGHEST:
        raise InputError(
            f"sigma_max/sigma_data = {top:g}: universal tables with {nfe} evaluations start between {min(lowest.values()):g} "
            f"and {_HIGHEST:g}; check sigma_data, or take a plain solver"
        )
    rung = min(usable, key=lambda rung: abs(math.log(rung / top)))
    solver, report = _ending([found[rung, nfe] for found in ends.values() if (rung, nfe) in found], bottom)
    named = replace(solver, name="universal table")
    return _started(named, top).scaled(s).ended(setting.sigma_min), {**report, "setting": asdict(setting)}


def entries(nfe: int, setting: Setting = USUAL) -> list[Tabulated]:
    """What `entry` has for this number of evaluations and these noise levels: one table, or none."""
    try:
        return [entry(nfe, setting)[0]]
    except InputError:
        return []


def _lowest(solver: Tabulated) -> float:
    """The lowest first level to which the first step may be stretched."""
    rung, after = solver.levels[:2]
    return min(rung, max(rung / 2, 1.25 * after))


def _started(solver: Tabulated, top: float) -> Tabulated:
    """The same from another first level."""
    rung, first = solver.levels[0], solver.rows[0]
    stretched = Row(first.a * math.sqrt((1 + rung**2) / (1 + top**2)), ())
    return replace(solver, levels=(top, *solver.levels[1:]), rows=(stretched, *solver.rows[1:]))


def _ending(found: list[table_files.Entry], bottom: float) -> table_files.Entry:
    """Of tables that differ in their last level the nearest that may end here; where none may, the one that can end highest."""
    usable = [entry for entry in found if bottom <= entry[0].highest_end]
    if not usable:
        return max(found, key=lambda entry: entry[0].highest_end)
    return min(usable, key=lambda entry: abs(entry[0].levels[-1] - bottom))


@dataclass(frozen=True)
class OnTables(Planned):
    """What runs on the levels of a universal table.

    Args:
        sigma_data: the standard deviation of the data's coordinates; None is what the setting says.
    """

    sigma_data: float | None = None

    def __post_init__(self) -> None:
        positive = self.sigma_data is None or 0 < self.sigma_data < math.inf
        require(positive, "need a positive standard deviation, or None", sigma_data=self.sigma_data)

    def table(self, nfe: int, setting: Setting) -> Tabulated:
        """The universal table for this setting, with the solver's own σ_data where it has one. Raises InputError as `entry`."""
        return entry(nfe, setting if self.sigma_data is None else replace(setting, sigma_data=self.sigma_data))[0]


@dataclass(frozen=True)
class Universal(OnTables):
    """The universal table of whatever number of evaluations is asked for."""

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> tuple[Solver, int]:
        """The table for this setting, and its steps: one more than evaluations, since the first evaluates nothing."""
        super().for_nfe(nfe)
        solver = self.table(nfe, setting)
        return solver, len(solver.rows)
