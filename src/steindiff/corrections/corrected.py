"""A corrected solver: any solver and a correction in, a solver out.

In the frame of a blend, where the state is x = α y, the residual is u = x − T(x) and the corrected state (1−γ) x + γ T(x).
In VE coordinates, where the solvers work, the same blend is y' = lerp(ρ y, T(y), γ) with ρ = α/α', and u/α' = ρ y − T(y);
its divergence with respect to x is that of y ↦ y − T(y)/ρ with respect to y.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor

from steindiff import solvers
from steindiff.corrections import registry
from steindiff.corrections.base import Correction, Reason, Run
from steindiff.corrections.proposal import Proposal, Spent
from steindiff.denoisers import Denoiser, schedule_of
from steindiff.divergence import Choice, Estimator, Hutchinson
from steindiff.errors import InputError, require
from steindiff.io.processes import Gather, alone
from steindiff.schedules import VE, Schedule
from steindiff.solvers.base import USUAL, Grid, Interval, Setting, Solver, State, Step


class Note(NamedTuple):
    """What the trace learns of one step."""

    reason: Tensor | Reason
    numbers: Mapping[str, Tensor] = {}
    spent: Spent = Spent()
    choice: Choice | None = None
    """What the one-off probe of the network found, if there was one."""


@dataclass(frozen=True)
class CorrectedState:
    """The wrapped solver's state and the correction's, with what stays the same through a run."""

    inner: State
    own: Any
    estimator: Estimator
    schedule: Schedule


@dataclass(frozen=True)
class Corrected(Solver):
    """A solver whose every step is first proposed by `solver` and then corrected by `rule`; both may be names or specs.

    T is the finished step: Heun's with both evaluations, UniPC's with its corrector (its stored evaluation is kept or refreshed
    as the solver says). What becomes of a history is the rule's to say (`CleanTarget.history`).

    Args:
        divergence: estimates E[∇·u]; by default `Hutchinson()`, one Rademacher probe, its method chosen by a probe of the
            network.
        frame: the coordinates of a blend. "model" is the model's own x = α y (the paper's choice; α comes from the denoiser
            adapter and is 1 for a plain VE denoiser); "ve" is y.
        gather: joins per-image numbers before a batch mean: `processes.gather` where several processes hold one batch, with one
            generator per image (`sample(generator=…)`), so that γ is that of the whole batch.

    A step that estimates the divergence takes derivatives of its own, and γ depends on the whole batch: to differentiate a
    corrected step, freeze its γ first (`FixedGamma`).

    Raises:
        InputError: the solver is corrected already; the rule is "none".
        SteindiffError: a step that estimates the divergence is being differentiated.
    """

    solver: Solver | str
    rule: Correction | str
    _: KW_ONLY
    divergence: Estimator | None = None
    frame: Literal["model", "ve"] = "model"
    gather: Gather = field(default=alone, repr=False)

    def __post_init__(self) -> None:
        require(self.frame in ("model", "ve"), "choose 'model' or 've'", frame=self.frame)
        object.__setattr__(self, "solver", solvers.make(self.solver))
        need = "need an estimator such as Hutchinson(), or None"
        require(self.divergence is None or isinstance(self.divergence, Estimator), need, divergence=self.divergence)
        if isinstance(self.solver, Corrected):
            raise InputError("the solver is corrected already: wrap the plain solver with one correction, or with a Chain")
        rule = registry.make(self.rule)
        if rule is None:
            raise InputError("the rule is 'none': use the solver as it is, or corrections.apply, which returns it")
        object.__setattr__(self, "rule", rule)

    def __str__(self) -> str:
        return f"{self.solver}, corrected by {self.rule}"

    @property
    def order(self) -> int:  # type: ignore[override]  # a wrapper's order is the wrapped solver's
        """The wrapped solver's."""
        return self._solver.order

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> CorrectedState:
        """Probe the network once, if any step needs a derivative."""
        own, estimator = self._rule.init(Run(grid, tuple(range(grid.steps)), x)), self.divergence or Hutchinson()
        if self.differentiates(x, grid):
            estimator = estimator.resolve(denoiser, x, grid.sigmas[0])
        schedule = schedule_of(denoiser) if self.frame == "model" else VE()
        return CorrectedState(self._solver.init(denoiser, x, grid), own, estimator, schedule)

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: CorrectedState) -> Step:
        """Propose and correct."""
        proposal = Proposal(self._solver, denoiser, x, interval, state.inner, state.estimator, state.schedule, self.gather)
        outcome = self._rule.correct(proposal, state.own)
        note = Note(outcome.reason, outcome.numbers, proposal.spent, state.estimator.choice)
        after = replace(state, inner=proposal.step.state, own=outcome.state)
        return Step(outcome.x, proposal.denoised, after, note)

    def nfe(self, sigmas: Tensor) -> int:
        """The wrapped solver's, without what the estimator adds (forward-mode and finite differences evaluate again)."""
        return self._solver.nfe(sigmas)

    @property
    def plans(self) -> bool:  # type: ignore[override]  # as for the order
        """Whether the wrapped solver does."""
        return self._solver.plans

    @property
    def stochastic(self) -> bool:  # type: ignore[override]  # as for the order
        """Whether the wrapped solver is."""
        return self._solver.stochastic

    @property
    def own_grid(self) -> Tensor | None:
        """The wrapped solver's."""
        return self._solver.own_grid

    @property
    def event(self) -> tuple[int, ...] | None:
        """The wrapped solver's."""
        return self._solver.event

    def differentiates(self, x: Tensor, grid: Grid) -> bool:
        """Whether the rule does at any step."""
        return self._rule.differentiates(Run(grid, tuple(range(grid.steps)), x))

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> "tuple[Corrected, int]":
        """As the wrapped solver does."""
        solver, steps = self._solver.for_nfe(nfe, setting)
        return replace(self, solver=solver), steps

    def linear(self, interval: Interval, state: CorrectedState) -> Tensor:
        """Not known before the step, which decides γ: of the blend it is (1−γ) ρ + γ ∂T/∂x, and not the wrapped solver's.

        Raises:
            InputError: always; a rule that wants a linear part reads that of the plain solver.
        """
        need = "a corrected step has no linear part before its γ is decided: correct the outermost solver, once, with a Chain"
        raise InputError(f"{self}: {need}")

    def remembers(self, interval: Interval, state: CorrectedState) -> bool:
        """As the wrapped solver does, or where the rule keeps a tensor of an earlier state."""
        return self._solver.remembers(interval, state.inner) or super().remembers(interval, state.own)

    def seeded(self, seed: int | tuple[int, ...]) -> "Corrected":
        """The same, with probes from `seed`."""
        return replace(self, solver=self._solver.seeded(seed), divergence=(self.divergence or Hutchinson()).seeded(seed))

    @property
    def _solver(self) -> Solver:
        return solvers.make(self.solver)

    @property
    def _rule(self) -> Correction:
        assert isinstance(self.rule, Correction)  # __post_init__ has made it one
        return self.rule


def apply(
    rule: Correction | str,
    solver: Solver | str,
    *,
    divergence: Estimator | None = None,
    frame: Literal["model", "ve"] = "model",
    gather: Gather = alone,
) -> Solver:
    """The solver under a correction; the solver itself under "none"."""
    correction, solver = registry.make(rule), solvers.make(solver)
    return solver if correction is None else Corrected(solver, correction, divergence=divergence, frame=frame, gather=gather)
