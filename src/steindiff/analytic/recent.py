"""What was computed of a noise level, kept for the next batch: a run asks for few levels, again and again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from steindiff.divergence.products import differentiated

T = TypeVar("T")

LIMIT = 2**28
"""Bytes that one law may keep."""


@dataclass(frozen=True, eq=False)
class Recent(Generic[T]):
    """Objects by noise level. The one that was asked for the longest ago goes first, once all take more than `limit` bytes.

    Args:
        size: how many bytes an object takes.
        limit: bytes of all; a larger object is made anew each time.
    """

    size: Callable[[T], int]
    limit: int = LIMIT
    _kept: dict[float, T] = field(default_factory=dict, repr=False)

    def get(self, sigma: Tensor, make: Callable[[Tensor], T]) -> T:
        """The object of σ, (); it is made where it is not kept, and where σ is more than a number (`number`)."""
        level = number(sigma)
        if level is None:
            return make(sigma)
        found = self._kept.pop(level, None)  # and in again below, as the latest
        if found is None:
            found = make(sigma)
        self._kept[level] = found
        while sum(map(self.size, self._kept.values())) > self.limit:
            self._kept.pop(next(iter(self._kept)), None)
        return found


def number(sigma: Tensor) -> float | None:
    """σ as a number; None where reading it would wait for a device, or lose a derivative, a vmap or a compiled graph."""
    if torch.compiler.is_compiling() or sigma.ndim or sigma.device.type != "cpu" or type(sigma) is not Tensor:
        return None
    transformed = torch._C._functorch.is_functorch_wrapped_tensor(sigma)
    return None if transformed or differentiated(sigma) else float(sigma)
