"""Images of files, judged: a study whose samples are there already."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from steindiff.errors import InputError, needs
from steindiff.io import processes
from steindiff.io.files import manifest, read_json, sha256, write_json
from steindiff.io.folders import locked_file
from steindiff.metrics import Judge, JudgeFiles, Paired, Reference, SampleMoments, write_reference
from steindiff.metrics.fid.extractors import Extractor
from steindiff.metrics.moments import check_enough
from steindiff.models.datasets import ImageSet, load_images
from steindiff.study.judging import Job, Judgement, Judgements, Line

with needs("cli", "a study"):
    from tqdm.auto import tqdm

NAMES = ("images", "against", "real", "held_out")
"""A job's names for its sets of images."""


def judge_images(job: Job, *, progress: bool = False) -> Judgements:
    """Judge a job's images; everything is checked before a network sees the first image. Bars are of the first process.

    Several processes that have joined share out the network's work; each gets the numbers, and the first writes.

    Raises:
        InputError: as `Job`, `JudgeFiles.open`, `load_images` and `Judge.check`; too few images; sizes or numbers that differ;
            two sets of different seeds; another process writes the same reference.
        ModelFileError: an extractor's file holds something else.
    """
    with nullcontext() if job.write_reference is None else locked_file(job.write_reference):
        return _judge(job, progress)


def _judge(job: Job, progress: bool) -> Judgements:
    shown = progress and processes.rank() == 0
    opened = [files.open(job.device, job.batch) for files in job.judges]
    sets, same_seeds = _read_sets(job, shown), _paired(job)
    benches = [
        _Bench(replace(extractor, together=processes.active()), reference or sets["real"], files, job, sets, shown)
        for files, (extractor, reference) in zip(job.judges, opened, strict=True)
    ]
    about = {name: _about(sets[name]) if name in sets else None for name in NAMES}
    return Judgements(job, about, same_seeds, tuple(bench.judgement() for bench in benches))


def _read_sets(job: Job, progress: bool) -> dict[str, ImageSet]:
    """The sets of images that a job names, all of one size."""
    sets = {name: _read(getattr(job, name), name, job, progress) for name in NAMES if getattr(job, name)}
    h0, w0 = _size(sets)
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


def _read(place: str, name: str, job: Job, progress: bool) -> ImageSet:
    """A set without classes; a finished run of `steindiff sample` is read from its samples.npz, in the order of its seeds."""
    npz, real = Path(place) / "samples.npz", name in ("real", "held_out")
    found = load_images(npz if _is_run(Path(place)) else place, job.resolution if real else None, progress=progress)
    if not real and job.n is not None and job.n > len(found):
        raise InputError(f"{place} has {len(found)} images, --n {job.n}: draw more, or ask for fewer")
    return replace(found if real else found.take(slice(job.n)), labels=None, classes=(), source=place)


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file() and (folder / "samples.npz").is_file()


def _size(sets: dict[str, ImageSet]) -> tuple[int, ...]:
    """Height and width of a job's images."""
    return next(iter(sets.values())).event_shape[1:]


def _about(images: ImageSet) -> dict[str, Any]:
    return {"source": images.source, "n": len(images), "shape": list(images.event_shape), "sha256": images.sha256}


def _paired(job: Job) -> bool | None:
    """Whether images and against are of the same seeds; None where one does not say."""
    ours, theirs = (_seeds(Path(place)) if job.against else None for place in (job.images, job.against))
    if ours is None or theirs is None:
        return None
    if ours[: job.n] != theirs[: job.n]:
        raise InputError(
            f"{job.images} and {job.against} are of different seeds: draw both from the same, or score each by itself"
        )
    return True


def _seeds(place: Path) -> list[int] | None:
    """The seeds of a run of `steindiff sample`, in the order its images are read; None where nothing says them.

    Raises InputError where what says them is damaged.
    """
    path = (place if place.is_dir() else place.parent) / "run.json"
    if not path.is_file():
        return None
    about = _noted(path, "its images count as of unknown seeds")
    try:
        seeds = [int(seed) for seed in about["job"]["seeds"]]
    except (ValueError, KeyError, TypeError):
        return None
    if place.is_dir():
        return seeds if _is_run(place) else sorted(seeds, key=lambda seed: f"{seed:06d}")
    return seeds if place.name == "samples.npz" else None


def _noted(path: Path, without: str) -> Any:
    """What a JSON file beside images says. Raises InputError where it cannot be read; `without` says what then happens."""
    try:
        return read_json(path)
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}): put back a copy, or remove it, and {without}") from error


def _check_noted(path: str | Path, size: tuple[int, ...]) -> None:
    """Refuse a reference of which PATH.json, the note of what it was made of, says that its images have another size."""
    place = Path(f"{path}.json")
    if not place.is_file():
        return
    note = _noted(place, "the size of its images is not checked")
    try:
        noted = note["real"]["shape"][1:] if note["reference_sha256"] == sha256(path) else None
    except (OSError, KeyError, TypeError):
        return
    if noted is not None and noted != list(size):
        raise InputError(
            f"images of {size[0]}×{size[1]} pixels, reference {path} of {noted[0]}×{noted[1]}: make one of equal size, by "
            f"--real … --resolution {size[0]}"
        )


