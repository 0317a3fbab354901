"""From states to pictures: [−1, 1] floats to 8-bit images, PNG files and contact sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from steindiff.errors import InputError
from steindiff.io.files import atomic

__all__ = ["contact_sheet", "save_png", "to_uint8"]

Image = npt.NDArray[np.uint8]


def to_uint8(x: Tensor) -> Image:
    """(B, C, H, W) in [−1, 1] to (B, H, W, C) uint8, rounded to nearest; NaN becomes mid-grey, the rest is clipped.

    Raises:
        InputError: another shape, or a number of channels that is neither 1 nor 3.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise InputError(f"images of shape {tuple(x.shape)}: need (B, C, H, W) with 1 or 3 channels")
    scaled = (x.detach().float().nan_to_num(0.0).clamp(-1, 1) + 1) * 127.5
    image: Image = scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return image


def save_png(path: str | Path, image: Image) -> None:
    """Write an (H, W, C) uint8 image atomically; C is 1 or 3."""
    from PIL import Image as pillow

    with atomic(path) as temporary:
        pillow.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(temporary, format="PNG")


def contact_sheet(images: Image, columns: int, scale: int = 1, gap: int = 2) -> Image:
    """(N, H, W, C) images in rows of `columns`, each enlarged `scale` times, on white."""
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    n, height, width, channels = large.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, dtype=np.uint8)
    for i, image in enumerate(large):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet
