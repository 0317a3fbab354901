"""The folder of a run: PNGs and finished batches as they come, then grid.png, samples.npz, trace.jsonl and run.json.

A finished batch is a file in `.parts`, whole or not there. A record there says whose the batches are; it is written before the
first image, so that a folder with images of an unfinished run says which run that is. `.parts` goes when run.json is written.
"""

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import chain, islice
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steindiff.errors import InputError
from steindiff.io import files
from steindiff.io.files import atomic, read_json, write_text
from steindiff.io.images import Image, contact_sheet, save_png

FORMAT = 1
PARTS = ".parts"
_RECORD = f"{PARTS}/job.json"
_MANIFEST = "run.json"
_SUMMARY = ("grid.png", "samples.npz", "trace.jsonl")
_SHOWN = 64


@dataclass(frozen=True, eq=False)
class Output:
    """What one run writes into its folder, by the options of `generate`; `about` is all that determines the images, as JSON.

    Raises:
        InputError: there would be neither PNGs nor samples.npz.
    """

    folder: Path
    about: dict[str, Any]
    subdirs: bool = False
    png: bool = True
    npz: bool = True

    def __post_init__(self) -> None:
        if not (self.png or self.npz):
            raise InputError("--no-png and --no-npz: no image would be kept; leave one of them out")

    @cached_property
    def key(self) -> str:
        """A digest of all that determines the images."""
        return files.digest(**self.about)

    @property
    def finished(self) -> bool:
        """Whether the folder holds a finished run."""
        return (self.folder / _MANIFEST).exists()

    def part(self, batch: int) -> Path:
        """Where a finished batch lies."""
        return self.folder / PARTS / f"{batch:06d}.safetensors"

    def admit(self, batches: range, overwrite: bool) -> None:
        """Go on with this run where the folder holds it unfinished, start anew under `overwrite`, and refuse all else.

        Raises:
            InputError: the folder holds a finished run, another unfinished one, or a damaged part.
        """
        if overwrite:
            clear(self.folder)
        elif self.finished:
            just_finished = (self.folder / PARTS).is_dir() and _entry(self.folder / _MANIFEST, "digest") == self.key
            remove_parts(self.folder)
            if not just_finished:
                raise InputError(f"{self.folder} already holds a finished run: choose another --outdir, or pass --overwrite")
        else:
            self._check(batches)

    def keep(self, batch: int, seeds: Sequence[int], images: Image, trace: Sequence[Any], stats: Any) -> None:
        """Write the PNGs of a batch, then its part. Raises InputError where the folder cannot be written to, or is full."""
        if not (self.folder / _RECORD).exists():
            write_text(self.folder / _RECORD, json.dumps(self._record) + "\n")
        for seed, image in zip(seeds, images, strict=True) if self.png else ():
            save_png(_place(self.folder, seed, self.subdirs), image)
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        about = {"format": FORMAT, "key": self.key, "batch": batch, "sha256": _sha256(pixels), "trace": trace, "stats": stats}
        files.write_tensors(self.part(batch), {"images": pixels}, about)

    def finish(self, batches: range, shape: Sequence[int], **about: Any) -> None:
        """Write all that is made of every batch, one batch at a time, and run.json last; `shape` is (N, H, W, C)."""
        few = np.stack(list(islice(chain.from_iterable(map(self._images, batches)), _SHOWN)))
        save_png(self.folder / "grid.png", contact_sheet(few, columns=8, scale=max(1, 64 // shape[1])))
        if self.npz:
            write_npz(self.folder / "samples.npz", shape, map(self._images, batches))
        stats = []
        with atomic(self.folder / "trace.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as file:
            for batch in batches:
                known, _ = self._read(batch)
                file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in known["trace"])
                stats.append(known["stats"])
        files.write_json(self.folder / _MANIFEST, files.manifest(**about, digest=self.key, stats=stats))
        remove_parts(self.folder)

    @property
    def _record(self) -> dict[str, Any]:
        return {**self.about, "subdirs": self.subdirs, "png": self.png}

    def _check(self, batches: range) -> None:
        """Refuse another run's parts and damaged ones, and remove what a kill left half-written."""
        path = self.folder / _RECORD
        try:
            held = read_json(path) if path.exists() else self._record
            differing = [name for name, value in self._record.items() if held.get(name) != value]
        except (ValueError, AttributeError) as error:
            raise InputError(f"{path} cannot be read ({error}): choose another --outdir, or pass --overwrite") from error
        if differing:
            raise InputError(
                f"{self.folder} holds another run that is not finished, with other {', '.join(differing)}: go on with the "
                "command it was begun with, choose another --outdir, or pass --overwrite"
            )
        for batch in batches:
            if self.part(batch).exists():
                self._read(batch)
        sweep(self.folder)

    def _images(self, batch: int) -> Image:
        pixels: Image = self._read(batch, "images")[1][0].numpy()
        return pixels

    def _read(self, batch: int, *names: str) -> tuple[dict[str, Any], list[Tensor]]:
        """What is known about a batch, and its pixels. Raises InputError where the file is damaged or another run's."""
        path = self.part(batch)
        try:
            about, tensors = files.read_tensors(path, *names)
            if about["format"] != FORMAT or any(_sha256(pixels) != about["sha256"] for pixels in tensors):
                raise ValueError("another format, or changed pixels")
            mine = (about["key"], about["batch"]) == (self.key, batch)
        except (KeyError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}): remove it, and the batch is drawn again") from error
        if not mine:
            raise InputError(f"{path} is a batch of another run: choose another --outdir, or pass --overwrite")
        return about, tensors


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


def clear(folder: Path) -> None:
    """Remove the run that a folder holds, finished or not, images and all; nothing else in it.

    A finished run first becomes an unfinished one, whose record goes last: the next call goes on with a killed removal.

    Raises:
        InputError: the folder cannot be written to.
    """
    finished = (folder / _MANIFEST).exists()
    if not (finished or (folder / PARTS).is_dir()):
        return
    files.writable_folder(folder)
    seeds: list[int] = _entry(folder / _RECORD, "seeds") or _entry(folder / _MANIFEST, "job", "seeds") or []
    if finished:
        write_text(folder / _RECORD, json.dumps({"seeds": seeds}) + "\n")
        (folder / _MANIFEST).unlink()
    images = (_place(folder, seed, deep) for seed in seeds for deep in (False, True))
    for path in (*(folder / name for name in _SUMMARY), *images):
        path.unlink(missing_ok=True)
    sweep(folder)
    for place in {_place(folder, seed, True).parent for seed in seeds}:
        with contextlib.suppress(OSError):  # it is not there, or holds something else
            place.rmdir()
    remove_parts(folder)


def remove_parts(folder: Path) -> None:
    """Remove the parts, and their record last: where a removal is killed, the folder still says whose it is."""
    for path in sorted((folder / PARTS).glob("*"), key=lambda path: path == folder / _RECORD):
        path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (folder / PARTS).rmdir()


def sweep(folder: Path) -> None:
    """Remove what a kill left half-written in a folder that holds an unfinished run."""
    if (folder / PARTS).is_dir():
        for path in chain.from_iterable(map(folder.glob, (".*.tmp.*", f"{PARTS}/.*.tmp.*", "[0-9]*/.*.tmp.png"))):
            path.unlink(missing_ok=True)


def _place(folder: Path, seed: int, subdirs: bool) -> Path:
    return (folder / f"{seed - seed % 1000:06d}" if subdirs else folder) / f"{seed:06d}.png"


def _entry(path: Path, *names: str) -> Any:
    """An entry of a JSON file; None where there is none, or the file cannot be read."""
    try:
        return reduce(getitem, names, read_json(path))
    except (ValueError, KeyError, TypeError):
        return None


def _sha256(pixels: Tensor) -> str:
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
