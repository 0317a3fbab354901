"""The study's grid: which cells there are, and what a configuration file or a preset says of them."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from importlib import import_module
from itertools import product, starmap
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from steindiff import corrections, grids, solvers
from steindiff.corrections import Correction
from steindiff.divergence import Choice, Estimator, Exact, Hutchinson
from steindiff.errors import InputError, at_least, require, unknown_name
from steindiff.io.files import read_text
from steindiff.solvers import USUAL, Setting, Solver

PLAIN, TWICE, OWN = "none", "twice", "own"
Derivative = Literal["vjp", "jvp", "fd", "exact"]
METRICS = ("energy", "frechet", "features", "sliced", "spectrum", "precision", "recall", "coverage", "components", "endpoint")
"""All that a study measures by itself; see `measure.Ruler`."""
AXES = 64
"""Principal axes of a pixel Fréchet distance where there are more pixels."""
_PAPER = ("dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3", "heun")
_FURTHER = ("ddim", "deis_3", "ipndm_3", "ipndm_4")
_PLAIN = (
    "ddim", "heun", "dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3", "deis_2", "deis_3", "deis_4", "ipndm_2", "ipndm_3", "ipndm_4",
)  # fmt: skip
_ON_LEVELS = ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3", "deis_3", "ipndm_3", "ipndm_4")
_PAPERS = (
    "literal", "clamped", "clamped(history=frozen)", "clamped(mode=tweedie)",
    "analytical", "clamped(mode=analytical)", "adaptive",
    "sparse(clamped, above=1.0)", "sparse(clamped, below=1.0)", "self_consistent", "self_consistent(eta=0.5)",
)  # fmt: skip
"""The paper's rules; its fast KM is `analytical` by another name."""
_RULES = ("none", *_PAPERS, "bot_nguyen", "energy", "energy_bands")
_NFE = (5, 6, 8, 10, 12, 15, 20, 25)


@dataclass(frozen=True)
class Cell:
    """One run of the study; solver, grid and correction by their labels in its `Config`. The grid "own" is the solver's."""

    bed: str
    solver: str
    grid: str
    nfe: int
    correction: str

    @property
    def plain(self) -> "Cell":
        """The same without a correction."""
        return replace(self, correction=PLAIN)

    @property
    def evaluations(self) -> int:
        """The network evaluations that the run may spend."""
        return 2 * self.nfe if self.correction == TWICE else self.nfe

    def __str__(self) -> str:
        return f"{self.bed} {self.solver} {self.grid} {self.nfe} {self.correction}"


