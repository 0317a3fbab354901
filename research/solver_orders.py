"""Measure the order of convergence of every solver: `python -m research.solver_orders` prints the table of docs/solvers.md.

The problem is the probability-flow ODE of a Gaussian mixture in three dimensions, whose denoiser is exact and not linear. It
is solved from σ = 10 to σ = 0.4, where the solution is smooth, on grids uniform in λ = −log σ, on EDM's grid (ρ = 7), and
from σ = 3 to σ = 0.8 on a grid uniform in σ. Two orders are measured, each the least-squares slope of log error against
log n over n = 64, 96, 128, 192:

(own) the method itself: the run starts from an *exact* history, and nothing lowers the order at the end;
(run) a run as published: it starts from one state, so the first steps are of lower order, and ends as the method says.

The reference solution is a Runge–Kutta run with 4 substeps for every interval of the finest grid.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from steindiff.analytic.integrate import runge_kutta
from steindiff.report.blocks import Table
from steindiff.report.markdown import markdown
from steindiff.solvers import DEIS, PNDM, DPMpp2M, DPMpp3M, Grid, Solver, UniPC, make, names

COUNTS = (64, 96, 128, 192)
FINE = math.lcm(*COUNTS)
SUBSTEPS = 4
PAST = 3
"""Exact values before the start: the longest history of any solver."""


def denoiser(x: Tensor, sigma: float | Tensor) -> Tensor:
    """E[x* | x] of three isotropic Gaussians: posterior means weighted by responsibilities."""
    means = x.new_tensor([[1.5, 0.0, -0.5], [-1.0, 1.2, 0.3], [-0.3, -1.4, 0.9]])
    variances = x.new_tensor([0.36, 0.64, 0.5])
    weights = x.new_tensor([0.5, 0.3, 0.2])
    total = variances + sigma**2
    offset = x[:, None] - means
    logits = weights.log() - 1.5 * total.log() - offset.square().sum(-1) / (2 * total)
    posterior = means + (variances / total)[:, None] * offset
    return (logits.softmax(1)[..., None] * posterior).sum(1)


RAMPS: dict[str, Callable[[Tensor], Tensor]] = {
    "log_snr": lambda u: 10.0 * 0.04**u,
    "karras": lambda u: (10.0 ** (1 / 7) + u * (0.4 ** (1 / 7) - 10.0 ** (1 / 7))) ** 7,
    "uniform": lambda u: 3.0 + u * (0.8 - 3.0),
}
"""Grids as functions of u, from u = 0 to u = 1; u < 0 are the nodes of the exact history."""

CASES: dict[str, Solver] = {
    **{name: make(name) for name in names()},
    "dpmpp_3m, exact=True": DPMpp3M(exact=True),
    **{f"unipc_{k}, bh1": UniPC(order=k, variant="bh1") for k in (1, 2, 3)},
    **{f"unipc_{k}, no corrector": UniPC(order=k, corrector=False) for k in (1, 2, 3)},
    **{f"deis_{k}, sigma": DEIS(order=k, variable="sigma") for k in (2, 3, 4)},
    **{f"deis_{k}, log_sigma": DEIS(order=k, variable="log_sigma") for k in (2, 3, 4)},
    "pndm": PNDM(),
    "pndm, sigma": PNDM(middle="sigma"),
    "pndm, order=2": PNDM(2),
}
"""Every registered name as `make` builds it, and the other settings of the same classes."""


class Flow(NamedTuple):
    """The exact solution at the nodes of the finest grid; node `start` is u = 0."""

    sigmas: Tensor
    states: Tensor
    start: int


@cache
def flow(ramp: str) -> Flow:
    """The package's sixth-order Runge–Kutta method, SUBSTEPS for every interval of the finest grid."""
    start = PAST * FINE // min(COUNTS)
    sigmas = RAMPS[ramp](torch.arange(-start, FINE + 1, dtype=torch.float64) / FINE)
    generator = torch.Generator().manual_seed(0)
    states = [sigmas[0] * torch.randn(4, 3, generator=generator, dtype=torch.float64)]
    for log_sigma, log_next in pairwise(sigmas.log().tolist()):
        states.append(runge_kutta(lambda y, s: y - denoiser(y, s), states[-1], log_sigma, log_next, SUBSTEPS))
    return Flow(sigmas, torch.stack(states), start)


def error(solver: Solver, ramp: str, n: int, exact_history: bool) -> float:
    """Root-mean-square error at the end after n steps."""
    exact, stride = flow(ramp), FINE // n
    past = PAST if exact_history else 0
    nodes = slice(exact.start - past * stride, None, stride)
    sigmas, states = exact.sigmas[nodes], exact.states[nodes]
    grid, x = Grid.of(sigmas), states[past]
    if exact_history and isinstance(solver, (DPMpp2M, DPMpp3M, UniPC, DEIS)):
        solver = replace(solver, lower_order_final=False)
    state = _history(solver, grid, states) if exact_history else solver.init(denoiser, x, grid)
    for i in range(past, grid.steps):
        x, _, state, _ = solver.step(denoiser, x, grid.interval(i), state)
    return float((x - states[-1]).square().mean().sqrt())


def _history(solver: Solver, grid: Grid, states: Tensor) -> object:
    """The state this solver would have at node PAST if every step before had been exact."""
    if isinstance(solver, UniPC) and solver.corrector:  # its own steps would end with a value at a state that is not exact
        return tuple(denoiser(states[j], grid.sigmas[j]) for j in range(PAST, PAST - solver.order, -1))
    state = solver.init(denoiser, states[0], grid)
    for j in range(PAST):
        state = solver.step(denoiser, states[j], grid.interval(j), state).state
    return state


@cache
def order(case: str, ramp: str, exact_history: bool) -> float:
    """The measured order of CASES[case] on one grid."""
    errors = [error(CASES[case], ramp, n, exact_history) for n in COUNTS]
    return -float(np.polyfit(np.log(COUNTS), np.log(errors), 1)[0])


def table() -> Table:
    """Every case, both orders."""
    columns = {f"{kind}, {ramp}": (ramp, kind == "own") for kind in ("own", "run") for ramp in RAMPS}
    rows = ((case, *(f"{order(case, *column):.2f}" for column in columns.values())) for case in CASES)
    return Table(("solver", *columns), tuple(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(markdown([table()]), end="")
