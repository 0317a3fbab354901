"""How near a table between two scales of guidance is to one that is calibrated at that scale.

    python -m research.guidance_between --nfe 4,6
    python -m research.guidance_between --bed digits_classes_guided_5 --scales 2,3,5,8 --between 2.5,4,6.5 --nfe 4

Tables are calibrated at all scales, from the largest down, each from the tables of the one above (*chained*), and at each scale
on its own (*alone*). A line has the RMSE to the exact flow's end points of new noise, with its standard error over images: of a
table calibrated at the scale in between, of the table between its chained and between its lone neighbours, of the table of the
upper neighbour, and of the universal table.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated

from recipes.command import command, print_table

from research.calibration_variants import flows
from steindiff.calibration import Trajectories, run
from steindiff.errors import InputError
from steindiff.metrics import Value, endpoint_rmse
from steindiff.run import parse_seeds
from steindiff.solvers import Setting, Tabulated
from steindiff.solvers.between import between
from steindiff.solvers.universal import entries
from steindiff.study import testbed
from steindiff.study.calibrating import calibrate_bed, chained


@dataclass(frozen=True)
class Options:
    """The command line."""

    bed: Annotated[str, "a guided testbed; its scale is replaced"] = "digits_guided_5"
    scales: Annotated[str, "scales that have tables"] = "1,2,3,5,8"
    between: Annotated[str, "scales between them"] = "1.5,2.5,4,6.5"
    nfe: Annotated[str, "numbers of evaluations"] = "4,6"
    trajectories: Annotated[int, "noises of a calibration", 16] = 64
    images: Annotated[int, "new noises that the scores are of", 2] = 128
    seed: Annotated[int, "seed of the first new noise", 0] = 90_000
    threads: Annotated[int, "CPU threads", 1] = 1


def bed_of(options: Options, scale: float) -> testbed.Testbed:
    """The testbed at this scale."""
    return testbed.make(re.sub(r"_guided_.*", f"_guided_{scale:g}", options.bed))


def score(solver: Tabulated, law: Trajectories) -> Value:
    """The distance to the exact flow's end points."""
    return endpoint_rmse(run(solver, law), law.ends)


def lines(options: Options, scales: list[float], asked: list[float], nfe: Sequence[int]) -> Iterator[tuple[object, ...]]:
    """The rows of the table."""
    down = sorted(scales, reverse=True)
    beds = (bed_of(options, scale) for scale in down)
    chain = dict(zip(down, chained(beds, nfe, options.trajectories), strict=True))
    alone = {w: calibrate_bed(bed_of(options, w), nfe, options.trajectories) for w in {*scales, *asked}}
    for low, high in pairwise(sorted(scales)):
        for scale in (w for w in asked if low < w < high):
            law = flows(bed_of(options, scale), range(options.seed, options.seed + options.images))
            setting = Setting(sigma_data=law.variance**0.5, guidance=scale)
            for k, n in enumerate(nfe):
                cells: list[Value | str] = [score(alone[scale][k].solver, law)]
                for tables in (chain, alone):
                    pair = [replace(tables[w][k].solver, name="table") for w in (low, high)]
                    try:
                        cells.append(score(between(*pair, scale), law))
                    except InputError:
                        cells.append("none")
                cells.append(score(chain[high][k].solver, law))
                cells += [score(each, law) for each in entries(n, setting)] or ["none"]
                yield n, f"{scale:g}", f"{low:g}, {high:g}", *cells


@command
def main(options: Options) -> None:
    """Print the table."""
    scales, asked = ([float(w) for w in text.split(",")] for text in (options.scales, options.between))
    heads = ("N", "w", "between", "calibrated at w", "chained", "alone", "the upper one's", "universal")
    print_table(heads, lines(options, scales, asked, parse_seeds(options.nfe)))
