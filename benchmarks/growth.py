"""How time and memory of a run grow with the batch, the dimension, the steps and the probes.

    python -m benchmarks.growth --outdir outputs/growth
    python -m benchmarks.growth --runs dpmpp_3m literal --rounds 9

The denoiser costs next to nothing, so that what grows is ours. One size grows at a time from 16 images of 3072 numbers, 8 steps
and one probe. Time is this process's own; memory is the most bytes of tensors that the run holds at a time, counted exactly. An
exponent p is the slope of log(time) or log(memory) on log(size) over the larger half of the sizes: 1 is growth in proportion,
0 none. The command writes report.md with a figure, and results.json.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from recipes.command import command
from torch import Tensor
from tqdm import tqdm

from benchmarks.memory import peak
from benchmarks.results import keep
from benchmarks.timing import turns
from steindiff import Corrected, grids, sample, solvers
from steindiff.denoisers import declare
from steindiff.divergence import Hutchinson
from steindiff.noise import initial_noise
from steindiff.report.blocks import Block, Figure, Table, Text
from steindiff.report.figures import Line, Panel, charts
from steindiff.report.palette import look
from steindiff.rules import CleanTarget
from steindiff.schedules import VE
from steindiff.solvers import Solver

SIZES = {
    "batch": (1, 4, 16, 64, 256),
    "dimension": (192, 768, 3072, 12_288, 49_152),
    "steps": (4, 8, 16, 32, 64),
    "probes": (1, 2, 4, 8, 16),
}
TURN = 0.005
"""Seconds of a turn, at least."""
START = {"batch": 16, "dimension": 3072, "steps": 8, "probes": 1}


def _rational(x: Tensor, sigma: Tensor) -> Tensor:
    """D = x / (1 + x²): three passes over the state, with a derivative."""
    return x / (1 + x.square())


denoiser = declare(_rational, schedule=VE())


def literal(probes: int) -> Solver:
    """2M under the paper's rule with γ ≤ 1, its divergence from so many products."""
    return Corrected("dpmpp_2m", CleanTarget(gamma_max=1.0, history="frozen"), divergence=Hutchinson(probes, method="vjp"))


RUNS: dict[str, Callable[[int], Solver]] = {
    "dpmpp_3m": lambda probes: solvers.make("dpmpp_3m"),
    "unipc_3": lambda probes: solvers.make("unipc_3"),
    "energy": lambda probes: Corrected("dpmpp_2m", "energy"),
    "tweedie": lambda probes: Corrected("dpmpp_2m", "clamped(mode=tweedie)"),
    "literal": literal,
}
"""What runs, for a number of probes; only `literal` takes any."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    outdir: Annotated[Path, "a folder for the results"] = Path("outputs/benchmarks/growth")
    page: Annotated[Path | None, "a page between whose marks the tables go too"] = None
    runs: Annotated[tuple[str, ...], f"of {', '.join(RUNS)}"] = tuple(RUNS)
    rounds: Annotated[int, "turns of every size", 1] = 7


@dataclass(frozen=True)
class Growth:
    """One run along one axis."""

    run: str
    axis: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    bytes: tuple[int, ...]

    @property
    def exponents(self) -> tuple[float, float]:
        """Of time and of memory."""
        return slope(self.sizes, self.seconds), slope(self.sizes, self.bytes)


def slope(sizes: tuple[int, ...], values: tuple[float, ...]) -> float:
    """The slope of log(value) on log(size), by least squares over the larger half of the sizes."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0])


def measure(run: str, axis: str, rounds: int) -> Growth:
    """Time and memory at every size of the axis, the others at their start."""
    runs = {str(size): one_run(run, {**START, axis: size}) for size in SIZES[axis]}
    memory = tuple(peak(go) for go in runs.values())
    times = turns(runs, rounds, least=TURN)
    return Growth(run, axis, SIZES[axis], tuple(map(statistics.median, times.values())), memory)


def one_run(run: str, size: Mapping[str, int]) -> Callable[[], object]:
    """A whole run of `sample`."""
    x = initial_noise(range(size["batch"]), (size["dimension"],))
    return partial(sample, RUNS[run](size["probes"]), denoiser, x, grids.karras(size["steps"]))


def table(found: list[Growth]) -> list[Block]:
    """The page."""
    rows = []
    for growth in found:
        time, memory = growth.exponents
        largest = (f"{1e3 * growth.seconds[-1]:.1f} ms", f"{growth.bytes[-1] / 2**20:.1f} MiB")
        rows.append((growth.run, growth.axis, f"to {growth.sizes[-1]}", f"{time:.2f}", f"{memory:.2f}", *largest))
    columns = ("run", "what grows", "sizes", "p of time", "p of memory", "time at the largest", "memory there")
    said = "Time and memory grow as size to the power p; 1 is in proportion, 0 is not at all."
    return [Text(said), Table(columns, tuple(rows))]


def drawn(found: list[Growth]) -> Figure:
    """Time above, memory below, one column an axis, one line a run."""
    names = list(dict.fromkeys(growth.run for growth in found))
    above, below = list[Panel](), list[Panel]()
    for axis in dict.fromkeys(growth.axis for growth in found):
        some = [(growth, look(names.index(growth.run))) for growth in found if growth.axis == axis]
        time = [Line(g.run, style, [1e3 * s for s in g.seconds], g.sizes) for g, style in some]
        memory = [Line(g.run, style, [b / 2**20 for b in g.bytes], g.sizes) for g, style in some]
        above.append(Panel(axis, time, level=math.nan))
        below.append(Panel(axis, memory, level=math.nan))
    caption = "time and memory of a run against each size"
    return charts("growth", caption, [above, below], x="size", y=["ms", "MiB"], abscissa=lambda axis: axis.set_xscale("log"))


@command
def main(o: Options) -> None:
    """Measure, write, print the table."""
    lines = [(run, axis) for run in o.runs for axis in SIZES if axis != "probes" or run == "literal"]
    with torch.no_grad():
        found = [measure(run, axis, o.rounds) for run, axis in tqdm(lines, unit="line")]
    keep(o.outdir, "Growth", [*table(found), drawn(found)], o, [asdict(growth) for growth in found])
