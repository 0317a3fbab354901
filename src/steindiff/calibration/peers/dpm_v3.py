"""DPM-Solver-v3 (Zheng et al. 2023): its statistics measured on fine runs, and its published settings.

    l = E[diag ∂(x − D)/∂x],    s = Cov(f', f)/Var(f),    b = E f' − s E f,    f = (x − D) − l x,  f' = df/dλ along the flow

per coordinate, at levels even in λ = −log σ. The first minimises E‖∂f/∂x‖², the others E(f' − s f − b)². The diagonal is
Hutchinson's, v ⊙ Jv, of a few probes an image. Derivatives with respect to λ are fourth-order differences between levels.

The authors measure on 1024 to 4096 noises. `count` asks for as many; those that the calibration has not given are drawn.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product

import torch
from torch import Tensor

from steindiff import grids
from steindiff.calibration.bill import Bill
from steindiff.calibration.peers.base import Made, Task
from steindiff.calibration.teacher import Trajectories, trajectories
from steindiff.divergence import choose
from steindiff.divergence.products import Options, linearise
from steindiff.errors import NonFiniteError, require
from steindiff.io.files import digest
from steindiff.sampling import sample
from steindiff.solvers.base import Solver
from steindiff.solvers.dpm_v3 import DPMSolverV3
from steindiff.solvers.dpm_v3_statistics import Statistics

INTERVALS = 120
"""Steps in λ between the levels of the statistics (the authors have 120 or 1200)."""
PRICES = {"jvp": 1, "vjp": 2, "fd": 0}
"""Evaluations that a product counts as beside its own; those of differences are evaluations themselves."""
CHOOSING = 64
"""How many of the noises choose between settings at most."""


@dataclass(frozen=True)
class Measuring:
    """How statistics are measured.

    Args:
        intervals: steps in λ between their levels.
        probes: products an image and level.
        count: noises; None takes those of the calibration and no others.
    """

    intervals: int = INTERVALS
    probes: int = 2
    count: int | None = None

    def __post_init__(self) -> None:
        require(self.intervals >= 8, "need 8 steps in lambda or more", intervals=self.intervals)
        require(self.probes >= 1, "need at least one probe", probes=self.probes)
        require(self.count is None or self.count >= 2, "need two noises or more", count=self.count)


USUAL = Measuring()


def make(task: Task, how: Measuring = USUAL) -> Made:
    """DPM-Solver-v3 at the published settings and grid that end nearest on the calibration's noise."""
    statistics, some = kept(task, how), task.some(CHOOSING)
    tried = [(grid, solver) for grid in ("log_snr", "karras") for solver in settings(statistics)]
    runs = [(solver, grids.make(grid, task.nfe, task.setting.sigma_min, task.setting.sigma_max)) for grid, solver in tried]
    misses = [missed(solver, some, sigmas) for solver, sigmas in runs]
    solver, sigmas = runs[misses.index(min(misses))]
    return Made(solver, tuple(sigmas.tolist()))


def kept(task: Task, how: Measuring) -> Statistics:
    """The statistics of a task; they serve every number of evaluations, and are measured once in its folder.

    Those that are read cost what they did when they were measured, so that the bill is the same.
    """
    noise = task.law.noise.detach().double().sum().item()
    key = digest(how=asdict(how), seed=task.seed, levels=task.law.levels, noise=(len(task.law.noise), noise))
    path = None if task.folder is None else task.folder / f"dpm_v3-{key}.safetensors"
    if path is not None and path.exists():
        statistics, about = Statistics.load(path)
        task.bill.add(int(about["images"]))
        return statistics
    before = task.bill.images
    law = task.law if how.count is None else more(task.law, how.count, task.seed)
    statistics = measured(law, how, task.seed, task.bill)
    if path is not None:
        statistics.save(path, images=task.bill.images - before)
    return statistics


def settings(statistics: Statistics) -> Iterator[DPMSolverV3]:
    """What the authors use: order 3 for plain networks, 2 for guided ones, with and without each of their techniques."""
    for order, pseudo, lowered in product((3, 2), (False, True), (True, False)):
        if order == 3 or not pseudo:  # the two predictors of order 2 are one
            yield from (DPMSolverV3(statistics, order, pseudo, c, lowered) for c in ("off", "on", "pseudo"))


def missed(solver: Solver, law: Trajectories, sigmas: Tensor) -> float:
    """The endpoint RMSE of a run; infinite where it is not finite."""

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return law.denoise(x - law.mean, float(sigma)) + law.mean

    try:
        return law.rmse(sample(solver, denoiser, law.noise + law.mean, sigmas).x - law.mean)
    except NonFiniteError:
        return math.inf


