"""What a calibrated table is good for beyond its network: other classes, networks, resolutions and scales; when it pays.

    python -m research.calibration_questions --part classes --scale 3
    python -m research.calibration_questions --part networks
    python -m research.calibration_questions --part sizes
    python -m research.calibration_questions --part scales --bed digits_classes_guided_5 --scales 2 3 5 8 --between 2.5 4 6.5
    python -m research.calibration_questions --part cost

- `classes`: `digits_classes` under guidance, a table of all classes against tables of one class, on new noise of that class;
- `networks`: each network's table on the others;
- `sizes`: the exact CIFAR-10 mixture at 32×32, and averaged over squares of pixels to 16×16 and 8×8: each size's table on
  the others. Such an average of a mixture is a mixture, so that all three are exact;
- `scales`: how near a table between two scales of guidance is to one that is calibrated at that scale. Tables are calibrated at
  all scales, from the largest down, each from the tables of the one above (*chained*), and at each scale on its own (*alone*).
  A line has a table calibrated at the scale in between, the table between its chained and between its lone neighbours, the
  table of the upper neighbour, and the universal table;
- `cost`: the shipped tables' evaluations, and the number of images from which on they cost less than the universal table
  with as many evaluations as end equally near. It runs no network.

Each cell has the RMSE to the exact flow's end points of new noise.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice, pairwise
from typing import Annotated

import torch
from recipes.command import command, print_table

from research.calibration_variants import calibrated, flows, parted, setting
from steindiff.analytic import FactorMixture
from steindiff.calibration import Trajectories, run
from steindiff.calibration.calibrate import USUAL
from steindiff.errors import InputError, unknown_name
from steindiff.metrics import Value, endpoint_rmse
from steindiff.noise import mix
from steindiff.solvers import Setting, Tabulated
from steindiff.solvers.between import between
from steindiff.solvers.calibrated import SHIPPED
from steindiff.solvers.table import load_all
from steindiff.solvers.universal import entries, entry
from steindiff.study import testbed
from steindiff.study.calibrating import calibrate_bed, chained
from steindiff.study.testbed import Testbed

APART = 10**6
SHOWN = (0, 1, 8)
"""Classes that have tables of their own."""
BILLED = ("digits", "cifar10")
"""Networks whose shipped tables are billed."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    part: Annotated[str, "classes, networks, sizes, scales or cost"]
    nfe: Annotated[int, "network evaluations", 1] = 4
    scale: Annotated[float, "classes: the scale of guidance"] = 1.0
    bed: Annotated[str, "scales: a guided testbed; its scale is replaced"] = "digits_guided_5"
    scales: Annotated[tuple[float, ...], "scales: those that have tables"] = (1.0, 2.0, 3.0, 5.0, 8.0)
    between: Annotated[tuple[float, ...], "scales: those between them"] = (1.5, 2.5, 4.0, 6.5)
    trajectories: Annotated[int, "noises of a calibration", 16] = 64
    images: Annotated[int, "new noises that the scores are of", 2] = 128
    seed: Annotated[int, "seed of the first new noise; the calibration's are a million higher", 0] = 90_000
    steps: Annotated[int, "steps of the fine runs", 8] = 64
    together: Annotated[bool, "images that choose count together, as when the shipped tables were made"] = False
    threads: Annotated[int, "CPU threads", 1] = 1


def scored(tables: dict[str, Tabulated], laws: dict[str, Trajectories], universal: dict[str, Tabulated]) -> None:
    """Print the RMSE of every table on every law, those of the universal table first."""
    of = {"universal": universal, **{f"of {name}": dict.fromkeys(laws, each) for name, each in tables.items()}}
    rows = ((name, *(near(on[place], law) for place, law in laws.items())) for name, on in of.items())
    print_table(("table", *(f"on {name}" for name in laws)), rows)


def of_bed(bed: Testbed, o: Options, seeds: Sequence[int]) -> Tabulated:
    """The calibrated table."""
    settings = replace(USUAL.settings, singly=not o.together)
    return calibrated(bed, parted(flows(bed, seeds, o.steps)), o.nfe, settings)


def fitting(bed: Testbed, law: Trajectories, o: Options) -> Tabulated:
    """The universal table for a law."""
    return entry(o.nfe, setting(bed, law))[0]


def of_class(label: int, first: int, n: int) -> list[int]:
    """The first seeds whose images have a class, as `testbed.guided` gives them one."""
    return list(islice((seed for seed in count(first) if mix(seed) % 10 == label), n))


def classes(o: Options) -> None:
    """All classes together against one at a time."""
    bed = testbed.make(f"digits_classes_guided_{o.scale:g}")
    tables = {"all classes": of_bed(bed, o, range(o.seed + APART, o.seed + APART + o.trajectories))}
    tables |= {f"class {c}": of_bed(bed, o, of_class(c, o.seed + APART, o.trajectories)) for c in SHOWN}
    laws = {f"class {c}": flows(bed, of_class(c, o.seed, o.images), o.steps) for c in SHOWN}
    scored(tables, laws, {name: fitting(bed, law, o) for name, law in laws.items()})


def across(beds: dict[str, Testbed], o: Options) -> None:
    """The table of each testbed on all of them, as it is."""
    new = {name: flows(bed, range(o.seed, o.seed + o.images), o.steps) for name, bed in beds.items()}
    seeds = range(o.seed + APART, o.seed + APART + o.trajectories)
    tables = {name: of_bed(bed, o, seeds) for name, bed in beds.items()}
    scored(tables, new, {name: fitting(bed, new[name], o) for name, bed in beds.items()})


def networks(o: Options) -> None:
    """Each network's table on the others."""
    across({name: testbed.make(name) for name in ("digits", "digits_classes_guided_1", "cifar10")}, o)


def pooled(law: FactorMixture, side: int) -> FactorMixture:
    """The law of images averaged over squares of `side` × `side` pixels."""
    k, channels, height, width = law.means.shape
    rank = law.loadings.shape[-1]

    def mean(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, side)

    loadings = law.loadings.mT.reshape(k * rank, channels, height, width)
    diagonal = mean(law.diagonal.reshape(k, channels, height, width)) / side**2
    return FactorMixture(
        law.weights, mean(law.means), mean(loadings).reshape(k, rank, -1).mT.contiguous(), diagonal.reshape(k, -1)
    )


def sizes(o: Options) -> None:
    """Each resolution's table on the others."""
    bed = testbed.make("cifar10_mixture")
    law = bed.law
    if not isinstance(law, FactorMixture):
        raise InputError("cifar10_mixture is no mixture of factor analysers: take this version's shipped model")
    laws = {f"{law.event_shape[-1]}×{law.event_shape[-1]}": law for law in (law, pooled(law, 2), pooled(law, 4))}
    across({name: replace(bed, denoiser=each, event_shape=each.event_shape) for name, each in laws.items()}, o)


def at_scale(o: Options, scale: float) -> Testbed:
    """The testbed at this scale."""
    return testbed.make(re.sub(r"_guided_.*", f"_guided_{scale:g}", o.bed))


def near(solver: Tabulated, law: Trajectories) -> Value:
    """The distance to the exact flow's end points."""
    return endpoint_rmse(run(solver, law), law.ends)


def amid(low: Tabulated, high: Tabulated, scale: float, law: Trajectories) -> Value | str:
    """The distance of the table between two, where they go together."""
    try:
        return near(between(replace(low, name="table"), replace(high, name="table"), scale), law)
    except InputError:
        return "none"


def lines(o: Options) -> Iterator[tuple[Value | str, ...]]:
    """A line for each scale between two that have tables."""
    down, how = sorted(o.scales, reverse=True), ([o.nfe], o.trajectories)
    chain = dict(zip(down, (tables[0].solver for tables in chained((at_scale(o, w) for w in down), *how)), strict=True))
    alone = {w: calibrate_bed(at_scale(o, w), *how)[0].solver for w in {*o.scales, *o.between}}
    for low, high in pairwise(sorted(o.scales)):
        for scale in (w for w in o.between if low < w < high):
            law = flows(at_scale(o, scale), range(o.seed, o.seed + o.images), o.steps)
            known = [near(each, law) for each in entries(o.nfe, Setting(sigma_data=law.variance**0.5, guidance=scale))]
            two = (amid(tables[low], tables[high], scale, law) for tables in (chain, alone))
            cells = (near(alone[scale], law), *two, near(chain[high], law), *(known or ["none"]))
            yield f"{scale:g}", f"{low:g}, {high:g}", *cells


def scales(o: Options) -> None:
    """Tables between two scales of guidance."""
    print_table(("w", "between", "calibrated at w", "chained", "alone", "the upper one's", "universal"), lines(o))


def cost(o: Options) -> None:
    """What a table costs, and from how many images on it pays."""
    heads = ("N", "evaluations of the calibration", "RMSE at the gate", "universal as near with", "pays from images")
    for name in BILLED:
        reports = {each.nfe: each.report for each in load_all(SHIPPED / f"{name}.safetensors")}
        others = {n: float(report["gate"]["others"]["universal"]) for n, report in reports.items()}
        rows = list[tuple[object, ...]]()
        for n, report in reports.items():
            rmse, bill = float(report["gate"]["rmse"]), sum(report["cost"].values())
            as_near = reached(others, rmse)
            pays = f"{bill / (as_near - n):.0f}" if math.inf > as_near > n else "–"
            near = f"{as_near:.1f}" if as_near < math.inf else f"more than {max(others)}"
            rows.append((n, bill, f"{rmse:.4f}", near, pays))
        print(f"\n{name}:\n")
        print_table(heads, rows)


def reached(errors: dict[int, float], level: float) -> float:
    """The number of evaluations with this error, between whole ones by the logarithm of the error; infinite beyond the last."""
    known = sorted(errors)
    for few, more in pairwise(known):
        if errors[few] >= level > errors[more]:
            return few + (more - few) * math.log(errors[few] / level) / math.log(errors[few] / errors[more])
    return float(known[0]) if level >= errors[known[0]] else math.inf


PARTS: dict[str, Callable[[Options], None]] = {part.__name__: part for part in (classes, networks, sizes, scales, cost)}


@command
def main(o: Options) -> None:
    """Answer one of the questions."""
    if o.part not in PARTS:
        raise unknown_name("part", o.part, PARTS)
    if o.part != "cost":
        print(f"**{o.part}**, N = {o.nfe}, {o.trajectories} noises, {o.images} new images from seed {o.seed}\n")
    PARTS[o.part](o)
