"""Files of tables: numbers in safetensors, and in the header where they come from. Loading one never executes code.

One file holds one table or several by name; a table is `levels` (n+1), `told` (n), `a` (n), `weights` (n, most values in a row)
and `values` (n), how many of a row's weights there are; and `mean` where it has one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steindiff.errors import InputError, ModelFileError
from steindiff.io.files import read_all, write_tensors
from steindiff.solvers.multistep import Row
from steindiff.solvers.purpose import Purpose
from steindiff.solvers.tabulated import Tabulated

FORMAT = 1
Entry = tuple[Tabulated, Mapping[str, Any]]
"""A solver, and what is known about where its numbers come from: provenance and scores, as JSON has them."""
_PARTS = ("levels", "told", "a", "weights", "values")


def save(path: str | Path, tables: Mapping[str, Entry]) -> Path:
    """Write tables by name to one file. Raises InputError where it cannot be written."""
    tensors = {f"{name}/{part}": value for name, (solver, _) in tables.items() for part, value in _tensors(solver).items()}
    purposes = {name: asdict(solver.purpose) for name, (solver, _) in tables.items() if solver.purpose is not None}
    about = {"format": FORMAT, "kind": "tables", "sha256": _digest(tensors)}
    reports = {name: dict(report) for name, (_, report) in tables.items()}
    called = {name: solver.name for name, (solver, _) in tables.items()}
    write_tensors(path, tensors, {**about, "reports": reports, "purposes": purposes, "called": called})
    return Path(path)


def load(path: str | Path) -> dict[str, Entry]:
    """The tables of a file, by name.

    Raises:
        ModelFileError: there is no such file, it is damaged, or it holds no tables that this version reads.
    """
    try:
        about, tensors = read_all(path)
    except ValueError as error:
        raise ModelFileError(f"{path} is no readable table: {error}; fetch it again, or calibrate anew") from error
    if about.get("format") != FORMAT or about.get("kind") != "tables":
        got = f"format {about.get('format')!r}, kind {about.get('kind')!r}"
        raise ModelFileError(f"{path} is of {got}: need a file that Table.save has written, of format {FORMAT}")
    if about.get("sha256") != _digest(tensors):
        raise ModelFileError(f"{path}: the numbers are not those that its header names; fetch it again, or calibrate anew")
    reports = about.get("reports")
    if not isinstance(reports, dict) or not all(isinstance(report, dict) for report in reports.values()):
        raise ModelFileError(f"{path}: its header has no report for each table; fetch it again, or calibrate anew")
    try:
        purposes = {name: Purpose.read(purpose) for name, purpose in about.get("purposes", {}).items()}
        called = {name: str(about.get("called", {}).get(name, Tabulated.name)) for name in reports}
        solvers = {name: replace(_solver(name, tensors), purpose=purposes.get(name), name=called[name]) for name in reports}
        return {name: (solvers[name], report) for name, report in reports.items()}
    except (AttributeError, KeyError, InputError, RuntimeError, ValueError, TypeError) as error:
        raise ModelFileError(f"{path} holds no usable table: {error}; fetch it again, or calibrate anew") from error


def _tensors(solver: Tabulated) -> dict[str, Tensor]:
    longest = max(1, *(len(row.values) for row in solver.rows))
    padded = [[*row.values, *[0.0] * (longest - len(row.values))] for row in solver.rows]
    numbers = (solver.levels, solver.told, [row.a for row in solver.rows], padded)
    tensors = {name: torch.tensor(part, dtype=torch.float64) for name, part in zip(_PARTS, numbers, strict=False)}
    tensors["values"] = torch.tensor([len(row.values) for row in solver.rows])
    return tensors if solver.mean is None else {**tensors, "mean": solver.mean.detach().cpu().clone()}


def _solver(name: str, tensors: Mapping[str, Tensor]) -> Tabulated:
    """The solver of one table. Raises what `load` turns into a ModelFileError where its parts are not what they should be."""
    levels, told, a, weights, values = (tensors[f"{name}/{part}"].tolist() for part in _PARTS)
    if not all(isinstance(v, float) for v in (*levels, *told, *a, *(w for row in weights for w in row))):
        raise InputError("a number is no float")
    if not all(isinstance(count, int) and 0 <= count <= len(row) for count, row in zip(values, weights, strict=True)):
        raise InputError(f"it counts {values} weights in rows of {len(weights[0]) if weights else 0}")
    rows = tuple(Row(x, tuple(row[:count])) for x, row, count in zip(a, weights, values, strict=True))
    return Tabulated(tuple(levels), rows, tuple(told), tensors.get(f"{name}/mean"))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
