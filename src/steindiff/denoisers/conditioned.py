"""Denoisers under a condition: classifier-free guidance, and a network with its labels bound."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from steindiff.arguments import check_callable, check_denoiser, check_dense
from steindiff.denoisers.base import Denoiser
from steindiff.denoisers.stated import Wrapper, forwards_per_call
from steindiff.errors import InputError, require, require_numbers
from steindiff.owning import Lender


@dataclass(frozen=True, eq=False)
class Guided(Wrapper):
    """Classifier-free guidance: D = D_∅ + w (D_c − D_∅), w the scale (Ho & Salimans 2022).

    One call costs two network evaluations; `stats.forward_equivalents` counts both.
    """

    conditional: Denoiser
    unconditional: Denoiser
    scale: float
    conditioned: ClassVar[bool] = True
    _lend: Lender = field(default_factory=Lender, init=False, repr=False)

    def __post_init__(self) -> None:
        check_denoiser(self.conditional)
        check_denoiser(self.unconditional)
        require_numbers(scale=self.scale)
        require(math.isfinite(self.scale), "need a finite scale of guidance (1 is none)", scale=self.scale)

    @property
    def denoiser(self) -> Denoiser:  # type: ignore[override]
        """The conditional one, whose schedule both share."""
        return self.conditional

    @property
    def guidance(self) -> float:
        """The scale."""
        return self.scale

    @property
    def forwards(self) -> int:
        """The forwards of D_c and D_∅ together."""
        return forwards_per_call(self.conditional) + forwards_per_call(self.unconditional)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D_∅ + w (D_c − D_∅)."""
        unconditional: Tensor = self._lend(self.unconditional, x, sigma)  # both may be one network with one buffer
        return unconditional + self.scale * (self.conditional(x, sigma) - unconditional)


def check_labels(labels: object) -> None:
    """Raise InputError for anything but a dense tensor of whole numbers, () or (B,)."""
    if not isinstance(labels, Tensor):
        raise InputError(f"labels are {type(labels).__name__}: need a tensor of whole numbers, such as torch.tensor(3)")
    check_dense("labels", labels)
    whole = labels.ndim <= 1 and not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    require(whole, "labels are whole numbers, () or (B,)", shape=tuple(labels.shape), dtype=labels.dtype)


@dataclass(frozen=True, eq=False)
class Labelled(Wrapper):
    """A class-conditional denoiser D(x, sigma, labels) with its int64 labels bound: () for all images, or (B,)."""

    denoiser: Callable[..., Tensor]
    labels: Tensor
    conditioned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_callable(self.denoiser, "denoiser", "D(x, sigma, labels)")
        check_labels(self.labels)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma, labels). Raises InputError for another number of images than labels."""
        fit = self.labels.ndim == 0 or len(self.labels) == len(x)
        require(fit, "need one label for all images, or one for each", labels=tuple(self.labels.shape), images=len(x))
        return self.denoiser(x, sigma, self.labels.to(x.device).expand(len(x)))