@dataclass(frozen=True, eq=False)
class _Bench:
    """One extractor at work on the job's sets; the target is reference statistics, or the real images to make them of."""

    extractor: Extractor
    target: Reference | ImageSet
    files: JudgeFiles
    job: Job
    sets: dict[str, ImageSet]
    shown: bool

    def __post_init__(self) -> None:
        """Check that the sizes agree and the numbers suffice."""
        extractor, job, d = self.extractor, self.job, self.extractor.dimension
        if "images" in self.sets:
            extractor.check(self._n, job.groups, job.few)
        if self.files.reference is not None:
            _check_noted(self.files.reference, _size(self.sets))
        else:
            n = len(self.sets["real"])
            check_enough(n, d, job.few, f"{n} real images in {job.real}, {d} features of {self.files.kind}")

    def judgement(self) -> Judgement:
        """All that the extractor says."""
        judge, real = self._judge()
        held = self.sets.get("held_out")
        if held is not None and len(held) >= self._n:
            real = judge.stream(self._chunks(held.shuffled(self._n).pixels, "held-out images"))
        found, against = (
            judge.stream(self._chunks(self.sets[name].pixels, self.sets[name].source)) if name in self.sets else {}
            for name in ("images", "against")
        )
        lines = tuple(Line.of(name, one, real.get(name), against.get(name)) for name, one in found.items())
        file = self.files.reference or self.job.write_reference
        source = str(self.files.reference or self.job.real)
        reference = {"source": source, "sha256": None if file is None else sha256(file), "n": judge.reference.n}
        extractor = {**self.extractor.about, "path": str(self.files.path)}
        return Judgement(extractor, reference, judge.digest, lines, self._floor(bool(real)))

    def _judge(self) -> tuple[Judge, dict[str, Paired]]:
        """The judge, and its numbers of real images where some of them stand for samples.

        That is where there is no better floor, and the rest is no smaller a set.
        """
        groups, few, n = self.job.groups, self.job.few, self._n
        if isinstance(self.target, Reference):
            return Judge(self.extractor, self.target, groups, few), {}
        pixels, found = self.target.shuffled().pixels, {}
        if "held_out" not in self.sets and 0 < 2 * n <= len(pixels):
            part = self.extractor.summary(self._chunks(pixels[:n], "real images"), groups)
            whole = self.extractor.moments(self._chunks(pixels[n:], "real images"))
            found = Judge(self.extractor, self._reference(whole), groups, few).of(part)
            for group in part.parts:
                whole = whole.merge(group)
        else:
            whole = self.extractor.moments(self._chunks(pixels, "real images"))
        judge = Judge(self.extractor, self._reference(whole), groups, few, made_of=self.target.sha256)
        if self.job.write_reference is not None:
            processes.by_first(partial(self._write, self.job.write_reference, judge.reference, self.target))
        return judge, found

    def _write(self, path: Path, reference: Reference, real: ImageSet) -> None:
        """A reference, and beside it what it was made of."""
        write_reference(path, reference)
        about = {"extractor": self.extractor.about, "real": _about(real)}
        write_json(f"{path}.json", manifest(reference_sha256=sha256(path), **about), seal=True)

    def _reference(self, whole: SampleMoments) -> Reference:
        return Reference.of(whole, self.extractor.sha256, self.extractor.resize, self.job.few)

    def _chunks(self, pixels: Tensor, what: str) -> Iterator[Tensor]:
        """Batches of them, as a bar shows."""
        title = f"{self.extractor.name}: {what}"
        with tqdm(total=len(pixels), unit="image", desc=title, disable=not self.shown, mininterval=1.0) as bar:
            for part in pixels.split(self.job.batch):
                yield part
                bar.update(len(part))

    @property
    def _n(self) -> int:
        """How many images are judged."""
        return len(self.sets.get("images", ()))

    def _floor(self, measured: bool) -> str:
        """What the column of real images is, or why it is empty."""
        n, job, held = self._n, self.job, self.sets.get("held_out")
        if held is not None and measured:
            return f"real images are {n:,} of {job.held_out}, against the same reference: a noise floor, if they are not in it"
        if held is not None:
            have = len(held)
            return f"no noise floor, as {job.held_out} has {have:,} images, fewer than {n:,}; --n {have} would give one"
        if isinstance(self.target, Reference):
            return "no noise floor: give --held-out, real images that are not in the reference"
        have = len(self.target)
        if not measured:
            return (
                f"no noise floor, as {have:,} real images are fewer than 2n; give --held-out, or score --n {have // 2} of them"
            )
        return (
            f"real images are {n:,} of {job.real} against the other {have - n:,}, not against all {have:,} as the samples are: "
            f"a noise floor {1 / (1 - (n / have) ** 2):.3g} times too high"
        )
