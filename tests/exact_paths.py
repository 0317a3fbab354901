"""Trajectories in closed form, or of a solver's own run, that the tests of fits share."""

import torch

from problems import MODEL
from steindiff import grids
from steindiff.analytic import DiagonalMixture
from steindiff.calibration import Trajectories
from steindiff.sampling import steps

D64 = torch.float64
LEVELS = (10.0, 4.0, 1.5, 0.6, 0.2)
"""A coarse grid, on which the values of a history are far from collinear."""


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D64)


def isotropic(variance=0.3, d=3, mean=0.0):
    """N(mean, variance) in each of d coordinates; its flow keeps (x − mean)/√(variance + σ²)."""
    return DiagonalMixture(
        torch.ones(1, dtype=D64), torch.full((1, d), mean, dtype=D64), torch.full((1, d), variance, dtype=D64)
    )


def closed_form(levels, variance=0.3, noise=None):
    """The trajectories of `isotropic`, without any integration error."""
    noise = levels[0] * normal(16, 3) if noise is None else noise
    law = isotropic(variance, noise.shape[-1])
    sigmas = torch.tensor(levels, dtype=D64)
    states = noise * ((variance + sigmas**2) / (variance + levels[0] ** 2)).sqrt()[:, None, None]
    slopes = torch.stack([y - law(y, s) for y, s in zip(states, sigmas, strict=True)])
    weight = 1 / states[-1].square().sum()
    return Trajectories(law, tuple(levels), states, slopes, weight, torch.zeros((), dtype=D64))


def of_run(solver, levels=LEVELS, law=MODEL, n=64):
    """What a solver's own run on this grid passes through, as if it were the exact flow."""
    sigmas = grids.from_list(levels)
    events = list(steps(solver, law, levels[0] * normal(n, *law.event_shape), sigmas))
    states = torch.stack([*(e.x_before for e in events), events[-1].step.x])
    slopes = torch.stack([y - law(y, s) for y, s in zip(states, sigmas, strict=True)])
    weight = 1 / (states[-1] - states[-1].mean(0)).square().sum()
    return Trajectories(law, tuple(levels), states, slopes, weight, torch.zeros((), dtype=D64))
