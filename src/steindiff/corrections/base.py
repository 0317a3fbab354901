"""The Stein correction as a wrapper: any solver in, a corrected solver out.

One step of the wrapped solver proposes T(y). In the frame of the blend, where the state is x = α y, the residual is
u = x − T(x) and the corrected state is

    x' = (1−γ) x + γ T(x),        γ = [(1 − 1/α) E⟨u,x⟩ + (σ²/α) E[∇·u]] / E‖u‖²        (SteinDiff Eq. 11, Algorithm 1)

with E the mean over the batch. In VE coordinates, where the solvers work, the same blend is y' = lerp(ρ y, T(y), γ) with
ρ = α/α', and u/α' = ρ y − T(y); its divergence with respect to x is that of y ↦ y − T(y)/ρ with respect to y.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, SupportsIndex

import torch
from torch import Tensor
from torch.autograd import forward_ad

from steindiff.corrections.energy import Energy
from steindiff.corrections.matching import Matched, match_energy, measure_second_moment
from steindiff.corrections.rules import Decision, GammaRule, Moments, Need, Reason, Rule, strongest
from steindiff.denoisers import Counter, Denoiser, schedule_of
from steindiff.divergence import Choice, Estimator, Hutchinson
from steindiff.errors import InputError, SteindiffError
from steindiff.io.processes import Gather, alone
from steindiff.schedules import VE, Schedule
from steindiff.solvers.base import Grid, Interval, Solver, State, Step

__all__ = ["Corrected", "CorrectedState", "Correction", "WrappedState", "corrected_state"]


class Correction(NamedTuple):
    """What one step did: its moments, its decision, and the network derivatives it took; NaN moments for an inactive step."""

    moments: Moments
    decision: Decision
    noise_ratio: Tensor
    """σ̂/σ, see `_noise_ratio`; NaN where no network derivative was taken."""
    jvps: int
    vjps: int
    eta: Tensor | None = None
    """η per band, (n,), of `rules.Energy`; the decision holds its mean over dimensions."""
    share: float = 1.0
    """m/B where the derivatives were taken for m of the B images."""


@dataclass(frozen=True)
class WrappedState:
    """State of a solver that holds another solver."""

    inner: State


def corrected_state(state: State) -> CorrectedState | None:
    """The correction's state inside any nesting of wrappers; None for a plain solver."""
    while isinstance(state, WrappedState):
        if isinstance(state, CorrectedState):
            return state
        state = state.inner
    return None


@dataclass(frozen=True)
class CorrectedState(WrappedState):
    """The wrapped solver's state, the resolved estimator, what each step needs, and the last step's record."""

    estimator: Estimator
    schedule: Schedule
    needs: tuple[Need | None, ...]
    second_moment: Tensor | None = None
    """M_b of `rules.Energy`, (n,), once known."""
    last: Correction | None = None

    @property
    def choice(self) -> Choice | None:
        """What the one-off probe of the network found, if there was one."""
        return self.estimator.choice


