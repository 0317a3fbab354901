"""A table: a solver with its grid, made for one number of evaluations, and where its numbers come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from steindiff.errors import InputError
from steindiff.grids import SIGMA_MAX, SIGMA_MIN
from steindiff.solvers import table_files, universal
from steindiff.solvers.base import Setting
from steindiff.solvers.tabulated import Tabulated


@dataclass(frozen=True, eq=False)
class Table:
    """A solver with its grid, and what is known about where its numbers come from.

    Attributes:
        solver: the method; it runs on `sigmas` only.
        report: provenance and scores, as JSON has them.
    """

    solver: Tabulated
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sigmas(self) -> Tensor:
        """The noise levels of its runs, (n+1,), float64."""
        return self.solver.own_grid

    @property
    def nfe(self) -> int:
        """The network evaluations of a run."""
        return self.solver.nfe(self.sigmas)

    def anyway(self, *names: str) -> "Table":
        """The same for any network, event or guidance, whichever is named: a calibrated table is refused elsewhere.

        Raises:
            InputError: a name is none of these.
        """
        return replace(self, solver=self.solver.anyway(*names))

    def save(self, path: str | Path) -> Path:
        """Write the table to a .safetensors file, whole or not at all. Raises InputError where it cannot be written."""
        return table_files.save(path, {"table": (self.solver, self.report)})

    @staticmethod
    def load(path: str | Path, nfe: int | None = None) -> "Table":
        """The table of a file; of several, that of `nfe` evaluations.

        Raises:
            ModelFileError: there is no such file, it is damaged, or it is no table.
            InputError: it holds no table of so many evaluations, or several that fit.
        """
        tables = load_all(path)
        fitting = [table for table in tables if nfe is None or table.nfe == nfe]
        if len(fitting) != 1:
            have = ", ".join(f"{table.nfe}" for table in tables) or "no"
            raise InputError(f"nfe={nfe}: {path} has tables of {have} evaluations, and {len(fitting)} fit: name one by nfe")
        return fitting[0]

    @staticmethod
    def universal(
        nfe: int,
        sigma_max: float = SIGMA_MAX,
        sigma_min: float = SIGMA_MIN,
        sigma_data: float = 0.5,
        mean: Tensor | None = None,
        guidance: float = 1.0,
    ) -> "Table":
        """The shipped table for networks it has never seen.

        Args:
            nfe: the network evaluations of a run.
            sigma_max: the first noise level; a rectified flow, whose first level is pure noise, starts at 1000 or more.
            sigma_min: the last noise level; 0 is allowed.
            sigma_data: the standard deviation of the data's coordinates.
            mean: the data's mean, broadcastable to an event; None is zero, which costs little (`docs/universal.md`).
            guidance: the scale of classifier-free guidance; 1 is none.

        Raises:
            InputError: there is no table for this number of evaluations, these levels or this guidance; the error names what
                there is.
        """
        solver, report = universal.entry(nfe, Setting(sigma_max, sigma_min, sigma_data, guidance))
        return Table(replace(solver, mean=mean), report)


def save_all(path: str | Path, tables: Sequence[Table]) -> Path:
    """Write several tables to one .safetensors file. Raises InputError where it cannot be written."""
    return table_files.save(path, {f"{i}/{table.nfe}": (table.solver, table.report) for i, table in enumerate(tables)})


def load_all(path: str | Path) -> list[Table]:
    """The tables of a file. Raises ModelFileError where there is no such file, it is damaged, or it holds no tables."""
    return [Table(*entry) for entry in table_files.load(path).values()]


def load(path: str) -> Tabulated:
    """The solver of a file of one table, for specs: `table(file.safetensors)`. Raises as `Table.load`."""
    return Table.load(path).solver
