"""CIFAR-10 as points: reads train.tar.xz and test.tar.xz, archives of 32×32 JPEG or PNG images under any folders."""

from __future__ import annotations

import io
import lzma
import math
import tarfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steindiff.errors import InputError

__all__ = ["DATA_HELP", "EVENT_SHAPE", "LEVEL", "bits_per_dim", "decode", "read_images", "shuffled", "to_points"]

EVENT_SHAPE = (3, 32, 32)
LEVEL = 1 / 127.5  # distance between neighbouring grey levels after x = u8 / 127.5 − 1
DATA_HELP = "folder with train.tar.xz and test.tar.xz, archives of 32×32 JPEG or PNG images"
SUFFIXES = (".jpg", ".jpeg", ".png")


def decode(archive: Path) -> dict[str, NDArray[np.uint8]]:
    """The images of a tar archive by name, as arrays of shape (height, width, 3)."""
    from PIL import Image

    images: dict[str, NDArray[np.uint8]] = {}
    with tarfile.open(archive, "r:xz") as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.name.lower().endswith(SUFFIXES) else None
            if stream is not None:
                with Image.open(io.BytesIO(stream.read())) as image:
                    images[member.name] = np.asarray(image.convert("RGB"))
    return images


def read_images(archive: Path) -> Tensor:
    """All images of a tar archive in the order of their names, as uint8 of shape (N, 3, 32, 32).

    Raises:
        InputError: no such file, not a readable .tar.xz, or an image of another size.
    """
    if not archive.is_file():
        raise InputError(f"no such file: {archive}; --data must name the folder with train.tar.xz and test.tar.xz")
    try:
        images = decode(archive)
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise InputError(f"{archive} is not a readable .tar.xz of images ({error}): copy it again") from error
    if not images or any(v.shape != (32, 32, 3) for v in images.values()):
        raise InputError(f"{archive} must hold JPEG or PNG images of 32×32 pixels; it holds {len(images)} of any size")
    return torch.from_numpy(np.stack([images[name] for name in sorted(images)])).permute(0, 3, 1, 2).contiguous()


def to_points(images: Tensor) -> Tensor:
    """The uint8 images as float32 points of shape (N, 3072) in [-1, 1]."""
    return images.flatten(1).float().div_(127.5).sub_(1)


def shuffled(images: Tensor, seed: int) -> Tensor:
    """The images in a random order fixed by the seed."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]


def bits_per_dim(nats: float, d: int) -> float:
    """Bits per dimension of the 8-bit values: the density times the volume of one level, −log₂(p(x)·levelᵈ)/d."""
    return (-nats / d - math.log(LEVEL)) / math.log(2)
