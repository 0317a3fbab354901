"""Images to train and measure on: a folder, zip, tar or .npz, or scikit-learn's digits, as one uint8 tensor in memory.

Pixels v in 0…top become x = 2v/top − 1 in [−1, 1]. Images are taken in the order of their names; labels are those of an
EDM `dataset.json` where there is one, else the names of the folders that hold the images.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from steindiff.errors import InputError, needs, require
from steindiff.io import digests, jsons, limits, packed

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
"""What a file may be, whatever its name says: Pillow runs other programs for some formats."""
ARCHIVES = (".zip", ".tar", ".tar.xz", ".tar.gz", ".tar.bz2", ".tgz")
DIGITS_SPLIT_SEED, DIGITS_TRAIN = 1797, 1500


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with what identifies them.

    Attributes:
        pixels: uint8, (N, C, H, W), values 0…top.
        labels: class indices, int64 (N,); None without classes.
        top: the value of white; 255, or 16 for scikit-learn's digits.
    """

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    source: str
    top: int = 255

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one image, (C, H, W)."""
        return tuple(self.pixels.shape[1:])

    @property
    def sha256(self) -> str:
        """The hash of shape, pixels and labels: of what was decoded, not of how it was packed."""
        digest = hashlib.sha256(repr((tuple(self.pixels.shape), self.top)).encode())
        digest.update(self.pixels.contiguous().numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    @property
    def deviation(self) -> float:
        """The standard deviation σ_d of the points, to four decimals."""
        return round(float(self.points().std()), 4)

    def points(self, index: Tensor | slice = slice(None)) -> Tensor:
        """The images as float32 in [−1, 1], on the device of the pixels."""
        return self.pixels[index].float().mul_(2 / self.top).sub_(1)

    def take(self, index: Tensor | slice) -> ImageSet:
        """The images at an index."""
        return replace(self, pixels=self.pixels[index], labels=None if self.labels is None else self.labels[index])

    def to(self, device: torch.device) -> ImageSet:
        """The images and labels on another device."""
        return replace(self, pixels=self.pixels.to(device), labels=None if self.labels is None else self.labels.to(device))

    def shuffled(self, n: int | None = None) -> ImageSet:
        """At most n of the images in random order, always the same: archives are often sorted by class."""
        return self.take(self._order(0)[:n])

    def split(self, held_out: int, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """Training and held-out images, by a permutation that the seed fixes. Raises InputError where none would be left."""
        require(0 < held_out < len(self), "leave at least one for either side", held_out=held_out, images=len(self))
        order = self._order(seed)
        return self.take(order[held_out:].sort().values), self.take(order[:held_out].sort().values)

    def _order(self, seed: int) -> Tensor:
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))


def load_digits() -> tuple[ImageSet, ImageSet]:
    """scikit-learn's 8×8 digits, 1500 for training and 297 held out, split once and for all."""
    with needs("metrics", "the set of digits"):
        from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    order = np.random.default_rng(DIGITS_SPLIT_SEED).permutation(len(bunch.data))
    pixels = torch.from_numpy(bunch.data[order].astype(np.uint8)).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(bunch.target[order].astype(np.int64))
    whole = ImageSet(pixels, labels, tuple("0123456789"), "digits", top=16)
    return whole.take(slice(DIGITS_TRAIN)), whole.take(slice(DIGITS_TRAIN, None))


def load_images(path: str | Path, resolution: int | None = None, grey: bool = False, progress: bool = False) -> ImageSet:
    """All images below a folder, in a zip or tar archive, or in an .npz file (arr_0, uint8 NHWC; its order, no classes).

    Nothing is unpacked to disk. In a folder of `steindiff sample`, grid.png is no image. `resolution` crops images to a
    centred square and resizes them; without it all must have one size. `grey` makes one channel instead of three.

    Raises:
        InputError: no such path, an unreadable archive or image, no image, or sizes that differ.
    """
    place = Path(path)
    require(resolution is None or resolution >= 1, "need at least 1 pixel", resolution=resolution)
    limits.within("image_pixels", (resolution or 0) ** 2, f"images of resolution {resolution} have pixels:")
    if place.suffix.lower() == ".npz" and place.is_file():
        return _of_array(_read_array(place), str(path), resolution, grey)
    entries = _entries(place)
    if progress:
        with needs("cli", "progress=True"):
            from tqdm.auto import tqdm

        entries = iter(tqdm(entries, unit="image", desc="reading", leave=False))
    found: list[tuple[str, np.ndarray]] = []
    table: dict[str, int] | None = None
    held = 0
    for name, data in entries:
        if PurePosixPath(name).name == "dataset.json":
            table = _labels_of(data, name)
            continue
        found.append((name, _decode(data, f"{path}: {name}", resolution, grey)))
        held = limits.within("dataset_bytes", held + found[-1][1].nbytes, f"{path}: the images up to {name} have bytes:")
        (h, w), (h0, w0) = found[-1][1].shape[:2], found[0][1].shape[:2]
        if (h, w) != (h0, w0):
            raise InputError(f"{path}: {name} has {h}×{w} pixels, {found[0][0]} {h0}×{w0}: give a resolution to resize all to")
    require(bool(found), f"holds no images ({', '.join(SUFFIXES)}): name a folder or archive that does", path=str(path))
    found.sort(key=lambda entry: entry[0])
    pixels = torch.from_numpy(np.stack([array for _, array in found])).permute(0, 3, 1, 2).contiguous()
    labels, classes = _classes([name for name, _ in found], table)
    return ImageSet(pixels, labels, classes, str(path))


