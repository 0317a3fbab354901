"""Numbers with standard errors, and the samples' shares in them, from which the errors of paired differences follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from steindiff.errors import InputError

__all__ = ["Paired", "Shares", "Value"]

T = TypeVar("T", bound="Paired")


class Value(NamedTuple):
    """A number with its standard error."""

    value: float
    se: float

    @classmethod
    def parse(cls, pair: Sequence[float | None]) -> Value:
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


class Paired(Protocol):
    """A statistic with its standard error, and that of a difference from the same seeds."""

    @property
    def value(self) -> Value:
        """The statistic with its standard error."""
        ...

    def minus(self: T, other: T) -> Value:
        """This statistic less another's, with the paired standard error."""
        ...


def check_pairs(ours: tuple[object, ...], theirs: tuple[object, ...]) -> None:
    """Raises InputError where the samples of x and of y, or the groups or splits they were dealt into, differ in number."""
    if ours != theirs:
        raise InputError(
            f"numbers of samples of x, of y, and of their parts are {ours} and {theirs}: pairs must start from the same noise, "
            "meet the same reference and be dealt alike"
        )


class Shares(NamedTuple):
    """An energy distance with each sample's share in it (its Hájek projection up to a constant), from which errors follow."""

    distance: float
    of_x: Tensor
    of_y: Tensor

    @property
    def value(self) -> Value:
        """The distance with its standard error."""
        return Value(self.distance, _standard_error(self.of_x, self.of_y))

    def minus(self, other: Shares) -> Value:
        """The difference of two distances to one target, from paired samples. Raises InputError where numbers differ."""
        check_pairs(*((len(shares.of_x), len(shares.of_y)) for shares in (self, other)))
        return Value(self.distance - other.distance, _standard_error(self.of_x - other.of_x, self.of_y - other.of_y))


def _standard_error(of_x: Tensor, of_y: Tensor) -> float:
    return float((of_x.var() / len(of_x) + of_y.var() / len(of_y)).sqrt())
