"""Which parts of a calibration earn their place: each left out or replaced in turn, and scored on new noise.

    python -m research.calibration_ablation --bed digits --nfe 5
    python -m research.calibration_ablation --bed cifar10 --nfe 3 --trajectories 32 --images 64 --parts start numbers
    python -m research.calibration_ablation --bed digits_guided_5 --nfe 4 --parts start

Every row has three scores against the exact flow's end points of the same new noise: the endpoint RMSE, the energy distance,
and by how much the table is nearer than the universal one, image by image (the mean of log(its error/this error), times
100). The first two rows are the universal table and the calibrated one. The parts:

- `start`: fits that a refinement could start from, and what each becomes when it is refined;
- `ridge`: the closed-loop fit with other λ, and two of them refined;
- `numbers`: Gauss–Newton over the told levels alone, over the weights alone, and with the network told the nominal levels;
- `along`: β;
- `counts`: 1, 2, 4, … noises, of which an eighth choose; one and two noises choose for themselves;
- `teacher`: fine runs of 16, 32 and 128 steps, scored against 128;
- `seeds`: the same calibration on other noise, and with β = 0;
- `moments`: rows scaled to the exact flow's second moments;
- `mean`: the whole calibration about the mean of the exact flow's end points, in place of zero;
- `bands`: a row of weights for every ring of frequencies, in the last step alone or in every step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import torch
from recipes.command import command, need, print_table
from torch import Tensor

from research.calibration_variants import Pair, banded, calibrated, flows, forced, parted, restricted, setting
from research.units import energy_shares, projected
from steindiff.calibration import Settings, Trajectories, fit, matched, refine, renamed, run, score, search
from steindiff.calibration.calibrate import USUAL
from steindiff.calibration.fit import RIDGE
from steindiff.corrections.bands import Cosine
from steindiff.grids import SIGMA_MAX, SIGMA_MIN, karras
from steindiff.metrics.distances import endpoint_rmse
from steindiff.metrics.values import Value
from steindiff.solvers import Tabulated
from steindiff.solvers.universal import entry
from steindiff.study import testbed
from steindiff.study.testbed import Testbed

RINGS, REPEATS, APART = 8, 4, 10**6
"""Rings of frequencies, calibrations on other noise, and how far their seeds lie apart."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    bed: Annotated[str, "a testbed of steindiff bench"] = "digits"
    nfe: Annotated[int, "network evaluations", 1] = 5
    trajectories: Annotated[int, "noises of the calibration", 16] = 64
    images: Annotated[int, "new noises that the scores are of", 2] = 256
    seed: Annotated[int, "seed of the first new noise; the calibration's are a million higher", 0] = 90_000
    steps: Annotated[int, "steps of the fine runs", 8] = 64
    most: Annotated[int, "the most noises of the part counts", 1] = 128
    parts: Annotated[tuple[str, ...], "parts, as above"] = ("start", "ridge", "numbers", "along", "moments", "bands", "seeds")
    together: Annotated[bool, "images that choose count together, as when the shipped tables were made"] = False
    threads: Annotated[int, "CPU threads", 1] = 1


@dataclass(frozen=True, eq=False)
class Case:
    """What the variants of one network and one number of evaluations share."""

    bed: Testbed
    options: Options

    def law(self, first: int, count: int, steps: int | None = None) -> Trajectories:
        """The exact flow of noise of these seeds."""
        return flows(self.bed, range(first, first + count), steps or self.options.steps)

    @cached_property
    def new(self) -> Trajectories:
        """Noise that no table has seen."""
        return self.law(self.options.seed, self.options.images)

    @cached_property
    def mine(self) -> Pair:
        """What is fitted, and what chooses."""
        return parted(self.law(self.options.seed + APART, self.options.trajectories))

    @cached_property
    def universal(self) -> Tabulated:
        """The universal table."""
        return entry(self.options.nfe, setting(self.bed, self.mine[0]))[0]

    @property
    def settings(self) -> Settings:
        """How a refinement is done."""
        return replace(USUAL.settings, singly=not self.options.together)

    def refined(self, start: Tabulated, along: float = USUAL.settings.along) -> Tabulated:
        """What Gauss–Newton makes of a table."""
        return refine(start, [self.mine[0]], [self.mine[1]], replace(self.settings, along=along))

    def calibrated(self, laws: Pair, along: float = USUAL.settings.along) -> Tabulated:
        """What `calibrate` makes of these, without its gate."""
        return calibrated(self.bed, laws, self.options.nfe, replace(self.settings, along=along))

    @cached_property
    def base(self) -> Tabulated:
        """The calibrated table."""
        return self.calibrated(self.mine)

    def best(self, tables: list[Tabulated]) -> Tabulated:
        """The nearest on the noise that chooses."""
        return min(tables, key=lambda table: score(table, [self.mine[1]]))


Found = Iterator[tuple[str, "Tabulated | Tensor"]]


def start(case: Case) -> Found:
    """Where a refinement starts, and where it then ends."""
    law, n, levels = case.mine[0], case.options.nfe, case.universal.levels
    plain = [fit([law], karras(n, SIGMA_MIN, SIGMA_MAX, rho).tolist(), free=False) for rho in search.RHOS]
    starts = {
        "closed-loop fit on the universal table's levels": fit([law], levels),
        "the same, told what the universal table tells": fit([law], levels, told=case.universal.told),
        "closed-loop fit on the best of ten EDM grids after a free step": case.best(
            [fit([law], grid) for grid in search.grids(n, SIGMA_MAX, SIGMA_MIN)]
        ),
        "teacher-forced fit on the universal table's levels": forced(law, levels, RIDGE),
        "closed-loop fit without a free step, N steps": case.best(plain),
    }
    yield from starts.items()
    yield "the universal table, refined", case.refined(case.universal)
    for name, table in starts.items():
        if "told" not in name:
            yield f"{name}, refined", case.refined(table)


