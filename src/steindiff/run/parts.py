"""The finished batches of an unfinished run: one file each, whole or not there, and a record that says whose they are.

They lie in `.parts` beside the images, and are removed when the run is finished. The record is written before the first image,
so that a folder with images of an unfinished run says which run that is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steindiff.errors import InputError
from steindiff.io.files import digest, read_json, read_tensors, write_tensors, write_text
from steindiff.io.images import Image

__all__ = ["Parts", "has_parts", "read_record", "remove_parts", "sweep", "write_record"]

FORMAT = 1
PARTS = ".parts"
_RECORD = "job.json"


@dataclass(frozen=True, eq=False)
class Parts:
    """The batches of one run.

    Args:
        folder: where the run writes.
        about: all that determines the images, as plain JSON.
        layout: how the images are laid out in files.
    """

    folder: Path
    about: dict[str, Any]
    layout: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """A digest of all that determines the images."""
        return digest(**self.about)

    def path(self, batch: int) -> Path:
        """Where a batch's file lies."""
        return self.folder / PARTS / f"{batch:06d}.safetensors"

    def claim(self) -> None:
        """Say whose images the folder is about to hold. Raises InputError where it cannot be written to."""
        if not (self.folder / PARTS / _RECORD).exists():
            write_record(self.folder, self._record)

    def check(self, batches: range) -> None:
        """Refuse parts that are not this run's, and remove what a kill left half-written.

        Raises:
            InputError: the folder holds another unfinished run, or a damaged part.
        """
        held = read_record(self.folder)
        differing = [name for name, value in self._record.items() if held.get(name) != value]
        if held and differing:
            raise InputError(
                f"{self.folder} holds another run that is not finished, with other {', '.join(differing)}: go on with the "
                "command it was begun with, choose another --outdir, or pass --overwrite"
            )
        for batch in batches:
            if self.path(batch).exists():
                self.read(batch)
        sweep(self.folder)

    def write(self, batch: int, images: Image, trace: Any, stats: Any) -> None:
        """Keep a batch. Raises InputError where the folder cannot be written to, or the disk is full."""
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        about = {"format": FORMAT, "key": self.key, "batch": batch, "sha256": _sha256(pixels), "trace": trace, "stats": stats}
        write_tensors(self.path(batch), {"images": pixels}, about)

    def read(self, batch: int) -> dict[str, Any]:
        """What is known about a batch: trace and stats. Raises InputError where the file is damaged or another run's."""
        return self._open(batch)[0]

    def images(self, batch: int) -> Image:
        """The images of a batch, uint8 (B, H, W, C). Raises InputError as `read`, and where a pixel has changed."""
        pixels: Image = self._open(batch, "images")[1][0].numpy()
        return pixels

    @property
    def _record(self) -> dict[str, Any]:
        return {**self.about, **self.layout}

    def _open(self, batch: int, *names: str) -> tuple[dict[str, Any], Sequence[Tensor]]:
        path = self.path(batch)
        try:
            about, tensors = read_tensors(path, *names)
            if about["format"] != FORMAT or any(_sha256(pixels) != about["sha256"] for pixels in tensors):
                raise ValueError("another format, or changed pixels")
            mine = (about["key"], about["batch"]) == (self.key, batch)
        except (KeyError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}): remove it, and the batch is drawn again") from error
        if not mine:
            raise InputError(f"{path} is a batch of another run: choose another --outdir, or pass --overwrite")
        return about, tensors


def read_record(folder: Path) -> dict[str, Any]:
    """What determines the unfinished run that the folder holds; empty where it holds none.

    Raises:
        InputError: the record cannot be read.
    """
    path = folder / PARTS / _RECORD
    try:
        held = read_json(path) if path.exists() else {}
        if not isinstance(held, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}): choose another --outdir, or pass --overwrite") from error
    return held


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Say which unfinished run the folder holds. Raises InputError where it cannot be written to."""
    write_text(folder / PARTS / _RECORD, json.dumps(record) + "\n")


def has_parts(folder: Path) -> bool:
    """Whether the folder holds an unfinished run, or one that was killed just after its last word."""
    return (folder / PARTS).is_dir()


def remove_parts(folder: Path) -> None:
    """Remove the parts, and their record last: where a removal is killed, the folder still says whose it is."""
    parts = folder / PARTS
    for path in parts.glob("*"):
        if path.name != _RECORD:
            path.unlink(missing_ok=True)
    (parts / _RECORD).unlink(missing_ok=True)
    if parts.is_dir():
        parts.rmdir()


def sweep(folder: Path) -> None:
    """Remove what a kill left half-written in a folder that holds an unfinished run."""
    if has_parts(folder):
        for pattern in (".*.tmp.*", f"{PARTS}/.*.tmp.*", "[0-9]*/.*.tmp.png"):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)


def _sha256(pixels: Tensor) -> str:
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
