"""What a correction is: it sees a solver's proposal for one step and says what the next state shall be.

A correction is a frozen dataclass. What it must remember from step to step goes in and out of `correct`, as a solver's state
does:

    state = correction.init(run)                      before the first step
    outcome = correction.correct(proposal, state)     at every step: the next state, what to remember, what to record

`Proposal` holds the step itself and, on demand, its divergence, its first-order candidate and its blend with the state before.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from steindiff.denoisers import Counter, Denoiser, expand
from steindiff.divergence import Contract, Estimate, Estimator, dot
from steindiff.divergence.estimators import Through
from steindiff.divergence.products import differentiated
from steindiff.errors import SteindiffError
from steindiff.io.processes import Gather, alone
from steindiff.schedules import VE, Schedule
from steindiff.solvers.base import Grid, Interval, Solver, State, Step

A = TypeVar("A")


class _once(cached_property[A]):  # it is a decorator
    """cached_property without the lock that it has before Python 3.12, one for the proposals of all threads.

    The parts of a batch wait for each other inside such a property (`gather`).
    """

    if not TYPE_CHECKING:

        def __get__(self, instance: Any, owner: Any = None) -> Any:
            if instance is None:
                return self
            known = vars(instance)
            if self.attrname not in known:
                known[self.attrname] = self.func(instance)
            return known[self.attrname]


class Reason(IntEnum):
    """Why a step is what it is."""

    PLAIN = 0
    RULE = 1
    CLAMPED_LOW = 2
    CLAMPED_HIGH = 3
    NON_FINITE = 4
    ZERO_RESIDUAL = 5
    INACTIVE = 6
    FIXED = 7
    WITHIN_NOISE = 8


def strongest(reasons: Tensor) -> Tensor:
    """One Reason for several bands or images, (n,) → (): a fixed value or a clamp before the rule, the rule before noise."""
    order = (Reason.FIXED, Reason.CLAMPED_HIGH, Reason.CLAMPED_LOW, Reason.RULE, Reason.WITHIN_NOISE, Reason.ZERO_RESIDUAL)
    result = torch.full_like(reasons[0], Reason.NON_FINITE)
    for reason in reversed(order):
        result = torch.where((reasons == reason).any(), reason, result)
    return result


@dataclass(frozen=True, eq=False)
class Run:
    """What a correction may know before the first step."""

    grid: Grid
    steps: tuple[int, ...]
    """The steps that will be corrected, in order; the others are plain."""
    x: Tensor
    """The first state, (B, *event)."""


class Outcome(NamedTuple):
    """What a correction makes of one step."""

    x: Tensor
    """The next state, (B, *event), in VE coordinates."""
    state: Any = None
    """What the correction wants to see again at the next step."""
    numbers: Mapping[str, Tensor] = {}
    """What the trace shall hold of this step: tensors () or (n,) on the device; nothing waits for them during the run."""
    reason: Tensor | Reason = Reason.RULE


class Correction(ABC):
    """Decides what becomes of a solver's proposal; immutable, so that one object serves many runs."""

    def init(self, run: Run) -> Any:
        """The correction's state before the first step; an InputError refuses a run that the correction cannot serve."""
        return None

    def differentiates(self, run: Run) -> bool:
        """Whether any step of this run will ask for a derivative of the network; the network is then probed once before."""
        return False

    def given(self, clean: Tensor) -> "Correction":
        """This correction with the constants of the law it needs, measured on clean samples (n, *event); most need none."""
        return self

    @abstractmethod
    def correct(self, proposal: "Proposal", state: Any) -> Outcome:
        """The next state, given the solver's proposal for this step and what this correction remembers."""


class Divergence(NamedTuple):
    """E[∇·u] of one step and its standard error, both ()."""

    mean: Tensor
    se: Tensor


@dataclass
class Spent:
    """The network derivatives that one step took; `share` is m/B where they were taken for m of the B images."""

    jvps: int = 0
    vjps: int = 0
    share: float = 1.0

    def add(self, estimate: Estimate, stages: int = 1) -> None:
        """Add an estimate whose map evaluates the network `stages` times."""
        self.jvps += stages * estimate.jvps
        self.vjps += stages * estimate.vjps
        self.share = estimate.share


