"""Numbers with standard errors, the samples' shares in them, differences of pairs, and whether those are beyond noise."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from steindiff.errors import require

T = TypeVar("T", bound="Paired")

TITLES = {
    "energy": "energy distance",
    "frechet": "Fréchet distance",
    "features": "Fréchet distance of classifier features",
    "sliced": "sliced Wasserstein distance, squared",
    "spectrum": "spectrum error",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
    "components": "component weights, total variation",
    "endpoint": "endpoint RMSE",
    "fid": "FID",
    "inception_score": "inception score",
    "fd_dinov2": "FD-DINOv2",
    "fd_classifier": "classifier Fréchet distance (no FID)",
}
"""What a report calls each metric, in the order of a report."""

HIGHER = frozenset({"precision", "recall", "coverage", "inception_score"})
"""The metrics where more is better."""


class Value(NamedTuple):
    """A number with its standard error."""

    value: float
    se: float

    @classmethod
    def mean_of(cls, values: Tensor) -> "Value":
        """The mean of values (n,) with its standard error, which is NaN for a single one."""
        spread = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else float("nan")
        return cls(float(values.mean()), spread)

    @classmethod
    def parse(cls, pair: Sequence[float | None]) -> "Value":
        """Read a pair from JSON, where null is NaN. Raises TypeError or ValueError for anything but two numbers."""
        value, se = (float("nan") if x is None else float(x) for x in pair)
        return cls(value, se)

    def __str__(self) -> str:
        if not abs(self.value) < float("inf"):
            return "diverged"
        if abs(self.value) >= 1000:
            return f"{self.value:.1e} ± {self.se:.0e}"
        digits = 1 if self.value >= 100 else 2 if self.value >= 10 else 4
        return f"{self.value:.{digits}f} ± {self.se:.{digits}f}"


def weigh(change: Value, metric: str) -> Literal["win", "loss", "noise"]:
    """Whether a change is beyond two standard errors, and in which direction.

    Two standard errors are exceeded by chance once in 22 comparisons where nothing changed.

    Example:
        >>> weigh(Value(-0.3, 0.1), "energy"), weigh(Value(-0.3, 0.1), "recall"), weigh(Value(-0.3, 0.2), "fid")
        ('win', 'loss', 'noise')
    """
    if not abs(change.value) > 2 * change.se:
        return "noise"
    return "win" if (change.value > 0) == (metric in HIGHER) else "loss"


@dataclass(frozen=True, eq=False)
class Paired(ABC):
    """A statistic with what the standard errors follow from, its own and that of a difference between runs from the same seeds.

    Of its entries, floats and tensors are subtracted in a difference; all others are numbers of samples, which must agree.
    """

    @property
    @abstractmethod
    def value(self) -> Value:
        """The statistic with its standard error."""

    @property
    @abstractmethod
    def spread(self) -> Tensor:
        """Numbers (k,), linear in the statistic's tensors, whose norm is the standard error.

        Of two runs from the same seeds against the same reference they subtract: the norm of the difference is the paired
        standard error. A study keeps them, so that any two of its runs can be compared.
        """

    def minus(self: T, other: T) -> Value:
        """This statistic less another's against the same reference, with the paired standard error.

        Raises InputError where numbers of samples, groups or splits differ.
        """
        ours, theirs = (
            [len(x) if isinstance(x, Tensor) else x for x in vars(one).values() if not isinstance(x, float)]
            for one in (self, other)
        )
        need = "need the same numbers of samples and groups, as pairs start from the same noise and meet the same reference"
        require(ours == theirs, need, ours=ours, theirs=theirs)
        changes = {key: x - getattr(other, key) for key, x in vars(self).items() if isinstance(x, (float, Tensor))}
        return replace(self, **changes).value


@dataclass(frozen=True, eq=False)
class Shares(Paired):
    """A distance with each sample's share in it (its Hájek projection up to a constant), from which errors follow."""

    distance: float
    of_x: Tensor
    of_y: Tensor

    @property
    def value(self) -> Value:
        """√(Var of_x/n + Var of_y/m) is the standard error."""
        return Value(self.distance, float((self.of_x.var() / len(self.of_x) + self.of_y.var() / len(self.of_y)).sqrt()))

    @property
    def spread(self) -> Tensor:
        """(s − s̄)/√(n (n−1)) of both sets."""
        return torch.cat([centred(shares) / math.sqrt(len(shares) * (len(shares) - 1)) for shares in (self.of_x, self.of_y)])


def centred(values: Tensor) -> Tensor:
    """Values (n,) less their mean, float64 on the CPU."""
    wide = values.detach().to("cpu", torch.float64)
    return wide - wide.mean()
