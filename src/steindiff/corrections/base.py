"""What a correction is: it sees a solver's proposal for one step and says what the next state shall be.

A correction is a frozen dataclass. What it must remember from step to step goes in and out of `correct`, as a solver's state
does:

    state = correction.init(run)                      before the first step
    outcome = correction.correct(proposal, state)     at every step: the next state, what to remember, what to record
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steindiff.corrections.proposal import Proposal as Proposal
from steindiff.corrections.proposal import Spent as Spent
from steindiff.solvers.base import Grid


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
    def correct(self, proposal: Proposal, state: Any) -> Outcome:
        """The next state, given the solver's proposal for this step and what this correction remembers."""


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
