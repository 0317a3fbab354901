"""Sparse activation: a correction that acts at some steps only (SteinDiff, App. E.2)."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

from torch import Tensor

from steindiff.corrections.base import Correction, Outcome, Reason, Run
from steindiff.corrections.proposal import Proposal
from steindiff.errors import require

Steps = Collection[int] | Callable[[int, float], bool]


@dataclass(frozen=True)
class Sparse(Correction):
    """`rule` at the critical steps, the plain step elsewhere, at a plain step's cost (the paper's sparse activation).

    The paper does not agree with itself on which steps are critical. App. E.2 says early ones at high noise: `above`. App. E.1,
    of its adaptive mode, says those at low noise: `below`. It gives no noise level. A step is corrected where all conditions
    that are given hold; with none it always is.

    Args:
        rule: the correction that acts there.
        above: it acts at steps that start above this VE noise level.
        below: it acts at steps that start at this VE noise level or below it.
        steps: it acts at these steps, 0 … n−1: indices, or a predicate of (index, sigma).

    Raises:
        InputError: a noise level is not positive, no level lies between `above` and `below`, or `steps` is something else; at
            the start of a run, `steps` names one beyond it.
    """

    rule: Correction
    above: float | None = None
    below: float | None = None
    steps: Steps | None = None

    def __post_init__(self) -> None:
        above, below = 0.0 if self.above is None else self.above, float("inf") if self.below is None else self.below
        between = 0 <= above < below and 0 not in (self.above, self.below)
        require(between, "need noise levels 0 < above < below", above=self.above, below=self.below)
        # A mask of booleans would pass for the indices 0 and 1.
        indices = isinstance(self.steps, Collection) and all(
            isinstance(i, SupportsIndex) and not isinstance(i, bool) for i in self.steps
        )
        known = self.steps is None or callable(self.steps) or indices
        require(known, "give step indices such as (0, 2), or a predicate of (index, sigma)", steps=self.steps)

    def init(self, run: Run) -> tuple[frozenset[int], Any]:
        """Which steps are corrected, decided on the host, and the rule's state."""
        part = self._part(run)
        return frozenset(part.steps), self.rule.init(part)

    def differentiates(self, run: Run) -> bool:
        """Whether the rule does at any of its steps."""
        return self.rule.differentiates(self._part(run))

    def given(self, clean: Tensor) -> "Sparse":
        """With the rule's constants."""
        return replace(self, rule=self.rule.given(clean))

    def correct(self, proposal: Proposal, state: tuple[frozenset[int], Any]) -> Outcome:
        """The rule's outcome, or the proposal as it is."""
        active, own = state
        if proposal.interval.index not in active:
            return Outcome(proposal.next, state, reason=Reason.INACTIVE)
        outcome = self.rule.correct(proposal, own)
        return outcome._replace(state=(active, outcome.state))

    def _part(self, run: Run) -> Run:
        """The run as the rule sees it."""
        if isinstance(self.steps, Collection):
            beyond = [i for i in self.steps if i not in range(run.grid.steps)]
            require(not beyond, f"this run has steps 0 to {run.grid.steps - 1}", steps=beyond)
        return replace(run, steps=tuple(i for i in run.steps if self._acts(i, run.grid.levels[i])))

    def _acts(self, index: int, sigma: float) -> bool:
        named = self.steps is None or (index in self.steps if isinstance(self.steps, Collection) else self.steps(index, sigma))
        return bool(named) and (self.above is None or sigma > self.above) and (self.below is None or sigma <= self.below)
