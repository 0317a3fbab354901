"""The gate: a table is kept only where it beats everything that was there before, on noise that had no part in it.

The others are the universal table and every plain solver on both grids (EDM's and log-SNR). The best of them is chosen on the
gate's own images, in its favour. The table passes where its endpoint RMSE is no larger, and the mean of log(theirs/ours) over
images is above two of its standard errors.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff import grids, solvers
from steindiff.calibration.fit import Run
from steindiff.calibration.teacher import Trajectories
from steindiff.solvers import Setting, Tabulated, as_table
from steindiff.solvers.universal import entries

SHARED = 3
"""So many first evaluations are kept for other methods: later ones differ, and would only cost memory."""
_MOST = 1e300
GRIDS = ("karras", "log_snr")


@dataclass(frozen=True)
class Verdict:
    """What the gate saw.

    Attributes:
        kept: the name of what is kept.
        rmse: endpoint RMSE of the calibrated table, in units of the data.
        best: the name of the best of the others.
        others: their endpoint RMSE by name; infinite where a run diverged.
        gain: the mean over images of log(error of the best of the others/error of the table).
        gain_se: its standard error.
        images: how many images the gate had.
    """

    kept: str
    rmse: float
    best: str
    others: Mapping[str, float]
    gain: float
    gain_se: float
    images: int


def alternatives(nfe: int, setting: Setting) -> dict[str, Tabulated]:
    """The universal table, where there is one, and every plain solver on both grids, as tables of so many evaluations."""
    found = dict(zip(("universal",), entries(nfe, setting), strict=False))  # there may be none
    for name in solvers.names():
        if name.endswith("_1"):  # DDIM by another name
            continue
        solver, steps = solvers.make(name).for_nfe(nfe)
        for grid in GRIDS:
            label = f"{name} on {grid}"
            sigmas = grids.make(grid, steps, setting.sigma_min, setting.sigma_max)
            found[label] = as_table(solver, sigmas, label)
    return found


def passed(table: Tabulated, others: Mapping[str, Tabulated], law: Trajectories) -> tuple[Tabulated, Verdict]:
    """The table where it beats all others beyond noise, else the best of them; and what was seen."""
    mine, *rest = _errors([table, *others.values()], law)
    theirs = dict(zip(others, rest, strict=True))
    scores = {name: _rmse(errors) for name, errors in theirs.items()}
    best = min(scores, key=lambda name: scores[name])
    gains = (theirs[best].clamp(max=_MOST).log() - mine.clamp(max=_MOST).log()) / 2
    gain, se = float(gains.mean()), float(gains.std()) / math.sqrt(len(gains))
    wins = _rmse(mine) <= scores[best] and gain > 2 * se
    kept = str(table.name) if wins else best
    verdict = Verdict(kept, _rmse(mine), best, scores, gain, se, len(mine))
    return (table if wins else others[best]), verdict


def _errors(tables: Iterable[Tabulated], law: Trajectories) -> Iterator[Tensor]:
    """Each image's mean squared error at its end, (B,) float64, above 0; infinite where it is not finite."""
    known = dict[tuple[str, ...], Run]()
    for table in tables:
        gap = (_end(table, law, known) - law.ends).double().flatten(1).square().mean(1).cpu()
        yield gap.nan_to_num(math.inf, math.inf).clamp(min=torch.finfo(torch.float64).tiny)


def _end(table: Tabulated, law: Trajectories, known: dict[tuple[str, ...], Run]) -> Tensor:
    """The end states of a run; the first evaluations, which published methods on one grid share, are made once."""
    state, done, evaluations = Run(law, law.noise), tuple[str, ...](), 0
    for sigma, q, row in zip(table.levels, table.told, table.rows, strict=False):
        if row.values:
            done, evaluations = (*done, f"{q * sigma:.9g}"), evaluations + 1
            state = known.get(done) or state.evaluated(q * sigma)
            if evaluations <= SHARED:
                known[done] = state
        state, done = state.stepped(row), (*done, " ".join(f"{w:.9g}" for w in (row.a, *row.values)))
    return state.x


def _rmse(errors: Tensor) -> float:
    return math.sqrt(float(errors.mean()))
