"""Does it help to scale the rows of a universal table to the second moments of the exact flow?

    python -m research.universal_moments

For each number of evaluations four tables are compared: the closed-loop fit on the shipped table's levels; the same with each
row scaled as it is fitted (`fit(moments=True)`); the shipped table, which is refined; and that one after `matched`.
Errors and energy distances are relative to the law's standard deviation and to the distance of two of its samples. Of random
laws, which took no part, a column has the mean over laws of the logarithm of the error, and of the energy distance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from recipes.command import command, print_table
from recipes.fit_universal import family
from torch import Tensor

from research.units import RUNG, digits, energy, law, projected, relative
from steindiff.calibration import Trajectories, fit, matched
from steindiff.metrics import Value
from steindiff.metrics.distances import root_of_mean
from steindiff.solvers import Tabulated, universal


@dataclass(frozen=True)
class Options:
    """The command line."""

    nfe: Annotated[tuple[int, ...], "network evaluations"] = (3, 4, 6)
    beds: Annotated[tuple[str, ...], "testbeds"] = ("digits_mixture", "wine_mixture")
    laws: Annotated[int, "random laws that are fitted", 1] = 160
    others: Annotated[int, "random laws that are not", 2] = 96
    images: Annotated[int, "images of a testbed", 2] = 256
    seed: Annotated[int, "seed of the first image", 0] = 90_000
    steps: Annotated[int, "steps of the fine runs", 8] = 96


def tables(nfe: int, laws: Sequence[Trajectories]) -> Iterator[tuple[str, Tabulated]]:
    """What is compared, in pairs."""
    shipped, _ = universal.shipped()[RUNG, nfe]
    yield "fit", fit(laws, shipped.levels)
    yield "fit, matched", fit(laws, shipped.levels, moments=True)
    yield "shipped", shipped
    yield "shipped, matched", matched(shipped, laws)


def on_random(table: Tabulated, others: Sequence[Trajectories]) -> tuple[Tensor, Tensor]:
    """The logarithms of the errors, and the energy distances, one a law."""
    logs = [relative(table, other).mean().log() / 2 for other in others]
    return torch.stack(logs), torch.stack([energy(table, other).mean() for other in others])


def cells(table: Tabulated, bed: Trajectories) -> list[str]:
    """The error of a testbed and its energy distance."""
    return [digits(root_of_mean(relative(table, bed)), 4), digits(projected(1000 * energy(table, bed)), 3)]


def lines(o: Options) -> Iterator[list[object]]:
    """The rows of the table."""
    laws, others = (family(n, RUNG, seed, o.steps, "laws") for n, seed in ((o.laws, 0), (o.others, 2)))
    beds = [law(name, range(o.seed, o.seed + o.images), o.steps) for name in o.beds]
    for nfe in o.nfe:
        before = list[Tensor]()
        for name, table in tables(nfe, laws):
            scores = on_random(table, others)
            changes = [digits(Value.mean_of(k * (a - b)), 3) for a, b, k in zip(scores, before, (1, 1000), strict=False)]
            shown = [f"{scores[0].mean():.3f}", *changes[:1], f"{1000 * scores[1].mean():.2f}", *changes[1:]]
            shown = shown if changes else [shown[0], "–", shown[1], "–"]
            before = [] if changes else list(scores)
            yield [nfe, name, *shown, *(cell for bed in beds for cell in cells(table, bed))]


@command
def main(o: Options) -> None:
    """Print the table."""
    heads = ["N", "table", "log error", "change", "energy × 1000", "change"]
    print_table([*heads, *(f"{name}: {what}" for name in o.beds for what in ("error", "energy × 1000"))], lines(o))