@dataclass(frozen=True)
class Corrected(Solver):
    """x' = lerp(x, T(x), γ) in the chosen frame, T a step of `solver`, γ from `rule`. With γ = 1 bitwise the plain solver.

    History of a multistep solver is constant in the Jacobian; T is the finished step: Heun's with both evaluations, UniPC's
    with its corrector (its stored evaluation is kept or refreshed as the solver says).

    Args:
        solver: any solver.
        rule: what γ should be.
        divergence: estimator of E[∇·u]; default `Hutchinson()`, one Rademacher probe, method chosen by a probe of the network.
        frame: coordinates of the blend: "model", the model's own x = α y (the paper's choice; α from the denoiser adapter, 1
            for a plain VE denoiser), or "ve".
        active: which steps to correct (the paper's sparse activation): indices, or a predicate of (index, sigma); None: all.
            Other steps are plain and cost nothing.
        gather: joins per-image numbers before a batch mean: `distributed.gather` where several processes hold one batch, with
            one generator per image (`sample(generator=…)`), so that γ is that of the whole batch.

    A step that estimates the divergence takes derivatives of its own, and γ depends on the whole batch: to differentiate a
    corrected step, freeze its γ first (`FixedGamma`).

    Raises:
        InputError: an unknown frame; a solver that is corrected already; `active` neither indices nor a predicate, or, at the
            start of a run, an index beyond it.
        SteindiffError: a step that estimates the divergence is being differentiated.
    """

    solver: Solver
    rule: Rule
    divergence: Estimator | None = None
    frame: Literal["model", "ve"] = "model"
    active: Collection[int] | Callable[[int, float], bool] | None = None
    gather: Gather = field(default=alone, repr=False)
    order: int = field(init=False)

    def __post_init__(self) -> None:
        if self.frame not in ("model", "ve"):
            raise InputError(f"frame={self.frame!r}: choose 'model' or 've'")
        if isinstance(self.solver, Corrected):
            raise InputError("the solver is corrected already: one correction per step; wrap the plain solver with one rule")
        indices = isinstance(self.active, Collection) and all(_is_index(i) for i in self.active)
        if not (self.active is None or callable(self.active) or indices):
            raise InputError(f"active={self.active!r}: give step indices, or a predicate of (index, sigma)")
        object.__setattr__(self, "order", self.solver.order)

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> CorrectedState:
        """Decide once, on the host, what every step needs; probe the network if any needs a derivative."""
        levels = list(grid.levels[:-1])
        self.rule.check(len(levels))
        active = self._active(levels)
        planned = iter(self.rule.plan([s for s, on in zip(levels, active, strict=True) if on]))
        needs = tuple(next(planned) if on else None for on in active)
        estimator = self.divergence or Hutchinson()
        if Need.FULL in needs:
            estimator = estimator.resolve(denoiser, x, grid.nodes[0])
        schedule = schedule_of(denoiser) if self.frame == "model" else VE()
        second = self.rule.second_moment if isinstance(self.rule, Energy) else None
        known = None if second is None else torch.as_tensor(second, device=x.device)
        return CorrectedState(self.solver.init(denoiser, x, grid), estimator, schedule, needs, known)

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: CorrectedState) -> Step:
        """Propose, measure, decide, blend."""
        need = state.needs[interval.index]
        if need is None:
            proposal = self.solver.step(denoiser, x, interval, state.inner)
            return proposal._replace(state=replace(state, inner=proposal.state, last=_inactive(interval.sigma)))
        match self.rule:
            case Energy():
                return self._match(self.rule, denoiser, x, interval, state, need)
            case GammaRule():
                return self._blend(self.rule, denoiser, x, interval, state, need)
        raise InputError(f"rule {type(self.rule).__name__}: need a GammaRule or Energy from steindiff.rules")

    def _blend(
        self, rule: GammaRule, denoiser: Denoiser, x: Tensor, interval: Interval, state: CorrectedState, need: Need
    ) -> Step:
        """x' = lerp(x, T, γ) in the chosen frame."""
        a, a_next = (state.schedule.alpha_of(s) for s in (interval.sigma, interval.sigma_next))
        rho = a / a_next
        proposal, div, div_se, jvps, vjps, share = self._propose(denoiser, x, interval, state, need, rho)
        ux, uu = _inner_products(x, proposal.x, rho, self.gather)
        # ⟨u,x⟩ = α α' ⟨ρy − T, y⟩ and ‖u‖² = α'² ‖ρy − T‖² in the frame of the blend.
        moments = Moments(
            a, a * interval.sigma, a_next, a_next * interval.sigma_next, a * a_next * ux, a_next**2 * uu, div, div_se
        )
        decision = rule.decide(moments, interval.index)
        blended = torch.lerp(rho.to(x) * x, proposal.x, decision.gamma.to(x))
        ratio = torch.full_like(uu, float("nan"))
        if need is Need.FULL:
            ratio = _noise_ratio(_inner_products(x, proposal.x, torch.ones_like(rho), self.gather)[1], x, interval, rho, div)
        done = Correction(moments, decision, ratio, jvps, vjps, share=share)
        return Step(blended, proposal.denoised, replace(state, inner=proposal.state, last=done))

    def _match(
        self, rule: Energy, denoiser: Denoiser, x: Tensor, interval: Interval, state: CorrectedState, need: Need
    ) -> Step:
        """x' = T₁ + Σ_b η_b P_b (T − T₁), in VE coordinates whatever the frame."""
        second, jvps, vjps, share = state.second_moment, 0, 0, 1.0
        if need is Need.FULL:
            _refuse_differentiation(x)
            second, proposal, jvps, vjps, share = measure_second_moment(
                rule, self.solver, state.estimator, denoiser, x, interval, state.inner, self.gather
            )
        else:
            proposal = self.solver.step(denoiser, x, interval, state.inner)
        assert second is not None  # planned: the first corrected step measures it where it was not given
        first = self.solver.first_order(x, proposal.denoised, interval)
        matched = match_energy(rule, first, proposal, interval, second, self.gather)
        done = _band_record(matched, interval, rule.bands.sizes(x.shape[1:]).to(x.device), jvps, vjps)
        done = done._replace(share=share)
        return Step(matched.x, proposal.denoised, replace(state, inner=proposal.state, second_moment=second, last=done))

    def nfe(self, sigmas: Tensor) -> int:
        """The wrapped solver's, without what the estimator adds (forward-mode and finite differences evaluate again)."""
        return self.solver.nfe(sigmas)

    def for_nfe(self, nfe: int) -> tuple[Solver, int]:
        """The wrapped solver's, corrected as this one."""
        solver, steps = self.solver.for_nfe(nfe)
        return replace(self, solver=solver), steps

    def first_order(self, x: Tensor, denoised: Tensor, interval: Interval) -> Tensor:
        """The wrapped solver's."""
        return self.solver.first_order(x, denoised, interval)

    def linear(self, interval: Interval, state: CorrectedState) -> Tensor:
        """The wrapped solver's."""
        return self.solver.linear(interval, state.inner)

    def seeded(self, seed: int | tuple[int, ...]) -> Corrected:
        """The same, with probes from `seed`."""
        return replace(self, solver=self.solver.seeded(seed), divergence=(self.divergence or Hutchinson()).seeded(seed))

    def _propose(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, state: CorrectedState, need: Need, rho: Tensor
    ) -> tuple[Step, Tensor, Tensor, int, int, float]:
        """T(y) with E[∇·u] and its standard error by what the step needs, and the network's JVPs and VJPs, with their share."""
        if need is not Need.FULL:
            proposal = self.solver.step(denoiser, x, interval, state.inner)
            if need is Need.NOTHING:
                nan = torch.full_like(rho, float("nan"))
                return proposal, nan, nan, 0, 0, 1.0
            div = (1 - self.solver.linear(interval, state.inner) / rho) * x[0].numel()
            return proposal, div, torch.zeros_like(div), 0, 0, 1.0
        _refuse_differentiation(x)

        def residual(network: Denoiser, z: Tensor) -> tuple[Tensor, tuple[Step, int]]:
            counted = Counter(network)
            step = self.solver.step(counted, z, interval, state.inner)
            return z - step.x / rho, (step, counted.calls)

        estimate, (proposal, stages) = state.estimator.through(residual, denoiser, x, interval.index)
        estimate = estimate.over(self.gather)
        return proposal, estimate.mean, estimate.se, stages * estimate.jvps, stages * estimate.vjps, estimate.share

    def _active(self, levels: list[float]) -> list[bool]:
        match self.active:
            case None:
                return [True] * len(levels)
            case Collection():
                beyond = [i for i in self.active if not 0 <= i < len(levels)]
                if beyond:
                    raise InputError(f"active steps {beyond}: this run has steps 0 to {len(levels) - 1}")
                return [i in self.active for i in range(len(levels))]
        return [bool(self.active(i, s)) for i, s in enumerate(levels)]


