"""BNS (Shaul et al. 2024): all numbers of a table by gradient descent on the end-point error.

    minimise over θ    E log ‖x_n − y(σ_n)‖²,        θ = all a_i and w_ij, and the logarithms of the told levels

The published loss is the logarithm of each image's error (PSNR); `squares` takes the logarithm of the mean square instead,
which is what our Gauss–Newton lowers. Adam, gradients through the network and the whole run, batches of 40. Numbers are those
of the frame x/√(σ_d² + σ²), where all are of order one, as the authors' are. A run starts from the best plain solver's rows;
of the tables on the way, the one with the least loss on noise that is not fitted is kept.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steindiff.calibration.gate import alternatives
from steindiff.calibration.peers.base import BACKWARD, Made, Task, nearest
from steindiff.calibration.refine import run
from steindiff.calibration.search import start
from steindiff.calibration.teacher import InBatches, Trajectories
from steindiff.errors import require
from steindiff.solvers import Row, Tabulated

CHECKS = 20
"""How often the run is looked at on the noise that chooses."""


@dataclass(frozen=True)
class Training:
    """How the gradient is followed.

    Args:
        rate: Adam's first step size; it falls to zero along a cosine.
        batch: noises of a step.
        times: how many times the task's budget may be spent.
        squares: whether the loss is the logarithm of the mean square instead of the mean of each image's.
        universal: whether to start where our own refinement does, instead of at the best plain solver.
    """

    rate: float = 3e-2
    batch: int = 8
    times: float = 1.0
    squares: bool = True
    universal: bool = False

    def __post_init__(self) -> None:
        positive = 0 < self.rate < math.inf and 0 < self.times < math.inf and self.batch >= 1
        require(positive, "need a positive rate, batch and budget", rate=self.rate, batch=self.batch, times=self.times)


def make(task: Task, how: Training = Training()) -> Made:
    """A table trained by gradient within the task's budget."""
    fitted, held = task.parts
    if how.universal:
        first = start([fitted], [held], task.nfe, task.setting)
    else:
        plain = {name: table for name, table in alternatives(task.nfe, task.setting).items() if name != "universal"}
        first = nearest(list(plain.values()), fitted)
    return Made.table(replace(trained(complete(first), fitted, held, task, how), name="BNS"))


def complete(table: Tabulated) -> Tabulated:
    """The same method, with a weight for every value that a step knows."""
    known, rows = 0, list[Row]()
    for row in table.rows:
        known += bool(row.values)
        full = known if row.values else 0
        rows.append(Row(row.a, (*row.values, *[0.0] * (full - len(row.values)))))
    return replace(table, rows=tuple(rows))


def trained(table: Tabulated, fitted: Trajectories, held: Trajectories, task: Task, how: Training) -> Tabulated:
    """The best table on the held noises of a descent on the fitted ones."""
    batch, data = min(how.batch, len(fitted.noise)), task.setting.sigma_data
    evaluations = table.nfe(table.own_grid)
    left = how.times * task.budget - task.bill.images - (CHECKS + 1) * evaluations * len(held.noise)
    rounds = max(1, int(left / (evaluations * (1 + BACKWARD) * batch)))
    theta, descent = numbers(table, data), _Adam(how.rate, rounds)
    generator = torch.Generator().manual_seed(task.seed)
    kept, best = table, _held(table, held, how)
    for i in range(rounds):
        part = fitted.part(torch.randperm(len(fitted.noise), generator=generator)[:batch])
        here = theta.clone().requires_grad_()
        with torch.enable_grad():
            loss = _loss(descended(table, here, part, data) - part.ends, how)
            (slope,) = torch.autograd.grad(loss, here)
        task.bill.add(BACKWARD * evaluations * batch)
        if not bool(slope.isfinite().all()):
            break
        theta = theta + descent.step(slope)
        if (i + 1) * CHECKS // rounds > i * CHECKS // rounds:
            tried = moved(table, theta, data)
            value = _held(tried, held, how)
            kept, best = (tried, value) if value < best else (kept, best)
    return kept