@dataclass(frozen=True)
class Config:
    """A study: every combination of these.

    Solvers, grids and corrections are specs (`heun`, `dpmpp_3m(exact=True)`, `energy(bands=8)`), or labels of `objects`. The
    correction `twice` is the plain solver at twice the NFE: about what the derivatives of a correction would have paid for.

    A solver with grids of its own (`universal`, `auto`, `table(file.safetensors)`) has one run for each NFE, whose grid is
    "own", and plans for the testbed's σ_data and guidance. It has no runs at an NFE for which it has no grid.

    Args:
        beds: names of testbeds, or model files.
        solvers: specs of solvers; each has a plain run too, which its corrections are compared with.
        grids: specs of noise grids.
        nfe: how many network evaluations a run spends, such as 5,8 or 3-10.
        corrections: specs of corrections.
        n: how many images a cell has.
        batch: how many images a batch has; γ is a statistic of a batch.
        first_seed: image i comes from this seed plus i in every cell.
        divergence: how derivatives are taken: vjp, jvp or fd, with Hutchinson's probes, or exact (all d products).
        probes: how many Hutchinson probes a step takes.
        probe_kind: the probes are rademacher or gaussian.
        sub_batch: the divergence is estimated on so many images of a batch; 0 for all.
        metrics: what is measured.
        axes: how many principal axes the pixel Fréchet distance has.
        checked: so many fine runs of a network are repeated with twice the steps, to say how exact its references are.
        objects: what labels stand for that are no specs: solvers, corrections, and grids as functions (n, σ_min, σ_max) → σ.

    Raises:
        InputError: an empty or repeated entry, an unknown name, a number outside its range, or a solver without any run.
    """

    beds: tuple[str, ...] = ("digits_mixture", "digits", "cifar10_mixture", "cifar10")
    solvers: tuple[str, ...] = _PAPER + _FURTHER
    grids: tuple[str, ...] = ("karras", "log_snr")
    nfe: tuple[int, ...] = _NFE
    corrections: tuple[str, ...] = _RULES
    n: int = 512
    batch: int = 128
    first_seed: int = 0
    divergence: Derivative = "vjp"
    probes: int = 1
    probe_kind: Literal["rademacher", "gaussian"] = "rademacher"
    sub_batch: int = 0
    metrics: tuple[str, ...] = METRICS
    axes: int = AXES
    checked: int = 0
    objects: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("beds", "solvers", "grids", "nfe", "corrections", "metrics"):
            values = getattr(self, name)
            require(0 < len(values) == len(set(values)), "need at least one, and none twice", **{name: list(values)})
        for metric in self.metrics:
            if metric not in METRICS:
                raise unknown_name("metric", metric, METRICS)
        if self.divergence not in get_args(Derivative):
            raise unknown_name("divergence", self.divergence, get_args(Derivative))
        require(all(type(v) is int for v in self.nfe), "need whole numbers", nfe=list(self.nfe))
        require(min(self.nfe) >= 1, "need nfe ≥ 1", nfe=min(self.nfe))
        require(max(self.nfe) <= grids.MOST_STEPS, f"need nfe ≤ {grids.MOST_STEPS:,}", nfe=max(self.nfe))
        require(self.n >= 40, "need n ≥ 40 (two images in each group of a jackknife)", n=self.n)
        at_least(self, {"n": 1, "batch": 1, "first_seed": 0, "probes": 1, "sub_batch": 0, "axes": 1, "checked": 0})
        self.estimator()
        require(OWN not in self.grids, f"{OWN} is what a solver's own grid is called: choose another", grids=list(self.grids))
        for label in self.solvers:
            require(any(self.runs(label, nfe) for nfe in self.nfe), f"{label} has no run with so many", nfe=list(self.nfe))
        for label in self.grids:
            self.grid(label, 2)
        for label in self.corrections:
            if not label.endswith(".json"):  # it is read when it is needed
                self.correction(label)

    @property
    def seeds(self) -> range:
        """The seeds of a cell's images."""
        return range(self.first_seed, self.first_seed + self.n)

    def solver(self, label: str) -> Solver:
        """What a label stands for. Raises InputError as `solvers.make`."""
        return self._solvers.get(label) or solvers.make(label)

    def grids_of(self, label: str) -> tuple[str, ...]:
        """The grids that a solver's runs have: those of the study, or its own."""
        return (OWN,) if self.solver(label).plans else self.grids

    @property
    def used_grids(self) -> tuple[str, ...]:
        """The grids that any solver's runs have."""
        used = {grid for label in self.solvers for grid in self.grids_of(label)}
        return tuple(grid for grid in (*self.grids, OWN) if grid in used)

    def solvers_on(self, grid: str) -> tuple[str, ...]:
        """The solvers that have runs on a grid."""
        return tuple(label for label in self.solvers if grid in self.grids_of(label))

    def runs(self, label: str, nfe: int) -> bool:
        """Whether a solver can spend so many evaluations on EDM's range of noise levels, on some testbed at least."""
        solver = self.solver(label)
        return solver.of_networks or _spends(solver, nfe, USUAL)

    def runs_on(self, cell: Cell, setting: Setting) -> bool:
        """Whether a cell's solver can spend its evaluations on a testbed of this setting: guidance decides it too."""
        return _spends(self.solver(cell.solver), cell.evaluations, setting)

    def correction(self, label: str) -> Correction | None:
        """What a label stands for, None for a plain run. Raises InputError as `corrections.make`."""
        return corrections.make(PLAIN if label == TWICE else self.objects.get(label, label))

    def estimator(self, choice: Choice | None = None) -> Estimator:
        """What estimates the divergences of corrections, at this price of a derivative."""
        if self.divergence == "exact":
            return Exact(choice)
        return Hutchinson(self.probes, self.probe_kind, self.divergence, choice=choice, samples=self.sub_batch or None)

    def grid(self, label: str, steps: int, setting: Setting = USUAL) -> Tensor:
        """The grid of a label, with so many steps over the levels of a setting. Raises InputError as `grids.make`."""
        make = self.objects.get(label) or partial(grids.make, label)
        levels: Tensor = make(steps, setting.sigma_min, setting.sigma_max)
        return levels

    def cells(self) -> Iterator[Cell]:
        """Every cell, a testbed's together, the plain run of a solver before its corrections."""
        rules = (PLAIN, *(c for c in self.corrections if c != PLAIN))
        for bed, solver in product(self.beds, self.solvers):
            cells = starmap(Cell, product((bed,), (solver,), self.grids_of(solver), self.nfe, rules))
            yield from (cell for cell in cells if cell.evaluations in self._able[solver])

    @cached_property
    def _solvers(self) -> dict[str, Solver]:
        """The study's solvers; a table's file is read once."""
        return {label: solvers.make(self.objects.get(label, label)) for label in self.solvers}

    @cached_property
    def _able(self) -> dict[str, set[int]]:
        """The numbers of evaluations that each solver can spend."""
        counts = {n for nfe in self.nfe for n in (nfe, 2 * nfe)}
        return {label: {n for n in counts if self.runs(label, n)} for label in self.solvers}

    def but(self, changes: Mapping[str, Any]) -> "Config":
        """With some entries changed; lists become tuples. Raises InputError for entries that a study does not have."""
        for name, value in changes.items():
            if name not in FLAGS:
                raise unknown_name("entry of a study", name, FLAGS)
            wanted = type(getattr(self, name))
            if not isinstance(value, list | tuple if wanted is tuple else wanted):
                raise InputError(f"{name} = {value!r}: need a value like {getattr(self, name)!r}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
        return replace(self, **values)


def _spends(solver: Solver, nfe: int, setting: Setting) -> bool:
    try:
        solver.for_nfe(nfe, setting)
    except InputError:
        return False
    return True


FLAGS = {f.name: "--" + f.name.replace("_", "-") for f in fields(Config) if f.name != "objects"}
FLAGS |= {"n": "--samples", "first_seed": "--seed"}
"""The command line's flag for each entry of a study."""

PRESETS: dict[str, Config] = {
    "quick": Config(
        beds=("digits_mixture", "digits"),
        solvers=("dpmpp_2m", "unipc_3", "heun", "ipndm_3"),
        grids=("karras",),
        nfe=(5, 8),
        corrections=("none", "literal", "clamped", "energy"),
        n=256,
    ),
    "paper": Config(),
    "universal": Config(
        beds=("digits_mixture", "digits", "cifar10_mixture", "cifar10", "wine_mixture"),
        solvers=(*_PLAIN, *(f"free({name})" for name in _ON_LEVELS), "universal"),
        grids=("karras", "log_snr", "karras(rho=5)", "karras(rho=10)"),
        nfe=(*range(1, 11), 12, 16, 20),
        corrections=(PLAIN,),
        n=256,
        checked=64,
    ),
    "full": Config(nfe=(3, 4, *_NFE), corrections=(*_RULES, "tweedie", "clamped(mode=adaptive)", "noise_consistent"), n=2048),
}


def read_config(path: str | Path, base: Config) -> Config:
    """A study, changed by a TOML file of its entries: `n = 1024`, `nfe = [5, 8]`. Raises InputError where it cannot be read."""
    require(sys.version_info >= (3, 11), "configuration files need Python 3.11 or newer: use flags instead", config=str(path))
    try:
        changes = import_module("tomllib").loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(f"{path} is not a readable TOML file: {error}") from error
    return base.but(changes)
