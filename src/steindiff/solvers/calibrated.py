"""Tables that were calibrated on a network, and where they are looked for.

A file holds the tables of one network: one for each number of evaluations, scale of guidance and range of levels. `auto` looks
in the folders of the setting (`steindiff sample` names the folder `tables` beside the model file), then in those that the
variable STEINDIFF_TABLES names, then among the shipped ones.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from steindiff.errors import InputError
from steindiff.solvers import table_files
from steindiff.solvers.base import USUAL, Setting, Solver
from steindiff.solvers.planned import Planned
from steindiff.solvers.purpose import Purpose
from steindiff.solvers.tabulated import TOLERANCE, Tabulated

SHIPPED = Path(__file__).parent / "tables"
VARIABLE = "STEINDIFF_TABLES"


@dataclass(frozen=True)
class Calibrated(Planned):
    """The calibrated table of whatever number of evaluations is asked for.

    Args:
        path: a file of tables; None: the network's own, wherever `auto` would find it.
        anyway: parts of the tables' purpose that do not matter here: network, event or guidance, or several with + between.
    """

    of_networks = True

    path: str | None = None
    anyway: str = ""

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> tuple[Solver, int]:
        """The table for this setting, and its steps. Raises InputError where there is none; the error says what there is."""
        super().for_nfe(nfe)
        solver = found(nfe, setting) if self.path is None else self._of_file(nfe, setting)
        if solver is None:
            raise InputError(
                f"there is no calibrated table of {nfe} evaluations for network {setting.network}, images of shape "
                f"{setting.event}, guidance {setting.guidance:g} and levels from {setting.sigma_max:g} to "
                f"{setting.sigma_min:g}: make one with `steindiff calibrate`, or take solver universal"
            )
        return solver, len(solver.rows)

    def _of_file(self, nfe: int, setting: Setting) -> Tabulated:
        """The file's table of so many evaluations, for this scale of guidance if it has one; a run checks the rest."""
        names = tuple(name for name in self.anyway.split("+") if name)
        tables = [solver.anyway(*names) for solver, _ in table_files.load(str(self.path)).values()]
        fitting = [solver for solver in tables if solver.nfe(solver.own_grid) == nfe]
        if not fitting:
            have = ", ".join(map(str, sorted({solver.nfe(solver.own_grid) for solver in tables})))
            raise InputError(f"nfe={nfe}: {self.path} has tables of {have} evaluations; take one of these, or calibrate anew")
        here = Purpose(setting.network, setting.event, setting.guidance)
        return min(fitting, key=lambda solver: len((solver.purpose or Purpose()).differs(here)))


def found(nfe: int, setting: Setting) -> Tabulated | None:
    """The calibrated table for this network, shape, guidance and range of levels; None where there is none."""
    if setting.network is None or setting.event is None:
        return None
    here = Purpose(setting.network, setting.event, setting.guidance)
    for solver in _known(setting):
        purpose, ends = solver.purpose, (solver.levels[0], solver.levels[-1])
        wanted = (setting.sigma_max, setting.sigma_min)
        near = all(abs(own - level) <= TOLERANCE * max(level, 1e-3) for own, level in zip(ends, wanted, strict=True))
        mine = purpose is not None and purpose.network is not None and not purpose.differs(here)
        if near and mine and solver.nfe(solver.own_grid) == nfe:
            return solver
    return None


def _known(setting: Setting) -> Iterator[Tabulated]:
    """All tables, in the order in which they are looked for."""
    named = os.environ.get(VARIABLE, "").split(os.pathsep)
    for folder in (*setting.folders, *filter(None, named), str(SHIPPED)):
        for path in sorted(Path(folder).glob("*.safetensors")):
            yield from _tables(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _tables(path: Path, changed: int) -> tuple[Tabulated, ...]:
    """The tables of a file as it was at that time."""
    return tuple(solver for solver, _ in table_files.load(path).values())
