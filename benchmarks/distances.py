"""How long a Fréchet distance takes with its standard error, beside one set of eigenvalues and eigenvectors.

    python -m benchmarks.distances --outdir outputs/distances
    python -m benchmarks.distances --dimensions 128 1024 --rounds 5

`two sets` is `metrics.frechet_distance` of d + 1000 samples each. `a reference` is that of such samples against statistics of a
file, as FID is, with the moments of their 20 groups. Both contain one decomposition and some products. A jackknife that solved
its problem anew for every group would contain 41 and 21 sets of eigenvalues. The command writes report.md and results.json.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from recipes.command import command

from benchmarks.results import keep
from benchmarks.timing import Quartiles, ratio, turns
from steindiff.metrics import Reference, SampleMoments, frechet_distance
from steindiff.metrics.fid.references import grouped_moments
from steindiff.report.blocks import Block, Table, Text

MORE = 1000
NAMES = {"sets": "two sets", "reference": "a reference"}


@dataclass(frozen=True)
class Options:
    """The command line."""

    outdir: Annotated[Path, "a folder for the results"] = Path("outputs/benchmarks/distances")
    dimensions: Annotated[tuple[int, ...], "numbers of a sample", 1] = (1024, 2048, 3072)
    rounds: Annotated[int, "turns of every distance", 1] = 1
    threads: Annotated[int, "of torch", 1] = 1


@dataclass(frozen=True)
class Row:
    """One distance in one dimension: its seconds, and how many decompositions fit into them."""

    distance: str
    dimension: int
    seconds: Quartiles
    decompositions: Quartiles


def measure(d: int, rounds: int) -> list[Row]:
    """Both distances in turns."""
    generator = torch.Generator().manual_seed(d)
    x, y = (torch.randn(d + MORE, d, generator=generator, dtype=torch.float64) for _ in range(2))
    moments = SampleMoments.of(y)
    runs = {
        "decomposition": lambda: torch.linalg.eigh(moments.scatter),
        "sets": lambda: frechet_distance(x, y),
        "reference": lambda: Reference.of(moments).frechet(grouped_moments([x], 20)),
    }
    times = turns(runs, rounds)
    return [Row(what, d, Quartiles.of(times[name]), ratio(times, name, "decomposition")) for name, what in NAMES.items()]


def table(rows: list[Row], threads: int) -> list[Block]:
    """The page."""
    lines = tuple((r.distance, str(r.dimension), str(r.dimension + MORE), str(r.seconds), str(r.decompositions)) for r in rows)
    columns = ("distance to", "d", "n", "seconds", "in decompositions")
    return [Text(f"Medians and quartiles of processor seconds, {threads} thread(s)."), Table(columns, lines)]


@command
def main(o: Options) -> None:
    """Measure, write, print the table."""
    rows = [row for d in o.dimensions for row in measure(d, o.rounds)]
    keep(o.outdir, "Fréchet distances", table(rows, o.threads), o, [asdict(row) for row in rows])
