"""Does a network in the family of random laws help other networks and laws?

    python -m research.universal_network --network cifar10 --beds digits digits_mixture wine_mixture --nfe 4
    python -m research.universal_network --network digits --beds cifar10 --images 64 --nfe 4

Tables are fitted much as the recipe fits them, on random laws alone and on the same laws with some of a network's trajectories
among them. How many laws they make is their weight. Random laws alone choose the grid and when to stop. A line has
the errors on testbeds that took no part, relative to their standard deviations. In brackets is the ratio to the table without
the network, on the same images. Of other random laws it has the mean of the logarithm of that ratio.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from recipes.command import command, print_table
from recipes.fit_universal import MOST, SIZE, family, grids

from research.units import RUNG, beside, digits, law, log_changes
from steindiff.calibration import Settings, Trajectories, fit, refine, score
from steindiff.metrics import Value
from steindiff.solvers import Tabulated
from steindiff.study import testbed

CALIBRATION = 3_000_000_000
"""The seed of the network's first noise in the fit."""
FEW = 16
"""The most noises of one of the network's laws."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    network: Annotated[str, "the network that joins the family"] = "cifar10"
    beds: Annotated[tuple[str, ...], "testbeds"] = ("digits", "digits_mixture", "wine_mixture")
    nfe: Annotated[int, "network evaluations", 1] = 4
    shares: Annotated[tuple[int, ...], "how many laws the network makes"] = (0, 4)
    laws: Annotated[int, "random laws that are fitted", 1] = 48
    held: Annotated[int, "random laws that choose; as many others give the scores", 2] = 48
    iterations: Annotated[int, "most Gauss-Newton steps"] = 4
    images: Annotated[int, "images of a testbed", 2] = 256
    seed: Annotated[int, "seed of the first image", 0] = 90_000
    steps: Annotated[int, "steps of the fine runs", 8] = 96


def members(name: str, count: int, steps: int) -> list[Trajectories]:
    """So many laws of a network's own trajectories, each with noise of its own."""
    n = max(4, min(FEW, MOST, SIZE // math.prod(testbed.make(name).event_shape)))
    first = range(CALIBRATION, CALIBRATION + n * count, n)
    return [law(name, range(seed, seed + n), steps) for seed in first]


def fitted(o: Options, laws: Sequence[Trajectories], held: Sequence[Trajectories]) -> Tabulated:
    """The refinement of the best closed-loop fit."""
    start = min((fit(laws, levels) for levels in grids(o.nfe, RUNG)), key=lambda table: score(table, held))
    return refine(start, laws, held, Settings(iterations=o.iterations, gain=1e-4, along=0.2))


def lines(o: Options) -> Iterator[tuple[object, ...]]:
    """The rows of the table."""
    laws, held, others = (family(n, RUNG, seed, o.steps, "laws") for seed, n in enumerate((o.laws, o.held, o.held)))
    network = members(o.network, max(o.shares), o.steps)
    beds, without = [law(name, range(o.seed, o.seed + o.images)) for name in o.beds], None
    for share in o.shares:
        table = fitted(o, [*network[:share], *laws], held)
        without = without or table
        change = digits(Value.mean_of(log_changes(table, without, others)), 3, "+")
        yield o.nfe, share, change, *(beside(table, without, bed, 3) for bed in beds)


@command
def main(o: Options) -> None:
    """Print the table."""
    print_table(("N", f"laws of {o.network}", "random laws", *o.beds), lines(o))
