"""Apply `rules.Energy` to one step: measure the band energies, decide η, move the candidate along w = T − T₁."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steindiff.corrections.bands import Bands, Whole
from steindiff.corrections.energy import BandMoments, Energy
from steindiff.corrections.rules import Decision
from steindiff.denoisers import Denoiser
from steindiff.divergence import Estimator
from steindiff.errors import InputError
from steindiff.io.processes import Gather, alone
from steindiff.solvers.base import Interval, Solver, State, Step

__all__ = ["Matched", "match_energy", "measure_second_moment", "second_moment"]


class Matched(NamedTuple):
    """The corrected state, η per band, and E‖w‖² over all bands."""

    x: Tensor
    decision: Decision
    move: Tensor


def match_energy(
    rule: Energy, first: Tensor, proposal: Step, interval: Interval, second: Tensor, gather: Gather = alone
) -> Matched:
    """x' = T + Σ_b (η_b − 1) P_b w, w = T − T₁, T₁ the first-order step from the same denoised value; bitwise T where η = 1.

    first is T₁, (B, *event), VE coordinates; second is M_b, (n,).

    Raises:
        InputError: M_b does not have one entry per band.
    """
    move = proposal.x - first
    sizes = rule.bands.sizes(first.shape[1:]).to(first.device)
    if second.shape != sizes.shape:
        raise InputError(f"second_moment has {len(second)} entries for {len(sizes)} bands: give one per band")
    pairs = ((first, first), (first, move), (move, move), (proposal.denoised, proposal.denoised))
    ff, fm, mm, dd = (gather(rule.bands.inner(a, b)) for a, b in pairs)
    moments = BandMoments(ff, fm, mm, dd, second.to(first), sizes, interval.sigma, interval.sigma_next)
    decision = rule.decide(moments)
    moved = proposal.x + rule.bands.scale(move, decision.gamma - 1)
    return Matched(moved, decision, moments.move.mean(0).sum())


def measure_second_moment(
    rule: Energy, solver: Solver, estimator: Estimator, denoiser: Denoiser, x: Tensor, interval: Interval, state: State,
    gather: Gather = alone,
) -> tuple[Tensor, Step, int, int, float]:  # fmt: skip
    """M_b = E‖P_b D‖² + σ² E[tr P_b ∂D/∂x] from the run's own batch, with the step itself, the JVPs and VJPs, and their share.

    The partial traces of all bands come from the same products, vᵀP_b (∂D/∂x) v, of D(x, σ) alone: what else the step evaluates
    is evaluated once, without derivative, and its value of D(x, σ) is the one already at hand. With `Hutchinson(samples=m)` the
    products are of the first m images; E‖P_b D‖² is the mean over all of them.
    """

    def value(network: Denoiser, z: Tensor) -> tuple[Tensor, Tensor]:
        denoised = network(z, interval.sigma)
        return denoised, denoised

    estimate, denoised = estimator.through(value, denoiser, x, interval.index, contract=rule.bands.inner)

    def known(z: Tensor, sigma: Tensor) -> Tensor:
        return denoised if z is x and sigma is interval.sigma else denoiser(z, sigma)

    proposal = solver.step(known, x, interval, state)
    energy, estimate = gather(rule.bands.inner(denoised, denoised)).mean(0), estimate.over(gather)
    posterior = interval.sigma**2 * estimate.mean
    return energy + posterior.clamp_min(0), proposal, estimate.jvps, estimate.vjps, estimate.share


def second_moment(samples: Tensor, bands: Bands | None = None) -> Tensor:
    """M_b = E‖P_b x*‖² of clean samples (n, *event), data or a fine run of the model: a one-off calibration, (bands,)."""
    bands = bands or Whole()
    return torch.cat([bands.inner(chunk, chunk) for chunk in samples.split(512)]).mean(0)
