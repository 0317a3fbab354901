"""What a study keeps on disk: files that are whole or not there, each named by a digest of all that determines it.

`kept` reads what is there, or makes it and writes it. A file that is damaged, or that is not what its name says, is refused
with a remedy, and never overwritten.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from steindiff.errors import InputError
from steindiff.io import processes
from steindiff.io.files import digest, read_all, write_tensors
from steindiff.io.folders import refuse_link
from steindiff.io.names import file_name
from steindiff.metrics import Value
from steindiff.study.grid import Cell

FORMAT = 2
"""The format of every kept file. Digests contain it, so that a file of another format is not looked for."""

T = TypeVar("T")


def kept(folder: Path | None, name: str, parts: Mapping[str, Any], kind: type[T], remedy: str, make: Callable[[], T]) -> T:
    """What a file of the folder holds; where there is no file, what `make` makes, which is then written. None keeps nothing.

    The file is named by `name` and by a digest of `parts`, all that determines the object. Its kind is a dataclass or a named
    tuple, whose entries are tensors and what JSON can hold. The remedy says what happens once the file is removed: "it is
    measured again".

    Raises:
        InputError, AccessError: as `held` and `keep`.
    """
    if folder is None:
        return make()
    path, key = _named(folder, name, parts)
    found = held(path, key, kind, remedy)
    if found is None:
        found = make()
        keep(path, key, found)
    return found


def kept_together(
    folder: Path | None, name: str, parts: Mapping[str, Any], kind: type[T], remedy: str, make: Callable[[], T]
) -> T:
    """`kept` for several processes that work together, each of which calls it.

    Only the first process reads and writes. Where there is no file, all processes make the object together.
    """
    if folder is None:
        return make()
    path, key = _named(folder, name, parts)
    found = processes.told(processes.by_first(lambda: held(path, key, kind, remedy)))
    if found is None:
        found = make()
        if processes.rank() == 0:
            keep(path, key, found)
    return found


def _named(folder: Path, name: str, parts: Mapping[str, Any]) -> tuple[Path, str]:
    """The path of a file, and the key in its name."""
    key = digest(format=FORMAT, **parts)
    return folder / f"{file_name(name, key)}.safetensors", key


def held(path: Path, key: str, kind: type[T], remedy: str) -> T | None:
    """What the file holds; None where there is no file.

    Raises:
        InputError: it is damaged, another program's, or holds another key.
        AccessError: it may not be read.
    """
    if not path.exists():
        return None
    try:
        about, tensors = read_all(path)
        head = about.pop("kept")
        if (head["format"], head["key"]) != (FORMAT, key):
            raise ValueError(f"it holds {head['key']}")
        found: T = _parsed(kind, {**about, **{name: tensors[name] for name in head["tensors"]}})
        return found
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not what its name says ({error}): remove it, and {remedy}") from error


def _parsed(kind: Any, value: Any) -> Any:
    """The object of a kind that a value from JSON describes; of a list or tuple, the entries are all of one kind.

    Raises AttributeError, KeyError, TypeError or ValueError where the value describes no such object.
    """
    args = get_args(kind)
    if type(None) in args:
        return None if value is None else _parsed(args[0], value)
    if kind is Value:
        return Value.parse(value)
    if get_origin(kind) is dict:
        return {name: _parsed(args[1], entry) for name, entry in value.items()}
    if (types := _TYPES.get(get_origin(kind) or kind)) is not None and type(value) not in types:
        raise TypeError(f"{str(value)[:60]!r} is no {kind}")
    if kind is float:
        return math.nan if value is None else float(value)
    if args and get_origin(kind) in (list, tuple):
        return get_origin(kind)(_parsed(args[0], entry) for entry in value)
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        hints = get_type_hints(kind)
        return kind(**{name: _parsed(hints[name], entry) for name, entry in value.items()})
    return value


_TYPES: dict[Any, tuple[type, ...]] = {
    str: (str,), int: (int,), bool: (bool,), float: (float, int, type(None)), list: (list,), tuple: (list,), Tensor: (Tensor,),
}  # fmt: skip
"""The types that a value from a file may have, by the type of the entry. JSON's null stands for a NaN or an infinity."""


def keep(path: Path, key: str, value: Any) -> None:
    """Write an object atomically. Raises InputError where the folder cannot be written to, or the disk is full."""
    entries = _entries(value)
    tensors = {name: entry for name, entry in entries.items() if isinstance(entry, Tensor)}
    about = {name: _entries(entry) if is_dataclass(entry) else entry for name, entry in entries.items() if name not in tensors}
    write_tensors(path, tensors, {"kept": {"format": FORMAT, "key": key, "tensors": list(tensors)}, **about})


