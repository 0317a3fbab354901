"""What determines the images of a run: the job, the solver and the noise grid that it names, and its batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar, Final, Literal, get_args

import torch
from torch import Tensor

from steindiff import corrections, grids, solvers
from steindiff.denoisers import Denoiser
from steindiff.divergence import Choice, Hutchinson
from steindiff.errors import InputError, at_least, require
from steindiff.solvers import Auto, DPMpp2M, Setting, Solver
from steindiff.specs import span

Frame = Literal["model", "ve"]
MOST_SEEDS: Final = 10_000_000


@dataclass(frozen=True)
class Job:
    """Everything that determines the images of one run.

    Args:
        model: the name of a shipped model, a .safetensors file, or the folder of a pipeline of diffusers, FOLDER or
            FOLDER@PROMPTS.txt.
        seeds: every seed makes one image.
        solver: a name, or a spec with options. auto is the best known choice for `nfe`, with a grid of its own; where `steps`,
            `grid` or `to_zero` names a grid, it is dpmpp_2m.
        grid: a name or a spec, of noise levels from `sigma_max` to `sigma_min`; by default the solver's own grid, or karras.
        steps: the number of solver steps; either this or `nfe`.
        nfe: network evaluations to spend; either this or `steps`.
        sigma_min: the lowest noise level; by default 0.002, or the lowest that the model was made for.
        sigma_max: the highest noise level; by default 80, or the highest that the model was made for.
        to_zero: add one more step, to sigma = 0, as EDM's sampler does.
        correction: a name, a spec, or a .json table of gamma.
        frame: the coordinates of the blend, model or ve.
        divergence: how a correction estimates its divergence.
        batch: images in a batch; the statistics of a correction are those of a batch.
        class_index: the class label, for a class-conditional model; for a text-to-image folder, the number of the prompt.
        prompt: the prompt of all images, for a text-to-image folder.
        random_classes: the seed of an image draws its class, as it does where the model knows images of a class only.
        guidance: the scale of classifier-free guidance to the class, for a model that was trained for it; 1 is without.
        dtype: the solver state and shipped models are float32 or float64.
        device: the model computes on cpu, cuda, cuda:1, …; with cuda, several processes take one device each.

    Raises:
        InputError: both or neither of `steps` and `nfe`, a seed given twice, guidance to no class, a value outside its range.
    """

    LEAST: ClassVar[Any] = {"steps": 1, "nfe": 1, "batch": 1}

    model: str
    seeds: tuple[int, ...]
    solver: str = "auto"
    grid: str | None = None
    steps: int | None = None
    nfe: int | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    to_zero: bool = False
    correction: str = "none"
    frame: Frame = "model"
    divergence: Hutchinson = field(default_factory=Hutchinson)
    batch: int = 64
    class_index: int | None = None
    prompt: str | None = None
    random_classes: bool = False
    guidance: float = 1.0
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        one = (self.steps is None) != (self.nfe is None)
        require(one, "give exactly one of --steps and --nfe", steps=self.steps, nfe=self.nfe)
        at_least(self, self.LEAST)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"{len(self.seeds)} seeds, {len(set(self.seeds))} different: need at least one, and none twice")
        require(self.frame in get_args(Frame), "choose model or ve", frame=self.frame)
        require(self.dtype in ("float32", "float64"), "the solver state is float32 or float64", dtype=self.dtype)
        require(math.isfinite(self.guidance), "need a finite scale of guidance", guidance=self.guidance)
        one = self.class_index is None or not self.random_classes
        require(one, "give --class or --random-classes, and not both", class_index=self.class_index)

    @property
    def state_dtype(self) -> torch.dtype:
        """The data type of the solver state."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def batches(self) -> range:
        """The numbers of the batches."""
        return range(-(-len(self.seeds) // self.batch))

    def seeds_of(self, batch: int) -> Sequence[int]:
        """The seeds of one batch, counted from the first seed of the list; the last batch may be smaller."""
        return self.seeds[batch * self.batch : (batch + 1) * self.batch]

    def prepare(
        self,
        denoiser: Denoiser,
        event: tuple[int, ...] | None = None,
        choice: Choice | None = None,
        folders: tuple[str, ...] = (),
    ) -> tuple[Solver, Tensor]:
        """The solver under its correction, and the noise levels.

        Args:
            denoiser: says what a solver with a grid of its own plans for: σ_data, and the scale of guidance.
            event: the shape of an image, without which no calibrated table is found.
            folders: where tables that were calibrated on the network may lie.
            choice: what an earlier probe of the network found; None: the solver probes the network anew.

        Raises:
            InputError: a spec names nothing, or its options or the noise levels are out of range; a grid for a solver that has
                its own.
        """
        solver, sigmas = self._planned(Setting.of(denoiser, self.sigma_max, self.sigma_min, event, folders))
        estimator = replace(self.divergence, choice=choice)
        return corrections.apply(self.correction, solver, divergence=estimator, frame=self.frame), sigmas

    def _planned(self, setting: Setting) -> tuple[Solver, Tensor]:
        solver = solvers.make(self.solver)
        flags = {"--steps": self.steps, "--grid": self.grid, "--to-zero": self.to_zero}
        said = [flag for flag, value in flags.items() if value]
        if said and isinstance(solver, Auto):
            solver = DPMpp2M()
        if solver.plans and said:
            raise InputError(
                f"{' and '.join(said)} with solver {self.solver!r}, which has a grid of its own: give --nfe alone, or take a "
                "solver that runs on any grid, such as dpmpp_2m"
            )
        if not said:
            solver, sigmas = solver.plan(self.nfe or 0, setting)
            self._check_ends(sigmas, setting)
            return solver, sigmas
        solver, steps = (solver, self.steps) if self.steps else solver.for_nfe(self.nfe or 0, setting)
        sigmas = grids.make(self.grid or "karras", steps, setting.sigma_min, setting.sigma_max)
        return solver, grids.with_zero(sigmas) if self.to_zero else sigmas

    def _check_ends(self, sigmas: Tensor, setting: Setting) -> None:
        """A table of one grid has its ends, whatever levels are asked for, and the network its own range."""
        for name, level in (("sigma_max", float(sigmas[0])), ("sigma_min", float(sigmas[-1]))):
            asked, usual = getattr(setting, name), getattr(grids, name.upper())
            if asked != usual and abs(asked - level) > 1e-6 * asked:
                whose = f"solver {self.solver!r}, whose own grid has {level:g}"
                raise InputError(f"--{name} {asked:g} with {whose}: leave the flag out, or take a table of that level")


def parse_seeds(text: str) -> tuple[int, ...]:
    """EDM's notation: "1,2,5-10" becomes (1, 2, 5, 6, 7, 8, 9, 10).

    Raises InputError for anything else, for more than ten million seeds, and for one of 2⁶³ or above.
    """
    return parse_numbers(text, "seeds", MOST_SEEDS)


def parse_numbers(text: str, what: str, most: int) -> tuple[int, ...]:
    """Whole numbers in EDM's notation, `most` of them at most. Raises InputError, which calls them `what`."""
    ranges, count = list[range](), 0
    shown = text if len(text) <= 80 else f"{text[:77]}…"
    for part in text.split(","):
        found = span(part)
        if found is None:
            raise InputError(
                f"{what} {shown!r}: {part[:40]!r} is neither a number nor a range low-high; write 0-63 or 1,2,5-10"
            )
        require(found.stop <= 2**63, f"{what} are below 2^63 = {2**63}", number=found.stop - 1)
        ranges.append(found)
        count += found.stop - found.start
        if count > most:
            raise InputError(f"{what} {shown!r} are {count:,} or more: give at most {most:,}, the others in another run")
    return tuple(chain.from_iterable(ranges))