class _Adam:
    """Adam (Kingma & Ba 2015) with slopes of norm one at most, and a rate that falls to zero along a cosine."""

    def __init__(self, rate: float, rounds: int) -> None:
        self._rate, self._rounds, self._done = rate, rounds, 0
        self._mean, self._square = torch.zeros(()), torch.zeros(())

    def step(self, slope: Tensor, keep: tuple[float, float] = (0.9, 0.999)) -> Tensor:
        """How far the numbers move."""
        slope = slope / max(1.0, float(slope.norm()))
        rate = self._rate * (1 + math.cos(math.pi * self._done / self._rounds)) / 2
        self._done += 1
        self._mean = keep[0] * self._mean + (1 - keep[0]) * slope
        self._square = keep[1] * self._square + (1 - keep[1]) * slope**2
        mean, square = (z / (1 - k**self._done) for z, k in zip((self._mean, self._square), keep, strict=True))
        return -rate * mean / (square.sqrt() + 1e-8)


def _loss(gap: Tensor, how: Training) -> Tensor:
    squares = gap.double().flatten(1).square().mean(1) + 1e-12
    return squares.mean().log() if how.squares else squares.log().mean()


def _held(table: Tabulated, held: Trajectories, how: Training) -> float:
    value = float(_loss(run(table, held) - held.ends, how))
    return value if math.isfinite(value) else math.inf


def _scales(table: Tabulated, sigma_data: float) -> list[float]:
    """√(σ_d² + σ²) of every level, in units of σ_d."""
    return [math.sqrt(1 + (s / sigma_data) ** 2) for s in table.levels]


def numbers(table: Tabulated, sigma_data: float) -> Tensor:
    """θ in the frame x/√(σ_d² + σ²): step by step log q (where it evaluates), a, and the weights, float64."""
    scales, theta = _scales(table, sigma_data), list[float]()
    for here, there, q, row in zip(scales, scales[1:], table.told, table.rows, strict=False):
        theta += [*([math.log(q)] if row.values else []), row.a * here / there, *(w / there for w in row.values)]
    return torch.tensor(theta, dtype=torch.float64)


def moved(table: Tabulated, theta: Tensor, sigma_data: float) -> Tabulated:
    """The table with these numbers."""
    scales, steps, rows, told = _scales(table, sigma_data), iter(theta.tolist()), list[Row](), list[float]()
    for here, there, q, row in zip(scales, scales[1:], table.told, table.rows, strict=False):
        told.append(math.exp(next(steps)) if row.values else q)
        rows.append(Row(next(steps) * there / here, tuple(next(steps) * there for _ in row.values)))
    return replace(table, rows=tuple(rows), told=tuple(told))


def descended(table: Tabulated, theta: Tensor, law: Trajectories, sigma_data: float) -> Tensor:
    """The end states of a run with these numbers, differentiable in them."""
    index = torch.arange(len(law.noise)) if law.index is None else law.index
    denoiser = InBatches(law.denoiser, law.conditioned, index, law.room)
    scales, places = _scales(table, sigma_data), iter(theta.unbind())
    x, values = law.noise, list[Tensor]()
    for sigma, here, there, row in zip(table.levels, scales, scales[1:], table.rows, strict=False):
        if row.values:
            level = next(places).exp() * sigma
            values.insert(0, denoiser(x + law.mean, level.to(x.device)) - law.mean)
        x = _weighted(x, values, places, row, here, there)
    return x


def _weighted(x: Tensor, values: Sequence[Tensor], places: Iterator[Tensor], row: Row, here: float, there: float) -> Tensor:
    """The row's weighted sum, with the numbers that come next."""
    out: Tensor = (next(places) * (there / here)).to(x) * x
    for value in values[: len(row.values)]:
        out = out + (next(places) * there).to(x) * value
    return out