def ridge(case: Case) -> Found:
    """The closed-loop fit with other λ."""
    for power in range(-6, 0):
        table = fit([case.mine[0]], case.universal.levels, ridge=10.0**power)
        yield f"closed-loop fit, λ = 1e{power}", table
        if power in (-6, -1):
            yield f"closed-loop fit, λ = 1e{power}, refined", case.refined(table)


def numbers(case: Case) -> Found:
    """Some of the numbers of a table alone."""
    most, on_levels = USUAL.settings.iterations, fit([case.mine[0]], case.universal.levels)
    for name, start in {"universal table": case.universal, "closed-loop fit, q = 1": on_levels}.items():
        yield f"{name}: told levels alone refined", restricted(start, case.mine, True, False, most)
        yield f"{name}: weights alone refined", restricted(start, case.mine, False, True, most)
    yield "universal table: both refined, β = 0", restricted(case.universal, case.mine, True, True, most)
    nominal = renamed(case.base, [case.mine[0]])
    nominal = replace(nominal, told=(1.0,) * len(nominal.told))
    yield "the calibrated table, told where its states lie (q = 1)", nominal
    yield "the same, its weights refined again", restricted(nominal, case.mine, False, True, most)


def along(case: Case) -> Found:
    """β."""
    for beta in (0.0, 1.0):
        yield f"β = {beta:g}", case.refined(case.universal, beta)


def counts(case: Case) -> Found:
    """Fewer and more noises."""
    law, n = case.law(case.options.seed + APART, case.options.most), 1
    while n <= case.options.most:
        some = law.part(torch.arange(n))
        choosing = law.part(torch.arange(max(1, n // 8))) if n > 2 else some
        fitted = law.part(torch.arange(max(1, n // 8), n)) if n > 2 else some
        yield f"{n} noises: closed-loop fit", fit([fitted], case.universal.levels)
        yield f"{n} noises: refined", refine(case.universal, [fitted], [choosing], case.settings)
        n *= 2


def teacher(case: Case) -> Found:
    """Coarser and finer fine runs."""
    for steps in (16, 32, 128):
        laws = parted(case.law(case.options.seed + APART, case.options.trajectories, steps))
        yield f"fine runs of {steps} steps", case.calibrated(laws)


def seeds(case: Case) -> Found:
    """Calibrations on other noise, with β and without."""
    for i in range(1, REPEATS + 1):
        first = case.options.seed + (i + 1) * APART
        laws = parted(case.law(first, case.options.trajectories))
        yield f"on other noise, seeds from {first}", case.calibrated(laws)
        yield f"the same, seeds from {first}, β = 0", case.calibrated(laws, along=0.0)


def moments(case: Case) -> Found:
    """The exact flow's second moments."""
    yield "closed-loop fit, second moments matched", fit([case.mine[0]], case.universal.levels, moments=True)
    yield "the calibrated table, second moments matched", matched(case.base, [case.mine[0]])


def about(law: Trajectories, mean: Tensor) -> Trajectories:
    """The same trajectories about another mean."""
    return replace(law, states=law.states - mean, mean=law.mean + mean)


def mean(case: Case) -> Found:
    """The mean as an offset."""
    offset = case.mine[0].ends.mean(0)
    fitted, choosing = (about(law, offset) for law in case.mine)
    yield "about the data's mean", run(case.calibrated((fitted, choosing)), about(case.new, offset)) + offset


def bands(case: Case) -> Found:
    """Rows of rings."""
    for last_only, where in ((True, "the last step"), (False, "every step")):
        yield f"{RINGS} rings in {where}", banded(case.base, Cosine(RINGS), case.mine[0], case.new, last_only)


PARTS: dict[str, Callable[[Case], Found]] = {
    part.__name__: part for part in (start, ridge, numbers, along, counts, teacher, seeds, moments, mean, bands)
}


def row(name: str, ends: Tensor, base: Tensor, law: Trajectories) -> tuple[object, ...]:
    """A row of the table."""
    mine, theirs = ((x - law.ends).double().flatten(1).square().mean(1).log() / 2 for x in (ends, base))
    gain = Value.mean_of(100 * (theirs - mine))
    shown = "" if ends is base else f"{gain.value:+.1f} ± {gain.se:.1f}"
    return name, endpoint_rmse(ends, law.ends), projected(energy_shares(ends, law.ends)), shown


def rows(case: Case, law: Trajectories) -> Iterator[tuple[object, ...]]:
    """The table."""
    base = run(case.universal, law)
    yield row("universal table", base, base, law)
    yield row("calibrated table", run(case.base, law), base, law)
    for part in case.options.parts:
        for name, found in PARTS[part](case):
            yield row(name, found if isinstance(found, Tensor) else run(found, law), base, law)


@command
def main(options: Options) -> None:
    """Make every variant, and score it."""
    need(set(options.parts) <= set(PARTS), f"the parts are {', '.join(PARTS)}", parts=" ".join(options.parts))
    case = Case(testbed.make(options.bed), options)
    law = case.law(options.seed, options.images, 128) if "teacher" in options.parts else case.new
    about = f"{options.trajectories} noises, {options.images} new images from seed {options.seed}"
    print(f"**{options.bed}, N = {options.nfe}**, {about}\n")
    print_table(("", "RMSE", "energy distance", "100 log(universal/this)"), rows(case, law))
