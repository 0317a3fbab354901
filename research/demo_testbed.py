"""A model with what a sampler of it should produce: samples of its law, and the exact flow's end points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff import grids, models
from steindiff.analytic import ExactModel
from steindiff.denoisers import Denoiser
from steindiff.metrics import EnergyTarget, Shares, endpoint_rmse, principal_features
from steindiff.models import Model
from steindiff.noise import initial_noise
from steindiff.sampling import sample
from steindiff.solvers import make

__all__ = ["SIGMA_MAX", "SIGMA_MIN", "Testbed", "build"]

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
_FINE_STEPS = 50
_FEATURES = 32
_TARGET_SEED = 1_000_000_000


@dataclass(frozen=True)
class Testbed:
    """A model, noise to start from, and its references.

    Attributes:
        noise: x at σ_max, one image per seed.
        endpoints: where the exact flow takes `noise`, by a fine solver.
        endpoint_error: estimated RMS error of `endpoints`, per coordinate.
        target: independent samples of the law at σ_min.
        energy: energy distances to `target`.
        perfect: that of `endpoints`, what a perfect sampler scores.
        features: linear features for the Fréchet distance.
        reference: how endpoints and target were made.
    """

    model: Model
    noise: Tensor
    endpoints: Tensor
    endpoint_error: float
    target: Tensor
    energy: EnergyTarget
    perfect: Shares
    features: Callable[[Tensor], Tensor]
    reference: str


def build(name: str, samples: int, first_seed: int) -> Testbed:
    """The testbed of an embedded model; seeds first_seed … first_seed + samples − 1."""
    model = models.load(name)
    noise = initial_noise(range(first_seed, first_seed + samples), model.event_shape, SIGMA_MAX)
    if isinstance(model.denoiser, ExactModel):
        flow = model.denoiser.flow_with_error(noise, SIGMA_MAX, SIGMA_MIN, tol=2e-3)
        clean = model.denoiser.sample(4 * samples, torch.Generator().manual_seed(_TARGET_SEED))
        target = clean + SIGMA_MIN * torch.randn(clean.shape, generator=torch.Generator().manual_seed(_TARGET_SEED + 1))
        endpoints, error = flow.x, float(flow.error)
        reference = f"{len(target)} exact samples; flow by up to {flow.steps} Runge–Kutta steps of order six"
    else:
        endpoints = _fine(model.denoiser, noise, _FINE_STEPS)
        error = endpoint_rmse(_fine(model.denoiser, noise[:64], 2 * _FINE_STEPS), endpoints[:64]).value
        target = _fine(
            model.denoiser,
            initial_noise(range(_TARGET_SEED, _TARGET_SEED + samples), model.event_shape, SIGMA_MAX),
            _FINE_STEPS,
        )
        reference = f"the network's own {_FINE_STEPS}-step UniPC-3 samples, other seeds; flow by the same solver"
    features = principal_features(target, min(_FEATURES, samples // 4))
    energy = EnergyTarget(target)
    return Testbed(model, noise, endpoints, error, target, energy, energy.shares(endpoints), features, reference)


def _fine(denoiser: Denoiser, noise: Tensor, steps: int) -> Tensor:
    """A fine UniPC-3 run, the most accurate per evaluation on this network, in chunks that stay in cache."""
    sigmas = grids.karras(steps, SIGMA_MIN, SIGMA_MAX)
    return torch.cat([sample(make("unipc_3"), denoiser, chunk, sigmas).x for chunk in noise.split(128)])
