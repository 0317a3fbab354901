"""Could the universal tables be better? Other ways to choose, to scale, to fit and to start them, on laws that nobody scored.

    python -m research.universal_questions --part choice --nfe 4
    python -m research.universal_questions --part moments --nfe 3 4 6
    python -m research.universal_questions --part network --network digits --beds cifar10 --images 64
    python -m research.universal_questions --part many --nfe 16 --beds digits_mixture wine_mixture

- `choice`: is the best of many tables another one where they are scored otherwise? The candidates are what a search for the
  table meets: closed-loop fits on many grids, and refinements from the best grids of two first levels, with several weights β
  of the states on the way, after few and after many steps. Three rules choose one by random laws that took no part in the fits:
  the least mean logarithm of the error, the least error of the worst law, and the least mean energy distance.
- `moments`: does it help to scale the rows to the second moments of the exact flow? The closed-loop fit on the shipped table's
  levels, the same with each row scaled as it is fitted (`fit(moments=True)`), the shipped table, and that one after `matched`.
- `network`: does a network in the family of random laws help other networks and laws? Tables are fitted on random laws alone,
  and on the same laws with some of a network's trajectories among them; how many laws they make is their weight. Random laws
  alone choose the grid and when to stop.
- `many`: do tables of many evaluations gain by the levels of a shorter table, which were refined? The levels of the shipped
  table of `base` evaluations are resampled. Rows of `history` values are fitted on them, and refined by a few steps.

Random laws give scores only where they had no part: the mean over laws of the logarithm of the error, or of its ratio to that
of another table. Errors and energy distances of testbeds are relative to the law's standard deviation and to the distance of
two of its samples. In brackets is the ratio of the error to that of another table, on the same images: the first rule's choice,
the table without the network, or the shipped one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated

import torch
from recipes.command import command, print_table
from recipes.fit_universal import MOST, SIZE, family, grids
from torch import Tensor

from research.units import RUNG, beside, digits, energy, law, log_changes, projected, relative
from steindiff.calibration import Settings, Trajectories, errors, fit, matched, refine, renamed, score
from steindiff.calibration.search import resampled
from steindiff.errors import unknown_name
from steindiff.metrics import Value
from steindiff.metrics.distances import root_of_mean
from steindiff.solvers import Tabulated, universal
from steindiff.study import testbed

RULES = ("mean log error", "worst law", "energy distance")
Scores = tuple[float, float, float]
CALIBRATION = 3_000_000_000
"""The seed of the network's first noise in a fit."""
FEW = 16
"""The most noises of one of the network's laws."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    part: Annotated[str, "choice, moments, network or many"]
    nfe: Annotated[tuple[int, ...], "network evaluations"] = (4,)
    beds: Annotated[tuple[str, ...], "testbeds"] = ("digits", "digits_mixture", "wine_mixture")
    laws: Annotated[int, "random laws that are fitted", 1] = 48
    held: Annotated[int, "random laws that choose, or say when to stop", 1] = 32
    others: Annotated[int, "random laws that give the scores; as many more take part in a choice", 2] = 64
    images: Annotated[int, "images of a testbed", 2] = 256
    seed: Annotated[int, "seed of the first image", 0] = 90_000
    steps: Annotated[int, "steps of the fine runs of random laws", 8] = 96
    along: Annotated[tuple[float, ...], "choice: weights of the states on the way"] = (0.0, 0.2, 1.0)
    stages: Annotated[tuple[int, ...], "choice: Gauss-Newton steps after which a table is a candidate"] = (2, 6)
    network: Annotated[str, "network: what joins the family"] = "cifar10"
    shares: Annotated[tuple[int, ...], "network: how many laws it makes"] = (0, 4)
    iterations: Annotated[int, "network: most Gauss-Newton steps"] = 4
    base: Annotated[int, "many: the table whose levels are resampled", 1] = 8
    history: Annotated[int, "many: the most values of a row", 1] = 6
    refined: Annotated[int, "many: Gauss-Newton steps, each of which makes a line", 0] = 1

    def random(self, seed: int) -> list[Trajectories]:
        """Random laws: of seed 0 those that are fitted, of 1 those that choose, of 2 and 3 others."""
        return family((self.laws, self.held, self.others, self.others)[seed], RUNG, seed, self.steps, "laws")

    def testbeds(self, steps: int = 64) -> list[Trajectories]:
        """The exact flows of the testbeds."""
        return [law(name, range(self.seed, self.seed + self.images), steps) for name in self.beds]


def shipped(nfe: int) -> Tabulated:
    """The shipped table."""
    return universal.shipped()[RUNG, nfe][0]


# ---------------------------------------------------------------- choice


def candidates(
    o: Options, nfe: int, laws: Sequence[Trajectories], held: Sequence[Trajectories]
) -> Iterator[tuple[str, Tabulated]]:
    """Tables by name."""
    fits = sorted((fit(laws, levels) for levels in grids(nfe, RUNG)), key=lambda table: score(table, held))
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
    yield "shipped", shipped(nfe)


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


def choice(o: Options) -> None:
    """What each rule takes, and the shipped table."""
    laws, held, choosing, others = map(o.random, range(4))
    beds, columns = o.testbeds(), (f"{name}: error (ratio); energy × 1000" for name in o.beds)
    heads = ("chosen by", "table", "log error", "worst", "energy × 1000", *columns)
    for nfe in o.nfe:
        found = list(candidates(o, nfe, laws, held))
        by = [scores(table, choosing) for _, table in found[:-1]]
        print(f"N = {nfe}, {len(by)} candidates; rank correlations of the rules:")
        for i, j in combinations(range(len(RULES)), 2):
            print(f"- {RULES[i]}, {RULES[j]}: {float(agreement(by)[i, j]):.2f}")
        print()
        takes, rows = chosen(by), list[tuple[str, ...]]()
        for rule, i in zip((*RULES, "–"), (*takes, len(by)), strict=True):
            (_, first), (name, table) = found[takes[0]], found[i]
            log, worst, distance = scores(table, others)
            cells = (f"{beside(table, first, bed, 2)}; {digits(projected(1000 * energy(table, bed)), 2)}" for bed in beds)
            rows.append((rule, name, f"{log:.3f}", f"{worst:.3f}", f"{1000 * distance:.2f}", *cells))
        print_table(heads, rows)


# ---------------------------------------------------------------- moments


def pairs(nfe: int, laws: Sequence[Trajectories]) -> Iterator[tuple[str, Tabulated]]:
    """What is compared, in pairs."""
    table = shipped(nfe)
    yield "fit", fit(laws, table.levels)
    yield "fit, matched", fit(laws, table.levels, moments=True)
    yield "shipped", table
    yield "shipped, matched", matched(table, laws)


def compared(o: Options) -> Iterator[list[object]]:
    """A line for each table; that of a matched one has the change by it."""
    laws, others, beds = o.random(0), o.random(2), o.testbeds(o.steps)
    for nfe in o.nfe:
        before = list[Tensor]()
        for name, table in pairs(nfe, laws):
            logs = torch.stack([relative(table, other).mean().log() / 2 for other in others])
            found = [logs, 1000 * torch.stack([energy(table, other).mean() for other in others])]
            changes = [digits(Value.mean_of(a - b), 3) for a, b in zip(found, before, strict=False)] or ["–", "–"]
            before = [] if before else found
            shown = [f"{found[0].mean():.3f}", changes[0], f"{found[1].mean():.2f}", changes[1]]
            for bed in beds:
                shown += [digits(root_of_mean(relative(table, bed)), 4), digits(projected(1000 * energy(table, bed)), 3)]
            yield [nfe, name, *shown]


def moments(o: Options) -> None:
    """Rows that are scaled to second moments."""
    heads = ["N", "table", "log error", "change", "energy × 1000", "change"]
    print_table([*heads, *(f"{name}: {what}" for name in o.beds for what in ("error", "energy × 1000"))], compared(o))


# ---------------------------------------------------------------- network


def members(name: str, count: int, steps: int) -> list[Trajectories]:
    """So many laws of a network's own trajectories, each with noise of its own."""
    n = max(4, min(FEW, MOST, SIZE // math.prod(testbed.make(name).event_shape)))
    first = range(CALIBRATION, CALIBRATION + n * count, n)
    return [law(name, range(seed, seed + n), steps) for seed in first]


def joined(o: Options) -> Iterator[tuple[object, ...]]:
    """A line for each number of laws that the network makes, beside the first of them."""
    (laws, held, others), beds = map(o.random, range(3)), o.testbeds()
    network, settings = members(o.network, max(o.shares), o.steps), Settings(iterations=o.iterations, gain=1e-4, along=0.2)
    for nfe in o.nfe:
        without: Tabulated | None = None
        for share in o.shares:
            mixed = [*network[:share], *laws]
            start = min((fit(mixed, levels) for levels in grids(nfe, RUNG)), key=lambda table: score(table, held))
            table = refine(start, mixed, held, settings)
            without = without or table
            change = digits(Value.mean_of(log_changes(table, without, others)), 3, "+")
            yield nfe, share, change, *(beside(table, without, bed, 3) for bed in beds)


def network(o: Options) -> None:
    """A network in the family."""
    print_table(("N", f"laws of {o.network}", "random laws", *o.beds), joined(o))


# ---------------------------------------------------------------- many


def resumed(
    o: Options, nfe: int, laws: Sequence[Trajectories], held: Sequence[Trajectories]
) -> Iterator[tuple[str, Tabulated]]:
    """The shipped table, and those on the levels of a shorter one."""
    yield "shipped", shipped(nfe)
    table = fit(laws, resampled(shipped(o.base).levels, nfe), history=o.history)
    yield "fit", table
    for step in range(o.refined):
        table = refine(table, laws, held, Settings(iterations=1, along=0.2))
        yield f"{step + 1} steps", table


def longer(o: Options) -> Iterator[tuple[object, ...]]:
    """A line for each table, beside the shipped one."""
    (laws, held, others), beds = map(o.random, range(3)), o.testbeds()
    for nfe in o.nfe:
        for name, table in resumed(o, nfe, laws, held):
            logs = log_changes(table, shipped(nfe), others)
            mean, median = digits(Value.mean_of(logs), 3, "+"), f"{float(logs.median()):+.3f}"
            yield nfe, name, mean, median, *(beside(table, shipped(nfe), bed, 2) for bed in beds)


def many(o: Options) -> None:
    """Levels of a shorter table."""
    print_table(("N", "table", "random laws: mean", "median", *o.beds), longer(o))


PARTS: dict[str, Callable[[Options], None]] = {part.__name__: part for part in (choice, moments, network, many)}


@command
def main(o: Options) -> None:
    """Answer one of the questions."""
    if o.part not in PARTS:
        raise unknown_name("part", o.part, PARTS)
    PARTS[o.part](o)