def _band_record(matched: Matched, interval: Interval, sizes: Tensor, jvps: int, vjps: int) -> Correction:
    """One step of `rules.Energy` for the trace: η averaged over dimensions, the strongest reason, E‖w‖² as E‖u‖²."""
    share = sizes / sizes.sum()
    eta, raw, reasons = matched.decision
    nan, one = torch.full_like(interval.sigma, float("nan")), torch.ones_like(interval.sigma)
    moments = Moments(one, interval.sigma, one, interval.sigma_next, nan, matched.move, nan, nan)
    decision = Decision((share * eta).sum(), (share * raw.nan_to_num(1.0)).sum(), strongest(reasons))
    return Correction(moments, decision, nan, jvps, vjps, eta)


def _is_index(value: object) -> bool:
    """A mask of booleans would pass for the indices 0 and 1."""
    return isinstance(value, SupportsIndex) and not isinstance(value, bool)


def _inactive(like: Tensor) -> Correction:
    """The record of a step left plain."""
    one, nan = torch.ones_like(like), torch.full_like(like, float("nan"))
    moments = Moments(*[nan] * len(Moments._fields))
    return Correction(moments, Decision(one, one, torch.full_like(like, Reason.INACTIVE)), nan, 0, 0)


def _refuse_differentiation(x: Tensor) -> None:
    """An estimator cuts the graph and the tangent of x: what came out would be a derivative with T's part missing."""
    if (x.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(x).tangent is not None:
        raise SteindiffError(
            "a step that estimates its divergence cannot itself be differentiated: run under torch.no_grad, or freeze γ "
            "with FixedGamma"
        )


def _inner_products(y: Tensor, candidate: Tensor, rho: Tensor, gather: Gather) -> tuple[Tensor, Tensor]:
    """Batch means of ⟨u, y⟩ and ‖u‖², u = ρy − T, summed in float32 or better; a residual that is all rounding counts as 0."""
    wide = torch.promote_types(y.dtype, torch.float32)
    u, y = (rho * y - candidate).to(wide), y.to(wide)
    ux, uu, yy = (gather((a * b).flatten(1).sum(1)).mean() for a, b in ((u, y), (u, u), (y, y)))
    rounding = (4 * torch.finfo(candidate.dtype).eps * rho) ** 2 * yy
    return ux, torch.where(uu > rounding, uu, uu * 0)  # times 0: NaN stays NaN


def _noise_ratio(spread: Tensor, y: Tensor, interval: Interval, rho: Tensor, div: Tensor) -> Tensor:
    """σ̂/σ, σ̂² = E‖y−D‖²/E[∇·(y−D)], read off spread = E‖y − T‖²: y − T is (1−r)(y−D) for a first-order step.

    div is that of y − T/ρ, so E[∇·(y − T)] = d − ρ (d − div).
    """
    r = interval.sigma_next / interval.sigma
    d = y[0].numel()
    return (spread / ((1 - r) * interval.sigma**2 * (d - rho * (d - div)))).sqrt()
