"""FID, inception score and FD-DINOv2 of sets of images: an extractor, fixed reference statistics, and standard errors.

    f = features of an image,    FD = ‖μ − μ_r‖² + tr(C + C_r − 2(C_r^½ C C_r^½)^½),    IS = exp E KL(softmax(W f) ‖ its mean)

Images come whole or in chunks, and the network sees each of them once: Inception's class probabilities are those of its last
layer W on the same features, where the file has W and that agrees with what the file itself gives; else there are two passes.
Sets from the same seeds in the same order compare by `.minus`, whose standard error is that of the paired difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from steindiff.errors import InputError, unknown_name
from steindiff.io.images import to_uint8
from steindiff.io.processes import local_device
from steindiff.metrics.features import load_features
from steindiff.metrics.fid.extractors import Extractor, Inception, dinov2, inception
from steindiff.metrics.fid.inception_score import InceptionScore, inception_score
from steindiff.metrics.fid.references import Reference, grouped_moments, read_reference
from steindiff.metrics.moments import CHUNK, SampleMoments
from steindiff.metrics.resampling import Replicates

__all__ = ["Classified", "Judge", "Seen", "dimension", "enough", "judge", "load_extractor", "look", "moments"]

Score = Replicates | InceptionScore
EXTRACTORS = ("inception", "dinov2", "classifier")
FORMAT = 1
SPLITS = 10
"""Of the inception score."""


@final
class Classified(Extractor):
    """Features of the package's own classifier (`metrics.load_features`): quick, for CIFAR-10, and no FID."""

    name = "classifier"
    resize = "half its side enlarged, else none"

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images.float() / 127.5 - 1)
        return features


class Seen(NamedTuple):
    """What is kept of images: moments of groups of features and, for Inception, class probabilities, (n, classes) float64."""

    parts: list[SampleMoments]
    probabilities: Tensor | None