@dataclass(eq=False)
class Proposal:
    """One step of a solver from x, evaluated when it is first looked at; everything is computed once.

    In the frame of the blend the state is α x, the residual u = α x − α' T(x), and ρ = α/α'.
    """

    solver: Solver
    denoiser: Denoiser
    x: Tensor
    """The state before the step, (B, *event), in VE coordinates."""
    interval: Interval
    state: State
    """The solver's."""
    estimator: Estimator
    """Estimates divergences; it must have been resolved on this denoiser."""
    schedule: Schedule = field(default_factory=VE)
    """Gives the α of the frame."""
    gather: Gather = alone
    """Joins per-image numbers of several processes before a batch mean."""
    spent: Spent = field(default_factory=Spent)
    _moved: bool = False

    @_once
    def step(self) -> Step:
        """The solver's step."""
        return self.solver.step(self.denoiser, self.x, self.interval, self.state)

    @property
    def next(self) -> Tensor:
        """T(x), the proposed next state, (B, *event)."""
        return self.step.x

    @property
    def denoised(self) -> Tensor:
        """D(x, σ), the denoised value that the step starts from, (B, *event)."""
        return self.step.denoised

    @_once
    def first_order(self) -> Tensor:
        """T₁ = r x + (1−r) D, the first-order step from the same denoised value."""
        return self.solver.first_order(self.x, self.denoised, self.interval)

    @_once
    def alpha(self) -> Tensor:
        """α before the step, ()."""
        return self.schedule.alpha_of(self.interval.sigma)

    @_once
    def alpha_next(self) -> Tensor:
        """α' after the step, ()."""
        return self.schedule.alpha_of(self.interval.sigma_next)

    @_once
    def rho(self) -> Tensor:
        """ρ = α/α', ()."""
        return self.alpha / self.alpha_next

    def mean(self, values: Tensor) -> Tensor:
        """The mean of per-image numbers (B, …) over the whole batch, whichever processes hold it."""
        return self.gather(values).mean(0)

    def blend(self, gamma: Tensor) -> Tensor:
        """(1−γ) x + γ T(x) in the frame of the blend, as a VE state; γ is () or one number per image, (B,)."""
        return torch.lerp(self.rho.to(self.x) * self.x, self.next, expand(gamma.to(self.x), self.x))

    def moved(self, x: Tensor) -> "Proposal":
        """The same step with another next state, as the next correction of a chain sees it."""
        other = replace(self, _moved=True)
        other.step = self.step._replace(x=x)
        return other

    @property
    def remembers(self) -> bool:
        """Whether T depends on x through the solver's state too: `divergence` is then a part of the whole divergence."""
        return self.solver.remembers(self.interval, self.state)

    @_once
    def divergence(self) -> Divergence:
        """E[∇·u] as a function of the frame's state, by the estimator, the solver's state held constant.

        Where `remembers` is true, Stein's identity does not hold for it. Ask for it before the step: both then share one
        evaluation.

        Raises:
            SteindiffError: the step is being differentiated, or another correction has moved it before.
        """
        self._refuse_moved()

        def residual(network: Denoiser, z: Tensor) -> tuple[Tensor, tuple[Step, int]]:
            counted = Counter(network)
            step = self.solver.step(counted, z, self.interval, self.state)
            return z - step.x / self.rho, (step, counted.calls)

        estimate, (self.step, stages) = self._estimate(residual)
        self.spent.add(estimate, stages)
        return Divergence(estimate.mean, estimate.se)

    @_once
    def linear_divergence(self) -> Divergence:
        """∇·u of the solver's linear part alone, with every network output held fixed: no derivative, no error."""
        self._refuse_moved()
        div = (1 - self.solver.linear(self.interval, self.state) / self.rho) * self.x[0].numel()
        return Divergence(div, torch.zeros_like(div))

    @_once
    def tweedie_divergence(self) -> Divergence:
        """E[∇·u] = E⟨u, x − αD⟩/σ² by Stein's identity and Tweedie's formula, in the frame: no derivative, no probe.

        Stein's identity says σ² E[∇·u] = E⟨u, x − αx*⟩, and Tweedie's formula E[x* | x] = D(x). The divergence is the total
        one: it counts that the history of a multistep solver is a function of x too. It holds for any next state, moved or not.
        UniPC's D is its stored evaluation, near D(x); a table's is that at the noise level which the table tells the network.
        """
        y = self.x
        return by_tweedie(self.rho * y - self.next, y - self.denoised, self.rho * self.interval.sigma**2, self.gather)

    def denoiser_trace(self, contract: Contract) -> tuple[Tensor, Tensor]:
        """D(x, σ) and E[tr P_b ∂D/∂x], (n,): the partial traces that `contract` takes from each product, in one estimate.

        The step then starts from this D and does not evaluate it again.
        """
        x, sigma, network = self.x, self.interval.sigma, self.denoiser

        def value(network: Denoiser, z: Tensor) -> tuple[Tensor, Tensor]:
            denoised = network(z, sigma)
            return denoised, denoised

        estimate, denoised = self._estimate(value, contract)
        self.spent.add(estimate)

        def known(z: Tensor, s: Tensor) -> Tensor:
            return denoised if z is x and s is sigma else network(z, s)

        self.denoiser = known
        return denoised, estimate.mean

    def _refuse_moved(self) -> None:
        if self._moved:
            raise SteindiffError(
                "another correction has moved this step, so its divergence is not known: put the correction that needs it first"
            )

    def _estimate(self, g: Through[A], contract: Contract = dot) -> tuple[Estimate, A]:
        return by_estimator(self.estimator, g, self.denoiser, self.x, self.interval.index, self.gather, contract)


