"""FID, inception score and FD-DINOv2 in a study: extractors from files the user names, nothing downloaded.

They are measured against reference statistics that the user names too, or against the testbed's own target; then a number is
a distance to what the network itself makes in fine runs, and not a published one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from steindiff.errors import InputError
from steindiff.metrics import Judge, judge
from steindiff.study.testbed import Testbed

__all__ = ["Extractors"]


@dataclass(frozen=True)
class Extractors:
    """Files of extractors, and of reference statistics.

    Args:
        inception: NVIDIA's TorchScript, for FID and inception score.
        inception_reference: EDM's .npz; None: the testbed's target.
        dinov2: a local folder of the model, for FD-DINOv2.
        dinov2_reference: the .npz of its statistics; None: the testbed's target.

    Raises:
        InputError: a reference without its extractor.
    """

    inception: Path | None = None
    inception_reference: Path | None = None
    dinov2: Path | None = None
    dinov2_reference: Path | None = None

    def __post_init__(self) -> None:
        for name, path, reference in self._named():
            if path is None and reference is not None:
                raise InputError(f"reference {reference} without its extractor: give --{name} too")

    def _named(self) -> list[tuple[str, Path | None, Path | None]]:
        return [("inception", self.inception, self.inception_reference), ("dinov2", self.dinov2, self.dinov2_reference)]

    def check(self, beds: tuple[str, ...]) -> None:
        """Raises InputError where one set of reference statistics would stand for several testbeds."""
        given = [str(reference) for _, _, reference in self._named() if reference]
        if given and len(beds) > 1:
            raise InputError(f"reference {', '.join(given)} for {len(beds)} testbeds: run the one it is of, by --beds")

    def judges(self, bed: Testbed, target: Tensor, n: int) -> list[Judge]:
        """What measures n images of a testbed; nothing for points that are no images.

        Raises:
            InputError: as `metrics.judge`, or too few images for a covariance of the extractor's features.
        """
        found = [
            judge(name, path, reference, device=bed.device, real=None if reference else [target])
            for name, path, reference in self._named()
            if path and bed.is_image
        ]
        for one in found:
            one.check(n)
        return found
