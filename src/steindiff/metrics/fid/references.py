"""Reference statistics of a Fréchet distance, read and written as EDM's .npz files: `mu` (d,) and `sigma` (d, d), float64.

    FD = ‖μ − μ_r‖² + tr(C + C_r − 2(C_r^½ C C_r^½)^½)

Files written here also say of how many samples (`n`), by which extractor (`extractor_sha256`) and after which resizing
(`resize`) they are; EDM's own tools ignore those entries, and files without them are taken at their word. A reference is fixed:
standard errors are those of the samples alone, and the noise floor is the distance of as many other real samples.

Source: Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium" (2017).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steindiff.errors import InputError
from steindiff.io.files import atomic
from steindiff.metrics.moments import SampleMoments
from steindiff.metrics.resampling import Replicates

__all__ = ["Reference", "grouped_moments", "read_reference", "write_reference"]

ROUNDING = 1e-6
"""Asymmetry and negative eigenvalues that a covariance may have, relative to its largest entry or eigenvalue."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Mean and covariance of features of real images.

    Attributes:
        mean: μ_r, (d,) float64.
        covariance: C_r, (d, d) float64, symmetric.
        n: the number of samples, where that is known.
        extractor_sha256: a hash of what made the features, where that is known.
        resize: what it did to images first, where that is known.

    Raises:
        InputError: shapes that disagree, values that are not finite, or a covariance that is not symmetric.
    """

    mean: Tensor
    covariance: Tensor
    n: int | None = None
    extractor_sha256: str | None = None
    resize: str | None = None

    def __post_init__(self) -> None:
        mean, c = self.mean.double(), self.covariance.double()
        if mean.ndim != 1 or not len(mean) or c.shape != (len(mean), len(mean)):
            raise InputError(f"mean of shape {tuple(mean.shape)}, covariance of {tuple(c.shape)}: need (d,) and (d, d)")
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
    ) -> Reference:
        """The statistics of real samples. Raises InputError for no more of them than dimensions, unless `few`."""
        _check_number(moments.n, len(moments.mean), few)
        return cls(moments.mean, moments.covariance, moments.n, extractor_sha256, resize)

    def check(self, dimension: int, extractor_sha256: str | None = None, resize: str | None = None) -> None:
        """Raises InputError for samples of another dimension, or, where both are known, another extractor or resizing."""
        if dimension != len(self.mean):
            raise InputError(f"samples of {dimension} features, reference of {len(self.mean)}: need those of one extractor")
        pairs = {"extractor": (extractor_sha256, self.extractor_sha256), "resizing": (resize, self.resize)}
        for what, (ours, theirs) in pairs.items():
            if ours is not None and theirs is not None and ours != theirs:
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
                once; with a single one the standard error is NaN.
            extractor_sha256: what made the samples' features; it is checked against the reference's.
            resize: how the samples were resized; it is checked likewise.
            few: allow no more samples than features. Their covariance is singular and the distance biased upwards so much
                that only equal numbers of samples compare.

        Raises:
            InputError: as `check`; too few samples.
        """
        parts = [parts] if isinstance(parts, SampleMoments) else list(parts)
        if not parts:
            raise InputError("no moments: give at least one part")
        whole = reduce(SampleMoments.merge, parts)
        self.check(len(whole.mean), extractor_sha256, resize)
        _check_number(whole.n, len(whole.mean), few)
        without = [self._distance(whole.without(part)) for part in parts] if len(parts) > 1 else [float("nan")]
        replicates = torch.tensor(without, dtype=torch.float64)
        return Replicates(self._distance(whole), replicates, replicates.new_zeros(0), (whole.n, self.n or 0))

    def _distance(self, moments: SampleMoments) -> float:
        c, root = moments.covariance, self._root
        cross = torch.linalg.eigvalsh(root @ c @ root).clamp_min(0).sqrt().sum()
        return float((moments.mean - self.mean).square().sum() + c.trace() + self.covariance.trace() - 2 * cross)

    @cached_property
    def _root(self) -> Tensor:
        """C_r^½. Raises InputError for an eigenvalue that is negative beyond rounding."""
        values, vectors = torch.linalg.eigh(self.covariance)
        if float(values[0]) < -ROUNDING * max(float(values[-1]), 0.0):
            raise InputError(f"the reference covariance has the eigenvalue {float(values[0]):.2g}: it is none; make it again")
        root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
        return root


def grouped_moments(chunks: Iterable[Tensor], groups: int) -> list[SampleMoments]:
    """Moments of features (n, d) that come in chunks, dealt into groups in turn: sample i of the stream to group i mod groups.

    Runs from the same seeds in the same order are dealt alike, which paired differences need. Memory is groups × d² numbers;
    lists of several processes merge group by group.

    Raises:
        InputError: fewer than two groups, or than two samples a group.
    """
    if groups < 2:
        raise InputError(f"{groups} groups: a jackknife needs at least 2")
    parts: dict[int, SampleMoments] = {}
    n = 0
    for chunk in chunks:
        of = (torch.arange(len(chunk)) + n) % groups
        n += len(chunk)
        for i in of.unique().tolist():
            part = SampleMoments.of(chunk[of == i])
            parts[i] = parts[i].merge(part) if i in parts else part
    if n < 2 * groups:
        raise InputError(f"{n} samples in {groups} groups: need at least 2 in each")
    return [parts[i] for i in range(groups)]


def write_reference(path: str | Path, reference: Reference) -> None:
    """Write a .npz file atomically. Raises InputError for another suffix, or where the folder cannot be written to."""
    if Path(path).suffix != ".npz":
        raise InputError(f"{path}: reference statistics are .npz files; name one")
    known = {"n": reference.n, "extractor_sha256": reference.extractor_sha256, "resize": reference.resize}
    entries: dict[str, Any] = {"mu": reference.mean.cpu().numpy(), "sigma": reference.covariance.cpu().numpy()}
    entries |= {key: np.asarray(value) for key, value in known.items() if value is not None}
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **entries)


def read_reference(path: str | Path) -> Reference:
    """The statistics of a .npz file, EDM's or ours; objects in it are never unpickled.

    Raises:
        InputError: no such file, not .npz, entries missing or of another kind, or as `Reference`.
    """
    if not Path(path).is_file():
        raise InputError(f"no reference statistics at {path}: name a .npz file with mu and sigma")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a .npz file, or not all of one: need one with mu and sigma")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as entries:
            found = {key: entries[key] for key in ("mu", "sigma", "n", "extractor_sha256", "resize") if key in entries}
            mean, covariance = (torch.from_numpy(found.pop(key).astype(np.float64)) for key in ("mu", "sigma"))
            known = {key: value.item() for key, value in found.items()}
    except KeyError as error:
        raise InputError(f"{path} has no entry {error}: need mu and sigma") from error
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a readable .npz file of numbers ({error}): copy or make it again") from error
    for key, kind in (("n", int), ("extractor_sha256", str), ("resize", str)):
        if key in known and not isinstance(known[key], kind):
            raise InputError(f"{path}: {key} is {known[key]!r}, need {kind.__name__}; make it again")
    try:
        return Reference(mean, covariance, **known)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check_number(n: int, d: int, few: bool) -> None:
    if n <= d and not few:
        raise InputError(
            f"n = {n} samples of d = {d} features: their covariance is singular; draw at least {d + 1}, 50000 for numbers that "
            "compare with published ones, or allow it by few=True and compare equal n only"
        )
