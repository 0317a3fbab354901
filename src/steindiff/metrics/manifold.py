"""Precision, recall, density and coverage: two supports compared through balls around samples.

With B(y_i) the ball around y_i that reaches its k-th nearest neighbour among the other y, and B(x_j) likewise among x,

    precision = mean_j 1[x_j ∈ ∪_i B(y_i)]          samples that look real,
    recall    = mean_i 1[y_i ∈ ∪_j B(x_j)]          reality that samples reach,
    density   = (1/k) mean_j #{i : x_j ∈ B(y_i)}    precision, less ruled by single outliers; 1 where laws agree,
    coverage  = mean_i 1[some x_j ∈ B(y_i)]         recall, in the balls of y alone.

All depend on the numbers of samples, n of x and m of y, and on k, so only equal ones compare. Where both laws agree, density
is 1 and coverage 1 − Π_{j=1…k} (m − j)/(n + m − j) on average, near 1 − 2^−k for n = m. A sample that is not finite is in no
ball.

Sources: Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models" (2019), with k = 3; Naeem
et al., "Reliable fidelity and diversity metrics for generative models" (2020), with k = 5. Balls are closed, as in the former.
"""

from functools import cache, cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from steindiff.errors import require, require_whole
from steindiff.metrics.resampling import Halves, dealt
from steindiff.metrics.samples import vectors

ROWS = 512
"""Rows of a distance matrix at a time: against 50,000 samples they take 200 MB."""


class Manifold(NamedTuple):
    """The four numbers, each with what its standard error and paired differences need."""

    precision: Halves
    recall: Halves
    density: Halves
    coverage: Halves


class ManifoldTarget:
    """Support comparisons with one set of samples, whose neighbours are found once.

    Standard errors come from random halves of both sets (`Halves`). Samples are dealt into groups first and halves are of whole
    groups, so that each group's neighbours are searched once for all splits.

    Args:
        y: the samples, (m, …), usually features.
        neighbours: k, below the number of samples in a half.
        groups: how many groups the samples are dealt into, an even number.
        splits: how often the groups are split in halves; each split compares all distances with radii.
    """

    def __init__(self, y: Tensor, neighbours: int = 5, groups: int = 20, splits: int = 20) -> None:
        require_whole(1, neighbours=neighbours, groups=groups, splits=splits)
        self._y, self._rule = vectors(y, finite=False), (neighbours, groups, splits)
        half = len(y) // groups * groups // 2
        require(groups % 2 == 0, "need an even number of groups", groups=groups)
        enough = f"need from 1 to {half - 1} neighbours with the {half} samples of a half"
        require(neighbours < half, enough, neighbours=neighbours, groups=groups)
        self._side = _halves(groups, splits)[dealt(len(y), groups)].to(y.device)

    def compare(self, x: "Tensor | ManifoldTarget") -> Manifold:
        """Samples x with the target's. Where x is itself a target, its neighbours are not searched again.

        Raises InputError unless both have the same dimension, neighbours, groups and splits.
        """
        other = x if isinstance(x, ManifoldTarget) else ManifoldTarget(x, *self._rule)
        ours, theirs = ((target._y.shape[1], *target._rule) for target in (self, other))
        need = "(dimension, neighbours, groups, splits): need the same for both sets"
        require(ours == theirs, need, ours=ours, theirs=theirs)
        sizes = len(other._y), len(self._y)
        in_y, held = self._visits(other)
        in_x, _ = other._visits(self)
        return Manifold(
            precision=_mean(in_y > 0, other._side, sizes),
            recall=_mean(in_x > 0, self._side, sizes),
            density=_mean(in_y / self._rule[0], other._side, sizes),
            coverage=_mean(held, self._side, sizes),
        )

    def _visits(self, visitors: "ManifoldTarget") -> tuple[Tensor, Tensor]:
        """How many balls each visitor is in, (visitors, splits + 1), and whether each ball holds one, (m, splits + 1).

        The first column is of the whole sets, the others are within the halves of each split.
        """
        radii, own = self._radii, self._side
        numbers, held = radii.new_empty(len(visitors._y), radii.shape[1]), torch.zeros_like(radii, dtype=torch.bool)
        for part, side, number in zip(*(t.split(ROWS) for t in (visitors._y, visitors._side, numbers)), strict=True):
            distances = torch.cdist(part, self._y)
            for h in range(radii.shape[1]):
                inside = distances <= radii[:, h]
                if h:
                    inside &= side[:, h - 1, None] == own[:, h - 1]
                number[:, h] = inside.sum(1)
                held[:, h] |= inside.any(0)
        return numbers, held

    @cached_property
    def _radii(self) -> Tensor:
        """The radius of every ball in the whole set, and in its own half at each split, (m, splits + 1)."""
        k, groups, splits = self._rule
        near = torch.cat([self._near(start) for start in range(0, len(self._y), ROWS)])  # (m, groups, k)
        radii = [near.flatten(1).kthvalue(k).values]
        chosen = _halves(groups, splits).to(near.device)
        for h in range(splits):
            one, two = (near[:, half].flatten(1).kthvalue(k).values for half in (chosen[:, h], ~chosen[:, h]))
            radii.append(torch.where(self._side[:, h], one, two))
        return torch.stack(radii, 1)

    def _near(self, start: int) -> Tensor:
        """Distances of some samples to their k nearest others in each group, (rows, groups, k), infinite beyond its size."""
        k, groups, _ = self._rule
        rows = torch.cdist(self._y[start : start + ROWS], self._y)
        rows[:, start : start + ROWS].fill_diagonal_(float("inf"))
        parts = []
        for h in range(groups):
            columns = rows[:, h::groups]
            nearest = columns.topk(min(k, columns.shape[1]), dim=1, largest=False).values
            parts.append(F.pad(nearest, (0, k - nearest.shape[1]), value=float("inf")))
        return torch.stack(parts, 1)


def precision_recall(x: Tensor, y: Tensor, neighbours: int = 5, groups: int = 20, splits: int = 20) -> Manifold:
    """Precision, recall, density and coverage of samples x of the law of y: `ManifoldTarget(y, …).compare(x)`."""
    return ManifoldTarget(y, neighbours, groups, splits).compare(x)


@cache
def _halves(groups: int, splits: int) -> Tensor:
    """Random halves of the groups, always the same ones, (groups, splits) bool."""
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(groups, generator=generator) for _ in range(splits)], 1)
    return orders < groups // 2


def _mean(values: Tensor, side: Tensor, sizes: tuple[int, int]) -> Halves:
    """The mean of values in the whole set and within halves, (n, splits + 1); side (n, splits) tells a sample's half."""
    whole, parts, one = values[:, 0].double(), values[:, 1:].double(), side.double()
    gaps = (parts * one).sum(0) / one.sum(0) - (parts * (1 - one)).sum(0) / (1 - one).sum(0)
    return Halves(float(whole.mean()), gaps.cpu(), sizes)
