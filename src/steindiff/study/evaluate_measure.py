"""Distances of a run's images to real ones, and of real ones to each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from steindiff.io.files import digest, write_json
from steindiff.metrics import EnergyTarget, Features, FrechetTarget, Value

__all__ = ["Distances", "Points", "Rulers", "kept"]

WIDE = 1000
"""Dimensions beyond which the jackknife takes 5 groups and not 20: every group costs two sets of eigenvalues."""


class Distances(NamedTuple):
    """Between two sets of images; features is None where there are none for such images."""

    energy: Value
    pixels: Value
    features: Value | None


@dataclass(frozen=True)
class Rulers:
    """What the distances are measured with.

    Args:
        features: of a classifier, or None.
        groups: of the jackknife; None: 20, or 5 beyond 1000 dimensions.
        least: images of the smallest set: there are never fewer than two images a group.
        device: where pixels are compared, in float64; changes speed and rounding only.
    """

    features: Features | None
    groups: int | None
    least: int
    device: str = "cpu"

    def groups_for(self, dimensions: int) -> int:
        """Groups of the jackknife in that many dimensions."""
        wanted = self.groups or (5 if dimensions > WIDE else 20)
        return max(2, min(wanted, self.least // 2))

    @property
    def digest(self) -> str:
        """Of all that changes a distance between two given sets."""
        return digest(features=None if self.features is None else self.features.sha256, groups=self.groups, least=self.least)


class Points:
    """Images with what their distances need, each computed once and when first asked for.

    Args:
        load: gives the images, (n, C, H, W) in [−1, 1].
        rulers: to measure with.
    """

    def __init__(self, load: Callable[[], Tensor], rulers: Rulers) -> None:
        self._load, self._rulers = load, rulers

    def to(self, real: Points) -> Distances:
        """Distances to other images."""
        features = real._features.distance(self._features) if self._features and real._features else None
        return Distances(real._energy.shares(self._energy).value, real._pixels.distance(self._pixels), features)

    @cached_property
    def _images(self) -> Tensor:
        return self._load()

    @cached_property
    def _flat(self) -> Tensor:
        return self._images.to(self._rulers.device).flatten(1).double()

    @cached_property
    def _energy(self) -> EnergyTarget:
        return EnergyTarget(self._flat)

    @cached_property
    def _pixels(self) -> FrechetTarget:
        return FrechetTarget(self._flat, self._rulers.groups_for(self._flat.shape[1]))

    @cached_property
    def _features(self) -> FrechetTarget | None:
        features = self._rulers.features
        return None if features is None else FrechetTarget(features(self._images), self._rulers.groups_for(features.count))


def kept(path: Path, name: str, measure: Callable[[], Distances], **parts: Any) -> Distances:
    """The distances of that name in a JSON file, or those that `measure` finds, which are put there.

    Args:
        path: the file; need not be there, and one that is not whole counts as empty.
        name: for the reader.
        measure: makes them.
        parts: all that they depend on.
    """
    key = f"{name}-{digest(**parts)}"
    try:
        table = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        table = {}
    try:
        energy, pixels, features = (table[key][field] for field in Distances._fields)
        return Distances(Value.parse(energy), Value.parse(pixels), None if features is None else Value.parse(features))
    except (KeyError, TypeError, ValueError):
        found = measure()
        write_json(path, {**table, key: found._asdict()})
        return found
