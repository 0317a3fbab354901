"""Tables to start from, and the best of those that a refinement reaches."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

from torch import Tensor

from steindiff.calibration.fit import fit
from steindiff.calibration.refine import Progress, Settings, refine, renamed, score
from steindiff.calibration.teacher import Trajectories
from steindiff.errors import InputError
from steindiff.grids import karras
from steindiff.solvers import Setting, Tabulated
from steindiff.solvers.universal import entry

FIRSTS, RHOS = (0.05, 0.1, 0.15, 0.2, 0.3), (5.0, 7.0)
"""Grids to start from: the level after a free step, as a fraction of the first, and exponents."""


def starts(laws: Sequence[Trajectories], nfe: int, setting: Setting, mean: Tensor | None = None) -> Iterator[Tabulated]:
    """The universal table, where there is one; closed-loop fits on its levels, on others after a free step, and without one."""
    top, bottom = setting.sigma_max, setting.sigma_min
    levels = [(top, *karras(nfe, bottom, first * top, rho).tolist()) for first, rho in product(FIRSTS, RHOS)]
    try:
        table = entry(nfe, setting)[0]
    except InputError:  # there is none for this number or this range
        table = None
    if table is not None:
        yield table
        levels = [table.levels, *levels]
    for grid in levels:
        yield fit(laws, grid)
    for rho in RHOS:
        yield fit(laws, karras(nfe, bottom, top, rho).tolist(), free=False)


def best(
    candidates: Sequence[Tabulated],
    laws: Sequence[Trajectories],
    held: Sequence[Trajectories],
    settings: Settings,
    tell: Callable[[Progress], object],
) -> Tabulated:
    """The candidate with the least error on the held-out laws or noises, refined, its levels named after the run's states."""
    start = min(candidates, key=lambda table: score(table, held))
    return renamed(refine(start, laws, held, settings, tell), laws)
