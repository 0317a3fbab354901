"""Images of files, judged: a study whose samples are there already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from tqdm.auto import tqdm

from steindiff.io import processes
from steindiff.io.files import sha256
from steindiff.metrics import Judge, JudgeFiles, Paired, Reference, SampleMoments
from steindiff.metrics.fid.extractors import Extractor
from steindiff.metrics.moments import check_enough
from steindiff.models.datasets import ImageSet
from steindiff.study.image_sets import about, check_noted, keep_reference, paired, read_sets, size
from steindiff.study.judging import Job, Judgement, Judgements, Line


def judge_images(job: Job, *, progress: bool = False) -> Judgements:
    """Judge a job's images; everything is checked before a network sees the first image.

    Args:
        job: what to do.
        progress: show bars on stderr, of the first process.

    Raises:
        InputError: as `Job`, `JudgeFiles.open`, `read_sets`, `paired` and `Judge.check`; too few real images.
        ModelFileError: an extractor's file holds something else.
    """
    shown = progress and processes.rank() == 0
    opened = [files.open(job.device, job.batch) for files in job.judges]
    sets, same_seeds = read_sets(job, shown), paired(job)
    benches = [
        _Bench(extractor, reference or sets["real"], files, job, sets, shown)
        for files, (extractor, reference) in zip(job.judges, opened, strict=True)
    ]
    return Judgements(job, about(sets), same_seeds, tuple(bench.judgement() for bench in benches))


@dataclass(frozen=True, eq=False)
class _Bench:
    """One extractor at work on the job's sets.

    Attributes:
        target: what is judged against: reference statistics, or the real images that they are to be made of.
        shown: whether there is a bar.
    """

    extractor: Extractor
    target: Reference | ImageSet
    files: JudgeFiles
    job: Job
    sets: dict[str, ImageSet]
    shown: bool

    def __post_init__(self) -> None:
        """Check that the sizes agree and the numbers suffice. Raises InputError where they do not."""
        extractor, job, d = self.extractor, self.job, self.extractor.dimension
        if "images" in self.sets:
            extractor.check(self._n, job.groups, job.few)
        if self.files.reference is not None:
            check_noted(self.files.reference, size(self.sets))
        else:
            n = len(self.sets["real"])
            check_enough(n, d, job.few, f"{n} real images in {job.real}, {d} features of {self.files.kind}")

    def judgement(self) -> Judgement:
        """All that the extractor says."""
        judge, real = self._judge()
        if self._held is not None:
            real = judge.stream(self._chunks(self._held.shuffled(self._n).pixels, "held-out images"))
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
        """The judge, and its numbers of real images where some of them stand for samples."""
        groups, few = self.job.groups, self.job.few
        if isinstance(self.target, Reference):
            return Judge(self.extractor, self.target, groups, few), {}
        pixels, found = self.target.shuffled().pixels, {}
        if self._split:
            part = self.extractor.summary(self._chunks(pixels[: self._n], "real images"), groups)
            whole = self.extractor.moments(self._chunks(pixels[self._n :], "real images"))
            found = Judge(self.extractor, self._reference(whole), groups, few).of(part)
            for group in part.parts:
                whole = whole.merge(group)
        else:
            whole = self.extractor.moments(self._chunks(pixels, "real images"))
        judge = Judge(self.extractor, self._reference(whole), groups, few, made_of=self.target.sha256)
        if self.job.write_reference is not None:
            keep_reference(self.job.write_reference, judge.reference, self.extractor, self.target)
        return judge, found

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

    @property
    def _held(self) -> ImageSet | None:
        """Held-out images, where they are enough for a floor."""
        held = self.sets.get("held_out")
        return None if held is None or len(held) < self._n else held

    @property
    def _split(self) -> bool:
        """Whether some of the real images stand for samples: there is no better floor, and the rest is no smaller a set."""
        apart = "held_out" not in self.sets and self._n > 0
        return apart and isinstance(self.target, ImageSet) and len(self.target) >= 2 * self._n

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
