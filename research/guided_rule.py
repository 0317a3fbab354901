"""Does what `auto` takes under guidance hold at other scales and on other seeds than those of its test?

    python -m research.guided_rule
    python -m research.guided_rule --what digits_classes --samples 64
    python -m research.guided_rule --top 14.6
    python -m research.guided_rule --top 14.6 --what cifar10_mixture --scales 1 --nfe 3-20
    python -m research.guided_rule --top 14.6 --bottom 0.03 --what cifar10_mixture --scales 1 --nfe 10-20

A line is a scale w, where 1 is the testbed itself, unguided. A column is a number of evaluations. A cell has the RMSE of `auto`
to the fine runs' end points of the same noise, and that of the best of four published solvers on EDM's grid, chosen on these
very images. In brackets is how many images `auto` breaks: they end more than 0.5 away.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from recipes.command import command, print_table
from torch import Tensor

from steindiff import solvers
from steindiff.run import parse_seeds
from steindiff.solvers import Setting
from steindiff.study.draw import draw
from steindiff.study.testbed import Testbed, make

BROKEN = 0.5
PLAIN = ("ddim", "dpmpp_2m", "ipndm_2", "ipndm_3")


@dataclass(frozen=True)
class Options:
    """The command line."""

    what: Annotated[str, "what is guided: digits for the exact mixture, or a model; at w = 1 any testbed"] = "digits"
    scales: Annotated[tuple[float, ...], "scales of guidance"] = (1.2, 1.5, 2.5, 4.0, 6.0, 7.5, 10.0)
    nfe: Annotated[str, "numbers of evaluations, such as 3-6,8"] = "3-6,8,10"
    top: Annotated[float, "the first level, in units of sigma_data; 0 is EDM's", 0] = 0.0
    bottom: Annotated[float, "the last level, in units of sigma_data; 0 is EDM's", 0] = 0.0
    samples: Annotated[int, "images", 2] = 256
    seed: Annotated[int, "seed of the first image", 0] = 80_000
    steps: Annotated[int, "steps of the fine runs", 1] = 100


def distances(bed: Testbed, name: str, nfe: int, seeds: range, exact: Tensor, setting: Setting) -> Tensor:
    """How far each image of a solver ends from the exact flow, root mean square over its coordinates."""
    solver, sigmas = solvers.make(name).plan(nfe, setting)
    return (draw(solver, bed, sigmas, seeds).samples - exact).double().square().flatten(1).mean(1).sqrt()


def cell(bed: Testbed, nfe: int, seeds: range, exact: Tensor, setting: Setting) -> str:
    """The error of `auto`, that of the best published solver, and how many images `auto` breaks."""
    own, *others = (distances(bed, name, nfe, seeds, exact, setting) for name in ("auto", *PLAIN))
    error, best = float(own.square().mean().sqrt()), min(float(d.square().mean().sqrt()) for d in others)
    shown = " / ".join(f"{e:.3f}" if e >= 0.01 else f"{e:.2g}" for e in (error, best))
    return f"{shown} ({int((own > BROKEN).sum())})"


def lines(o: Options, seeds: range, counts: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """The rows of the table."""
    for scale in o.scales:
        bed = make(o.what if scale == 1 else f"{o.what}_guided_{scale:g}")
        ends = {"sigma_max": o.top * bed.setting.sigma_data, "sigma_min": o.bottom * bed.setting.sigma_data}
        setting = replace(bed.setting, **{name: level for name, level in ends.items() if level})
        exact = draw(solvers.make("unipc_3"), bed, setting.karras(o.steps), seeds).samples
        yield f"{scale:g}", *(cell(bed, nfe, seeds, exact, setting) for nfe in counts)


@command
def main(o: Options) -> None:
    """Print the table."""
    seeds, counts = range(o.seed, o.seed + o.samples), parse_seeds(o.nfe)
    print(f"{o.what}, {o.samples} images from seed {o.seed}\n")
    print_table(("w", *(f"N = {nfe}" for nfe in counts)), lines(o, seeds, counts))
