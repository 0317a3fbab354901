"""The toy of the paper's Fig. 3, rebuilt: where steps are not contractions, in one dimension.

x* = ±1 + 0.05 ε in equal parts. In one dimension L_D = ∂D/∂x is exact, and large around x = 0 below σ ≈ 1, where a small
difference decides between the two modes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff import grids
from steindiff.analytic import GaussianMixture
from steindiff.corrections import CleanTarget
from steindiff.corrections.base import Corrected
from steindiff.diagnostics import reference_flow
from steindiff.divergence import Exact
from steindiff.errors import NonFiniteError
from steindiff.noise import initial_noise
from steindiff.sampling import Event, sample
from steindiff.solvers import Solver, make

__all__ = ["Panel", "Toy", "law", "run_toy"]

SIGMA_MIN, SIGMA_MAX, STEPS, SAMPLES = 0.01, 10.0, 5, 256


@dataclass(frozen=True, eq=False)
class Panel:
    """Trajectories (levels, B) at `sigmas` under one method; fewer levels where the run became infinite."""

    name: str
    sigmas: Tensor
    paths: Tensor


@dataclass(frozen=True, eq=False)
class Toy:
    """The panels, the exact flow first."""

    panels: tuple[Panel, ...]

    def numbers(self) -> dict[str, dict[str, float]]:
        """Per method: the RMS distance of the end points to the exact flow's, and the shares at the wrong and at no mode."""
        exact = self.panels[0].paths[-1]
        out = {}
        for panel in self.panels[1:]:
            end = panel.paths[-1] if len(panel.paths) == len(panel.sigmas) else torch.full_like(exact, float("inf"))
            off = (end.abs() - 1).abs() > 0.25
            out[panel.name] = {
                "rms": float((end - exact).square().mean().sqrt()),
                "wrong_mode": float(((end.sign() != exact.sign()) & ~off).double().mean()),
                "no_mode": float(off.double().mean()),
            }
        return out


def law() -> GaussianMixture:
    """½ N(−1, 0.05²) + ½ N(1, 0.05²)."""
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    return GaussianMixture(
        torch.full((2,), 0.5, dtype=torch.float64), means, torch.full((2, 1, 1), 0.0025, dtype=torch.float64)
    )


def run_toy(first_seed: int = 0) -> Toy:
    """The exact flow, DDIM, DPM-Solver++(2M), and 2M under the clamped and the literal rule, from the same noise."""
    model = law()
    x = initial_noise(range(first_seed, first_seed + SAMPLES), (1,), SIGMA_MAX, dtype=torch.float64)
    flow = reference_flow(model, x, grids.karras(60, SIGMA_MIN, SIGMA_MAX), max_step=0.1)
    solver = make("dpmpp_2m")
    runs: dict[str, Solver] = {"DDIM": make("ddim"), "2M": solver}
    for label, rule in (("2M, Eq. 11, γ ≤ 1", CleanTarget(gamma_max=1.0)), ("2M, Eq. 11 as printed", CleanTarget())):
        runs[label] = Corrected(solver, rule, divergence=Exact())
    panels = [Panel("exact flow", flow.sigmas, flow.states[..., 0])]
    return Toy((*panels, *(_panel(name, run, model, x) for name, run in runs.items())))


def _panel(name: str, solver: Solver, model: GaussianMixture, x: Tensor) -> Panel:
    sigmas = grids.karras(STEPS, SIGMA_MIN, SIGMA_MAX)
    states = [x]

    def observe(event: Event) -> None:
        states.append(event.step.x)

    try:
        sample(solver, model, x, sigmas, on_step=observe)
    except NonFiniteError:
        states = [z for z in states if bool(torch.isfinite(z).all())]
    return Panel(name, sigmas, torch.stack(states)[..., 0])
