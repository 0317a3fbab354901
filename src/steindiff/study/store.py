"""One file a cell: whole or not there, named by a hash of all that determines it, refused where it is something else."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steindiff.errors import InputError
from steindiff.io.files import read_tensors, write_tensors
from steindiff.metrics import Value
from steindiff.study.grid import Cell

__all__ = ["Result", "place", "read", "write"]

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Result:
    """What one cell gave.

    Attributes:
        cell: which.
        key: digest of all that determines the numbers.
        n: images.
        values: by metric; empty where the run failed.
        changes: corrected less plain, paired over seeds, by metric; empty for a plain run and where either failed.
        stats: nfe and forward_equivalents, means over batches.
        trace: of the first batch, one record per step.
        spectrum: log ratio of power to the target's, per band, from low to high frequency.
        failure: why there are no numbers.
        seconds: of sampling.
        shown: the first images, uint8 (k, H, W, C); empty for points that are no images.
    """

    cell: Cell
    key: str
    n: int
    values: dict[str, Value] = field(default_factory=dict)
    changes: dict[str, Value] = field(default_factory=dict)
    stats: dict[str, float] = field(default_factory=dict)
    trace: list[dict[str, Any]] = field(default_factory=list)
    spectrum: list[float] = field(default_factory=list)
    failure: str = ""
    seconds: float = 0.0
    shown: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))


def place(folder: Path, cell: Cell, key: str) -> Path:
    """Where a cell's file lies."""
    bed = Path(cell.bed).stem
    return folder / "cells" / bed / f"{cell.solver}-{cell.grid}-{cell.nfe}-{Path(cell.correction).stem}-{key}.safetensors"


def write(folder: Path, result: Result) -> None:
    """Write a result atomically. Raises InputError where the folder cannot be written to, or the disk is full."""
    about = {"format": FORMAT, **{f.name: getattr(result, f.name) for f in fields(result) if f.name not in ("cell", "shown")}}
    about["cell"] = asdict(result.cell)
    write_tensors(place(folder, result.cell, result.key), {"shown": result.shown}, about)


def read(folder: Path, cell: Cell, key: str) -> Result | None:
    """A cell's result; None where there is none.

    Raises:
        InputError: a file of that name that is not that result: half-written by another program, or foreign.
    """
    path = place(folder, cell, key)
    if not path.exists():
        return None
    try:
        about, (shown,) = read_tensors(path, "shown")
        if about.pop("format") != FORMAT or about["key"] != key or Cell(**about.pop("cell")) != cell:
            raise ValueError(f"it holds {about['key']}")
        for name in ("values", "changes"):
            about[name] = {k: Value.parse(v) for k, v in about[name].items()}
        return Result(cell, shown=shown, **about)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not the result its name says ({error}): remove it, and the cell is run again") from error
