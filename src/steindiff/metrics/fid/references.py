"""Reference statistics of a Fréchet distance, read and written as EDM's .npz files: `mu` (d,) and `sigma` (d, d), float64.

Files written here also say of how many samples (`n`), by which extractor (`extractor_sha256`) and after which resizing
(`resize`) they are; EDM's own tools ignore those entries, and files without them are taken at their word. A reference is fixed:
standard errors are those of the samples alone, and the noise floor is the distance of as many other real samples.

Source: Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium" (2017).
"""

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steindiff.arguments import check_dense
from steindiff.errors import InputError, require
from steindiff.io import digests, packed
from steindiff.io.files import atomic
from steindiff.io.jsons import SEAL
from steindiff.metrics.frechet import Law, Transport
from steindiff.metrics.moments import ROUNDING, SampleMoments, check_enough
from steindiff.metrics.resampling import Replicates, dealt

_KINDS = {"n": int, "extractor_sha256": str, "resize": str}


@dataclass(frozen=True, eq=False)
class Reference:
    """Mean μ_r (d,) and covariance C_r (d, d) of features of n real images, float64; what is known of them, else None.

    Raises InputError for shapes that disagree, values that are not finite, and a covariance that is not symmetric.
    """

    mean: Tensor
    covariance: Tensor
    n: int | None = None
    extractor_sha256: str | None = None
    resize: str | None = None

    def __post_init__(self) -> None:
        for value in (self.mean, self.covariance):
            real = isinstance(value, Tensor) and not value.is_complex()
            require(real, "need tensors of real numbers; torch.as_tensor makes one of an array", type=type(value).__name__)
            check_dense("a reference", value)
        mean, c = self.mean.double(), self.covariance.double()
        fit = mean.ndim == 1 and len(mean) > 0 and c.shape == (len(mean), len(mean))
        require(fit, "need (d,) and (d, d)", mean=tuple(mean.shape), covariance=tuple(c.shape))
        if not bool(mean.isfinite().all() and c.isfinite().all()):
            raise InputError("mean or covariance hold NaN or infinity: make the reference again")
        gap, limit = float((c - c.mT).abs().max()), ROUNDING * float(c.abs().max())
        if gap > limit:
            raise InputError(f"covariance differs from its transpose by {gap:.2g}, limit {limit:.2g}: make the reference again")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", (c + c.mT) / 2)

    @classmethod
    def of(
        cls, moments: SampleMoments, extractor_sha256: str | None = None, resize: str | None = None, few: bool = False
    ) -> "Reference":
        """The statistics of real samples. Raises InputError for no more of them than dimensions, unless `few`."""
        check_enough(moments.n, len(moments.mean), few)
        return cls(moments.mean, moments.covariance, moments.n, extractor_sha256, resize)

    def check(self, dimension: int, extractor_sha256: str | None = None, resize: str | None = None) -> None:
        """Raises InputError for samples of another dimension, or, where both are known, another extractor or resizing."""
        if dimension != len(self.mean):
            raise InputError(f"samples of {dimension} features, reference of {len(self.mean)}: need those of one extractor")
        pairs = {"extractor": (extractor_sha256, self.extractor_sha256), "resizing": (resize, self.resize)}
        for what, (ours, theirs) in pairs.items():
            if None not in (ours, theirs) and ours != theirs:
                raise InputError(f"{what} of the samples {ours}, of the reference {theirs}: make both with the same")

    def frechet(
        self,
        parts: SampleMoments | Sequence[SampleMoments],
        extractor_sha256: str | None = None,
        resize: str | None = None,
        few: bool = False,
    ) -> Replicates:
        """FD of samples; of two runs from the same noise, `.minus` compares.

        Args:
            parts: moments of the samples, or of groups of them (`grouped_moments`), each of which the jackknife leaves out
                to first order; with a single one the standard error is NaN.
            extractor_sha256: what made the samples' features, as in `check`.
            resize: how the samples were resized, as in `check`.
            few: allow no more samples than features. Their covariance is singular and the distance biased upwards so much
                that only equal numbers of samples compare.
        """
        parts = [parts] if isinstance(parts, SampleMoments) else list(parts)
        require(bool(parts), "give at least one part", parts=parts)
        whole = reduce(SampleMoments.merge, parts)
        self.check(len(whole.mean), extractor_sha256, resize)
        check_enough(whole.n, len(whole.mean), few)
        way = Transport.between(Law(whole.mean, whole.covariance), self._law)
        without = way.without(parts, whole).tolist() if len(parts) > 1 else [float("nan")]
        return Replicates.of(way.distance, (without, []), (whole.n, self.n or 0))

    @cached_property
    def _law(self) -> Law:
        return Law(self.mean, self.covariance)


