"""FID, inception score and FD-DINOv2 of sets of images: an extractor, fixed reference statistics, and standard errors.

    f = features of an image,    FD = ‖μ − μ_r‖² + tr(C + C_r − 2(C_r^½ C C_r^½)^½),    IS = exp E KL(softmax(W f) ‖ its mean)

Images come whole or in chunks, and the network sees each of them once: Inception's class probabilities are those of its last
layer W on the same features, where the file has W and that agrees with what the file itself gives; else there are two passes.
Sets from the same seeds in the same order compare by `.minus`, whose standard error is that of the paired difference.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steindiff.arguments import check_samples
from steindiff.errors import InputError, require_whole
from steindiff.io.images import to_uint8
from steindiff.metrics.fid.extractors import Extractor, Summary, load_extractor
from steindiff.metrics.fid.inception_score import inception_score
from steindiff.metrics.fid.references import Reference, read_reference
from steindiff.metrics.moments import CHUNK
from steindiff.metrics.values import Paired

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Judge:
    """Measures sets of images against fixed reference statistics.

    Memory, besides one chunk of images and `moments.CHUNK` of features: groups × d² float64 numbers, 0.7 GB for Inception
    (d = 2048) and 20 groups, 0.2 GB for DINOv2 large (d = 1024); Inception's probabilities, n × 1008 of them, are 0.4 GB for
    50,000 images, twice that while they are joined. Time, besides the network: one set of d eigenvalues and eigenvectors, and
    once that of the reference.

    Attributes:
        groups: how many the jackknife has.
        few: allow no more images than features: a singular covariance, and a bias so large that only equal n compare.
        made_of: a hash of the images that the reference was made of, where it was made of some here and not read. It stands
            for the reference in `digest`, since features differ in rounding between machines and numbers of threads.
    """

    extractor: Extractor
    reference: Reference
    groups: int = 20
    few: bool = False
    made_of: str | None = None

    def __post_init__(self) -> None:
        require_whole(2, groups=self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """The numbers' names: ("fid", "inception_score"), ("fd_dinov2",), or ("fd_classifier",)."""
        return self.extractor.numbers

    @cached_property
    def digest(self) -> str:
        """16 hex digits of all that determines a number for given images: extractor, resizing, reference, groups, few."""
        e, r = self.extractor, self.reference
        digest = hashlib.sha256(repr((FORMAT, e.name, e.sha256, e.resize, self.groups, self.few, self.made_of)).encode())
        for statistic in (r.mean, r.covariance) if self.made_of is None else ():
            digest.update(statistic.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def check(self, n: int) -> None:
        """Check before any work that n images can be judged. Raises InputError as `Reference.check` and `Extractor.check`."""
        self.reference.check(self.extractor.dimension, self.extractor.sha256, self.extractor.resize)
        self.extractor.check(n, self.groups, self.few)

    def measure(self, images: Tensor) -> dict[str, Paired]:
        """The numbers by name, of images (n, 1 or 3, H, W), uint8 or floating point in [−1, 1]; they must be finite."""
        self.check(len(check_samples(images, 0)))
        return self.stream(images.split(CHUNK))

    def stream(self, chunks: Iterable[Tensor]) -> dict[str, Paired]:
        """`measure` of images that come in chunks; too few are refused once all have come, so call `check` where you know n."""
        return self.of(self.extractor.summary(chunks, self.groups))

    def of(self, seen: Summary) -> dict[str, Paired]:
        """The numbers of images that the extractor has summed up."""
        distance = self.reference.frechet(seen.parts, self.extractor.sha256, self.extractor.resize, self.few)
        found: dict[str, Paired] = {self.names[0]: distance}
        if seen.probabilities is not None:
            found["inception_score"] = inception_score(seen.probabilities)
        return found


@dataclass(frozen=True)
class JudgeFiles:
    """The files a judge is made of.

    Attributes:
        kind: "inception", "dinov2" or "classifier".
        path: the extractor's file or folder; for "classifier" also a name such as "cifar10".
        reference: reference statistics, an .npz file; None: they are to be made of real images.
    """

    kind: str
    path: str | Path
    reference: str | Path | None = None

    def __post_init__(self) -> None:
        if self.reference is not None and not str(self.path):
            flag = "features" if self.kind == "classifier" else self.kind
            raise InputError(f"--{flag}-reference {self.reference} without its extractor: give --{flag} too")

    def open(self, device: str | torch.device = "cpu", batch: int = 64) -> tuple[Extractor, Reference | None]:
        """The extractor, and its reference where a file has that; they must match."""
        extractor = load_extractor(self.kind, self.path, device, batch)
        if self.reference is None:
            return extractor, None
        reference = read_reference(self.reference)
        reference.check(extractor.dimension, extractor.sha256, extractor.resize)
        return extractor, reference


def judge(
    extractor: str,
    path: str | Path,
    reference: str | Path | None,
    *,
    device: str | torch.device = "cpu",
    groups: int = 20,
    few: bool = False,
    real: Iterable[Tensor] | None = None,
) -> Judge:
    """A judge by the names of files, as in `JudgeFiles`, checked against each other.

    In the place of a reference there may be chunks of real images, (n, 1 or 3, H, W), of which one is made; they are more than
    there are features, unless `few`. The extractor computes on the device; groups and few are those of `Judge`.

    Raises InputError unless exactly one of reference and real images is given, and for files that do not fit each other.
    """
    if (reference is None) == (real is None):
        raise InputError(f"reference {reference}, real images {'not ' if real is None else ''}given: give exactly one of them")
    network, statistics = JudgeFiles(extractor, path, reference).open(device)
    if statistics is not None:
        return Judge(network, statistics, groups, few)
    seen = hashlib.sha256()
    moments = network.moments(_hashed(() if real is None else real, seen))
    return Judge(network, Reference.of(moments, network.sha256, network.resize, few), groups, few, seen.hexdigest())


def _hashed(chunks: Iterable[Tensor], digest: Any) -> Iterator[Tensor]:
    """The same chunks, each hashed as 8-bit images once it has been used."""
    for i, chunk in enumerate(chunks):
        yield chunk
        pixels = chunk.permute(0, 2, 3, 1).cpu().numpy() if chunk.dtype == torch.uint8 else to_uint8(chunk)
        digest.update((b"" if i else repr(pixels.shape[1:]).encode()) + pixels.tobytes())