@dataclass(frozen=True, eq=False)
class Judge:
    """FID (and inception score) or FD-DINOv2 of sets of images against fixed reference statistics.

    Memory, besides one chunk of images and `moments.CHUNK` of features: groups × d² float64 numbers, 0.7 GB for Inception
    (d = 2048) and 20 groups, 0.2 GB for DINOv2 large (d = 1024); Inception's probabilities, n × 1008 of them, are 0.4 GB for
    50,000 images, twice that while they are joined. Time, besides the network: groups + 1 sets of d eigenvalues, a minute for
    Inception on one core.

    Attributes:
        extractor: of features.
        reference: of real images, by the same extractor.
        groups: of the jackknife.
        few: allow no more images than features: a singular covariance, and a bias so large that only equal n compare.
        made_of: a hash of the images that the reference was made of, where it was made of some here and not read. It stands
            for the reference in `digest`, since features differ in rounding between machines and numbers of threads.

    Raises:
        InputError: fewer than two groups.
    """

    extractor: Extractor
    reference: Reference
    groups: int = 20
    few: bool = False
    made_of: str | None = None

    def __post_init__(self) -> None:
        if self.groups < 2:
            raise InputError(f"groups={self.groups}: a jackknife needs at least 2")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the numbers: ("fid", "inception_score"), ("fd_dinov2",), or ("fd_classifier",)."""
        return ("fid", "inception_score") if isinstance(self.extractor, Inception) else (f"fd_{self.extractor.name}",)

    @cached_property
    def digest(self) -> str:
        """16 hex digits of all that determines a number for given images: extractor, resizing, reference, groups, few."""
        e, r = self.extractor, self.reference
        digest = hashlib.sha256(repr((FORMAT, e.name, e.sha256, e.resize, self.groups, self.few, self.made_of)).encode())
        for statistic in (r.mean, r.covariance) if self.made_of is None else ():
            digest.update(statistic.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def check(self, n: int) -> None:
        """Whether n images can be judged, before any work is done for them.

        Raises:
            InputError: a reference of another extractor, resizing or dimension, or as `enough`.
        """
        d = dimension(self.extractor)
        self.reference.check(d, self.extractor.sha256, self.extractor.resize)
        enough(self.extractor, n, d, self.groups, self.few)

    def measure(self, images: Tensor) -> dict[str, Score]:
        """The numbers by name, of images (n, 1 or 3, H, W), uint8 or floating point in [−1, 1].

        Raises:
            InputError: as `check`; images of another kind, or that are not finite.
        """
        self.check(len(images))
        return self.stream(images.split(CHUNK))

    def stream(self, chunks: Iterable[Tensor]) -> dict[str, Score]:
        """`measure` of images that come in chunks, of any sizes; call `check` first where their number is known.

        Raises:
            InputError: as `measure`, for too few images only once all have come.
        """
        return self.of(look(self.extractor, chunks, self.groups))

    def of(self, seen: Seen) -> dict[str, Score]:
        """The numbers of what was seen of images. Raises InputError as `measure`."""
        distance = self.reference.frechet(seen.parts, self.extractor.sha256, self.extractor.resize, self.few)
        found: dict[str, Score] = {self.names[0]: distance}
        if seen.probabilities is not None:
            found["inception_score"] = inception_score(seen.probabilities, SPLITS)
        return found


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
    """A judge by the names of files, checked against each other.

    Args:
        extractor: "inception", "dinov2" or "classifier".
        path: the extractor's file or folder; for "classifier" also a name such as "cifar10".
        reference: reference statistics, an .npz file; None: of `real`.
        device: of the extractor.
        groups: of the jackknife.
        few: as `Judge`, and for the real images too.
        real: chunks of real images (n, 1 or 3, H, W); not beside a reference file.

    Raises:
        InputError: as `load_extractor`, `read_reference` and `Judge`; both or neither of reference and real; a reference of
            another extractor; no more real images than features.
        ModelFileError: as the extractors.
    """
    if (reference is None) == (real is None):
        raise InputError(f"reference {reference}, real images {'not ' if real is None else ''}given: give exactly one of them")
    network = load_extractor(extractor, path, device)
    if real is None:
        statistics = read_reference(str(reference))
        statistics.check(dimension(network), network.sha256, network.resize)
        return Judge(network, statistics, groups, few)
    seen = hashlib.sha256()
    statistics = Reference.of(moments(network, _hashed(real, seen)), network.sha256, network.resize, few)
    return Judge(network, statistics, groups, few, seen.hexdigest())


def load_extractor(name: str, path: str | Path, device: str | torch.device = "cpu", batch: int = 64) -> Extractor:
    """An extractor by name: "inception", "dinov2" or "classifier".

    Raises:
        InputError: another name, no such file, or a device that cannot be used.
        ModelFileError: the file holds something else.
    """
    if name not in EXTRACTORS:
        raise unknown_name("extractor", name, EXTRACTORS)
    place = torch.device(local_device(str(device)))
    if name == "classifier":
        features = load_features(path, place)
        return Classified(features, features.sha256, place, batch)
    return inception(path, place, batch) if name == "inception" else dinov2(path, place, batch)


def dimension(extractor: Extractor) -> int:
    """d, the number of features of an image."""
    return extractor(_noise(extractor)).shape[1]


def enough(extractor: Extractor, n: int, d: int, groups: int, few: bool) -> None:
    """Whether n images do, of d features each.

    Raises:
        InputError: fewer than two a group, or a split of the inception score; unless `few`, no more than features.
    """
    least = max(2 * groups, 2 * SPLITS if isinstance(extractor, Inception) else 0)
    if n < least:
        raise InputError(f"{n} images in {groups} groups: need at least {least}; draw more, or take fewer groups")
    if n <= d and not few:
        raise InputError(
            f"n = {n} images, d = {d} features of {extractor.name}: their covariance is singular; take at least {d + 1}, 50000 "
            "for numbers that compare with published ones, or allow it by few=True (--few) and compare equal n only"
        )


def look(extractor: Extractor, chunks: Iterable[Tensor], groups: int) -> Seen:
    """What a judge needs to know of images; the reference takes no part in it.

    Raises:
        InputError: images of another kind, or fewer than two a group.
    """
    w = _head(extractor)
    probabilities: list[Tensor] = []

    def features() -> Iterator[Tensor]:
        for chunk in chunks:
            found = extractor(chunk)
            if isinstance(extractor, Inception):
                probabilities.append(extractor.probabilities(chunk) if w is None else (found @ w.mT).softmax(1))
            yield found

    parts = grouped_moments(_packed(features()), groups)
    return Seen(parts, torch.cat(probabilities) if probabilities else None)


def moments(extractor: Extractor, chunks: Iterable[Tensor]) -> SampleMoments:
    """`extractor.moments`, merged `moments.CHUNK` rows at a time. Raises InputError where no images come."""
    whole: SampleMoments | None = None
    for rows in _packed(map(extractor, chunks)):
        part = SampleMoments.of(rows)
        whole = part if whole is None else whole.merge(part)
    if whole is None:
        raise InputError("no images came: give at least one chunk")
    return whole


def _hashed(chunks: Iterable[Tensor], digest: Any) -> Iterator[Tensor]:
    """The same chunks, each hashed as 8-bit images once it has been used."""
    for i, chunk in enumerate(chunks):
        yield chunk
        pixels = chunk.permute(0, 2, 3, 1).cpu().numpy() if chunk.dtype == torch.uint8 else to_uint8(chunk)
        digest.update((b"" if i else repr(pixels.shape[1:]).encode()) + pixels.tobytes())


def _packed(parts: Iterable[Tensor], rows: int = CHUNK) -> Iterator[Tensor]:
    """The same rows in order, so many at a time: merging moments costs d² a group, however few rows come."""
    held: list[Tensor] = []
    for part in parts:
        held.append(part)
        while sum(map(len, held)) >= rows:
            whole = torch.cat(held)
            yield whole[:rows]
            held = [whole[rows:]]
    if sum(map(len, held)):
        yield torch.cat(held)


def _head(extractor: Extractor) -> Tensor | None:
    """W, (classes, d) float64, where softmax(W f) is what Inception gives for noise; else None."""
    weight = getattr(getattr(extractor.network, "output", None), "weight", None)
    if not isinstance(extractor, Inception) or not isinstance(weight, Tensor):
        return None
    w, images = weight.detach().double().cpu(), _noise(extractor)
    features, given = extractor(images), extractor.probabilities(images)
    if w.shape != (given.shape[1], features.shape[1]):
        return None
    return w if torch.allclose((features @ w.mT).softmax(1), given, rtol=1e-3, atol=1e-7) else None


def _noise(extractor: Extractor) -> Tensor:
    """Two images that the extractor takes, (2, 3, side, side) uint8."""
    side = extractor.network.network.config.side if isinstance(extractor, Classified) else 32
    return torch.randint(256, (2, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
