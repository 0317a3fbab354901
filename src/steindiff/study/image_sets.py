"""Sets of images to be judged: read, checked against each other, and what is known about where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steindiff.errors import InputError
from steindiff.io.files import manifest, sha256, write_json
from steindiff.metrics.fid.extractors import Extractor
from steindiff.metrics.fid.references import Reference, write_reference
from steindiff.models.datasets import ImageSet, load_images
from steindiff.study.judging import Job

NAMES = ("images", "against", "real", "held_out")


def read_sets(job: Job, progress: bool = False) -> dict[str, ImageSet]:
    """Read the sets of images that a job names, by the job's names for them: images, against, real, held_out.

    Raises:
        InputError: as `load_images`; fewer images than asked for; sizes or numbers that differ.
    """
    sets = {name: _read(getattr(job, name), name, job, progress) for name in NAMES if getattr(job, name)}
    h0, w0 = size(sets)
    for one in sets.values():
        if (found := one.event_shape[1:]) != (h0, w0):
            raise InputError(
                f"{one.source} has images of {found[0]}×{found[1]} pixels, {job.images or job.real} of {h0}×{w0}: compare "
                "equal sizes; real ones are resized by --resolution"
            )
    if "against" in sets and len(sets["images"]) != len(sets["against"]):
        ours, theirs = len(sets["images"]), len(sets["against"])
        raise InputError(
            f"{ours} images against {theirs}: a paired difference needs the same seeds; give --n {min(ours, theirs)} if both "
            "begin with the same ones"
        )
    return sets


def size(sets: Mapping[str, ImageSet]) -> tuple[int, ...]:
    """Height and width of a job's images."""
    return next(iter(sets.values())).event_shape[1:]


def about(sets: Mapping[str, ImageSet]) -> dict[str, Any]:
    """Source, number, shape and hash of each set; None where the job names none."""
    return {name: _about(sets[name]) if name in sets else None for name in NAMES}


def paired(job: Job) -> bool | None:
    """Whether images and against are of the same seeds; None where one does not say. Raises InputError where they are not."""
    ours, theirs = (_seeds(Path(place)) if job.against else None for place in (job.images, job.against))
    if ours is None or theirs is None:
        return None
    if ours[: job.n] != theirs[: job.n]:
        raise InputError(
            f"{job.images} and {job.against} are of different seeds: draw both from the same, or score each by itself"
        )
    return True


def keep_reference(path: Path, reference: Reference, extractor: Extractor, real: ImageSet) -> None:
    """Write it, and beside it PATH.json, which says what it was made of. Raises InputError where that cannot be written."""
    write_reference(path, reference)
    write_json(_note(path), manifest(reference_sha256=sha256(path), extractor=extractor.about, real=_about(real)))


def check_noted(path: str | Path, size: Sequence[int]) -> None:
    """Raises InputError where PATH.json says that the reference is of images of another size."""
    try:
        note = json.loads(_note(Path(path)).read_text(encoding="utf-8"))
        noted = note["real"]["shape"][1:] if note["reference_sha256"] == sha256(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return
    if noted is not None and noted != list(size):
        raise InputError(
            f"images of {size[0]}×{size[1]} pixels, reference {path} of {noted[0]}×{noted[1]}: make one of equal size, by "
            f"--real … --resolution {size[0]}"
        )


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read(place: str, name: str, job: Job, progress: bool) -> ImageSet:
    """A set without classes; a finished run of `steindiff sample` is read from its samples.npz, in the order of its seeds."""
    npz, real = Path(place) / "samples.npz", name in ("real", "held_out")
    found = load_images(npz if _is_run(Path(place)) else place, job.resolution if real else None, progress=progress)
    if not real and job.n is not None and job.n > len(found):
        raise InputError(f"{place} has {len(found)} images, --n {job.n}: draw more, or ask for fewer")
    return replace(found if real else found.take(slice(job.n)), labels=None, classes=(), source=place)


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file() and (folder / "samples.npz").is_file()


def _seeds(place: Path) -> list[int] | None:
    """The seeds of a run of `steindiff sample`, in the order its images are read; None where nothing says them."""
    try:
        about = json.loads((place if place.is_dir() else place.parent).joinpath("run.json").read_text(encoding="utf-8"))
        seeds = [int(seed) for seed in about["job"]["seeds"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if place.is_dir():
        return seeds if _is_run(place) else sorted(seeds, key=lambda seed: f"{seed:06d}")
    return seeds if place.name == "samples.npz" else None


def _about(images: ImageSet) -> dict[str, Any]:
    return {"source": images.source, "n": len(images), "shape": list(images.event_shape), "sha256": images.sha256}