def more(law: Trajectories, count: int, seed: int) -> Trajectories:
    """Fine runs of so many noises: those of the law, and others that share its classes or prompts in turn."""
    n, given, index = len(law.noise), law.conditioned, law.index
    if count <= n:
        return law.part(torch.arange(count))
    generator = torch.Generator().manual_seed(seed)
    drawn = law.levels[0] * torch.randn(count - n, *law.noise.shape[1:], generator=generator, dtype=law.noise.dtype)
    whose = (torch.arange(n) if index is None else index).repeat(-(-count // n))[:count]
    conditioned = None if given is None else lambda places: given(whose[n:][places])
    others = trajectories(
        law.denoiser, drawn.to(law.noise.device), law.levels[0], law.levels[-1], count=len(law.levels) - 1, mean=law.mean,
        stacked=law.stacked, conditioned=conditioned, room=law.room,
    )  # fmt: skip
    states, slopes = torch.cat([law.states, others.states], 1), torch.cat([law.slopes, others.slopes], 1)
    return replace(law, states=states, slopes=slopes, index=whose)


def measured(law: Trajectories, how: Measuring = USUAL, seed: int = 0, bill: Bill | None = None) -> Statistics:
    """l, s and b on the states of fine runs; products are added to the bill, where there is one.

    Raises:
        NonFiniteError: the network is not finite at some level.
    """
    levels = grids.log_snr(how.intervals, law.levels[-1], law.levels[0]).tolist()
    step, kept = math.log(levels[0] / levels[-1]) / how.intervals, list[tuple[Tensor, Tensor]]()
    method, generator, paid = _method(law), torch.Generator().manual_seed(seed), bill or Bill()
    for level in levels:
        kept.append(_diagonal(law, level, how.probes, method, generator, paid))
    line = torch.stack([diagonal for _, diagonal in kept])
    bent, moved = _slopes(line, step), _slopes(torch.stack([denoised for denoised, _ in kept]), step)
    lines = [
        _line(law.at(level).double() + law.mean, denoised.double(), rate.double(), diagonal, change)
        for level, (denoised, diagonal), rate, change in zip(levels, kept, moved, bent, strict=True)
    ]
    s, b = (torch.stack(part) for part in zip(*lines, strict=True))
    return Statistics(tuple(levels), line.cpu(), s.cpu(), b.cpu())


def _method(law: Trajectories) -> str:
    """The derivative that the network supports."""
    few = law.part(torch.arange(min(8, len(law.noise))))
    sigma = torch.tensor(1.0, dtype=torch.float64)
    state = few.at(min(max(1.0, law.levels[-1]), law.levels[0]))
    return choose(lambda x, s: few.denoise(x, float(sigma)), state, sigma, methods=("jvp", "vjp", "fd"), repeats=1).method


def _diagonal(
    law: Trajectories, level: float, probes: int, method: str, generator: torch.Generator, bill: Bill
) -> tuple[Tensor, Tensor]:
    """D of the states at a level, (B, *event), and l there, (*event) float64."""
    state = law.at(level)

    def denoised(z: Tensor) -> tuple[Tensor, Tensor]:
        value = law.denoise(z, level)
        return value, value

    products, total = linearise(method, denoised, state, Options()), torch.zeros_like(state, dtype=torch.float64)
    for _ in range(probes):
        v = (2 * torch.randint(2, state.shape, generator=generator) - 1).to(state)
        total += v * products.one(v)
    bill.add(PRICES[method] * probes * len(state))
    return products.aux + law.mean, 1 - (total / probes).mean(0)


def _slopes(values: Tensor, step: float) -> Tensor:
    """Derivatives with respect to λ at levels (n, …) that are even in it, by fourth-order differences."""
    inner = (values[:-4] - 8 * values[1:-3] + 8 * values[3:-1] - values[4:]) / 12
    ends = (_forward(values[:5]), -_forward(values[-5:].flip(0)).flip(0))
    return torch.cat([ends[0], inner, ends[1]]) / step


def _forward(five: Tensor) -> Tensor:
    """The derivatives at the first two of five even points."""
    first = (-25 * five[:1] + 48 * five[1:2] - 36 * five[2:3] + 16 * five[3:4] - 3 * five[4:]) / 12
    second = (-3 * five[:1] - 10 * five[1:2] + 18 * five[2:3] - 6 * five[3:4] + five[4:]) / 12
    return torch.cat([first, second])


def _line(x: Tensor, denoised: Tensor, rate: Tensor, diagonal: Tensor, bent: Tensor) -> tuple[Tensor, Tensor]:
    """s and b of the regression of f' on f, a coordinate each; where f does not vary, s is 0 and b the mean of f'."""
    f = x - denoised - diagonal * x
    derivative = -(1 - diagonal) * (x - denoised) - rate - bent * x
    mean, slope = f.mean(0), derivative.mean(0)
    spread, share = (f - mean).square().mean(0), ((f - mean) * (derivative - slope)).mean(0)
    rounding = 1e-10 * ((1 - diagonal).square() * x.var(0) + denoised.var(0))
    s = torch.where(spread > rounding, share / spread.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return s, slope - s * mean
