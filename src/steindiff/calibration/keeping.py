"""Where calibrated tables are kept, and the seeds of the noise that they are made from."""

from collections.abc import Sequence
from pathlib import Path

from steindiff.io.files import plain
from steindiff.solvers import Table
from steindiff.solvers.table import load_all, save_all

FIRST_SEED = 3_000_000_000
"""Calibration noise has seeds from here on, where no sample and no reference has any."""


def kept_beside(path: Path, tables: Sequence[Table]) -> Path:
    """Write tables to a file; what it holds for other networks, scales, ranges or numbers of evaluations stays in it."""
    old = load_all(path) if path.exists() else []
    mine = {_place(table) for table in tables}
    return save_all(path, [*(table for table in old if _place(table) not in mine), *tables])


def _place(table: Table) -> str:
    """What a table is for: no file needs two of the same."""
    solver = table.solver
    return str((plain(solver.purpose), table.nfe, solver.levels[0], solver.levels[-1]))
