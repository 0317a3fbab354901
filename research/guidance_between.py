"""How near a table between two scales of guidance is to one that is calibrated at that scale.

    python -m research.guidance_between --nfe 4,6
    python -m research.guidance_between --bed digits_classes_guided_5 --scales 2,3,5,8 --between 2.5,4,6.5 --nfe 4

Tables are calibrated at all scales, from the largest down, each from the tables of the one above (*chained*), and at each scale
on its own (*alone*). A line has the RMSE to the exact flow's end points of new noise, with its standard error over images: of a
table calibrated at the scale in between, of the table between its chained and between its lone neighbours, of the table of the
upper neighbour, and of the universal table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated

import torch
from recipes.command import command
from torch import Tensor

from steindiff import initial_noise
from steindiff.calibration import Trajectories, run, trajectories
from steindiff.errors import InputError
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


def new_noise(options: Options, scale: float) -> Trajectories:
    """The exact flow of new noise at this scale."""
    bed, seeds = bed_of(options, scale), range(options.seed, options.seed + options.images)
    noise = initial_noise(seeds, bed.event_shape)
    return trajectories(bed.denoiser, noise, conditioned=lambda places: bed.denoiser_for([seeds[i] for i in places.tolist()]))


def score(table: Tabulated, law: Trajectories) -> str:
    """The root mean square over images, with its standard error by the delta method."""
    with torch.no_grad():
        squares: Tensor = (run(table, law) - law.ends).double().square().flatten(1).mean(1)
    rmse = float(squares.mean().sqrt())
    return f"{rmse:.4f} ± {float(squares.std()) / len(squares) ** 0.5 / (2 * rmse):.4f}"


def lines(options: Options, scales: list[float], asked: list[float], nfe: Sequence[int]) -> Iterator[str]:
    """The rows of a Markdown table."""
    down = sorted(scales, reverse=True)
    beds = (bed_of(options, scale) for scale in down)
    chain = dict(zip(down, chained(beds, nfe, options.trajectories), strict=True))
    alone = {w: calibrate_bed(bed_of(options, w), nfe, options.trajectories) for w in {*scales, *asked}}
    for low, high in pairwise(sorted(scales)):
        for scale in (w for w in asked if low < w < high):
            law = new_noise(options, scale)
            setting = Setting(sigma_data=law.variance**0.5, guidance=scale)
            for k, n in enumerate(nfe):
                cells = [score(alone[scale][k].solver, law)]
                for tables in (chain, alone):
                    pair = [replace(tables[w][k].solver, name="table") for w in (low, high)]
                    try:
                        cells.append(score(between(*pair, scale), law))
                    except InputError:
                        cells.append("none")
                cells.append(score(chain[high][k].solver, law))
                cells += [score(table, law) for table in entries(n, setting)] or ["none"]
                yield f"| {n} | {scale:g} | {low:g}, {high:g} | {' | '.join(cells)} |"


@command
def main(options: Options) -> None:
    """Print the table."""
    scales, asked = ([float(w) for w in text.split(",")] for text in (options.scales, options.between))
    print("| N | w | between | calibrated at w | chained | alone | the upper one's | universal |\n|" + " --- |" * 8, flush=True)
    for line in lines(options, scales, asked, parse_seeds(options.nfe)):
        print(line, flush=True)
