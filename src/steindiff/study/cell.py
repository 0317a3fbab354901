"""One cell of a study: its solver, its grid, and the digest of all that determines its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from steindiff import corrections
from steindiff.divergence import Choice
from steindiff.errors import InputError
from steindiff.io import processes
from steindiff.io.files import digest
from steindiff.solvers import Solver
from steindiff.study.grid import Cell, Config
from steindiff.study.store import FORMAT
from steindiff.study.testbed import Testbed


def build(cell: Cell, config: Config, choice: Choice | None = None, clean: Tensor | None = None) -> tuple[Solver, Tensor]:
    """The cell's solver, corrected, and its grid.

    A run needs `choice`, the price of a derivative, and `clean`, samples of the testbed's law, of which a correction may take
    constants; without them the solver is only described.
    """
    solver, steps = config.solver(cell.solver).for_nfe(cell.evaluations)
    sigmas, correction = config.grid(cell.grid, steps), config.correction(cell.correction)
    if correction is None:
        return solver, sigmas
    given = correction if clean is None else correction.given(clean)
    gather = processes.gather if processes.active() and choice else processes.alone
    return corrections.apply(given, solver, divergence=config.estimator(choice), gather=gather), sigmas


def key_of(cell: Cell, bed: Testbed, config: Config, judges: Sequence[str] = ()) -> str:
    """A digest of all that determines a cell's numbers; `judges` are those of what else measures its images.

    Raises:
        InputError: an object whose text does not say what it is.
    """
    solver, sigmas = build(cell, config)
    text = repr(solver)
    if " at 0x" in text:
        raise InputError(f"{text}: a cell is kept under the text of its solver, and an address says nothing; define __repr__")
    return digest(
        format=FORMAT,
        bed=bed.digest,
        solver=text,
        sigmas=sigmas.tolist(),
        seeds=(config.first_seed, config.n),
        batch=config.batch,
        metrics=sorted(config.metrics),
        axes=config.axes,
        judges=list(judges),
    )