def grouped_moments(chunks: Iterable[Tensor], groups: int) -> list[SampleMoments]:
    """Moments of features (n, d) that come in chunks, dealt into groups in turn: sample i of the stream to group i mod groups.

    Runs from the same seeds in the same order are dealt alike, which paired differences need. Memory is groups × d² numbers;
    lists of several processes merge group by group. Raises InputError as `dealt`.
    """
    parts: dict[int, SampleMoments] = {}
    n = 0
    for chunk in chunks:
        for first in range(min(groups, len(chunk))):
            part, group = SampleMoments.of(chunk[torch.arange(first, len(chunk), groups)]), (n + first) % groups
            parts[group] = parts[group].merge(part) if group in parts else part
        n += len(chunk)
    dealt(n, groups)
    return [parts[group] for group in range(groups)]


def write_reference(path: str | Path, reference: Reference) -> None:
    """Write a .npz file atomically. Raises InputError for another suffix, or where the folder cannot be written to."""
    require(Path(path).suffix == ".npz", "reference statistics are .npz files; name one", path=str(path))
    entries: dict[str, Any] = {"mu": reference.mean.cpu().numpy(), "sigma": reference.covariance.cpu().numpy()}
    known = {key: getattr(reference, key) for key in _KINDS}
    entries |= {key: np.asarray(value) for key, value in known.items() if value is not None}
    entries[SEAL] = np.asarray(digests.of_value(entries))
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **entries)


def read_reference(path: str | Path) -> Reference:
    """The statistics of a .npz file, EDM's or ours; objects in it are never unpickled.

    Raises InputError for no such file, another kind of file, entries that are missing or of another kind, and as `Reference`.
    """
    if not Path(path).is_file():
        raise InputError(f"no reference statistics at {path}: name a .npz file with mu and sigma")
    require(zipfile.is_zipfile(path), "not a .npz file, or not all of one: need one with mu and sigma", path=str(path))
    found = packed.read_npz(path, ("mu", "sigma", *_KINDS, SEAL), "reference_bytes")
    try:
        seal = found.pop(SEAL, None)
        if seal is not None and seal.tolist() != digests.of_value(found):
            raise InputError("damaged: its digest differs from that of its entries; make it again, or copy it")
        mean, covariance = (_numbers(key, found.pop(key)) for key in ("mu", "sigma"))
        known: dict[str, Any] = {key: value.item() for key, value in found.items()}
        for key, value in known.items():
            if type(value) is not _KINDS[key]:
                raise InputError(f"{key} is {value!r}, need {_KINDS[key].__name__}; make it again")
        require(known.get("n", 1) >= 1, "need at least one sample; make it again", n=known.get("n"))
        return Reference(mean, covariance, **known)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except KeyError as error:
        raise InputError(f"{path} has no entry {error}: need mu and sigma") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a readable .npz file of numbers ({error}): copy or make it again") from error


def _numbers(name: str, value: np.ndarray) -> Tensor:
    """An array as float64. Raises TypeError for one that holds no real numbers."""
    if value.dtype.kind not in "iuf":
        raise TypeError(f"{name} is {value.dtype}: need real numbers")
    return torch.from_numpy(value.astype(np.float64))
