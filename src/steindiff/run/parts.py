"""A batch in parts, for networks that have no memory for the whole of it: same noise, same γ, same images up to rounding.

Each part runs through the solver by itself, as an image does that depends on no other. A correction decides its γ from a batch
mean E[·], which is that of the whole batch: every part has a thread, one thread computes at a time, and where a mean is taken
each lays down the numbers of its images and waits until all have. What the network holds while it computes, its activations and
those for a derivative, is then that of one part; the states are those of the batch.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from steindiff.corrections import Corrected
from steindiff.io.processes import Gather
from steindiff.sampling import SampleResult
from steindiff.solvers import Solver
from steindiff.trace import Record

T = TypeVar("T")


def split(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """The items in as few blocks as hold `most` at most; sizes differ by one at most, and the larger ones come first."""
    count = -(-len(items) // most)
    whole, rest = divmod(len(items), count)
    ends = [i * whole + min(i, rest) for i in range(count + 1)]
    return [items[a:b] for a, b in pairwise(ends)]


def sample_parts(
    solver: Solver, parts: Sequence[Sequence[int]], draw: Callable[[Solver, Sequence[int]], SampleResult]
) -> SampleResult:
    """The result of a batch whose images are drawn part by part; `draw` is told the solver and the seeds of a part.

    Raises what `draw` raises of the first part that fails; then no part goes on.
    """
    if len(parts) == 1:
        return draw(solver, parts[0])
    if not isinstance(solver, Corrected):  # no image depends on another
        return _joined([draw(solver, seeds) for seeds in parts])
    turns = _Turns(len(parts))
    with ThreadPoolExecutor(len(parts), "part") as pool:
        try:
            jobs = [
                pool.submit(turns.run, lambda i=i: draw(replace(solver, gather=turns.gather(i)), parts[i]))
                for i in range(len(parts))
            ]
            found = [job.exception() for job in jobs]
        finally:
            turns.end()
    for error in found:
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    return _joined([job.result() for job in jobs])


class _Turns:
    """Threads of which one computes at a time, and which meet to join what they have."""

    def __init__(self, count: int) -> None:
        self._turn, self._meeting = threading.Lock(), threading.Barrier(count, self._join)
        self._laid: list[tuple[Tensor, int] | None] = [None] * count
        self._whole: Tensor | None = None
        self._ended = False

    def run(self, work: Callable[[], T]) -> T:
        """What the work gives; where it fails, all fail."""
        with self._turn:
            try:
                if self._ended:
                    raise threading.BrokenBarrierError
                return work()
            except BaseException:
                self.end()
                raise

    def gather(self, index: int) -> Gather:
        """What joins the numbers of part `index` with those of the others."""

        def gather(x: Tensor, dim: int = 0) -> Tensor:
            self._laid[index] = x.detach(), dim
            self._turn.release()
            try:
                self._meeting.wait()
            finally:
                self._turn.acquire()
            assert self._whole is not None
            return self._whole

        return gather

    def end(self) -> None:
        """Let nobody wait any longer."""
        self._ended = True
        self._meeting.abort()

    def _join(self) -> None:
        laid = [entry for entry in self._laid if entry is not None]
        self._whole = torch.cat([x for x, _ in laid], laid[0][1])


def _joined(results: Sequence[SampleResult]) -> SampleResult:
    """The result of the whole batch."""
    first = results[0]
    stats = replace(first.stats, batch=sum(result.stats.batch for result in results))
    trace = tuple(_record(records) for records in zip(*(result.trace for result in results), strict=True))
    return SampleResult(torch.cat([result.x for result in results]), trace, stats, first.solver)


def _record(records: Sequence[Record]) -> Record:
    """One step of the batch: what a batch mean decided is the same in every part, and what is an image's is joined."""
    numbers = dict(records[0].numbers)
    for name, value in numbers.items():
        others = [record.numbers[name] for record in records]
        if isinstance(value, tuple) and len(set(map(repr, others))) > 1:  # NaN is not equal to itself
            numbers[name] = tuple(z for other in others if isinstance(other, tuple) for z in other)
    return replace(records[0], numbers=numbers)
