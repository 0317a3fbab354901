"""Every linear method is a table: a run of any solver here, written as rows of weights.

All points of a run are linear in its first state x_0 and in the denoised values D_0, D_1, …. Let the k-th point that the
network sees be p_k = α_k x_0 + Σ_{j<k} β_kj D_j, and the end state p_m. Then x_0 drops out of two points in a row:

    p_{k+1} = a p_k + Σ_{j≤k} w_j D_j,      a = α_{k+1}/α_k,      w_j = β_{k+1,j} − a β_kj

So noise predictions, correctors and inner stages are rows too. The numbers α and β are read off one run over unit vectors.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from steindiff.errors import InputError, require
from steindiff.solvers.base import Grid, Solver
from steindiff.solvers.multistep import Row
from steindiff.solvers.tabulated import Tabulated

_APART = 1e-4
"""How far, relatively, two nominal levels are at least: a method may evaluate twice at one level, and is told so."""


_ZERO = 1e-13
"""Weights of old values below this are rounding."""


def as_table(solver: Solver, sigmas: Tensor, name: str = "table") -> Tabulated:
    """The table of a linear method on a grid; it evaluates where the method does and ends where it ends, to rounding.

    Args:
        solver: a method without a correction.
        sigmas: its grid, (n+1,).
        name: what the table is called in `str`.

    Raises:
        InputError: a point of the run does not hold the first state, so that there is no row.
    """
    points, told = points_of(solver, sigmas)
    rows, first = rows_of(points, str(solver)), float(sigmas[0])
    told = [*([first] if len(rows) == len(points) else []), *told]
    levels = _falling(told, float(sigmas[-1]))
    return Tabulated(
        (*levels, float(sigmas[-1])), tuple(rows), tuple(t / s for t, s in zip(told, levels, strict=True)), name=name
    )


def rows_of(points: Sequence[Tensor], name: str) -> list[Row]:
    """The rows between points; one without values comes first where p_0 is not x_0. Errors as `as_table`."""
    shares = [float(p[0]) for p in points]
    held = all(abs(share) > 1e-12 for share in shares[:-1])
    require(held, f"{name} forgets its first state on this grid, and has no rows", shares=shares)
    rows = [Row(shares[0], ())] if shares[0] != 1 else []
    for k, (here, there) in enumerate(pairwise(points)):
        a = shares[k + 1] / shares[k]
        weights = (there - a * here)[1 : k + 2].flip(0)
        used = int((weights.abs() > _ZERO).nonzero().max()) + 1
        rows.append(Row(a, tuple(weights[:used].tolist())))
    return rows


def points_of(solver: Solver, sigmas: Tensor) -> tuple[list[Tensor], list[float]]:
    """p_0, …, p_m as vectors of (x_0, D_0, D_1, …), and the levels that the network is told. Errors as `as_table`."""
    n, seen, told = solver.nfe(sigmas), list[Tensor](), list[float]()

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x[0])
        told.append(float(sigma))
        return torch.eye(n + 1, dtype=torch.float64)[None, min(len(seen), n)]

    x, grid = torch.eye(n + 1, dtype=torch.float64)[:1], Grid.of(sigmas.to("cpu", torch.float64))
    state = solver.init(denoiser, x, grid)
    for i in range(grid.steps):
        x, _, state, _ = solver.step(denoiser, x, grid.interval(i), state)
    if len(seen) != n:
        raise InputError(f"{solver} has evaluated {len(seen)} times where it says {n}: only a plain solver has a table")
    return [*seen, x[0]], told


def _falling(told: list[float], end: float) -> list[float]:
    """Nominal levels: the told ones, moved apart where two are equal or where one is not above the end."""
    levels = list[float]()
    for k, level in enumerate(told):
        most = levels[-1] * (1 - _APART) if levels else level
        least = end * (1 + _APART * (len(told) - k))
        levels.append(max(min(level, most), least))
    return levels