def by_tweedie(residual: Tensor, noise: Tensor, variance: Tensor, gather: Gather = alone) -> Divergence:
    """E[∇·u] = E⟨u, x − αD⟩/σ²; the residual u and the noise x − αD are (B, *event), the variance σ² is ()."""
    estimate = Estimate(gather(dot(residual, noise) / variance)[None], primals=0, jvps=0, vjps=0)
    return Divergence(estimate.mean, estimate.se)


def by_estimator(
    estimator: Estimator,
    g: Through[A],
    denoiser: Denoiser,
    x: Tensor,
    index: int,
    gather: Gather = alone,
    contract: Contract = dot,
) -> tuple[Estimate, A]:
    """∇·g at x, of the whole batch, and g's by-product.

    Raises:
        SteindiffError: x is being differentiated.
    """
    # An estimator cuts the graph and the tangent of x: what came out would be a derivative with T's part missing.
    if differentiated(x):
        raise SteindiffError(
            "a step that estimates its divergence cannot itself be differentiated: run under torch.no_grad, or freeze γ "
            "with FixedGamma"
        )
    estimate, aux = estimator.through(g, denoiser, x, index, contract)
    return estimate._replace(values=gather(estimate.values, 1)), aux


@dataclass(frozen=True, init=False)
class Chain(Correction):
    """One correction after another: each sees, as the proposal, what the one before it has made of the step.

    The divergence is that of the solver's own step, so a correction that needs it stands first. A record has the numbers of all
    parts and the reason of the first.
    """

    parts: tuple[Correction, ...]

    def __init__(self, *parts: Correction) -> None:
        object.__setattr__(self, "parts", parts)

    def init(self, run: Run) -> tuple[Any, ...]:
        """One state per part."""
        return tuple(part.init(run) for part in self.parts)

    def differentiates(self, run: Run) -> bool:
        """Whether any part does."""
        return any(part.differentiates(run) for part in self.parts)

    def given(self, clean: Tensor) -> "Chain":
        """Every part with its constants."""
        return Chain(*(part.given(clean) for part in self.parts))

    def correct(self, proposal: Proposal, state: tuple[Any, ...]) -> Outcome:
        """Every part in its turn."""
        outcomes = list[Outcome]()
        for part, own in zip(self.parts, state, strict=True):
            outcomes.append(part.correct(proposal, own))
            proposal = proposal.moved(outcomes[-1].x)
        numbers = {name: value for outcome in outcomes for name, value in outcome.numbers.items()}
        return Outcome(proposal.next, tuple(o.state for o in outcomes), numbers, outcomes[0].reason)
