"""The statistics of a model that DPM-Solver-v3 integrates with: l, s and b at decreasing levels, linear in λ between them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steindiff.errors import ModelFileError, NonFiniteError, require
from steindiff.io.files import digest, read_tensors, write_tensors

KIND = "statistics of DPM-Solver-v3"


@dataclass(frozen=True, eq=False)
class Statistics:
    """The empirical statistics of a model: l, s and b at decreasing levels, one number a coordinate.

    Attributes:
        levels: σ_0 > … > σ_n > 0.
        linear: l, (n+1, *event), float64.
        slope: s, of the same shape.
        offset: b, of the same shape.

    Raises:
        InputError: the levels do not decrease to one above 0, or the shapes do not fit.
        NonFiniteError: a number is not finite.
    """

    levels: tuple[float, ...]
    linear: Tensor
    slope: Tensor
    offset: Tensor

    def __post_init__(self) -> None:
        falling = len(self.levels) > 1 and all(math.inf > s > t > 0 for s, t in pairwise(self.levels))
        require(falling, "need two or more finite levels that decrease and are above 0", levels=self.levels)
        shapes = {name: tuple(part.shape) for name, part in self._parts.items()}
        fits = len(set(shapes.values())) == 1 and len(self.linear) == len(self.levels)
        require(fits, f"l, s and b need one number a coordinate at each of {len(self.levels)} levels", **shapes)
        for name, part in self._parts.items():
            bad = (~part.isfinite()).flatten(1).any(1)
            if bool(bad.any()):
                raise NonFiniteError(
                    f"the statistic {name} is NaN or infinite at sigma = {self.levels[int(bad.nonzero()[0])]:g}: the network "
                    "is not finite there, or the states it was measured on are not"
                )

    @property
    def _parts(self) -> dict[str, Tensor]:
        return {"l": self.linear, "s": self.slope, "b": self.offset}

    def __repr__(self) -> str:
        """What determines them: results are kept under this text."""
        numbers = {name: digest(numbers=part.flatten().tolist()) for name, part in self._parts.items()}
        return f"Statistics({self.levels[0]:g} to {self.levels[-1]:g}, {numbers})"

    @classmethod
    def constant(
        cls, linear: float, slope: float, offset: float, levels: Sequence[float], event: Sequence[int]
    ) -> "Statistics":
        """The same three numbers at all levels and coordinates: (1, 0, 0) is data prediction, (0, −1, 0) noise prediction."""
        shape = (len(levels), *event)
        return cls(tuple(levels), *(torch.full(shape, v, dtype=torch.float64) for v in (linear, slope, offset)))

    def save(self, path: str | Path, **about: Any) -> Path:
        """Write them to a .safetensors file, with what is known about them. Raises InputError where it cannot be written."""
        write_tensors(path, self._parts, {"kind": KIND, "levels": self.levels, **about})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "tuple[Statistics, dict[str, Any]]":
        """The statistics of a file, and what is known about them.

        Raises:
            ModelFileError: there is no such file, it is damaged, or it holds no statistics.
            AccessError: it may not be read.
        """
        try:
            about, parts = read_tensors(path, "l", "s", "b")
            require(about.pop("kind", None) == KIND, "no statistics of DPM-Solver-v3", path=str(path))
            return cls(tuple(map(float, about.pop("levels"))), *parts), about
        except (ValueError, TypeError, KeyError, NonFiniteError) as error:
            raise ModelFileError(f"{path} holds no readable statistics: {error}; measure them anew") from error

    def at(self, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """l, s and b at λ, (k,), each (k, *event); linear in λ between the levels."""
        i, u = self._place(lam)
        return tuple(torch.lerp(part[i], part[i + 1], u) for part in self._parts.values())  # type: ignore[return-value]

    def integrals(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        """∫ l and ∫ s from the first level to λ, (k, *event) each; exact for the interpolated statistics."""
        i, u = self._place(lam)
        h = spread(self._knots.diff()[i], self.linear)
        found = [
            total[i] + h * u * torch.lerp(part[i], part[i + 1], u / 2)
            for total, part in zip(self._totals, (self.linear, self.slope), strict=True)
        ]
        return found[0], found[1]

    @cached_property
    def _knots(self) -> Tensor:
        """The levels in λ, (n+1,)."""
        return -torch.tensor(self.levels, dtype=torch.float64).log()

    @cached_property
    def _totals(self) -> list[Tensor]:
        """∫ l and ∫ s from the first level to each."""
        h = spread(self._knots.diff(), self.linear)
        parts = (self.linear, self.slope)
        return [torch.cat([0 * part[:1], (h * (part[1:] + part[:-1]) / 2).cumsum(0)]) for part in parts]

    def _place(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        """The interval of each λ, (k,), and how far into it, (k, 1, …)."""
        knots = self._knots
        i = (torch.searchsorted(knots, lam.contiguous(), right=True) - 1).clamp(0, len(knots) - 2)
        return i, spread((lam - knots[i]) / (knots[i + 1] - knots[i]), self.linear)


def spread(values: Tensor, like: Tensor) -> Tensor:
    """Values (k,) as (k, 1, …), to go with (k, *event)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
