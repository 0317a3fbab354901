"""Match the energy of the true marginal instead of the clean image: our own correction, first version.

The true marginal at VE noise level σ satisfies, for every orthogonal projection P_b of rank d_b and with no reference data,

    E‖P_b x_σ‖² = M_b + σ² d_b,      M_b = E‖P_b x*‖² = E‖P_b D‖² + σ² E[tr P_b ∂D/∂x]      (Tweedie, Stein).

A first-order step T₁ = r x + (1−r) D, r = σ'/σ, started on the marginal, loses exactly (1−r)² (M_b − E‖P_b D‖²) of it. With the
solver's candidate T and w = T − T₁, the corrected state is T₁ + Σ_b η_b P_b w, and η_b makes up that deficit:

    E‖P_b(T₁ + η w)‖² = E‖P_b T₁‖² + deficit_b,      a quadratic in η; η = 1 is the plain solver.

The noise level is never left, no evaluation is added, and only M_b can need a derivative.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from steindiff.arguments import check_samples
from steindiff.corrections import bands as registry
from steindiff.corrections.bands import Bands, Whole
from steindiff.corrections.base import Correction, Outcome, Reason, Run, strongest
from steindiff.corrections.proposal import Proposal
from steindiff.corrections.stein import read_numbers
from steindiff.errors import InputError, require

TARGET = "target"
"""The moment that a study fills in from each testbed's own clean samples."""


