"""Where a refinement starts: the universal table, or a closed-loop fit where that does better."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import torch

from steindiff.calibration.fit import fit
from steindiff.calibration.refine import score
from steindiff.calibration.teacher import Trajectories
from steindiff.grids import karras
from steindiff.io import processes
from steindiff.solvers import Setting, Tabulated
from steindiff.solvers.universal import entries

FIRSTS, RHOS = (0.05, 0.1, 0.15, 0.2, 0.3), (5.0, 7.0)
"""Grids to start from: the level after a free step, as a fraction of the first, and exponents."""
FITTED = 1024
"""Coordinates of all images together that are plenty for a row of a start: it has a dozen numbers at most."""
AHEAD = 0.4
"""By how much, in the logarithm of the error, a fit must be ahead: refined, the universal table ends better than its equals."""


def grids(
    nfe: int, top: float, bottom: float, firsts: Sequence[float] = FIRSTS, rhos: Sequence[float] = RHOS
) -> Iterator[tuple[float, ...]]:
    """Grids with a free first step: the first level, then the EDM grid's shape from a fraction of it to the last."""
    for first, rho in product(firsts, rhos):
        yield (top, *karras(nfe, bottom, first * top, rho).tolist())


def resampled(levels: Sequence[float], nfe: int) -> tuple[float, ...]:
    """The levels of a table for another number of evaluations: those after its free step by linear interpolation of log σ."""
    logs, last = torch.tensor(levels[1:], dtype=torch.float64).log(), len(levels) - 2
    at = torch.linspace(0, last, nfe + 1, dtype=torch.float64)
    below = at.floor().clamp(max=last - 1).long()
    return (levels[0], *torch.lerp(logs[below], logs[below + 1], at - below).exp().tolist())


def start(
    laws: Sequence[Trajectories],
    held: Sequence[Trajectories],
    nfe: int,
    setting: Setting,
    near: Tabulated | None = None,
) -> Tabulated:
    """The universal table, where there is one and no fit has a much smaller error on the held-out laws or noises.

    Fits are on its levels, on others after a free step, and on grids without one. Under guidance it is the unguided table all
    the same: from a table for guidance a refinement ends up to three times as far away (`docs/calibration.md`). A table `near`
    is taken before all of them, where its runs stay finite: that of a neighbouring scale of guidance is in the same valley, and
    no fit is sure to be. Several processes that work together share out the tables.
    """
    if near is not None and math.isfinite(score(near, held)):
        return replace(near, purpose=None)
    top, bottom = setting.sigma_max, setting.sigma_min
    universal = entries(nfe, replace(setting, guidance=1.0))
    fitted, choosing = ([replace(law, apart=True) for law in some] for some in (laws, held))
    fits = [partial(fit, fitted, grid) for grid in [*(table.levels for table in universal), *grids(nfe, top, bottom)]]
    fits += [partial(fit, fitted, karras(nfe, bottom, top, rho).tolist(), free=False) for rho in RHOS]
    tables = [*universal, *processes.dealt(fits)]
    errors = processes.dealt([partial(score, table, choosing) for table in tables])
    scored = [(error - AHEAD * (table in universal), i) for i, (table, error) in enumerate(zip(tables, errors, strict=True))]
    return tables[min(scored)[1]]