def _entries(value: Any) -> dict[str, Any]:
    """The entries of a dataclass or of a named tuple."""
    return {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else dict(value._asdict())


@dataclass(frozen=True, eq=False)
class Result:
    """What one cell gave.

    Attributes:
        key: a digest of all that determines the numbers.
        n: how many images there are; 0 where the run failed.
        values: the numbers by metric; empty where the run failed.
        changes: this run less the plain one, paired over seeds, by metric; empty for a plain run and where either failed.
        stats: nfe, forward_equivalents, jvps and vjps, means over batches.
        trace: one record for each step of the first batch.
        spectrum: the log ratio of power to the target's by band, from low to high frequency.
        failure: why the run failed; empty where it did not.
        seconds: the time that the images took.
        shown: the first images, or the first of each class, uint8 (k, H, W, C); empty for points that are no images.
        excess: this run less the exact flow's end points, paired over seeds, by metric: what the few steps lose.
        spread: `Paired.spread` of every metric, one after the other, float32.
        lengths: how many numbers of `spread` each metric has, in their order.
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
    excess: dict[str, Value] = field(default_factory=dict)
    spread: Tensor = field(default_factory=lambda: torch.empty(0))
    lengths: dict[str, int] = field(default_factory=dict)

    def minus(self, other: "Result", metric: str) -> Value:
        """This run less another of the same testbed and seeds, paired; as if independent where a run has no spread."""
        a, b = self.values[metric], other.values[metric]
        ours, theirs = self._spread_of(metric), other._spread_of(metric)
        paired = 0 < len(ours) == len(theirs)
        return Value(a.value - b.value, float((ours - theirs).norm()) if paired else math.hypot(a.se, b.se))

    def _spread_of(self, metric: str) -> Tensor:
        """Empty where there is none."""
        names = list(self.lengths)
        start = sum(self.lengths[name] for name in names[: names.index(metric)]) if metric in names else 0
        return self.spread[start : start + self.lengths.get(metric, 0)].double()


@dataclass(frozen=True)
class BedSummary:
    """What a report says of a testbed.

    Attributes:
        name: the testbed's, in the study.
        kind: "exact", "network", "guided" or "guided network".
        reference: how endpoints and target were made.
        floors: independent samples of the law, as many as a cell has, against the target.
        perfect: the reference flow's own end points against the target.
        shown: the first of these end points, uint8 (k, H, W, C), for a row beside the samples; may be empty.
        error: estimated RMS error of the end points, a coordinate; None where it was not asked for.
        labels: the classes of the images shown, here and in every result; empty where images have none.
    """

    name: str
    kind: str
    event_shape: tuple[int, ...]
    reference: str
    n_target: int
    floors: dict[str, Value]
    perfect: dict[str, Value]
    shown: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8), compare=False, repr=False)
    error: float | None = None
    labels: tuple[int, ...] = ()


ROOMS = ("cells/*", "references", "prices")
"""The folders in which a study keeps its files, as patterns of `Path.glob`."""


def place(folder: Path, cell: Cell, key: str) -> Path:
    """Where a cell's file is written. `read` finds a file by its key alone, whatever the rest of its name says."""
    name = file_name(cell.solver, cell.grid, cell.nfe, Path(cell.correction).stem, key)
    return folder / "cells" / file_name(Path(cell.bed).stem) / f"{name}.safetensors"


def places(folder: Path) -> dict[str, Path]:
    """The files of all cells by their keys. A testbed or a table that was moved or renamed still has the same keys."""
    return {path.stem.rpartition("-")[2]: path for path in folder.glob("cells/*/*.safetensors")}


def write(folder: Path, result: Result) -> None:
    """Keep a cell's result. Raises InputError as `keep`, and where a link leads out of the folder."""
    path = place(folder, result.cell, result.key)
    refuse_link(folder, path)
    keep(path, result.key, result)


def read(folder: Path, cell: Cell, key: str, known: Mapping[str, Path] | None = None) -> Result | None:
    """A cell's result; None where there is none. `known` is what `places` returned, where the caller has it already.

    Raises as `held`.
    """
    path = place(folder, cell, key)
    path = path if path.exists() else (places(folder) if known is None else known).get(key, path)
    found = held(path, key, Result, "the cell is run again")
    return None if found is None else replace(found, cell=cell)
