"""Image sets: folder, zip and tar give the same images; order, labels, resizing, splits and hashes; clear errors."""

import io
import json
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from steindiff.errors import InputError
from steindiff.models.datasets import load_digits, load_images

NAMES = ("b/2.png", "a/1.png", "b/0.png")


def png(seed, size=(6, 4)):
    """A random RGB image as PNG bytes, size (width, height), and its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue(), pixels


@pytest.fixture
def places(tmp_path):
    """The same three images as folder, zip and tars."""
    folder = tmp_path / "folder"
    for i, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(i)[0])
    (folder / "a" / "readme.txt").write_text("not an image")
    (folder / "a" / "._1.png").write_bytes(b"what macOS leaves in archives")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
    for suffix in ("tar", "tar.gz", "tar.xz"):
        with tarfile.open(tmp_path / f"i.{suffix}", "w:" + suffix.partition(".")[2]) as archive:
            for file in reversed(files):
                archive.add(file, file.relative_to(folder))
    return [folder, *(tmp_path / f"i.{s}" for s in ("zip", "tar", "tar.gz", "tar.xz"))]


def test_folder_and_archives_give_the_same_images_in_the_order_of_names(places):
    for place in places:
        images = load_images(place)
        assert images.event_shape == (3, 4, 6)
        assert images.classes == ("a", "b")
        assert images.labels.tolist() == [0, 1, 1]
        for row, i in enumerate((1, 2, 0)):
            assert np.array_equal(images.pixels[row].permute(1, 2, 0).numpy(), png(i)[1])
    assert len({load_images(place).sha256 for place in places}) == 1


def test_the_hash_is_of_pixels_and_labels(places):
    images = load_images(places[0])
    other = images.take(torch.tensor([0, 2, 1]))
    assert other.sha256 != images.sha256
    assert images.take(slice(None)).sha256 == images.sha256


def test_shuffled_images_keep_their_labels_and_always_come_in_one_order(places):
    images = replace(
        load_images(places[0]), pixels=torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1), labels=torch.arange(50)
    )
    mixed = images.shuffled()
    assert sorted(mixed.pixels.flatten().tolist()) == list(range(50)) != mixed.pixels.flatten().tolist()
    assert torch.equal(mixed.pixels.flatten().long(), mixed.labels)
    assert torch.equal(images.shuffled(7).pixels, mixed.pixels[:7])
    assert len(images.shuffled(99)) == 50


def test_points_are_on_the_scale_of_the_models(places):
    images = load_images(places[0])
    x = images.points()
    assert x.dtype == torch.float32
    torch.testing.assert_close((x + 1) * 127.5, images.pixels.float())
    assert torch.equal(images.points(torch.tensor([2]))[0], x[2])


def test_edm_dataset_json_gives_the_classes(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for i in range(3):
            archive.writestr(f"00000/img{i}.png", png(i)[0])
        archive.writestr("dataset.json", json.dumps({"labels": [[f"00000/img{i}.png", 2 - i] for i in range(3)]}))
    images = load_images(tmp_path / "d.zip")
    assert images.labels.tolist() == [2, 1, 0]
    assert images.classes == ("0", "1", "2")
    for bad in ("{", '{"labels": [["00000/img0.png", 0]]}', '{"labels": [["x", -1]]}', "[]"):
        with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
            archive.writestr("00000/img0.png", png(0)[0])
            archive.writestr("00000/img1.png", png(1)[0])
            archive.writestr("dataset.json", bad)
        with pytest.raises(InputError, match=r"dataset\.json"):
            load_images(tmp_path / "bad.zip")


def test_whole_factors_resize_by_block_averages_of_the_centre(tmp_path):
    data, pixels = png(0, size=(10, 8))
    (tmp_path / "i.png").write_bytes(data)
    images = load_images(tmp_path, resolution=4)
    centre = pixels[:, 1:9].astype(float).reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(images.pixels[0].permute(1, 2, 0).numpy() - centre).max() <= 1
    assert load_images(tmp_path, resolution=3).event_shape == (3, 3, 3)
    assert load_images(tmp_path, resolution=4, grey=True).event_shape == (1, 4, 4)


def test_held_out_images_are_other_ones_and_fixed_by_the_seed():
    whole, _ = load_digits()
    train, held = whole.split(300, seed=1)
    assert (len(train), len(held)) == (1200, 300)
    rows = {image.numpy().tobytes() for image in held.pixels}
    assert len(rows & {image.numpy().tobytes() for image in whole.pixels}) == len(rows)
    again = whole.split(300, seed=1)
    assert torch.equal(again[1].pixels, held.pixels)
    assert not torch.equal(whole.split(300, seed=2)[1].pixels, held.pixels)
    for count in (0, 1500):
        with pytest.raises(InputError, match="either side"):
            whole.split(count)


def test_the_two_parts_of_the_digits_share_no_image():
    train, held = load_digits()
    rows = {image.numpy().tobytes() for image in train.pixels}
    assert not any(image.numpy().tobytes() in rows for image in held.pixels)


def test_what_cannot_be_read_is_named(places, tmp_path):
    with pytest.raises(InputError, match="no such folder or archive"):
        load_images(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        load_images(tmp_path / "empty")
    (tmp_path / "x.rar").write_bytes(b"?")
    with pytest.raises(InputError, match="neither a folder nor one of"):
        load_images(tmp_path / "x.rar")
    for place in places[1:]:
        place.write_bytes(place.read_bytes()[:150])
        with pytest.raises(InputError, match=r"truncated|not a readable image"):
            load_images(place)
    (places[0] / "b" / "0.png").write_bytes(png(0)[0][:40])
    with pytest.raises(InputError, match=r"b/0\.png is not a readable image"):
        load_images(places[0])
    (places[0] / "b" / "0.png").write_bytes(png(0, size=(5, 5))[0])
    with pytest.raises(InputError, match=r"give a resolution"):
        load_images(places[0])
    with pytest.raises(InputError, match="resolution=0"):
        load_images(places[0], resolution=0)


def test_arrays_of_npz_files_are_read_as_their_pngs_would_be(tmp_path):
    arrays = np.stack([png(i)[1] for i in range(3)])
    np.savez_compressed(tmp_path / "a.npz", arr_0=arrays, arr_1=np.arange(3))
    for i in range(3):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{i}.png").write_bytes(png(i)[0])
    for how in ({}, {"grey": True}, {"resolution": 2}, {"resolution": 3, "grey": True}):
        images, files = load_images(tmp_path / "a.npz", **how), load_images(tmp_path / "files", **how)
        assert images.sha256 == files.sha256
        assert images.pixels.is_contiguous()
    assert (images.labels, images.classes, images.source) == (None, (), str(tmp_path / "a.npz"))
    np.savez(tmp_path / "grey.npz", arr_0=arrays[..., :1])
    assert np.array_equal(load_images(tmp_path / "grey.npz", grey=True).pixels[:, 0].numpy(), arrays[..., 0])
    assert np.array_equal(load_images(tmp_path / "grey.npz").pixels[:, 2].numpy(), arrays[..., 0])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"mu": np.zeros(2)}, r"no entry arr_0 but \['mu'\]"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "arr_0 is float64"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"shape \(2, 3, 4, 4\), need uint8"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "N ≥ 1"),
        ({"arr_0": np.array([{}], dtype=object)}, "not a readable .npz"),
    ],
)
def test_npz_files_of_something_else_are_refused(tmp_path, entries, message):
    np.savez(tmp_path / "a.npz", **entries)
    with pytest.raises(InputError, match=message):
        load_images(tmp_path / "a.npz")


def test_damaged_npz_files_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "good.npz", arr_0=np.stack([png(i, (20, 20))[1] for i in range(3)]))
    whole = (tmp_path / "good.npz").read_bytes()
    spoilt = bytearray(whole)
    spoilt[len(whole) // 2] ^= 255
    (tmp_path / "spoilt.npz").write_bytes(bytes(spoilt))
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for name, message in (("half", "not all of one"), ("array", "not all of one"), ("spoilt", "not a readable")):
        with pytest.raises(InputError, match=message):
            load_images(tmp_path / f"{name}.npz")
    with pytest.raises(InputError, match="no such folder or archive"):
        load_images(tmp_path / "none.npz")


def test_the_contact_sheet_of_a_run_is_no_image(places):
    (places[0] / "grid.png").write_bytes(png(9, (50, 50))[0])
    with pytest.raises(InputError, match="give a resolution"):
        load_images(places[0])
    (places[0] / "run.json").write_text("{}")
    assert load_images(places[0]).sha256 == load_images(places[1]).sha256
