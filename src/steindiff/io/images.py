"""From states to pictures: [−1, 1] floats to 8-bit images, PNG files and contact sheets."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from steindiff.errors import needs, require
from steindiff.io.files import atomic

Image = npt.NDArray[np.uint8]


def to_uint8(x: Tensor) -> Image:
    """(B, C, H, W) in [−1, 1] to (B, H, W, C) uint8, rounded to nearest; NaN becomes mid-grey, the rest is clipped."""
    require(
        x.ndim == 4 and x.shape[1] in (1, 3),
        "need (B, C, H, W) with 1 or 3 channels: decode latents first",
        shape=tuple(x.shape),
    )
    scaled = (x.detach().float().nan_to_num(0.0).clamp(-1, 1) + 1) * 127.5
    image: Image = scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return image


def save_png(path: str | Path, image: Image) -> None:
    """Write an (H, W, C) uint8 image atomically; C is 1 or 3."""
    with needs("cli", "writing images"):
        from PIL import Image as pillow

    with atomic(path) as temporary:
        pillow.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(temporary, format="PNG")


def contact_sheet(images: Image, columns: int, scale: int = 1, gap: int = 2) -> Image:
    """(N, H, W, C) images in rows of `columns`, each enlarged `scale` times, on white."""
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    padded = np.pad(large, ((0, -len(large) % columns), (0, gap), (0, gap), (0, 0)), constant_values=255)
    _, height, width, channels = padded.shape
    sheet = padded.reshape(-1, columns, height, width, channels).swapaxes(1, 2).reshape(-1, columns * width, channels)
    return np.pad(sheet, ((gap, 0), (gap, 0), (0, 0)), constant_values=255)
