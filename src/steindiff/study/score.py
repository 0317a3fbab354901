"""A score from end to end: read, look at every image once, judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from steindiff.errors import InputError
from steindiff.io import processes
from steindiff.io.files import sha256
from steindiff.metrics import Judge, Reference, SampleMoments, Value, read_reference
from steindiff.metrics.fid.extractors import Extractor
from steindiff.metrics.fid.judge import Score, dimension, enough, load_extractor, look, moments
from steindiff.models.datasets import ImageSet
from steindiff.report.score import Judgement, Line, Report
from steindiff.study.score_job import Job, Ruler
from steindiff.study.score_sets import Sets, check_noted, keep_reference, read_sets

__all__ = ["score"]

Scores = dict[str, Score]


def score(job: Job, *, progress: bool = False) -> Report:
    """Judge a job's images by each of its rulers; everything is checked before a network sees the first image.

    Args:
        job: what to do.
        progress: bars on stderr, of the first process.

    Raises:
        InputError: as `Job`, `read_sets`, `load_extractor`, `read_reference` and `Judge.check`; too few real images.
        ModelFileError: an extractor's file holds something else.
    """
    shown = progress and processes.rank() == 0
    opened = [_open(ruler, job) for ruler in job.rulers]
    sets = read_sets(job, shown)
    benches = [_fit(ruler, *found, job, sets) for ruler, found in zip(job.rulers, opened, strict=True)]
    judgements = []
    for bench in benches:
        with tqdm(total=bench.total, unit="image", disable=not shown, mininterval=1.0) as bar:
            judgements.append(bench.run(bar))
    return Report(job, sets.about(), sets.paired, tuple(judgements))


def _open(ruler: Ruler, job: Job) -> tuple[Extractor, int, Reference | None]:
    """An extractor, its dimension and its reference, where a file has that; they are checked to be of each other."""
    extractor = load_extractor(ruler.kind, ruler.path, job.device, job.batch)
    d = dimension(extractor)
    if ruler.reference is None:
        return extractor, d, None
    reference = read_reference(ruler.reference)
    reference.check(d, extractor.sha256, extractor.resize)
    return extractor, d, reference


def _fit(ruler: Ruler, extractor: Extractor, d: int, reference: Reference | None, job: Job, sets: Sets) -> _Bench:
    """They with the images; checked that the sizes agree and the numbers suffice."""
    if sets.images is not None:
        enough(extractor, len(sets.images), d, job.groups, job.few)
    if reference is not None and ruler.reference is not None:
        check_noted(ruler.reference, sets.size)
        return _Bench(ruler, extractor, reference, job, sets)
    if sets.real is None or (len(sets.real) <= d and not job.few):
        raise InputError(
            f"{len(sets.real or ())} real images in {job.real}, {d} features of {ruler.kind}: a reference needs at least "
            f"{d + 1}; give more, or allow it by --few"
        )
    return _Bench(ruler, extractor, sets.real, job, sets)


@dataclass(frozen=True, eq=False)
class _Bench:
    """One extractor at work on the job's sets.

    Attributes:
        target: what is judged against: reference statistics, or the real images they are to be made of.
    """

    ruler: Ruler
    extractor: Extractor
    target: Reference | ImageSet
    job: Job
    sets: Sets

    @property
    def n(self) -> int:
        """Images to be scored."""
        return 0 if self.sets.images is None else len(self.sets.images)

    @property
    def total(self) -> int:
        """Images the network has to see."""
        made = len(self.target) if isinstance(self.target, ImageSet) else 0
        held = 0 if self._held is None else self.n
        return made + held + self.n * (1 if self.sets.against is None else 2)

    def run(self, bar: Any) -> Judgement:
        """All that the extractor says."""
        judge, real = self._judge(bar)
        if self._held is not None:
            real = judge.stream(self._chunks(self._held.shuffled(self.n).pixels, "held-out images", bar))
        found, against = (
            None if images is None else judge.stream(self._chunks(images.pixels, images.source, bar))
            for images in (self.sets.images, self.sets.against)
        )
        e, file = self.extractor, self.ruler.reference or self.job.write_reference
        about = {"name": e.name, "path": self.ruler.path, "sha256": e.sha256, "resize": e.resize}
        source = str(self.ruler.reference or self.job.real)
        reference = {"source": source, "sha256": None if file is None else sha256(file), "n": judge.reference.n}
        lines = () if found is None else _lines(found, real, against)
        return Judgement(about, reference, judge.digest, lines, self._floor(real is not None))

    def _judge(self, bar: Any) -> tuple[Judge, Scores | None]:
        """With its reference, and what real images score where they were split for that."""
        groups, few = self.job.groups, self.job.few
        if isinstance(self.target, Reference):
            return Judge(self.extractor, self.target, groups, few), None
        pixels, scores = self.target.shuffled().pixels, None
        if self._split:
            part = look(self.extractor, self._chunks(pixels[: self.n], "real images", bar), groups)
            whole = moments(self.extractor, self._chunks(pixels[self.n :], "real images", bar))
            scores = Judge(self.extractor, self._reference(whole), groups, few).of(part)
            for group in part.parts:
                whole = whole.merge(group)
        else:
            whole = moments(self.extractor, self._chunks(pixels, "real images", bar))
        judge = Judge(self.extractor, self._reference(whole), groups, few, made_of=self.target.sha256)
        if self.job.write_reference is not None:
            keep_reference(self.job.write_reference, judge.reference, self.extractor, self.target)
        return judge, scores

    def _reference(self, whole: SampleMoments) -> Reference:
        return Reference.of(whole, self.extractor.sha256, self.extractor.resize, self.job.few)

    def _chunks(self, pixels: Tensor, what: str, bar: Any) -> Iterator[Tensor]:
        """Batches of them, as the bar shows."""
        bar.set_description(f"{self.extractor.name}: {what}")
        for part in pixels.split(self.job.batch):
            yield part
            bar.update(len(part))
        bar.set_description(f"{self.extractor.name}: {what}, distance")

    @property
    def _held(self) -> ImageSet | None:
        """Held-out images, where they are enough for a floor."""
        held = self.sets.held_out
        return None if held is None or len(held) < self.n else held

    @property
    def _split(self) -> bool:
        """Whether some of the real images stand for samples: there is no better floor, and the rest is no smaller a set."""
        return (
            self.sets.held_out is None and self.n > 0 and isinstance(self.target, ImageSet) and len(self.target) >= 2 * self.n
        )

    def _floor(self, measured: bool) -> str:
        """What the column of real images is, or why it is empty."""
        n, job = self.n, self.job
        if self.sets.held_out is not None:
            if measured:
                return (
                    f"real images are {n:,} of {job.held_out}, against the same reference: a noise floor, if they are not in it"
                )
            have = len(self.sets.held_out)
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


def _lines(found: Scores, real: Scores | None, against: Scores | None) -> tuple[Line, ...]:
    def value(scores: Scores | None, name: str) -> Value | None:
        return None if scores is None else scores[name].value

    differences = {} if against is None else {name: _difference(found[name], against[name]) for name in found}
    return tuple(
        Line(name, one.value, value(real, name), value(against, name), differences.get(name)) for name, one in found.items()
    )


def _difference(one: Any, other: Any) -> Value:
    """Of two numbers of one kind."""
    difference: Value = one.minus(other)
    return difference
