"""Exact models the solver tests share."""

import torch
from hypothesis import settings

from steindiff import grids, solvers
from steindiff.analytic import GaussianMixture

torch.set_num_threads(1)

PROPERTY = settings(deadline=None, derandomize=True, database=None)
"""Hypothesis on a shared machine: the same examples every time, however long the first one takes."""

MODEL = GaussianMixture(
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    torch.tensor([[1.5, 0.0, -0.5], [-1.0, 1.2, 0.3], [-0.3, -1.4, 0.9]], dtype=torch.float64),
    torch.tensor(
        [
            [[0.4, 0.1, 0.0], [0.1, 0.3, -0.1], [0.0, -0.1, 0.5]],
            [[0.7, -0.2, 0.1], [-0.2, 0.6, 0.0], [0.1, 0.0, 0.4]],
            [[0.5, 0.0, 0.2], [0.0, 0.5, 0.1], [0.2, 0.1, 0.6]],
        ],
        dtype=torch.float64,
    ),
)
"""Three correlated Gaussians in three dimensions: D is exact and not linear."""

_MODELS = {dtype: MODEL.to(dtype) for dtype in (torch.float32, torch.float64)}


def mixture(x, sigma):
    """MODEL's denoiser in the precision of x."""
    return _MODELS[x.dtype](x, sigma)


def gaussian(x, sigma, mean=0.3, variance=0.25):
    """E[x* | x] for x* ~ N(mean, variance): linear in x; the flow keeps (x − mean)/√(variance + σ²) constant."""
    s2 = torch.as_tensor(sigma).to(x).reshape(-1, *[1] * (x.ndim - 1)) ** 2
    return mean + variance / (variance + s2) * (x - mean)


def noisy_state(sigma, batch=5, seed=0):
    """x* + σ ε with x* from MODEL, float64."""
    generator = torch.Generator().manual_seed(seed)
    return MODEL.sample(batch, generator) + sigma * torch.randn(batch, 3, generator=generator, dtype=torch.float64)


def run(solver, denoiser, x, sigmas):
    """The loop without anything around it."""
    sigmas = grids.validate(sigmas)
    grid = solvers.Grid.of(sigmas)
    state = solver.init(denoiser, x, grid)
    for i in range(grid.steps):
        x, _, state, _ = solver.step(denoiser, x, grid.interval(i), state)
    return x
