"""The law that a run itself has: the score of its states, by the change of variables.

A deterministic run takes its noise x_0 ~ N(0, σ_0² I) to the state x_k = F_k(x_0), history and all. Where F_k is one-to-one,
the law p̃_k of x_k has, with J = ∂F_k/∂x_0,

    log p̃_k(x_k) = log p_0(x_0) − log |det J|,      ∇log p̃_k(x_k) = J⁻ᵀ (∇log p_0(x_0) − ∇log |det J|).

Where det J changes its sign between states, F_k folds: a point has several origins, and the score is that of one branch.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from steindiff import grids
from steindiff.denoisers import Denoiser
from steindiff.solvers import Grid, Solver


class RunScore(NamedTuple):
    """One level of a run: `sigma` (), the states (B, *event), ∇log p̃ there (B, *event), and the sign of det J, (B,)."""

    sigma: Tensor
    x: Tensor
    score: Tensor
    sign: Tensor


def run_scores(solver: Solver, denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[RunScore]:
    """∇log p̃_k at every level of a run from x (B, *event), draws of N(0, σ_0² I) at sigmas[0], (n+1,).

    A level costs d derivatives of the run so far and one second derivative, so this serves laws of up to about a hundred
    dimensions. The denoiser must be twice differentiable; take float64. A `Corrected` solver must have its γ fixed
    (`FixedGamma`): a γ that depends on the batch would join the images. Raises InputError for a malformed grid.
    """
    grid, start = Grid.of(grids.validate(sigmas)), x.detach().requires_grad_(True)
    first = -start.detach().flatten(1) / grid.levels[0] ** 2
    yield RunScore(grid.nodes[0], start.detach(), first.reshape(x.shape), x.new_ones(len(x)))
    with torch.enable_grad():
        state, z = solver.init(denoiser, start, grid), start
        for i in range(grid.steps):
            step = solver.step(denoiser, z, grid.interval(i), state)
            z, state = step.x, step.state
            score, sign = _scores(z.flatten(1), start, first)
            yield RunScore(grid.nodes[i + 1], z.detach(), score.reshape(x.shape), sign)


def _scores(z: Tensor, start: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """J⁻ᵀ (s_0 − ∇log |det J|) and the sign of det J of one state z (B, d), a function of `start`."""
    rows = [torch.autograd.grad(column.sum(), start, create_graph=True)[0].flatten(1) for column in z.T]
    J = torch.stack(rows, 1)
    sign, size = torch.linalg.slogdet(J)
    # Where the run is linear J is a constant, and its determinant has no gradient.
    spread = torch.autograd.grad(size.sum(), start, retain_graph=True)[0].flatten(1) if size.requires_grad else 0 * first
    return torch.linalg.solve(J.detach().mT, (first - spread)[..., None])[..., 0], sign.detach()
