"""A loaded model: a denoiser with what is known about it, and the denoisers of its classes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser, Guided, Labelled, check_labels, noise_range_of, sigma_data_of
from steindiff.errors import InputError, require
from steindiff.noise import mix


@dataclass(frozen=True)
class Model:
    """A denoiser with what is known about it.

    Attributes:
        name: what the file calls it, one printable line; file names are made of it by `names.file_name`.
        denoiser: D(x, sigma) in VE coordinates, images in [−1, 1]; of a model with a null class, those of all classes.
        event_shape: the shape of one image, (C, H, W).
        info: the description in the file: kind, recipe, data hashes.
        sha256: the hash of the file, or of its parts' hashes.
        classes: how many classes a class-conditional model has; 0 for any other.
        null_class: whether it was trained for images of no class in particular too, whose label is `classes`.
    """

    name: str
    denoiser: Denoiser
    event_shape: tuple[int, ...]
    info: dict[str, Any]
    path: Path
    sha256: str
    classes: int = 0
    null_class: bool = False

    @property
    def noise_range(self) -> tuple[float, float]:
        """The lowest and the highest noise level that the network was made for; 0 and ∞ where it takes any."""
        return noise_range_of(self.denoiser)

    @property
    def sigma_data(self) -> float | None:
        """The standard deviation of the data; None where it is not known."""
        return sigma_data_of(self.denoiser)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of what `decode` gives of one state, (C, H, W)."""
        return self.event_shape

    def decode(self, x: Tensor) -> Tensor:
        """Images in [−1, 1], (B, *image_shape), of denoised states: these themselves, where the network sees images."""
        return x

    @property
    def needs_class(self) -> bool:
        """Whether every image needs a class: the model has classes, and was not trained without."""
        return self.classes > 0 and not self.null_class

    def labelled(self, labels: Tensor) -> Denoiser:
        """The denoiser of images of these classes: int64, one an image, (B,), or one for all, ().

        Raises:
            InputError: the labels are no whole numbers, or a label is none of the model's.
        """
        known = self.classes + self.null_class
        require(known > 0, "it has no classes: leave labels out", model=self.name)
        check_labels(labels)
        low, high = (int(end) for end in labels.aminmax()) if labels.numel() else (0, 0)
        limit = f"{self.name} has labels from 0 to {known - 1}" + f", of which {self.classes} is no class" * self.null_class
        require(low >= 0 and high < known, limit, least=low, most=high)
        return Labelled(self.denoiser, labels.long())

    def of_seeds(self, seeds: Sequence[int], scale: float = 1.0) -> Denoiser:
        """The denoiser of images whose classes their seeds draw, guided to these where the scale is not 1."""
        labels = torch.tensor([label_of(seed, self.classes) for seed in seeds])
        return self.labelled(labels) if scale == 1 else self.guided(labels, scale)

    def guided(self, labels: Tensor, scale: float) -> Denoiser:
        """The denoiser guided to these classes, as in `labelled`: D + w (D_c − D), where D is that of the null class.

        A call costs two network forwards, of the null class and of the labels.

        Raises:
            InputError: the model has no null class, or the scale w is not finite.
        """
        if not self.null_class:
            raise InputError(
                f"the model {self.name} has no null class, which guidance needs: take one that was trained with --classes and "
                "--set label_dropout=0.15, such as digits_classes, or guide by another network of the same data, "
                "denoisers.Guided(model.labelled(labels), other.denoiser, scale)"
            )
        require(math.isfinite(scale), "need a finite scale of guidance", guidance=scale)
        return Guided(self.labelled(labels), self.denoiser, float(scale))


def label_of(seed: int, classes: int) -> int:
    """The class that a seed draws."""
    return mix(seed) % classes
