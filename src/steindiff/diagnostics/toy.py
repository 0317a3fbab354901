"""The toy of the paper's Fig. 3, rebuilt: where steps are not contractions, in one dimension.

x* = ±1 + 0.05 ε in equal parts. In one dimension L_D = ∂D/∂x is exact, and large around x = 0 below σ ≈ 1, where a small
difference decides between the two modes.
"""

import torch
from torch import Tensor

from steindiff import corrections, grids
from steindiff.analytic import GaussianMixture
from steindiff.diagnostics.results import Panel, Toy
from steindiff.diagnostics.trajectory import reference_flow
from steindiff.divergence import Exact
from steindiff.errors import NonFiniteError
from steindiff.noise import initial_noise
from steindiff.sampling import steps
from steindiff.solvers import Solver, make

SIGMA_MIN, SIGMA_MAX, STEPS, SAMPLES = 0.01, 10.0, 5, 256


def run_toy(first_seed: int = 0) -> Toy:
    """The exact flow, DDIM, DPM-Solver++(2M), and 2M under the clamped and the literal rule, from the same noise."""
    law = GaussianMixture(
        torch.full((2,), 0.5, dtype=torch.float64),
        torch.tensor([[-1.0], [1.0]], dtype=torch.float64),
        torch.full((2, 1, 1), 0.0025, dtype=torch.float64),
    )
    x = initial_noise(range(first_seed, first_seed + SAMPLES), (1,), SIGMA_MAX, dtype=torch.float64)
    flow = reference_flow(law, x, grids.karras(60, SIGMA_MIN, SIGMA_MAX), max_step=0.1)
    solver = make("dpmpp_2m")
    runs: dict[str, Solver] = {"DDIM": make("ddim"), "2M": solver}
    for label, rule in (("2M, Eq. 11, γ ≤ 1", "clamped"), ("2M, Eq. 11 as printed", "literal")):
        runs[label] = corrections.apply(rule, solver, divergence=Exact())
    panels = [Panel("exact flow", flow.sigmas, flow.states[..., 0])]
    return Toy(law, STEPS, (*panels, *(_panel(name, run, law, x) for name, run in runs.items())))


def _panel(name: str, solver: Solver, model: GaussianMixture, x: Tensor) -> Panel:
    sigmas = grids.karras(STEPS, SIGMA_MIN, SIGMA_MAX)
    states = [x]
    try:
        for event in steps(solver, model, x, sigmas):
            states.append(event.step.x)
    except NonFiniteError:
        states = [z for z in states if bool(torch.isfinite(z).all())]
    return Panel(name, sigmas, torch.stack(states)[..., 0])
