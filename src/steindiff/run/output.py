"""The folder of a run: PNGs and finished batches as they come, then grid.png, samples.npz, trace.jsonl and run.json.

A finished batch is a file in `.parts`, whole or not there. A record there says whose the batches are; it is written before the
first image, so that a folder with images of an unfinished run says which run that is. `.parts` goes when run.json is written,
which lists the files of the run with their digests. What neither names is somebody else's: it is never overwritten or removed.
"""

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steindiff.errors import InputError
from steindiff.io import files, folders
from steindiff.io.files import atomic, read_json
from steindiff.io.images import Image, contact_sheet, save_png
from steindiff.run.holding import (
    MANIFEST,
    NPZ,
    PARTS,
    RECORD,
    SUMMARY,
    check_parts,
    clear,
    manifest,
    owned,
    place,
    remove_parts,
)

FORMAT = 1
_SHOWN = 64
ROOMS = (PARTS, "[0-9]*")
"""Folders of a run's own."""


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
        return (self.folder / MANIFEST).exists()

    def part(self, batch: int) -> Path:
        """Where a finished batch lies."""
        return self.folder / PARTS / f"{batch:06d}.safetensors"

    def admit(self, batches: range, overwrite: bool) -> None:
        """Go on with this run where the folder holds it unfinished, start anew under `overwrite`, and refuse all else.

        Nothing is written or removed where this is refused.

        Raises:
            InputError: the folder holds a finished run, another unfinished one, or a damaged part; files are in the way that no
                run of ours has written, whether or not `overwrite`.
        """
        check_parts(self.folder)
        if overwrite:
            ours = owned(self.folder)
            folders.refuse(self.folder, self._foreign(ours))
            clear(self.folder, ours)
        elif self.finished:
            about = manifest(self.folder)
            folders.refuse(self.folder, [MANIFEST] if about is None else [])
            just_finished = (self.folder / PARTS).is_dir() and about["digest"] == self.key
            remove_parts(self.folder)
            if not just_finished:
                raise InputError(f"{self.folder} already holds a finished run: choose another --outdir, or pass --overwrite")
        elif (self.folder / RECORD).exists():
            folders.refuse(self.folder, self._links())
            self._check(batches)
        else:
            folders.refuse(self.folder, self._foreign(set()))

    def _foreign(self, ours: set[Path]) -> set[str]:
        """What is in this run's way and not ours: files of its names, and links where they or its folders should be."""
        found = {path for path in self._written - ours if path.exists()}
        return self._links() | {path.relative_to(self.folder).as_posix() for path in found}

    def _links(self) -> set[str]:
        """Links in this run's way."""
        found = {folders.behind_link(self.folder, path) for path in self._written}
        return {link.relative_to(self.folder).as_posix() for link in found if link is not None}

    @cached_property
    def _written(self) -> set[Path]:
        """The files that the run writes, but for its parts."""
        seeds: list[int] = self.about["seeds"]
        images = (place(self.folder, seed, self.subdirs) for seed in seeds if self.png)
        return {*images, *(self.folder / name for name in (*SUMMARY, MANIFEST) if self.npz or name != NPZ)}

    def keep(self, batch: int, seeds: Sequence[int], images: Image, trace: Sequence[Any], stats: Any) -> None:
        """Write the PNGs of a batch, then its part. Raises InputError where the folder cannot be written to, or is full."""
        if not (self.folder / RECORD).exists():
            files.write_json(self.folder / RECORD, {**self._record, "npz": self.npz}, seal=True)
        for seed, image in zip(seeds, images, strict=True) if self.png else ():
            save_png(place(self.folder, seed, self.subdirs), image)
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        about = {"format": FORMAT, "key": self.key, "batch": batch, "trace": trace, "stats": stats}
        about["files"] = self._listed(place(self.folder, seed, self.subdirs) for seed in (seeds if self.png else ()))
        files.write_tensors(self.part(batch), {"images": pixels}, about)

    def finish(self, batches: range, shape: Sequence[int], **about: Any) -> None:
        """Write all that is made of every batch, one batch at a time, and run.json last; `shape` is (N, H, W, C)."""
        few = np.stack(list(islice(chain.from_iterable(map(self._images, batches)), _SHOWN)))
        save_png(self.folder / "grid.png", contact_sheet(few, columns=8, scale=max(1, 64 // shape[1])))
        if self.npz:
            write_npz(self.folder / NPZ, shape, map(self._images, batches))
        stats, written = [], dict[str, str]()
        with atomic(self.folder / "trace.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as file:
            for batch in batches:
                known, _ = self._read(batch)
                file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in known["trace"])
                stats.append(known["stats"])
                written |= known.get("files", {})
        written |= self._listed(self.folder / name for name in SUMMARY if self.npz or name != NPZ)
        files.write_json(
            self.folder / MANIFEST, files.manifest(**about, digest=self.key, stats=stats, files=written), seal=True
        )
        remove_parts(self.folder)

    def _listed(self, paths: Iterable[Path]) -> dict[str, str]:
        """Digests of files by their names in the folder."""
        return {path.relative_to(self.folder).as_posix(): folders.fingerprint(path) for path in paths}

    @property
    def _record(self) -> dict[str, Any]:
        return {**self.about, "subdirs": self.subdirs, "png": self.png}

    def _check(self, batches: range) -> None:
        """Refuse another run's parts and damaged ones."""
        path = self.folder / RECORD
        try:
            held = read_json(path)
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

    def _images(self, batch: int) -> Image:
        pixels: Image = self._read(batch, "images")[1][0].numpy()
        return pixels

    def _read(self, batch: int, *names: str) -> tuple[dict[str, Any], list[Tensor]]:
        """What is known about a batch, and its pixels. Raises InputError where the file is damaged or another run's."""
        path = self.part(batch)
        try:
            about, tensors = files.read_tensors(path, *names)
            if about["format"] != FORMAT:
                raise ValueError("another format")
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
