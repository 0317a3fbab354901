"""What is to be scored, by what, and against what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from steindiff.errors import InputError

__all__ = ["Job", "Ruler"]


@dataclass(frozen=True)
class Ruler:
    """An extractor and its reference.

    Attributes:
        kind: "inception", "dinov2" or "classifier".
        path: its file or folder, or for "classifier" a name.
        reference: an .npz file; None: made of the real images.
    """

    kind: str
    path: str
    reference: Path | None = None


@dataclass(frozen=True)
class Job:
    """Everything that determines the numbers.

    Args:
        rulers: one of each kind at most.
        images: folder, zip, tar or .npz; empty: only a reference is made.
        against: a second set from the same seeds, for a paired difference.
        real: images that references are made of, for extractors without a file of them.
        held_out: real images that are in no reference, for the noise floor.
        write_reference: where the reference is kept, .npz.
        n: images of each set that are scored, the first ones; None: all of them.
        groups: of the jackknife.
        few: allow no more images than features.
        resolution: real images are cropped and resized to this; None: they are as they should be.
        batch: images the network sees at a time; changes speed and rounding only.
        device: of the network.

    Raises:
        InputError: entries that do not go together.
    """

    rulers: tuple[Ruler, ...]
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
        if problems := [*self._of_images(), *self._of_references()]:
            raise InputError(problems[0])
        for name, low in (("groups", 2), ("batch", 1), ("n", 2)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name}={value}: must be at least {low}")

    def _of_images(self) -> Iterator[str]:
        if not self.rulers:
            yield "no extractor: give --inception FILE, --dinov2 FOLDER or --features cifar10"
        if not self.images and self.write_reference is None:
            yield "nothing to score: give --images, or --write-reference with --real to make a reference"
        if not self.images and (self.against or self.held_out):
            yield f"{self.against or self.held_out} without --images: there is nothing to compare it with"
        if self.resolution is not None and not (self.real or self.held_out):
            yield f"--resolution {self.resolution} is that of real images: give --real or --held-out, or leave it out"

    def _of_references(self) -> Iterator[str]:
        without = [ruler.kind for ruler in self.rulers if ruler.reference is None]
        if without and not self.real:
            yield f"no reference for {', '.join(without)}: name an .npz of real images' statistics, or the images by --real"
        if self.real and not without:
            yield f"real images {self.real} are not needed, as every reference is named; for a noise floor give --held-out"
        if self.write_reference is not None and (len(without), len(self.rulers)) != (1, 1):
            yield f"--write-reference {self.write_reference} keeps one reference: give one extractor, and --real"
        if self.write_reference is not None and self.write_reference.suffix != ".npz":
            yield f"--write-reference {self.write_reference}: reference statistics are .npz files; name one"
