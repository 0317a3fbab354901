"""Does the rule that says when a universal table holds under guidance hold itself, at other scales and on other seeds?

    python -m research.guided_rule
    python -m research.guided_rule --what digits_classes --samples 64

A line is a scale w, a column how many evaluations more than ⌈w⌉ a run has. A cell has the RMSE of the universal table and of
DDIM on EDM's grid to the fine runs' end points of the same noise. In brackets is how many images the table breaks: they end
more than 0.5 away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from recipes.command import command
from torch import Tensor

from steindiff import grids, solvers
from steindiff.study.draw import draw
from steindiff.study.testbed import Testbed, make

BROKEN = 0.5


@dataclass(frozen=True)
class Options:
    """The command line."""

    what: Annotated[str, "what is guided: digits for the exact mixture, or a model"] = "digits"
    scales: Annotated[tuple[float, ...], "scales of guidance"] = (2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    more: Annotated[tuple[int, ...], "evaluations more than the scale, rounded up"] = (1, 2, 3, 4, 5, 6)
    samples: Annotated[int, "images", 2] = 256
    seed: Annotated[int, "seed of the first image", 0] = 80_000
    steps: Annotated[int, "steps of the fine runs", 1] = 100


def distances(bed: Testbed, name: str, nfe: int, seeds: range, exact: Tensor) -> Tensor:
    """How far each image of a solver ends from the exact flow, root mean square over its coordinates."""
    solver = solvers.make(name)
    solver, sigmas = solver.plan(nfe, bed.setting) if solver.plans else (solver, grids.karras(nfe))
    return (draw(solver, bed, sigmas, seeds).samples - exact).double().square().flatten(1).mean(1).sqrt()


def cell(bed: Testbed, nfe: int, seeds: range, exact: Tensor) -> str:
    """The table's error, DDIM's, and how many images the table breaks."""
    table, ddim = (distances(bed, name, nfe, seeds, exact) for name in ("universal", "ddim"))
    errors = " / ".join(f"{float(d.square().mean().sqrt()):.3f}" for d in (table, ddim))
    return f"{errors} ({int((table > BROKEN).sum())})"


@command
def main(o: Options) -> None:
    """Print the table."""
    seeds = range(o.seed, o.seed + o.samples)
    print(f"{o.what}, {o.samples} images from seed {o.seed}\n")
    print("| w | " + " | ".join(f"⌈w⌉ + {more}" for more in o.more) + " |\n" + "| --- " * (1 + len(o.more)) + "|")
    for scale in o.scales:
        bed = make(f"{o.what}_guided_{scale:g}")
        exact = draw(solvers.make("unipc_3"), bed, grids.karras(o.steps), seeds).samples
        cells = (cell(bed, math.ceil(scale) + more, seeds, exact) for more in o.more)
        print(f"| {scale:g} | " + " | ".join(cells) + " |", flush=True)
