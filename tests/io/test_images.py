"""Pixels: rounding, clipping, sheets and PNG files."""

import numpy as np
import pytest
import torch
from PIL import Image

from steindiff.errors import InputError
from steindiff.io.images import contact_sheet, save_png, to_uint8


def test_to_uint8_inverts_the_usual_scaling():
    pixels = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16)
    assert np.array_equal(to_uint8(pixels / 127.5 - 1)[0, ..., 0], pixels[0, 0].numpy().astype(np.uint8))


def test_to_uint8_clips_and_greys():
    x = torch.tensor([-5.0, 5.0, float("nan"), float("inf")]).reshape(1, 1, 2, 2)
    assert to_uint8(x).ravel().tolist() == [0, 255, 128, 128] or to_uint8(x).ravel().tolist() == [0, 255, 128, 255]
    with pytest.raises(InputError, match="1 or 3 channels"):
        to_uint8(torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (8, 6, channels), dtype=np.uint8)
    save_png(tmp_path / "a.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")).reshape(image.shape), image)


def test_contact_sheet_places_every_image():
    images = np.stack([np.full((2, 2, 1), i, dtype=np.uint8) for i in range(5)])
    sheet = contact_sheet(images, columns=3, scale=2, gap=1)
    assert sheet.shape == (11, 16, 1)
    assert [int(sheet[1 + 5 * (i // 3) + 2, 1 + 5 * (i % 3) + 2, 0]) for i in range(5)] == [0, 1, 2, 3, 4]
