"""Tables that were calibrated on a network, and where they are looked for.

A file holds the tables of one network: one for each number of evaluations, scale of guidance and range of levels. A scale
between two that have tables is served by the table `between` them, and one outside is refused. A run to σ = 0 is served by the
table of any last level, `ended` there at no evaluation. `auto` looks in the folders of
the setting (`steindiff sample` names the folder `tables` beside the model file), then in those that the variable
STEINDIFF_TABLES names, then among the shipped ones.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from steindiff.errors import InputError
from steindiff.solvers import table_files
from steindiff.solvers.base import USUAL, Setting, Solver
from steindiff.solvers.between import between
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
        anyway: parts of the tables' purpose that do not matter here: network, event, guidance or conditioned; + stands between
            several.
    """

    of_networks = True

    path: str | None = None
    anyway: str = ""

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> tuple[Solver, int]:
        """The table for this setting, and its steps. Raises InputError where there is none; the error says what there is."""
        super().for_nfe(nfe)
        if self.path is not None:
            solver = _to_zero(self._of_file(nfe, setting), setting)
            return solver, len(solver.rows)
        tables = _fitting(nfe, setting)
        if not tables:
            raise InputError(
                f"there is no calibrated table of {nfe} evaluations for network {setting.network}, images of shape "
                f"{setting.event}, guidance {setting.guidance:g} and levels from {setting.sigma_max:g} to "
                f"{setting.sigma_min:g}: make one with `steindiff calibrate`, or take solver universal"
            )
        solver = _to_zero(_served(tables, setting.guidance), setting)
        return solver, len(solver.rows)

    def _of_file(self, nfe: int, setting: Setting) -> Tabulated:
        """The file's table of so many evaluations for this scale of guidance; a run checks the rest of its purpose."""
        path, names = Path(str(self.path)), tuple(name for name in self.anyway.split("+") if name)
        tables = [solver.anyway(*names) for solver in _tables(path, _changed(path))]
        fitting = [solver for solver in tables if solver.nfe(solver.own_grid) == nfe]
        if not fitting:
            have = ", ".join(map(str, sorted({solver.nfe(solver.own_grid) for solver in tables})))
            raise InputError(f"nfe={nfe}: {path} has tables of {have} evaluations; take one of these, or calibrate anew")
        here = Purpose(setting.network, setting.event, setting.guidance, setting.conditioned)
        least = min(len(_elsewhere(solver, here)) for solver in fitting)
        return _served([solver for solver in fitting if len(_elsewhere(solver, here)) == least], setting.guidance)


def found(nfe: int, setting: Setting) -> Tabulated | None:
    """The calibrated table for this network, shape, guidance and range of levels; None where there is none.

    Between two scales of guidance that have tables it is the one `between` them.
    """
    with suppress(InputError):  # no table serves this scale
        return _to_zero(_served(_fitting(nfe, setting), setting.guidance), setting)
    return None


def _to_zero(solver: Tabulated, setting: Setting) -> Tabulated:
    """The same, ended at σ = 0 where the run goes there."""
    return solver.ended(0.0) if setting.sigma_min == 0 < solver.levels[-1] else solver


def _fitting(nfe: int, setting: Setting) -> list[Tabulated]:
    """The tables of so many evaluations for this network, shape and range of levels, of any scale of guidance."""
    if setting.network is None or setting.event is None:
        return []
    here, wanted = Purpose(setting.network, setting.event, None, setting.conditioned), (setting.sigma_max, setting.sigma_min)
    tables = []
    for solver in _known(setting):
        ends = (solver.levels[0], solver.levels[-1])
        first, last = (abs(own - level) <= TOLERANCE * max(level, 1e-3) for own, level in zip(ends, wanted, strict=True))
        near = first and (last or setting.sigma_min == 0)
        mine = solver.purpose is not None and solver.purpose.network is not None and not _elsewhere(solver, here)
        if near and mine and solver.nfe(solver.own_grid) == nfe:
            tables.append(solver)
    return tables


def _elsewhere(solver: Tabulated, here: Purpose) -> list[str]:
    """In what, but for the scale of guidance, a run is not what the table is for."""
    return [name for name in (solver.purpose or Purpose()).differs(here) if name != "guidance"]


def _served(tables: Sequence[Tabulated], scale: float) -> Tabulated:
    """The first table for this scale of guidance, or the one between its neighbours. Raises InputError where there is none."""
    for solver in tables:
        if "guidance" not in (solver.purpose or Purpose()).differs(Purpose(guidance=scale)):
            return solver
    scales = {solver.purpose.guidance: solver for solver in reversed(tables) if solver.purpose and solver.purpose.guidance}
    below, above = ([w for w in scales if (w < scale) == lower] for lower in (True, False))
    if not below or not above:
        have = ", ".join(f"{w:g}" for w in sorted(scales)) or "no scale"
        raise InputError(
            f"guidance {scale:g}: the calibrated tables are for {have}, and serve what lies between; take a scale in this "
            "range, make a table with `steindiff calibrate --guidance`, or insist with anyway=guidance"
        )
    return between(scales[max(below)], scales[min(above)], scale)


def _known(setting: Setting) -> Iterator[Tabulated]:
    """All tables, in the order in which they are looked for."""
    named = os.environ.get(VARIABLE, "").split(os.pathsep)
    for folder in (*setting.folders, *filter(None, named), str(SHIPPED)):
        files = (
            path for path in Path(folder).glob("*.safetensors") if not path.name.startswith(".")
        )  # those are being written
        for path in sorted(files):
            yield from _tables(path, _changed(path))


def _changed(path: Path) -> int:
    """When the file was last written; 0 where there is none, and then reading it says so."""
    return path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=64)
def _tables(path: Path, changed: int) -> tuple[Tabulated, ...]:
    """The tables of a file as it was at that time."""
    return tuple(solver for solver, _ in table_files.load(path).values())
