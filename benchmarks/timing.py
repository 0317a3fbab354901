"""Times that other programs disturb little: what is compared takes turns, and a ratio is of neighbouring turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch


class Quartiles(NamedTuple):
    """The spread of a number over turns."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Of one value or more."""
        return cls(*(statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def seconds(run: Callable[[], object], device: str | torch.device = "cpu") -> float:
    """How long one run takes: this process's time on a CPU, which other programs disturb least, and wall time elsewhere."""
    device = torch.device(device)
    if device.type == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, device: str | torch.device = "cpu", least: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of every run in every round, after a round that warms up.

    A run is repeated within its turn until the turn takes `least` seconds, and its time is the turn's over the number: a run of
    microseconds would else be a measurement of empty caches.
    """
    for run in runs.values():
        run()
    numbers = {name: math.ceil(least / max(seconds(run, device), 1e-6)) if least else 1 for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(partial(_repeated, run, numbers[name]), device) / numbers[name])
    return times


def _repeated(run: Callable[[], object], number: int) -> None:
    for _ in range(number):
        run()


def ratio(times: Mapping[str, Sequence[float]], name: str, to: str) -> Quartiles:
    """Quartiles of `name` over `to`, turn by turn."""
    return Quartiles.of([ours / theirs for ours, theirs in zip(times[name], times[to], strict=True)])
