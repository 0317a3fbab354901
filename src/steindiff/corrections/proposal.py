"""What a correction sees: one step of a solver, evaluated on demand, with its divergence, first-order candidate and blend.

`Proposal` computes everything once. The divergence E[∇·u] is estimated with derivatives (`by_estimator`), follows from the
denoised value (`by_tweedie`), or is that of the solver's linear part.
"""

from dataclasses import dataclass, field, replace
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
from steindiff.solvers.base import Interval, Solver, State, Step

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
