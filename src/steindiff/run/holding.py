"""Which files of a folder of images are a run's own. The evidence is its manifest, its record, and its parts.

A finished run has a manifest, run.json, which lists its files with their digests. An unfinished run has a folder `.parts`: each
finished batch is a file there, and the record beside them says whose they are. Any other file is somebody else's, and so is
whatever a link leads to: none of it is removed.
"""

import contextlib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from steindiff.errors import InputError
from steindiff.io import files, folders
from steindiff.io.files import read_json, write_json

PARTS = ".parts"
RECORD = f"{PARTS}/job.json"
MANIFEST = "run.json"
NPZ = "samples.npz"
SUMMARY = ("grid.png", NPZ, "trace.jsonl")
_OURS = re.compile(r"\d{6,}\.safetensors")


def owned(folder: Path) -> set[Path]:
    """The files of the run that a folder holds, finished or not, without its parts.

    They are what run.json and the parts list, and what bears a name that the record says. A listed file whose digest has
    changed is not the run's, nor is anything behind a link.

    Raises:
        AccessError: run.json, the record or a part may not be read.
    """
    record, about = _said(folder / RECORD), manifest(folder)
    names = _list(_entry(record, "removing"))
    if (folder / RECORD).exists():
        names += [name for name in SUMMARY if name != NPZ or _entry(record, "npz") is not False]
        names += _images(*(_entry(record, name) for name in ("seeds", "subdirs", "png")))
    listed = [_entry(about, "files")]
    if about is not None:
        names.append(MANIFEST)
    if about is not None and listed[0] is None:  # an earlier version listed no files, but seeds
        seeds = _list(_entry(about, "job", "seeds"))
        first = next(_images(seeds, True, True), "")  # if there were subfolders, the first image lies in one
        names += [*SUMMARY, *_images(seeds, _holds(folder, first), True)]
    for part in _parts(folder):
        with contextlib.suppress(ValueError):
            listed.append(files.read_tensors(part)[0].get("files"))
    known = [pair for some in listed if isinstance(some, dict) for pair in some.items()]
    kept = {name for name, digest in known if _holds(folder, name) and folders.fingerprint(folder / name) == digest}
    return {folder / name for name in {*kept, *(name for name in names if _holds(folder, name))}}


def _images(seeds: Any, subdirs: Any, png: Any) -> Iterator[str]:
    """The names of the PNGs of a run, whose seeds and options were read from a file and may be anything."""
    for seed in _list(seeds) if png else ():
        if isinstance(seed, int):
            yield place(Path(), seed, bool(subdirs)).as_posix()


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else []


def clear(folder: Path, ours: Collection[Path]) -> None:
    """Remove the run that a folder holds, finished or not: its files, which are `ours`, and its parts, and nothing else.

    A finished run first becomes an unfinished one, whose record lists what is being removed. The record goes last. If the
    removal is killed, the next call goes on with it.

    Raises:
        InputError: the folder cannot be written to.
    """
    if not ours and not (folder / PARTS).is_dir():
        return
    files.writable_folder(folder)
    if manifest(folder) is not None:
        write_json(folder / RECORD, {"removing": [path.relative_to(folder).as_posix() for path in ours]}, seal=True)
        (folder / MANIFEST).unlink()
    remove(ours)
    for below in {path.parent for path in ours} - {folder}:
        with contextlib.suppress(OSError):  # it is not there, or holds something else
            below.rmdir()
    remove_parts(folder)


def remove(paths: Iterable[Path]) -> None:
    """Remove files, as far as they are there."""
    for path in paths:
        path.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove the parts, and their record last: if the removal is killed, the record still says whose the folder is.

    Anything else in the folder of parts stays, and then the folder stays too.
    """
    remove(_parts(folder))
    remove([folder / RECORD])
    with contextlib.suppress(OSError):  # it is not there, or holds something else
        (folder / PARTS).rmdir()


def _parts(folder: Path) -> list[Path]:
    """The files of finished batches, in the order of their names."""
    found = sorted((folder / PARTS).iterdir()) if (folder / PARTS).is_dir() else []
    return [path for path in found if path.suffix == ".safetensors" and _OURS.fullmatch(path.name) and folders.is_file(path)]


def check_parts(folder: Path) -> None:
    """Raise InputError where `.parts` is a link, or holds files without a record of ours."""
    parts = folder / PARTS
    if parts.is_symlink() or (parts.exists() and not parts.is_dir()):
        raise InputError(f"{parts} is no folder of a run, but a link or a file: remove it, or choose another --outdir")
    held = list(parts.iterdir()) if parts.is_dir() else []
    if not folders.is_file(folder / RECORD):
        folders.refuse(folder, [f"{PARTS}/{path.name}" for path in held if not folders.is_half(path)])


def manifest(folder: Path) -> Any:
    """What run.json says; None where there is none, or where it is not a run of images that it describes."""
    about = _said(folder / MANIFEST) if folders.is_file(folder / MANIFEST) else None
    named = all(_entry(about, *names) is not None for names in (("job", "seeds"), ("digest",), ("stats",)))
    return about if named else None


def _holds(folder: Path, name: Any) -> bool:
    """Whether a name is that of a file in the folder, which no link leads to."""
    inside = isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts
    there = inside and os.path.isfile(folder / name)  # False for a name that no file can have, where Path.is_file may raise
    return there and folders.behind_link(folder, folder / name) is None


def place(folder: Path, seed: int, subdirs: bool) -> Path:
    """Where the image of a seed lies."""
    return (folder / f"{seed - seed % 1000:06d}" if subdirs else folder) / f"{seed:06d}.png"


def _said(path: Path) -> Any:
    """What a JSON file says; None where there is none, or it is damaged. Raises AccessError where it may not be read."""
    with contextlib.suppress(ValueError):
        return read_json(path)
    return None


def _entry(value: Any, *names: str) -> Any:
    """The entry at the end of a path of names, in what a file says; None where there is none."""
    with contextlib.suppress(KeyError, TypeError):
        return reduce(getitem, names, value)
    return None
