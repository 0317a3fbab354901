"""What a history held constant does to Eq. 11: `python -m research.history` prints the tables of docs/correction.md.

One table compares coefficients on a Gaussian of d = 8 with spectrum 1/i. The state is on its marginal and the history on the
exact flow. Sixteen points and their negatives have the exact first and second moments of (x*, ε), and every map is linear, so
that a mean over them is an expectation:

    γ of Eq. 9, with x* known;    γ by Tweedie's formula;    γ of Eq. 11 with the history held constant.

The other table has the error of whole runs against the exact flow, by number of steps: plain, and under γ ≤ 1 with the history
counted and held constant. Divergences are exact: no number depends on a probe.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from research.theory import runs
from research.theory.core import D64, DIM
from steindiff.analytic import ExactModel, Gaussian, GaussianMixture
from steindiff.corrections import CleanTarget
from steindiff.corrections.proposal import Proposal
from steindiff.divergence import Exact
from steindiff.grids import SIGMA_MAX, SIGMA_MIN, karras
from steindiff.report.blocks import Table
from steindiff.report.markdown import markdown
from steindiff.solvers import Grid, Solver, make

STEPS = 20
SPECTRUM = 1 / torch.arange(1, DIM + 1, dtype=D64)
COMPARED = ("ddim", "heun", "dpmpp_2m", "dpmpp_3m", "unipc_2", "ipndm_3", "deis_3")
RUN = ("dpmpp_2m", "dpmpp_3m", "unipc_2", "ipndm_3")
COUNTS = (10, 20, 40, 80)
SAMPLES = 128
RULES: dict[str, CleanTarget | None] = {
    "plain": None,
    "γ ≤ 1": CleanTarget(gamma_max=1.0),
    "γ ≤ 1, history frozen": CleanTarget(gamma_max=1.0, history="frozen"),
}


class Gammas(NamedTuple):
    """Three coefficients of one step."""

    known: float
    """Eq. 9's, E⟨u, x − x*⟩/E‖u‖²."""
    tweedie: float
    """E⟨u, x − D⟩/E‖u‖²."""
    frozen: float
    """Eq. 11's, with the solver's history held constant."""


def denoised(x: Tensor, sigma: Tensor) -> Tensor:
    """D of N(0, diag SPECTRUM)."""
    return x * SPECTRUM / (SPECTRUM + sigma.to(x) ** 2)


def quadrature(sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """x* of every point, and its flow through the levels up to the last, (n, 4 DIM, DIM): VE states x* + σ ε there."""
    points = (2 * DIM) ** 0.5 * torch.eye(2 * DIM, dtype=D64)
    points = torch.cat([points, -points])
    clean, noise = SPECTRUM.sqrt() * points[:, :DIM], points[:, DIM:]
    widths = (SPECTRUM + sigmas[:, None] ** 2).sqrt()
    return clean, (widths / widths[-1])[:, None] * (clean + sigmas[-1] * noise)


def gammas(solver: Solver, place: int, steps: int = STEPS) -> Gammas:
    """Of step `place` of EDM's grid."""
    sigmas = karras(steps)
    grid, (clean, states) = Grid.of(sigmas), quadrature(sigmas[: place + 1])
    state = solver.init(denoised, states[0], grid)
    for i in range(place):
        state = solver.step(denoised, states[i], grid.interval(i), state).state
    step = Proposal(solver, denoised, states[-1], grid.interval(place), state, Exact())
    u, variance = step.x - step.next, step.interval.sigma**2
    uu = u.square().sum(1).mean()
    known = (u * (step.x - clean)).sum(1).mean()
    found = (known, variance * step.tweedie_divergence.mean, variance * step.divergence.mean)
    return Gammas(*(float(part / uu) for part in found))


def coefficients() -> Table:
    """Every solver at four places of the grid."""
    places = [int((karras(STEPS)[:-1] - s).abs().argmin()) for s in (12.0, 2.0, 0.3, 0.05)]
    levels = [f"σ = {float(karras(STEPS)[i]):.3g}" for i in places]
    rows = []
    for name in COMPARED:
        found = [gammas(make(name), i) for i in places]
        rows.append((name, *(f"{g.known:.4g} / {g.tweedie:.4g} / {g.frozen:.4g}" for g in found)))
    return Table(("γ by Eq. 9 / by Tweedie / history frozen", *levels), tuple(rows))


@cache
def law(name: str) -> ExactModel:
    """N(0, diag SPECTRUM) is "gaussian"; four correlated Gaussians of the same dimension are "mixture"."""
    if name == "gaussian":
        return Gaussian(torch.zeros(DIM, dtype=D64), torch.diag(SPECTRUM))
    g = torch.Generator().manual_seed(0)
    means, factors = torch.randn(4, DIM, generator=g, dtype=D64), 0.1 * torch.randn(4, DIM, DIM, generator=g, dtype=D64)
    return GaussianMixture(torch.full((4,), 0.25, dtype=D64), means, factors @ factors.mT + 0.02 * torch.eye(DIM, dtype=D64))


@cache
def start(name: str) -> tuple[Tensor, Tensor]:
    """Pure noise at σ_max, seed 0, and where the exact flow takes it."""
    x = runs.start(SAMPLES, 0)
    return x, law(name).flow(x, SIGMA_MAX, SIGMA_MIN, tol=1e-7)


def error(name: str, solver: Solver, rule: CleanTarget | None, steps: int) -> float:
    """The RMS error per coordinate at the end of a run over EDM's grid."""
    return runs.run_against_flow(law(name), solver, rule, steps, *start(name)).error


def convergence(name: str) -> Table:
    """Errors by number of steps."""
    rows = [
        (solver, label, *(f"{error(name, make(solver), rule, n):.2g}" for n in COUNTS))
        for solver in RUN
        for label, rule in RULES.items()
    ]
    return Table((name, "", *(f"n = {n}" for n in COUNTS)), tuple(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(markdown([coefficients(), convergence("gaussian"), convergence("mixture")]), end="")