def load_pair(
    data: str, held_out: str, resolution: int | None = None, grey: bool = False, progress: bool = False
) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images: two sources, or one and how many images to hold out of it; "digits" is split already."""
    if "digits" in (data, held_out):
        if data != "digits" or held_out not in ("digits", ""):
            raise InputError(f"data {data!r}, held out {held_out!r}: digits bring their own split, name nothing else")
        return load_digits()
    if not held_out:
        raise InputError("no held-out images: name them by --held-out, or give the number to hold out of --data, such as 1000")
    train = load_images(data, resolution, grey, progress)
    if held_out.isdecimal():
        return train.split(int(held_out))
    held = load_images(held_out, resolution, grey, progress)
    return train, held if held.classes == train.classes else replace(held, labels=None, classes=())


def _entries(place: Path) -> Iterator[tuple[str, bytes]]:
    """Names (relative, with /) and bytes of the images and of dataset.json."""
    if place.is_dir():
        sheet = place / "grid.png" if (place / "run.json").is_file() else None
        for file in sorted(p for p in place.rglob("*") if p.is_file() and _wanted(p.name) and p != sheet):
            try:
                digests.size_of(file, "image_bytes")
            except ValueError as error:
                raise InputError(f"{file}: {error}") from error
            yield file.relative_to(place).as_posix(), file.read_bytes()
        return
    require(place.is_file(), "no such folder or archive", path=str(place))
    require(place.name.lower().endswith(ARCHIVES), f"neither a folder nor one of {', '.join(ARCHIVES)}, .npz", path=str(place))
    yield from packed.members(place, _wanted)


def _wanted(name: str) -> bool:
    last = PurePosixPath(name).name
    return not last.startswith(".") and (last.lower().endswith(SUFFIXES) or last == "dataset.json")


def _decode(data: bytes, name: str, resolution: int | None, grey: bool) -> np.ndarray:
    """One image, (H, W, C) uint8."""
    with needs("cli", "reading images"):
        from PIL import Image

    try:
        with warnings.catch_warnings(), _without_limit():
            warnings.simplefilter("ignore")  # Pillow warns of odd images
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                limits.within("image_pixels", opened.width * opened.height, f"{name} has pixels:")
                return _fitted(opened, resolution, grey)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # what Pillow raises for bytes of any kind is not documented
        reason = f"{error}" or type(error).__name__
        raise InputError(f"{name} is not a readable image ({reason}): remove or replace it") from error


@contextmanager
def _without_limit() -> Iterator[None]:
    """Leave the size of images to our own limit, which the user may raise."""
    from PIL import Image

    theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = theirs


def _fitted(opened: Image.Image, resolution: int | None, grey: bool) -> np.ndarray:
    """The image with those channels and that size, (H, W, C) uint8."""
    from PIL import Image

    image = opened.convert("L" if grey else "RGB")
    if resolution is not None and image.size != (resolution, resolution):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        # BOX is the exact average over blocks, where the factor is whole; LANCZOS is the usual choice elsewhere.
        how = Image.Resampling.BOX if side % resolution == 0 else Image.Resampling.LANCZOS
        image = image.resize((resolution, resolution), how, box=(left, top, left + side, top + side))
    array = np.array(image, dtype=np.uint8)
    return array[..., None] if grey else array


def _read_array(place: Path) -> np.ndarray:
    """arr_0 of an .npz file, (N, H, W, 1 or 3) uint8; objects are never unpickled."""
    whole = zipfile.is_zipfile(place)
    require(whole, "not a .npz file, or not all of one: it may be truncated; copy or make it again", path=str(place))
    array = packed.read_npz(place, ("arr_0",)).get("arr_0")
    if array is None:
        raise InputError(f"{place} has no entry arr_0 but {packed.names_of(place)}: name a file of images, uint8 (N, H, W, C)")
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3) or not array.size:
        raise InputError(f"{place}: arr_0 is {array.dtype} of shape {array.shape}, need uint8 (N, H, W, 1 or 3) with N ≥ 1")
    return array


def _of_array(array: np.ndarray, source: str, resolution: int | None, grey: bool) -> ImageSet:
    """Images as `_fitted` makes them; those that fit already are taken as they are."""
    with needs("cli", "reading images"):
        from PIL import Image

    if array.shape[3] != (1 if grey else 3) or resolution is not None:
        planes = array[..., 0] if array.shape[3] == 1 else array
        array = np.stack([_fitted(Image.fromarray(image), resolution, grey) for image in planes])
    return ImageSet(torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(), None, (), source)


def _labels_of(data: bytes, name: str) -> dict[str, int] | None:
    """EDM's dataset.json: {"labels": [["00000/img00000000.png", 6], …]} or {"labels": null}."""
    try:
        labels = jsons.parse(data)["labels"]
        return None if labels is None else {str(file): _label(label) for file, label in labels}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f'{name} is not {{"labels": [[file, class], …]}} ({error}): repair or remove it') from error


def _label(value: object) -> int:
    """A class of the table. Raises ValueError for anything but a whole number below the limit."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"the label {value!r} is no whole number")
    return limits.within("labels", value, "a label is")


def _classes(names: list[str], table: dict[str, int] | None) -> tuple[Tensor | None, tuple[str, ...]]:
    if table is not None:
        missing = [name for name in names if name not in table]
        if missing or min(table.values()) < 0:
            raise InputError(f"dataset.json has no class for {missing[:3]}, or a negative one: add them, or remove the file")
        count = max(table[name] for name in names) + 1
        return torch.tensor([table[name] for name in names]), tuple(map(str, range(count)))
    classes, index = np.unique([PurePosixPath(name).parent.name for name in names], return_inverse=True)
    return (torch.from_numpy(index), tuple(map(str, classes))) if len(classes) > 1 else (None, ())
