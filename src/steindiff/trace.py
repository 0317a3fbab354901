"""The trace of a run: what every step was, as plain numbers.

During a run the numbers stay on the device, in one buffer. Kept as they come, one small tensor for each number of each step
would lie between the large blocks that a step frees, and the allocator could not use these again: with the derivatives of a
network, the memory of a process then grew by more than three states a step.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steindiff.corrections.base import Reason, Spent
from steindiff.corrections.blend import Moments, Need
from steindiff.corrections.corrected import Note
from steindiff.divergence import Choice
from steindiff.solvers import Interval

_FIRST = 1024
"""Numbers that a new buffer has room for."""


@dataclass(frozen=True)
class Record:
    """One step of the trace, from VE noise level `sigma` to `sigma_next`; plain numbers.

    Attributes:
        reason: why the step is what it is, a name of `corrections.Reason` in lower case; "plain" without a correction.
        numbers: what the correction recorded, by name: "gamma", "eta" (one number per band), …; empty for a plain step.
    """

    index: int
    sigma: float
    sigma_next: float
    reason: str = "plain"
    numbers: dict[str, float | tuple[float, ...]] = field(default_factory=dict)

    @property
    def gamma(self) -> float:
        """γ; its mean over the batch where every image has its own, and 1 where the step is no blend."""
        return self._number("gamma", 1.0)

    @property
    def gamma_raw(self) -> float:
        """γ before any bound; 1 where the step is no blend."""
        return self._number("gamma_raw", 1.0)

    @property
    def noise_ratio(self) -> float:
        """σ̂/σ, σ̂² = E‖x−D‖²/E[∇·(x−D)] the noise level the batch really has, read off the step's residual.

        It compares two forms of E[∇·u], that of Tweedie's formula and the derivative's. It is exact for a first-order step, and
        1 on the ideal marginal for every step that depends on x alone. NaN without a derivative, where the step depends on a
        history too, and where the estimate is not positive.
        """
        return self._number("noise_ratio", math.nan)

    @property
    def source(self) -> str:
        """Where E[∇·u] came from, a name of `corrections.blend.Need` in lower case; "" where the step is no blend.

        "full" is the estimator; "frozen" the estimator with a history held constant; "tweedie" the form without a derivative,
        which a rule takes by default where a step depends on a history; "linear" the solver's linear part.
        """
        return Need(int(self._number("source", 0))).name.lower() if "source" in self.numbers else ""

    @property
    def moments(self) -> dict[str, float]:
        """The moments of `corrections.blend.Moments` that a blend measured; empty where the step is no blend."""
        return {name: self._number(name, math.nan) for name in Moments._fields if name in self.numbers}

    def as_json(self) -> dict[str, Any]:
        """A flat dictionary for trace files."""
        named = {name: getattr(self, name) for name in ("gamma", "gamma_raw", "reason", "moments", "source", "noise_ratio")}
        others = {k: v for k, v in self.numbers.items() if k not in named and k not in Moments._fields}
        return {"index": self.index, "sigma": self.sigma, "sigma_next": self.sigma_next, **named, **others}

    def _number(self, name: str, default: float) -> float:
        value = self.numbers.get(name, default)
        return sum(value) / len(value) if isinstance(value, tuple) else value


class _Step(NamedTuple):
    """What is known of a step on the host."""

    at: int
    sigma: float
    sigma_next: float
    reason: Reason | None
    """None: a number in the buffer, before those that have names."""
    names: tuple[str, ...] = ()
    sizes: tuple[int | None, ...] = ()
    """How many numbers each name has; None for one that is no list."""


class Trace:
    """The steps of a run so far.

    Attributes:
        spent: the derivatives that each step took.
        choice: what a probe of the network found, if there was one.
    """

    def __init__(self) -> None:
        self.spent: list[Spent] = []
        self.choice: Choice | None = None
        self._steps: list[_Step | Interval] = []
        self._used = 0
        self._buffer: Tensor | None = None

    def add(self, interval: Interval, note: Note | None) -> None:
        """A step of a grid; without a note it is a plain one."""
        if note is None:
            self._steps.append(interval)
        else:
            self.put(interval.index, *interval.levels, note)

    def put(self, index: int, sigma: float, sigma_next: float, note: Note) -> None:
        """A step between two levels. Its numbers are copied, and nothing waits for them."""
        self.spent.append(note.spent)
        self.choice = self.choice or note.choice
        reason = None if isinstance(note.reason, Tensor) else note.reason
        if reason is not None and not note.numbers:
            self._steps.append(_Step(index, sigma, sigma_next, reason))
            return
        sizes = tuple(z.numel() if z.ndim else None for z in note.numbers.values())
        names, before = tuple(note.numbers), self._steps[-1] if self._steps else None
        if isinstance(before, _Step) and (names, sizes) == (before.names, before.sizes):
            names, sizes = before.names, before.sizes  # the same objects: nothing new stays
        self._steps.append(_Step(index, sigma, sigma_next, reason, names, sizes))
        self._write([z for z in (note.reason, *note.numbers.values()) if isinstance(z, Tensor)])

    def records(self) -> tuple[Record, ...]:
        """A record of each step: every number in one transfer."""
        flat = iter(() if self._buffer is None else self._buffer[: self._used].tolist())
        return tuple(_record(step, flat) for step in self._steps)

    @torch.no_grad()
    def _write(self, numbers: list[Tensor]) -> None:
        if not numbers:
            return
        end = self._used + sum(z.numel() for z in numbers)
        buffer = self._with_room(end, numbers[0].device)
        torch.cat([z.reshape(-1) for z in numbers], out=buffer[self._used : end])
        self._used = end

    def _with_room(self, size: int, device: torch.device) -> Tensor:
        if self._buffer is None or len(self._buffer) < size:
            wide = torch.float32 if device.type == "mps" else torch.float64
            with torch.inference_mode(False):  # it may be written to in and outside of that mode
                larger = torch.zeros(max(_FIRST, 2 * size), dtype=wide, device=device)
                if self._buffer is not None:
                    larger[: self._used] = self._buffer[: self._used]
            self._buffer = larger
        return self._buffer


def _record(step: _Step | Interval, flat: Iterator[float]) -> Record:
    if isinstance(step, Interval):
        return Record(step.index, *step.levels)
    if step.reason is not None and not step.names:
        return Record(step.at, step.sigma, step.sigma_next, step.reason.name.lower())
    reason = Reason(int(next(flat))) if step.reason is None else step.reason
    sizes = zip(step.names, step.sizes, strict=True)
    numbers = {name: next(flat) if size is None else tuple(islice(flat, size)) for name, size in sizes}
    return Record(step.at, step.sigma, step.sigma_next, reason.name.lower(), numbers)
