"""How much of the machine's speed at multiplying matrices the exact laws reach.

    python -m benchmarks.mixtures --outdir outputs/mixtures
    python -m benchmarks.mixtures --laws cifar10_mixture --batch 1 128 --rounds 15

A denoiser's matrix products are counted as it runs, by torch's own counter. Its speed is that count over its time. It stands
beside one product of two square float32 matrices of 1024, timed in neighbouring turns. The last column is a batch at a noise
level that the law has not met before: a factor mixture then factors K small matrices. The command writes report.md and
results.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Annotated

import torch
from recipes.command import command
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import keep
from benchmarks.timing import Quartiles, ratio, turns
from steindiff.denoisers import Denoiser
from steindiff.noise import initial_noise
from steindiff.report.blocks import Block, Table, Text
from steindiff.study import testbed

SIDE = 1024
LEVEL = 1.0
TURN = 0.02
"""Seconds of a turn, at least: a call of a millisecond is repeated in it, and finds what it reads in the caches."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    outdir: Annotated[Path, "a folder for the results"] = Path("outputs/benchmarks/mixtures")
    page: Annotated[Path | None, "a page between whose marks the tables go too"] = None
    laws: Annotated[tuple[str, ...], "exact testbeds of the study"] = ("digits_mixture", "cifar10_mixture")
    batch: Annotated[tuple[int, ...], "points of a call", 1] = (1, 16, 128)
    rounds: Annotated[int, "turns of every call", 1] = 21


@dataclass(frozen=True)
class Row:
    """One law and batch.

    Attributes:
        flops: of the matrix products of a call.
        milliseconds: of a call at a noise level that was met before.
        share: its speed over that of one large product.
        new_level: time at a level that was not met before, over one that was.
    """

    law: str
    batch: int
    flops: int
    milliseconds: Quartiles
    share: Quartiles
    new_level: Quartiles


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products of a run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def measure(name: str, law: Denoiser, x: Tensor, rounds: int) -> Row:
    """The three calls, in turns."""
    square, known = torch.ones(SIDE, SIDE), torch.tensor(LEVEL, dtype=torch.float64)
    fresh: Iterator[Tensor] = (torch.tensor(LEVEL + 1e-6 * i, dtype=torch.float64) for i in count(1))
    runs = {"product": lambda: square @ square, "known": lambda: law(x, known), "new": lambda: law(x, next(fresh))}
    runs["known"]()
    work, whole = flops(runs["known"]), flops(runs["product"])
    times = turns(runs, rounds, least=TURN)
    slower = ratio(times, "product", "known")
    share = Quartiles(*(work / whole * value for value in slower))
    spent = Quartiles.of([1e3 * seconds for seconds in times["known"]])
    return Row(name, len(x), work, spent, share, ratio(times, "new", "known"))


def table(rows: list[Row]) -> list[Block]:
    """The page."""
    columns = ("law", "batch", "MFLOP of products", "ms a call", "share of the speed of a product", "new level / known level")
    lines = [(r.law, str(r.batch), f"{r.flops / 1e6:.1f}", *map(str, (r.milliseconds, r.share, r.new_level))) for r in rows]
    return [Text("Medians and quartiles of neighbouring turns, one thread."), Table(columns, tuple(lines))]


@command
def main(o: Options) -> None:
    """Measure, write, print the table."""
    rows = list[Row]()
    for name in o.laws:
        bed = testbed.make(name)
        for batch in o.batch:
            x = initial_noise(range(batch), bed.event_shape, LEVEL)
            rows.append(measure(bed.name, bed.denoiser, x, o.rounds))
    keep(o.outdir, "Exact laws", table(rows), o, [asdict(row) for row in rows])
