"""Calibrated tables for a scheduler: the one of a file, or of one of the files of a folder, that serves a run."""

from contextlib import suppress
from pathlib import Path

from steindiff.errors import InputError, require
from steindiff.solvers import Calibrated, Purpose, Setting, Tabulated
from steindiff.solvers.table import load_all

NEAR = 1e-3
"""How far, relatively, a table's first and last level may lie from those of a run."""


def of_file(table: str, nfe: int, setting: Setting) -> Tabulated:
    """The table of a file, or of one of the files of a folder. Raises InputError where there is none for this run."""
    refusals = list[str]()
    for path in _files(table):
        try:
            solver, _ = Calibrated(str(path)).for_nfe(nfe, setting)
            assert isinstance(solver, Tabulated)
            return _in_range(solver, setting, path)
        except InputError as error:
            refusals.append(str(error))
    raise InputError("; ".join(refusals))


def serving(folder: str, nfe: int, setting: Setting) -> Tabulated | None:
    """The table of a folder that serves this run; None where none does."""
    with suppress(InputError):
        return of_file(folder, nfe, setting)
    return None


def _files(table: str) -> list[Path]:
    path = Path(table)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    need = "there is no .safetensors file in this folder: name a file, or calibrate"
    require(bool(files), need, table=table)
    return files


def guidance_of(table: str) -> float:
    """The scale that all tables are for. Raises InputError where there are several."""
    purposes = (entry.solver.purpose or Purpose() for path in _files(table) for entry in load_all(path))
    scales = sorted({purpose.guidance or 1.0 for purpose in purposes})
    shown = ", ".join(f"{scale:g}" for scale in scales)
    require(len(scales) == 1, f"{table} has tables for guidance {shown}: say which is meant", guidance_scale=None)
    return scales[0]


def _in_range(solver: Tabulated, setting: Setting, path: Path) -> Tabulated:
    """The table, where its levels begin and end where this scheduler's do."""
    ends, wanted = (solver.levels[0], solver.levels[-1]), (setting.sigma_max, setting.sigma_min)
    near = all(abs(own - level) <= NEAR * level for own, level in zip(ends, wanted, strict=True))
    if not near:
        raise InputError(
            f"the table of {path} is for levels from {ends[0]:.4g} to {ends[1]:.4g}, and this scheduler's run from "
            f"{wanted[0]:.4g} to {wanted[1]:.4g}: calibrate with this scheduler's config"
        )
    return solver
