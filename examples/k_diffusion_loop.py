"""A sampler with k-diffusion's arguments: Euler by hand, and ours, from the same noise with as many evaluations."""

from itertools import pairwise

import torch

import steindiff as sd
from steindiff.integrations.kdiffusion import sample_steindiff

network = sd.models.load("digits_classes")


def model(x, sigma, cond, cond_scale):
    """A model as k-diffusion's samplers call it: sigma is (B,), and guidance is inside."""
    return network.guided(cond, cond_scale)(x, sigma)


def sample_euler(model, x, sigmas, extra_args):
    """A loop of k-diffusion's kind: dx/dσ = (x − D)/σ."""
    for sigma, sigma_next in pairwise(sigmas):
        denoised = model(x, sigma.expand(len(x)), **extra_args)
        x = x + (sigma_next - sigma) / sigma * (x - denoised)
    return x


x = sd.initial_noise(seeds=range(8), event_shape=network.event_shape)
extra_args = {"cond": torch.arange(8) % 10, "cond_scale": 3.0}
exact = sample_steindiff(model, x, sd.grids.karras(24), extra_args, solver="unipc_3", disable=True)
sigmas = sd.grids.with_zero(sd.grids.karras(5)).float()  # six evaluations, the last step to 0

ends = {"Euler": sample_euler(model, x, sigmas, extra_args)}
for solver in ("dpmpp_2m", "auto"):
    ends[solver] = sample_steindiff(model, x, sigmas, extra_args, disable=True, solver=solver)
for name, end in ends.items():
    print(f"{name:9} {len(sigmas) - 1} evaluations, RMSE to the exact flow {float((end - exact).square().mean().sqrt()):.3f}")
