"""Tables of many evaluations: do they gain by the levels of a shorter table, which were refined?

    python -m research.universal_many --nfe 16

The levels of the shipped table of `base` evaluations are resampled. Rows of six values are fitted on them by closed-loop least
squares, and then refined by a few Gauss-Newton steps. Each line sets a table against the shipped one. Of random laws, which
took no part, it has the mean and the median over laws of the logarithm of the ratio of errors. Of testbeds it has the error,
relative to the standard deviation, and in brackets the ratio on the same images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from recipes.command import command, print_table
from recipes.fit_universal import family

from research.units import RUNG, beside, digits, law, log_changes
from steindiff.calibration import Settings, fit, refine
from steindiff.calibration.search import resampled
from steindiff.metrics import Value
from steindiff.solvers import Tabulated, universal


@dataclass(frozen=True)
class Options:
    """The command line."""

    nfe: Annotated[int, "network evaluations", 1] = 16
    base: Annotated[int, "the table whose levels are resampled", 1] = 8
    history: Annotated[int, "the most values of a row", 1] = 6
    refined: Annotated[int, "Gauss-Newton steps, each of which makes a line", 0] = 1
    beds: Annotated[tuple[str, ...], "testbeds"] = ("digits_mixture", "wine_mixture")
    laws: Annotated[int, "random laws that are fitted", 1] = 28
    held: Annotated[int, "random laws that say whether a step is kept", 1] = 24
    others: Annotated[int, "random laws for the scores", 2] = 48
    images: Annotated[int, "images of a testbed", 2] = 128
    seed: Annotated[int, "seed of the first image", 0] = 90_000
    steps: Annotated[int, "steps of the fine runs", 8] = 64


def tables(o: Options, shipped: Tabulated) -> Iterator[tuple[str, Tabulated]]:
    """What is compared."""
    laws, held = (family(n, RUNG, seed, o.steps, "laws") for n, seed in ((o.laws, 0), (o.held, 1)))
    yield "shipped", shipped
    base, _ = universal.shipped()[RUNG, o.base]
    table = fit(laws, resampled(base.levels, o.nfe), history=o.history)
    yield "fit", table
    for step in range(o.refined):
        table = refine(table, laws, held, Settings(iterations=1, along=0.2))
        yield f"{step + 1} steps", table


def lines(o: Options) -> Iterator[tuple[object, ...]]:
    """The rows of the table."""
    shipped, _ = universal.shipped()[RUNG, o.nfe]
    others = family(o.others, RUNG, 2, o.steps, "laws for the scores")
    beds = [law(name, range(o.seed, o.seed + o.images)) for name in o.beds]
    for name, table in tables(o, shipped):
        logs = log_changes(table, shipped, others)
        mean, median = digits(Value.mean_of(logs), 3, "+"), f"{float(logs.median()):+.3f}"
        yield o.nfe, name, mean, median, *(beside(table, shipped, bed, 2) for bed in beds)


@command
def main(o: Options) -> None:
    """Print the table."""
    print_table(("N", "table", "random laws: mean", "median", *o.beds), lines(o))
