"""The noise that a batch really has, and the summary of a trace.

Under the exact coupling E‖x − D‖² = σ² E[∇·(x − D)] (Stein), so σ̂² = E‖x − D‖²/E[∇·(x − D)] is the noise level the batch
has, whatever level it is told; σ̂/σ = 1 on the ideal marginal.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff.analytic.checks import noise_level
from steindiff.arguments import check_batch, check_denoiser
from steindiff.denoisers import Denoiser
from steindiff.diagnostics.jacobian import norms
from steindiff.divergence import Estimator, Hutchinson
from steindiff.errors import InputError, require
from steindiff.trace import Record


def noise_mismatch(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, *, estimator: Estimator | None = None, index: int = 0
) -> Tensor:
    """σ̂/σ of a batch, 0-dim: below 1 it is cleaner than it is told, above 1 noisier. NaN where the estimate is not positive.

    Unlike a trace's `noise_ratio`, which is read off a solver's residual and exact for first-order steps only, this asks the
    denoiser itself: one evaluation and one derivative at x (B, *event), VE coordinates, told `sigma` (). E[∇·(x − D)] comes
    from the estimator, by default `Hutchinson(method="vjp")` with one Rademacher probe; `index` picks the probes, as a step
    index does. Raises SteindiffError where the derivative fails.
    """
    check_denoiser(denoiser)
    check_batch(x)
    level = noise_level(sigma, x)
    require(level.ndim == 0, "need one noise level, the whole batch's", sigma=tuple(level.shape))

    def residual(z: Tensor) -> tuple[Tensor, Tensor]:
        u = z - denoiser(z, level)
        return u, u

    estimate, u = (estimator or Hutchinson(method="vjp"))(residual, x, index)
    return (norms(u).square().mean() / (level.to(u) ** 2 * estimate.mean)).sqrt()


@dataclass(frozen=True)
class TraceSummary:
    """A trace in a few numbers: γ over the steps, `raw_max` the largest before any bound, how many steps had which reason.

    `noise_min` and `noise_max` are of σ̂/σ over the steps where it was measured; NaN where it was nowhere.
    """

    steps: int
    gamma_min: float
    gamma_median: float
    gamma_max: float
    raw_max: float
    reasons: dict[str, int]
    noise_min: float
    noise_max: float


def summarize(trace: Sequence[Record]) -> TraceSummary:
    """The summary of `SampleResult.trace`. Raises InputError for an empty trace."""
    known = isinstance(trace, Sequence) and all(isinstance(record, Record) for record in trace)
    require(known, "need the records of SampleResult.trace", trace=type(trace).__name__)
    if not trace:
        raise InputError("an empty trace: summarise the trace of a run with at least one step")
    gammas = [r.gamma for r in trace]
    ratios = [r.noise_ratio for r in trace if r.noise_ratio == r.noise_ratio] or [math.nan]
    median = float(torch.tensor(gammas, dtype=torch.float64).quantile(0.5))
    raw, reasons = max(r.gamma_raw for r in trace), dict(Counter(r.reason for r in trace))
    return TraceSummary(len(trace), min(gammas), median, max(gammas), raw, reasons, min(ratios), max(ratios))
