"""Sets of images to be judged: read, checked against each other, and what is known about where they come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from steindiff.errors import InputError
from steindiff.io.files import manifest, sha256, write_json
from steindiff.metrics.fid.extractors import Extractor
from steindiff.metrics.fid.references import Reference, write_reference
from steindiff.models.datasets import ImageSet, load_images
from steindiff.study.judging import Job

__all__ = ["Sets", "check_noted", "keep_reference", "paired", "read_sets"]


@dataclass(frozen=True, eq=False)
class Sets:
    """The job's images, of one size; None where it names none."""

    images: ImageSet | None
    against: ImageSet | None
    real: ImageSet | None
    held_out: ImageSet | None

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width."""
        return next(s for s in (self.images, self.real) if s is not None).event_shape[1:]

    def about(self) -> dict[str, Any]:
        """Source, number, shape and hash of each set."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: None if s is None else _about(s) for name, s in named.items()}


def read_sets(job: Job, progress: bool = False) -> Sets:
    """Read all images of a job.

    Raises:
        InputError: as `load_images`; fewer images than asked for; sizes or numbers that differ.
    """
    images, against = (_first(_read(place, None, progress), job.n) if place else None for place in (job.images, job.against))
    real, held_out = (_read(place, job.resolution, progress) if place else None for place in (job.real, job.held_out))
    sets = Sets(images, against, real, held_out)
    for one in (images, against, real, held_out):
        if one is not None and one.event_shape[1:] != sets.size:
            (h, w), (h0, w0) = one.event_shape[1:], sets.size
            raise InputError(
                f"{one.source} has images of {h}×{w} pixels, {job.images or job.real} of {h0}×{w0}: compare equal sizes; real "
                "ones are resized by --resolution"
            )
    if images is not None and against is not None and len(images) != len(against):
        raise InputError(
            f"{len(images)} images against {len(against)}: a paired difference needs the same seeds; give --n "
            f"{min(len(images), len(against))} if both begin with the same ones"
        )
    return sets


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


def _read(place: str, resolution: int | None, progress: bool) -> ImageSet:
    """Without classes; of a finished run of `steindiff sample` its samples.npz, which is in the order of its seeds."""
    npz = Path(place) / "samples.npz"
    found = load_images(npz if _is_run(Path(place)) else place, resolution, progress=progress)
    return replace(found, labels=None, classes=(), source=place)


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file() and (folder / "samples.npz").is_file()


def _first(images: ImageSet, n: int | None) -> ImageSet:
    if n is not None and n > len(images):
        raise InputError(f"{images.source} has {len(images)} images, --n {n}: draw more, or ask for fewer")
    return images.take(slice(n))


def _seeds(place: Path) -> list[int] | None:
    """Of a run of `steindiff sample`, in the order its images are read; None where nothing says."""
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
