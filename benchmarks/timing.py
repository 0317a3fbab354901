"""Times that other programs disturb little: what is compared takes turns, and a ratio is of neighbouring turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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


def turns(runs: Mapping[str, Callable[[], object]], rounds: int, device: str | torch.device = "cpu") -> dict[str, list[float]]:
    """Seconds of every run in every round, after a round that warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            taken = seconds(run, device)
            if turn:
                times[name].append(taken)
    return times


def ratio(times: Mapping[str, Sequence[float]], name: str, to: str) -> Quartiles:
    """Quartiles of `name` over `to`, turn by turn."""
    return Quartiles.of([ours / theirs for ours, theirs in zip(times[name], times[to], strict=True)])
