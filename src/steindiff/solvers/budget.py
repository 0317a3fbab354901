"""From a budget of network evaluations to a solver and its number of steps."""

from __future__ import annotations

from dataclasses import replace

from steindiff.errors import InputError
from steindiff.solvers.base import Solver
from steindiff.solvers.dpmpp import DPMpp2S, DPMpp3S
from steindiff.solvers.heun import Heun

__all__ = ["for_nfe"]


def for_nfe(solver: Solver, nfe: int) -> tuple[Solver, int]:
    """The solver and the steps that spend exactly `nfe` evaluations on a grid ending above σ = 0.

    Multistep methods take nfe steps. Heun takes nfe/2 whole steps; where nfe is odd, (nfe+1)/2 with the last one Euler's
    (NFE = 2·steps − 1, the paper's count). Singlestep methods of order p take ⌈nfe/p⌉ intervals, the last of a
    lower order where p does not divide nfe, as their authors do.

    Raises:
        InputError: nfe < 1.
    """
    if nfe < 1:
        raise InputError(f"nfe={nfe}: need at least one network evaluation")
    match solver:
        case Heun():
            return replace(solver, euler_at_end=nfe % 2 == 1), (nfe + 1) // 2
        case DPMpp2S() | DPMpp3S():
            rest = nfe % solver.order
            return replace(solver, tail=(rest,) if rest else ()), -(-nfe // solver.order)
    return solver, nfe