@dataclass(frozen=True)
class Energy(Correction):
    """x' = T + Σ_b (η_b − 1) P_b w; η_b is the root nearest 1 of a η² + 2 b η = deficit_b, within a trust region.

    Here a = E‖P_b w‖² and b = E⟨P_b T₁, P_b w⟩. Only what is significant is corrected: η − 1 is first pulled towards 0 by
    `significance` standard errors, so that a batch of one is the plain solver's and a deficit within noise changes nothing.

    Args:
        moment: M_b, one number per band: numbers, the path of a JSON list of them (`second_moment` measures them), or "target",
            which a study fills in by `given`. None measures M_b at this run's own first corrected step, by one derivative.
        bands: the projections, as `bands.make` takes them; one band by default.
        deficit: "local" makes up what a first-order step loses in this interval, (1−r)² (M_b − E‖P_b D‖²); "track" makes up
            everything lost so far, M_b + σ'² d_b − E‖P_b T₁‖².
        eta_min: the lower end of the trust region, ≤ 1.
        eta_max: the upper end, ≥ 1.
        significance: how many standard errors of η count as noise; 0 corrects everything.
    """

    moment: tuple[float, ...] | Sequence[float] | Tensor | float | str | None = None
    bands: Bands | int | str = "whole"
    deficit: Literal["local", "track"] = "local"
    eta_min: float = 0.5
    eta_max: float = 1.5
    significance: float = 2.0

    def __post_init__(self) -> None:
        around = self.eta_min <= 1 <= self.eta_max < float("inf")
        require(around, "need eta_min ≤ 1 ≤ eta_max < inf", eta_min=self.eta_min, eta_max=self.eta_max)
        require(self.significance >= 0, "need significance ≥ 0", significance=self.significance)
        require(self.deficit in ("local", "track"), "choose 'local' or 'track'", deficit=self.deficit)
        object.__setattr__(self, "bands", registry.make(self.bands))
        object.__setattr__(self, "moment", _numbers(self.moment))

    def given(self, clean: Tensor) -> "Energy":
        """With moment "target" measured on these samples; any other moment stays."""
        return replace(self, moment=second_moment(clean, self._bands)) if self.moment == TARGET else self

    def init(self, run: Run) -> Tensor | None:
        """M_b, (n,) in float64, where it is given. Raises InputError for a name, which only studies know, and for another n."""
        self._bands.ready(run.x)
        if self.moment is None:
            return None
        if isinstance(self.moment, str):
            raise InputError(
                f"moment={self.moment!r} is for studies: give numbers, a JSON file, or None to measure it in the run"
            )
        bands = len(self._bands.sizes(run.x.shape[1:]))
        m = torch.tensor(self.moment, dtype=torch.float64, device=run.x.device)
        if len(m) != bands:
            raise InputError(f"moment has {len(m)} entries for {bands} bands: give one per band")
        return m

    def differentiates(self, run: Run) -> bool:
        """Once, at the first corrected step, where M_b is not given."""
        return self.moment is None and bool(run.steps)

    def correct(self, proposal: Proposal, state: Tensor | None) -> Outcome:
        """Measure the band energies, decide η, move the candidate along w; bitwise T where η = 1."""
        second = self.measure(proposal) if state is None else state
        bands, event, (start, end) = self._bands, proposal.x.shape[1:], proposal.interval.levels
        first, move = bands.analyse(proposal.first_order), bands.analyse(proposal.next - proposal.first_order)
        ff, fm, mm = (proposal.gather(bands.sums(a, b, event)) for a, b in ((first, first), (first, move), (move, move)))
        if self.deficit == "local":
            dd = proposal.gather(bands.inner(proposal.denoised, proposal.denoised))
            deficit = (1 - end / start) ** 2 * (second.to(move) - dd)
        else:
            deficit = second.to(move) + end**2 * bands.sums(torch.ones_like(move[:1]), torch.ones_like(move[:1]), event) - ff
        eta, raw, reason = self._decide(ff, fm, mm, deficit)
        numbers = {"eta": eta, "eta_raw": raw, "move": mm.mean(0).sum()}
        return Outcome(proposal.next + bands.weighed(move, eta - 1, event), second, numbers, strongest(reason))

    def measure(self, proposal: Proposal) -> Tensor:
        """M_b = E‖P_b D‖² + σ² E[tr P_b ∂D/∂x] from the run's batch, (n,): one evaluation of D, which the step then uses.

        The partial traces of all bands come from the same products. With `Hutchinson(samples=m)` these are of the first m
        images; E‖P_b D‖² is the mean over all of them.
        """
        denoised, traces = proposal.denoiser_trace(self._bands.inner)
        energy = proposal.mean(self._bands.inner(denoised, denoised))
        return energy + (proposal.interval.sigma**2 * traces).clamp_min(0)

    def _decide(self, first: Tensor, cross: Tensor, move: Tensor, deficit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """η, η before any bound and its Reason, (n,), from ‖P_b T₁‖², ⟨P_b T₁, P_b w⟩, ‖P_b w‖² and the deficit, (B, n)."""
        a, b, c = move.mean(0), cross.mean(0), deficit.mean(0)
        raw = _root_near_one(a, b, c)
        spread = move * raw**2 + 2 * cross * raw - deficit
        se = _standard_error(spread) / (2 * (a * raw + b)).abs()
        step = raw - 1
        if self.significance > 0:
            step = step.sign() * (step.abs() - self.significance * se).clamp_min(0)
        eta = (1 + step).clamp(self.eta_min, self.eta_max)
        reason = torch.where(step == 0, Reason.WITHIN_NOISE, Reason.RULE)
        reason = torch.where(1 + step < self.eta_min, Reason.CLAMPED_LOW, reason)
        reason = torch.where(1 + step > self.eta_max, Reason.CLAMPED_HIGH, reason)
        reason = torch.where(torch.isfinite(raw) & ~step.isnan(), reason, Reason.NON_FINITE)
        # A move below the rounding of the state says nothing about energy.
        still = a <= (8 * torch.finfo(a.dtype).eps) ** 2 * first.mean(0)
        reason = torch.where(still, Reason.ZERO_RESIDUAL, reason)
        keep = (reason == Reason.NON_FINITE) | (reason == Reason.ZERO_RESIDUAL)
        return torch.where(keep, 1.0, eta), raw, reason

    @property
    def _bands(self) -> Bands:
        return registry.make(self.bands)


def second_moment(samples: Tensor, bands: Bands | None = None) -> Tensor:
    """M_b = E‖P_b x*‖² of clean samples (n, *event), (bands,): measured once on data or on a fine run of the model.

    `json.dump(second_moment(samples, bands).tolist(), file)` writes what `Energy(moment="m.json")` reads. Raises InputError
    for no dense tensor of real numbers of that shape, and for moments that are not finite.
    """
    bands = bands or Whole()
    moments = torch.cat([bands.inner(chunk, chunk) for chunk in check_samples(samples).split(512)]).mean(0)
    require(bool(moments.isfinite().all()), "samples hold NaN or are too large: leave those out", moments=moments.tolist())
    return moments


def _numbers(moment: Sequence[float] | Tensor | float | str | None) -> tuple[float, ...] | str | None:
    """M_b as a tuple, so that two equal corrections compare equal and their text says all digits."""
    if moment is None or moment == TARGET:
        return moment  # type: ignore[return-value]  # "target" or None
    numbers = read_numbers(moment, "a list of second moments") if isinstance(moment, str) else moment
    m = torch.as_tensor(numbers, dtype=torch.float64)
    if m.ndim > 1 or not bool((torch.isfinite(m) & (m >= 0)).all()):
        raise InputError(f"moment={moment}: need E‖P_b x*‖² ≥ 0, finite, one number per band")
    return tuple(m.reshape(-1).tolist())


def _root_near_one(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The root of aη² + 2bη − c nearest 1; where there is none, the extremum −b/a, as close as the energy comes."""
    root = (b * b + a * c).clamp_min(0).sqrt()
    high, low = (-b + root) / a, (-b - root) / a
    return torch.where((high - 1).abs() <= (low - 1).abs(), high, low)


def _standard_error(z: Tensor) -> Tensor:
    """Of the batch mean, (n,); infinite for a batch of one."""
    if len(z) < 2:
        return torch.full_like(z[0], float("inf"))
    return torch.std(z, dim=0) / math.sqrt(len(z))
