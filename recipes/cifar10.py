"""CIFAR-10 as points: reads train.tar.xz and test.tar.xz, archives of 32×32 JPEG or PNG images under any folders."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from steindiff.errors import InputError
from steindiff.models.datasets import load_images

__all__ = ["DATA_HELP", "EVENT_SHAPE", "LEVEL", "bits_per_dim", "read_images", "shuffled", "to_points"]

EVENT_SHAPE = (3, 32, 32)
LEVEL = 1 / 127.5  # distance between neighbouring grey levels after x = u8 / 127.5 − 1
DATA_HELP = "folder with train.tar.xz and test.tar.xz, archives of 32×32 JPEG or PNG images"


def read_images(archive: Path) -> Tensor:
    """All images of a tar archive in the order of their names, as uint8 of shape (N, 3, 32, 32).

    Raises:
        InputError: no such file, not a readable archive, or an image of another size.
    """
    if not archive.is_file():
        raise InputError(f"no such file: {archive}; --data must name the folder with train.tar.xz and test.tar.xz")
    images = load_images(archive)
    if images.event_shape != EVENT_SHAPE:
        raise InputError(f"{archive} holds images of {images.event_shape}: need {EVENT_SHAPE}")
    return images.pixels


def to_points(images: Tensor) -> Tensor:
    """The uint8 images as float32 points of shape (N, 3072) in [-1, 1]."""
    return images.flatten(1).float().div_(127.5).sub_(1)


def shuffled(images: Tensor, seed: int) -> Tensor:
    """The images in a random order fixed by the seed."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]


def bits_per_dim(nats: float, d: int) -> float:
    """Bits per dimension of the 8-bit values: the density times the volume of one level, −log₂(p(x)·levelᵈ)/d."""
    return (-nats / d - math.log(LEVEL)) / math.log(2)
