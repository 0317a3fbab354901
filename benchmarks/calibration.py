"""Where the time of a calibration goes, and how its time and memory grow with the trajectories and the dimension.

    python -m benchmarks.calibration
    python -m benchmarks.calibration --page docs/benchmarks.md

The first table is of networks: processor seconds of one thread by part, and the network's own in each. The second one is of a
law whose denoiser costs next to nothing, so that what grows is ours. One size grows at a time, from 32 trajectories of 3072
numbers. Memory is the most bytes of tensors that the calibration holds at a time beside its noises, counted exactly. An
exponent p is the slope of the logarithm over the larger half of the sizes. The command writes report.md and results.json, and a
page.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from recipes.command import command
from torch import Tensor
from tqdm import tqdm

from benchmarks.growth import slope
from benchmarks.memory import peak
from benchmarks.results import keep
from steindiff import models
from steindiff.analytic import DiagonalMixture
from steindiff.calibration import calibrations
from steindiff.denoisers import Denoiser
from steindiff.io.clock import Clock
from steindiff.noise import initial_noise
from steindiff.report.blocks import Block, Table, Text

SIZES = {"trajectories": (16, 32, 64, 128), "dimension": (192, 768, 3072, 12_288)}
START = {"trajectories": 32, "dimension": 3072}


@dataclass(frozen=True)
class Options:
    """The command line."""

    outdir: Annotated[Path, "a folder for the results"] = Path("outputs/benchmarks/calibration")
    page: Annotated[Path | None, "a page between whose marks the tables go too"] = None
    models: Annotated[tuple[str, ...], "shipped models, or model files"] = ("digits", "cifar10", "cifar10_mixture")
    nfe: Annotated[int, "evaluations of a run of the table", 1] = 5
    trajectories: Annotated[int, "noises of a calibration of a model", 8] = 32


@dataclass(eq=False)
class Timed:
    """A denoiser that adds up its time by the clock's part."""

    denoiser: Denoiser
    clock: Clock
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma)."""
        start = time.process_time()
        d = self.denoiser(x, sigma)
        self.seconds[self.clock.part] += time.process_time() - start
        return d


@dataclass(frozen=True)
class Spent:
    """Processor seconds of one calibration by part, and the network's in each."""

    model: str
    seconds: dict[str, float]
    network: dict[str, float]


@dataclass(frozen=True)
class Growth:
    """Calibrations along one axis."""

    axis: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    bytes: tuple[int, ...]


def of_model(name: str, trajectories: int, nfe: int) -> Spent:
    """One calibration of a model."""
    model, clock = models.load(name), Clock(time.process_time)
    network = Timed(model.denoiser, clock)
    calibrations(network, initial_noise(range(trajectories), model.event_shape), [nfe], clock=clock)
    return Spent(name, clock.seconds, dict(network.seconds))


def cheap(dimension: int) -> DiagonalMixture:
    """Two Gaussians of unequal widths, whose flow bends."""
    spread = torch.linspace(0.05, 0.6, dimension)
    means = torch.stack((spread, -spread.flip(0)))
    return DiagonalMixture(torch.tensor([0.3, 0.7]), means, torch.stack((spread.square(), spread.flip(0).square())))


def growth(axis: str, nfe: int) -> Growth:
    """Time and memory at every size of the axis, the other at its start."""
    seconds, memory = list[float](), list[int]()
    for size in tqdm(SIZES[axis], unit="size", desc=axis):
        sizes = {**START, axis: size}
        noise = initial_noise(range(sizes["trajectories"]), (sizes["dimension"],))
        run = partial(calibrations, cheap(sizes["dimension"]), noise, [nfe])
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
        memory.append(peak(run))
    return Growth(axis, SIZES[axis], tuple(seconds), tuple(memory))


def tables(spent: Sequence[Spent], grown: Sequence[Growth]) -> list[Block]:
    """The page."""
    parts = list(spent[0].seconds)
    rows = []
    for one in spent:
        each = (f"{one.seconds[part]:.1f} ({one.network.get(part, 0.0):.1f})" for part in parts)
        whole, network = sum(one.seconds.values()), sum(one.network.values())
        rows.append((one.model, *each, f"{whole:.1f}", f"{100 * network / whole:.0f} %"))
    said = "Processor seconds of one thread by part, and in brackets the network's own."
    first = Table(("model", *parts, "all", "the network's"), tuple(rows))
    lines = []
    for axis in grown:
        for size, seconds, held in zip(axis.sizes, axis.seconds, axis.bytes, strict=True):
            sizes = {**START, axis.axis: size}
            states = sizes["trajectories"] * sizes["dimension"] * 4
            lines.append((axis.axis, f"{size}", f"{seconds:.1f}", f"{held / 2**20:.1f}", f"{held / states:.0f}"))
        p = (f"p = {slope(axis.sizes, values):.2f}" for values in (axis.seconds, axis.bytes))
        lines.append((axis.axis, "growth", *p, ""))
    columns = ("what grows", "size", "processor seconds", "memory, MiB", "memory, in states of all noises")
    return [Text(said), first, Table(columns, tuple(lines))]


@command
def main(o: Options) -> None:
    """Measure, write, print the tables."""
    spent = [of_model(name, o.trajectories, o.nfe) for name in o.models]
    grown = [growth(axis, o.nfe) for axis in SIZES]
    blocks = tables(spent, grown)
    keep(
        o.outdir, "Calibration", blocks, o, {"models": [asdict(one) for one in spent], "growth": [asdict(one) for one in grown]}
    )
