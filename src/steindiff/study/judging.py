"""What `steindiff score` is asked, and what it finds: images, judges of them, and a number for each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from steindiff.errors import InputError, at_least
from steindiff.metrics import JudgeFiles, Paired, Value, weigh

_WORDS = {"win": "better", "loss": "worse", "noise": "within noise"}


@dataclass(frozen=True)
class Job:
    """Everything that determines the numbers.

    Args:
        judges: the files of each; one of a kind at most.
        images: the samples: a folder, zip, tar or .npz (arr_0, uint8 NHWC), or the folder of a `steindiff sample` run; without
            them only a reference is made.
        against: a second set from the same seeds, for a paired difference.
        real: real images, of which references that no file gives are made.
        held_out: real images that are in no reference, for the noise floor.
        write_reference: keep the reference made of `real` in this .npz.
        n: judge the first so many images of each set; by default all.
        groups: how many groups the jackknife has.
        few: allow no more images than features; the result is very biased.
        resolution: crop and resize real images to this many pixels; by default they are as they should be.
        batch: images at a time; this changes speed and rounding only.
        device: the model computes on cpu, cuda, cuda:1, …; with cuda, several processes take one device each.

    Raises:
        InputError: entries that do not go together.
    """

    LEAST: ClassVar[Any] = {"groups": 2, "batch": 1, "n": 2, "resolution": 1}

    judges: tuple[JudgeFiles, ...]
    images: str = ""
    against: str = ""
    real: str = ""
    held_out: str = ""
    write_reference: Path | None = None
    n: int | None = None
    groups: int = 20
    few: bool = False
    resolution: int | None = None
    batch: int = 64
    device: str = "cpu"

    def __post_init__(self) -> None:
        if problem := next(self._problems(), None):
            raise InputError(problem)
        at_least(self, self.LEAST)

    def _problems(self) -> Iterator[str]:
        place, without = self.write_reference, [files.kind for files in self.judges if files.reference is None]
        if not self.judges:
            yield "no extractor: give --inception FILE, --dinov2 FOLDER or --features cifar10"
        if not self.images and place is None:
            yield "nothing to score: give --images, or --write-reference with --real to make a reference"
        if not self.images and (self.against or self.held_out):
            yield f"{self.against or self.held_out} without --images: there is nothing to compare it with"
        if self.resolution is not None and not (self.real or self.held_out):
            yield f"--resolution {self.resolution} is that of real images: give --real or --held-out, or leave it out"
        if without and not self.real:
            yield f"no reference for {', '.join(without)}: name an .npz of real images' statistics, or the images by --real"
        if self.real and not without:
            yield f"real images {self.real} are not needed, as every reference is named; for a noise floor give --held-out"
        if place is not None and (len(without), len(self.judges)) != (1, 1):
            yield f"--write-reference {place} keeps one reference: give one extractor, and --real"
        if place is not None and place.suffix != ".npz":
            yield f"--write-reference {place}: reference statistics are .npz files; name one"


@dataclass(frozen=True)
class Line:
    """One number, by the metric's name: of the images, of as many real images, and of the second set.

    `difference` is value less against, paired. None where there is no such set, or not enough real images.
    """

    name: str
    value: Value
    real: Value | None = None
    against: Value | None = None
    difference: Value | None = None

    @classmethod
    def of(cls, name: str, found: Paired, real: Paired | None, against: Paired | None) -> "Line":
        """A line of statistics."""
        floor, other = (one.value if one else None for one in (real, against))
        return cls(name, found.value, floor, other, found.minus(against) if against else None)

    @property
    def verdict(self) -> str:
        """By two standard errors of the difference: better, worse or within noise; empty where there is none."""
        return "" if self.difference is None else _WORDS[weigh(self.difference, self.name)]


@dataclass(frozen=True)
class Judgement:
    """What one extractor says.

    Attributes:
        extractor: its name, path, SHA-256 and resizing.
        reference: where it is from, the SHA-256 of the file, and how many images it is of.
        digest: a hash of all that determines the numbers of given images.
        lines: the numbers; none where only a reference was made.
        floor: what the numbers of real images are, or why there are none.
    """

    extractor: Mapping[str, Any]
    reference: Mapping[str, Any]
    digest: str
    lines: tuple[Line, ...]
    floor: str


@dataclass(frozen=True)
class Judgements:
    """What all extractors say of a job's images.

    Attributes:
        sets: source, number, shape and hash of each set of images.
        paired: whether the two sets are known to be from the same seeds; None where nothing says.
    """

    job: Job
    sets: Mapping[str, Any]
    paired: bool | None
    judgements: tuple[Judgement, ...]

    @property
    def n(self) -> int:
        """How many images were judged."""
        return int(self.sets["images"]["n"])
