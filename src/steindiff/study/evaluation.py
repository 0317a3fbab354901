"""What an evaluation is asked, and what it finds: a fine run and few-step runs, from the same seeds, beside real images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from steindiff import grids, solvers
from steindiff.errors import at_least, require, unknown_name
from steindiff.io.processes import local_device
from steindiff.metrics import Features, Value
from steindiff.models import Model
from steindiff.models.datasets import ImageSet
from steindiff.solvers import USUAL, Setting, Solver

FINE = "fine"
RUNS = (FINE, *(f"{solver}-{nfe}" for solver in ("dpmpp_2m", "unipc_3", "ipndm_3", "heun") for nfe in (5, 6, 8, 10)))
PRECISIONS = ("no", "bf16")


@dataclass(frozen=True)
class Settings:
    """Everything that determines the numbers, besides the model and the images.

    Args:
        n: samples of the fine run, and the most real images of either set.
        n_few: samples of the other runs; by default `n`.
        runs: what is run: fine, and SOLVER-NFE (a solver or a spec); by default fine and four solvers at NFE 5, 6, 8, 10.
        first_seed: image i comes from this seed plus i in every run.
        fine_steps: Heun steps of the fine run from 80 to 0.002; one more goes to 0.
        precision: the network computes in float32 (no), or in bf16 under autocast; the state is float32.
        checked: samples of each run drawn in float32 too, to state what bf16 changes.
        features: those of cifar10 (16×16 or 32×32 in colour, else left out), none, or of a classifier file.
        groups: how many groups the Fréchet distances' jackknife has; by default 20, or as many as two images each make.
        batch: images at a time; this changes speed and rounding only.
        chunk: images between writes to disk.
        device: the model computes on cpu, cuda, cuda:1, …; with cuda, several processes take one device each.

    Raises:
        InputError: a number or a name outside its range, or a device that is not there.
    """

    LEAST: ClassVar[Any] = {
        "n": 4, "n_few": 4, "first_seed": 0, "fine_steps": 2, "checked": 2, "groups": 2, "batch": 1, "chunk": 1,
    }  # fmt: skip

    n: int = 10000
    n_few: int | None = None
    runs: tuple[str, ...] = RUNS
    first_seed: int = 0
    fine_steps: int = 35
    precision: str = "no"
    checked: int = 128
    features: str = "cifar10"
    groups: int | None = None
    batch: int = 250
    chunk: int = 1000
    device: str = "cpu"

    def __post_init__(self) -> None:
        at_least(self, self.LEAST)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        require(0 < len(self.runs) == len(set(self.runs)), "need at least one, and none twice", runs=list(self.runs))
        for name in self.runs:
            Run.of(name, self)
        local_device(self.device)


@dataclass(frozen=True, eq=False)
class Run:
    """One solver on one grid, and how many images it makes."""

    name: str
    solver: Solver
    sigmas: Tensor
    n: int

    @classmethod
    def of(cls, name: str, settings: Settings, setting: Setting = USUAL) -> "Run":
        """The run of a name, planned for this setting. Raises InputError for one that is neither "fine" nor SOLVER-NFE."""
        if name == FINE:
            return cls(name, solvers.make("heun"), grids.with_zero(setting.karras(settings.fine_steps)), settings.n)
        solver_name, dash, nfe = name.rpartition("-")
        require(bool(dash) and nfe.isdecimal(), f"write {FINE!r}, or a solver and its evaluations such as 'heun-10'", run=name)
        return cls(name, *solvers.make(solver_name).plan(int(nfe), setting), settings.n_few or settings.n)

    @property
    def nfe(self) -> int:
        """Network evaluations an image."""
        return self.solver.nfe(self.sigmas)


@dataclass(frozen=True)
class Source:
    """A file or folder of real images, without this machine's path; `used` of its images were drawn at random."""

    name: str
    images: int
    used: int
    sha256: str

    @classmethod
    def of(cls, whole: ImageSet, used: ImageSet) -> "Source":
        """What a set of images is, and a part of it that is used."""
        return cls(Path(whole.source).name, len(whole), len(used), whole.sha256)


@dataclass(frozen=True)
class Distances:
    """Distances between two sets of images; features is None where there are none for such images."""

    energy: Value
    pixels: Value
    features: Value | None


@dataclass(frozen=True)
class Row:
    """One run, or real images in the place of a run's.

    Attributes:
        nfe: network evaluations an image; None for real images.
        train, held: distances to training and to held-out images; None where it failed, or has too few images for a floor.
        error: endpoint RMSE to the fine run, image by image; None for the fine run itself, without one, and for a stochastic
            solver, which has no end of its own.
        effect: endpoint RMSE between bf16 and float32; None in float32.
    """

    name: str
    nfe: int | None
    n: int
    train: Distances | None = None
    held: Distances | None = None
    error: Value | None = None
    effect: Value | None = None
    seconds: float = 0.0
    failure: str = ""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An evaluation's numbers, with all that led to them.

    Attributes:
        floors: real images, as many as each run has: training ones against the held-out, held-out ones against the training.
        split: whether the held-out images were held out of the training data.
        shown: the first images of each run, uint8 (k, C, H, W).
    """

    model: Model
    settings: Settings
    train: Source
    held: Source
    features: Features | None
    rows: tuple[Row, ...]
    floors: tuple[Row, ...]
    split: bool
    shown: dict[str, Tensor]
