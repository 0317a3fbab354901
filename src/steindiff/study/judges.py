"""FID, inception score and FD-DINOv2 in a study: extractors from files the user names, nothing downloaded.

They are measured against reference statistics that the user names too, or against the testbed's own target; then a number is
a distance to what the network itself makes in fine runs, and not a published one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from steindiff.errors import InputError
from steindiff.metrics import Judge, JudgeFiles, judge
from steindiff.study.testbed import Testbed


def check(files: Sequence[JudgeFiles], beds: tuple[str, ...]) -> None:
    """Raises InputError where one set of reference statistics would stand for several testbeds."""
    named = [str(one.reference) for one in files if one.reference]
    if named and len(beds) > 1:
        raise InputError(f"reference {', '.join(named)} for {len(beds)} testbeds: run the one it is of, by --beds")


def judges_of(bed: Testbed, files: Sequence[JudgeFiles], target: Tensor, n: int) -> list[Judge]:
    """What measures n images of a testbed; nothing for points that are no images.

    Raises:
        InputError: as `metrics.judge`, or too few images for a covariance of the extractor's features.
    """
    found = [
        judge(one.kind, one.path, one.reference, device=bed.device, real=None if one.reference else [target])
        for one in (files if bed.is_image else ())
    ]
    for made in found:
        made.check(n)
    return found
