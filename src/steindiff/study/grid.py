"""The study's grid: which cells there are, and what a configuration file or a preset says of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from steindiff import corrections, grids, solvers
from steindiff.errors import InputError, unknown_name

__all__ = ["PLAIN", "PRESETS", "Cell", "Config", "read_config"]

PLAIN = "none"
_PAPER = ("dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3", "heun")
_FURTHER = ("ddim", "deis_3", "ipndm_3", "ipndm_4")
_RULES = ("none", "literal", "clamped", "analytical", "self_consistent", "fast_km", "energy", "energy_bands")
_NFE = (5, 6, 8, 10, 12, 15, 20, 25)


@dataclass(frozen=True)
class Cell:
    """One run of the study."""

    bed: str
    solver: str
    grid: str
    nfe: int
    correction: str

    @property
    def plain(self) -> Cell:
        """The same without a correction."""
        return replace(self, correction=PLAIN)

    def __str__(self) -> str:
        return f"{self.bed} {self.solver} {self.grid} {self.nfe} {self.correction}"


@dataclass(frozen=True)
class Config:
    """A study: every combination of these.

    Args:
        beds: names of testbeds, or model files.
        solvers: by name; a plain run of each is added where corrections are compared with it.
        grids: noise grids by name.
        nfe: network evaluations.
        corrections: by name.
        n: images a cell.
        batch: images a batch; γ is a statistic of a batch.
        first_seed: image i comes from seed first_seed + i in every cell.
        probes: Hutchinson probes a step.

    Raises:
        InputError: an empty or repeated entry, an unknown name, or a number outside its range.
    """

    beds: tuple[str, ...] = ("digits_mixture", "digits", "cifar10_mixture", "cifar10")
    solvers: tuple[str, ...] = _PAPER + _FURTHER
    grids: tuple[str, ...] = ("karras", "log_snr")
    nfe: tuple[int, ...] = _NFE
    corrections: tuple[str, ...] = _RULES
    n: int = 512
    batch: int = 128
    first_seed: int = 0
    probes: int = 1

    def __post_init__(self) -> None:
        for name in ("beds", "solvers", "grids", "nfe", "corrections"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise InputError(f"{name} {list(values)}: need at least one, and none twice")
        known = {"solvers": solvers.names(), "grids": grids.names(), "corrections": corrections.names()}
        for name, names in known.items():
            for value in getattr(self, name):
                if value not in names and not (name == "corrections" and value.endswith(".json")):
                    raise unknown_name(name.removesuffix("s"), value, names)
        if not all(type(v) is int for v in self.nfe):
            raise InputError(f"nfe {list(self.nfe)}: need whole numbers")
        if min(self.nfe) < 2 or self.n < 40 or self.batch < 1 or self.first_seed < 0 or self.probes < 1:
            raise InputError(
                f"nfe={min(self.nfe)}, n={self.n}, batch={self.batch}, first_seed={self.first_seed}, probes={self.probes}: "
                "need nfe ≥ 2, n ≥ 40 (two images in each group of a jackknife), batch ≥ 1, first_seed ≥ 0, probes ≥ 1"
            )

    def cells(self) -> Iterator[Cell]:
        """Every cell, a testbed's together, the plain run of a solver before its corrections."""
        rules = (PLAIN, *(c for c in self.corrections if c != PLAIN))
        for bed in self.beds:
            for solver in self.solvers:
                for grid in self.grids:
                    for nfe in self.nfe:
                        yield from (Cell(bed, solver, grid, nfe, rule) for rule in rules)

    def but(self, changes: Mapping[str, Any]) -> Config:
        """With some entries changed; lists become tuples. Raises InputError for entries that a study does not have."""
        fields = {f.name: f for f in dataclasses.fields(Config)}
        for name, value in changes.items():
            if name not in fields:
                raise unknown_name("entry of a study", name, fields)
            wanted = type(getattr(self, name))
            if not isinstance(value, list | tuple if wanted is tuple else wanted):
                raise InputError(f"{name} = {value!r}: need a value like {getattr(self, name)!r}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
        return replace(self, **values)


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
    "full": Config(nfe=(3, 4, *_NFE), corrections=corrections.names(), n=2048),
}


def read_config(path: str | Path, base: Config) -> Config:
    """A TOML file of a study's entries: `n = 1024`, `solvers = ["heun", "unipc_3"]`.

    Raises:
        InputError: no such file, not TOML, or entries that a study does not have.
    """
    try:
        toml = import_module("tomllib")
    except ModuleNotFoundError as error:
        raise InputError("configuration files need Python 3.11 or newer: use flags instead") from error
    try:
        changes = toml.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(f"{path} is not a readable TOML file: {error}") from error
    return base.but(changes)
