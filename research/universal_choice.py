"""Which of many tables is best depends on how they are scored: does it matter for laws that nobody scored?

    python -m research.universal_choice --nfe 4
    python -m research.universal_choice --nfe 6

The candidates are what a search for the universal table meets: closed-loop fits on many grids, and refinements from the best
grids of two first levels, with several weights β of the states on the way, after few and after many steps. Three rules choose
one of them by random laws that took no part in the fits: the least mean logarithm of the error, the least error of the worst
law, and the least mean energy distance. A line shows what a rule chose, its scores on other random laws, and how it does on
testbeds. Errors and energy distances are relative to the law's standard deviation and to the distance of two of its samples. In
brackets is the ratio of the error to that of the first rule's choice, on the same images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated

import torch
from recipes.command import command, print_table
from recipes.fit_universal import family, grids
from torch import Tensor

from research.units import RUNG, beside, digits, energy, law, projected
from steindiff.calibration import Settings, Trajectories, errors, fit, refine, renamed, score
from steindiff.solvers import Tabulated, universal

RULES = ("mean log error", "worst law", "energy distance")
Scores = tuple[float, float, float]


@dataclass(frozen=True)
class Options:
    """The command line."""

    nfe: Annotated[int, "network evaluations", 1] = 4
    beds: Annotated[tuple[str, ...], "testbeds"] = ("digits", "digits_mixture", "wine_mixture")
    laws: Annotated[int, "random laws that are fitted", 1] = 48
    held: Annotated[int, "random laws that say when to stop", 1] = 32
    others: Annotated[int, "random laws that choose; as many others give the scores", 2] = 64
    along: Annotated[tuple[float, ...], "weights of the states on the way"] = (0.0, 0.2, 1.0)
    stages: Annotated[tuple[int, ...], "Gauss-Newton steps after which a table is a candidate"] = (2, 6)
    images: Annotated[int, "images of a testbed", 2] = 256
    seed: Annotated[int, "seed of the first image", 0] = 90_000
    steps: Annotated[int, "steps of the fine runs", 8] = 96


def candidates(o: Options, laws: Sequence[Trajectories], held: Sequence[Trajectories]) -> Iterator[tuple[str, Tabulated]]:
    """Tables by name."""
    fits = sorted((fit(laws, levels) for levels in grids(o.nfe, RUNG)), key=lambda table: score(table, held))
    for table in fits:
        yield f"fit from {table.levels[1]:g}, {table.levels[2]:.3g}", table
    second = next(table for table in fits if table.levels[1] != fits[0].levels[1])
    for start in (fits[0], second):
        for along in o.along:
            table, done = start, 0
            for stage in o.stages:
                table = refine(table, laws, held, Settings(iterations=stage - done, patience=6, gain=1e-4, along=along))
                done = stage
                yield f"refined from {start.levels[1]:g}, β = {along:g}, {stage} steps", renamed(table, laws)
    yield "shipped", universal.shipped()[RUNG, o.nfe][0]


def scores(table: Tabulated, laws: Sequence[Trajectories]) -> Scores:
    """What the rules go by, the smaller the better."""
    relative_errors = errors(table, laws).sqrt()
    distance = torch.stack([energy(table, one).mean() for one in laws]).mean()
    return float(relative_errors.log().mean()), float(relative_errors.max()), float(distance)


def chosen(found: Sequence[Scores]) -> list[int]:
    """Which candidate each rule takes."""
    return [min(range(len(found)), key=lambda i: found[i][rule]) for rule in range(len(RULES))]


def agreement(found: Sequence[Scores]) -> Tensor:
    """Spearman's rank correlations of the rules, (3, 3)."""
    return torch.tensor(found, dtype=torch.float64).argsort(0).argsort(0).double().T.corrcoef()


def cell(table: Tabulated, first: Tabulated, bed: Trajectories) -> str:
    """The error on a testbed, its ratio to that of the first rule's table, and the energy distance."""
    return f"{beside(table, first, bed, 2)}; {digits(projected(1000 * energy(table, bed)), 2)}"


def lines(o: Options, found: Sequence[tuple[str, Tabulated]], by: Sequence[Scores]) -> Iterator[list[str]]:
    """One for each rule, and one for the shipped table."""
    others = family(o.others, RUNG, 3, o.steps, "laws for the scores")
    beds = [law(name, range(o.seed, o.seed + o.images)) for name in o.beds]
    takes = chosen(by[:-1])
    for rule, i in zip((*RULES, "–"), (*takes, len(found) - 1), strict=True):
        name, table = found[i]
        log, worst, distance = scores(table, others)
        cells = [cell(table, found[takes[0]][1], bed) for bed in beds]
        yield [rule, name, f"{log:.3f}", f"{worst:.3f}", f"{1000 * distance:.2f}", *cells]


@command
def main(o: Options) -> None:
    """Print the table."""
    counts = ((o.laws, 0), (o.held, 1), (o.others, 2))
    laws, held, choosing = (family(n, RUNG, seed, o.steps, "laws") for n, seed in counts)
    found = list(candidates(o, laws, held))
    by = [scores(table, choosing) for _, table in found]
    print(f"N = {o.nfe}, {len(found) - 1} candidates; rank correlations of the rules:")
    ranks = agreement(by[:-1])
    for i, j in combinations(range(len(RULES)), 2):
        print(f"- {RULES[i]}, {RULES[j]}: {float(ranks[i, j]):.2f}")
    print()
    of_beds = (f"{name}: error (ratio); energy × 1000" for name in o.beds)
    print_table(("chosen by", "table", "log error", "worst", "energy × 1000", *of_beds), lines(o, found, by))
