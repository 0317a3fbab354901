"""The files of a run: PNGs as they come, and, from the parts, grid.png, samples.npz, trace.jsonl and run.json."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from steindiff.errors import InputError
from steindiff.io.files import atomic, manifest, read_json, writable_folder, write_json
from steindiff.io.images import Image, contact_sheet, save_png
from steindiff.run.parts import Parts, has_parts, read_record, remove_parts, sweep, write_record

__all__ = ["Layout", "clear", "digest_of", "finished", "write_npz", "write_summary"]

_MANIFEST = "run.json"
_SUMMARY = ("grid.png", "samples.npz", "trace.jsonl")
_SHOWN = 64


@dataclass(frozen=True)
class Layout:
    """Which files a run writes, and where.

    Args:
        subdirs: every 1000 seeds have a folder, as in EDM.
        png: every seed has a PNG.
        npz: all images are in samples.npz.

    Raises:
        InputError: there would be neither PNGs nor samples.npz.
    """

    subdirs: bool = False
    png: bool = True
    npz: bool = True

    def __post_init__(self) -> None:
        if not (self.png or self.npz):
            raise InputError("--no-png and --no-npz: no image would be kept; leave one of them out")

    def write_pngs(self, folder: Path, seeds: Sequence[int], images: Image) -> None:
        """Write the PNGs of a batch, where the run has PNGs. Raises InputError where they cannot be written."""
        if self.png:
            for seed, image in zip(seeds, images, strict=True):
                save_png(_place(folder, seed, self.subdirs), image)


def _place(folder: Path, seed: int, subdirs: bool) -> Path:
    return (folder / f"{seed - seed % 1000:06d}" if subdirs else folder) / f"{seed:06d}.png"


def finished(folder: Path) -> bool:
    """Whether the folder holds a finished run."""
    return (folder / _MANIFEST).exists()


def digest_of(folder: Path) -> str | None:
    """The digest of the finished run that the folder holds; None where its run.json does not say."""
    try:
        return str(read_json(folder / _MANIFEST)["digest"])
    except (ValueError, KeyError, TypeError):
        return None


def write_summary(parts: Parts, batches: range, shape: Sequence[int], npz: bool, **about: Any) -> None:
    """Write all that is not a PNG from a run's parts, one part at a time, and run.json last; `shape` is (N, H, W, C)."""
    folder = parts.folder
    few = np.stack(list(islice(chain.from_iterable(map(parts.images, batches)), _SHOWN)))
    save_png(folder / "grid.png", contact_sheet(few, columns=8, scale=max(1, 64 // shape[1])))
    if npz:
        write_npz(folder / "samples.npz", shape, map(parts.images, batches))
    stats = _write_trace(folder / "trace.jsonl", map(parts.read, batches))
    write_json(folder / _MANIFEST, manifest(**about, digest=parts.key, stats=stats))


def write_npz(path: Path, shape: Sequence[int], batches: Iterable[Image]) -> None:
    """Write what `np.savez_compressed(path, arr_0=…)` does, uint8 of that shape, batch by batch."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": tuple(shape)}
    with (
        atomic(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for images in batches:
            file.write(images.tobytes())


def _write_trace(path: Path, batches: Iterable[dict[str, Any]]) -> list[Any]:
    """Write a line for every step; return what the batches cost."""
    stats = []
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for batch in batches:
            file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in batch["trace"])
            stats.append(batch["stats"])
    return stats


def clear(folder: Path) -> None:
    """Remove the run that a folder holds, finished or not, images and all; nothing else in it.

    A finished run first becomes an unfinished one, whose record goes last: the next call goes on with a killed removal.

    Raises:
        InputError: the folder cannot be written to.
    """
    if not (finished(folder) or has_parts(folder)):
        return
    writable_folder(folder)
    seeds = _seeds(folder)
    if finished(folder):
        write_record(folder, {"seeds": seeds})
        (folder / _MANIFEST).unlink()
    for name in _SUMMARY:
        (folder / name).unlink(missing_ok=True)
    for seed in seeds:
        for subdirs in (False, True):
            _place(folder, seed, subdirs).unlink(missing_ok=True)
    sweep(folder)
    for place in {_place(folder, seed, True).parent for seed in seeds}:
        with contextlib.suppress(OSError):  # it is not there, or holds something else
            place.rmdir()
    remove_parts(folder)


def _seeds(folder: Path) -> list[int]:
    """The seeds of the run that the folder holds; none where they cannot be read."""
    try:
        held = read_record(folder) or read_json(folder / _MANIFEST)["job"]
        return [int(seed) for seed in held["seeds"]]
    except (ValueError, KeyError, TypeError):
        return []
