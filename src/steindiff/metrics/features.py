"""Features of a small image classifier: the space in which a Fréchet distance sees what images show.

    images in [−1, 1]  →  stem  →  (residual block, halving) × 2  →  residual block  →  mean over pixels = features  →  logits

Fréchet distances in these features are not FID: another network, other weights, other numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steindiff.arguments import check_samples
from steindiff.errors import InputError, require
from steindiff.io.files import sha256
from steindiff.models import store
from steindiff.models.networks.layout import unfilled, whole

KIND = "classifier"
WEIGHTS = Path(__file__).parent / "weights"
SUFFIX = "_classifier.safetensors"
_LARGEST = 1_000_000


@dataclass(frozen=True)
class ClassifierConfig:
    """The shape of a `Classifier`; `ClassifierConfig(**dataclasses.asdict(config)) == config`, also by way of JSON.

    Args:
        image_channels: channels C of the image.
        side: pixels of the images the convolutions see, a multiple of 8; images of half the side are enlarged to it.
        stem: channels of the first convolution, at full resolution.
        widths: channels of the three stages, at a half, a quarter and an eighth of the resolution; the last is F.
        classes: number of classes.
    """

    image_channels: int = 3
    side: int = 32
    stem: int = 24
    widths: tuple[int, int, int] = (48, 96, 128)
    classes: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON gives a list
        numbers = (self.image_channels, self.side, self.stem, self.classes, *self.widths)
        sizes = all(whole(n) and 1 <= n <= _LARGEST for n in numbers)
        if len(self.widths) != 3 or not sizes or self.side % 8:
            need = f"three widths, whole numbers from 1 to {_LARGEST:,}, and a side that is a multiple of 8"
            raise InputError(f"{self}: need {need}")


class _Conv(nn.Module):
    """3×3 convolution with bias, then a normalisation of its channels."""

    def __init__(self, n_in: int, n_out: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, stride, 1)
        self.norm = norm(n_out)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y


class _Residual(nn.Module):
    """relu(x + W₂ relu(W₁ x))."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = (_Conv(width, width, 1, norm) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class Classifier(nn.Module):
    """The network of the module's docstring, fully convolutional.

    The normalisation after each convolution is made by its number of channels: `nn.BatchNorm2d` to train, nothing once those
    are folded into the convolutions.
    """

    def __init__(self, config: ClassifierConfig, norm: Callable[[int], nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.config = config
        self.stem = _Conv(config.image_channels, config.stem, 1, norm)
        before = (config.stem, *config.widths[:2])
        self.halvings = nn.ModuleList([_Conv(a, b, 2, norm) for a, b in zip(before, config.widths, strict=True)])
        self.blocks = nn.ModuleList([_Residual(width, norm) for width in config.widths])
        self.head = nn.Linear(config.widths[-1], config.classes)

    def enlarge(self, x: Tensor) -> Tensor:
        """Images of half the side, bilinearly enlarged to it; others as they are."""
        side = self.config.side
        return F.interpolate(x, size=(side, side), mode="bilinear") if x.shape[-1] * 2 == side else x

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [−1, 1] to (B, F), not negative."""
        x = F.relu(self.stem(self.enlarge(x)))
        for halving, block in zip(self.halvings, self.blocks, strict=True):
            x = block(F.relu(halving(x)))
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits


@dataclass(frozen=True, eq=False)
class Features:
    """images ↦ features, by a frozen float32 network, with its file's hash and description: recipe, data hashes, accuracy.

    The batch, images at a time, changes memory and rounding only.
    """

    name: str
    network: Classifier
    info: dict[str, Any]
    sha256: str
    batch: int = 500

    @property
    def count(self) -> int:
        """F."""
        return self.network.config.widths[-1]

    def check(self, event_shape: tuple[int, ...]) -> None:
        """Raises InputError for images of another shape than the network was trained on."""
        c, side = self.network.config.image_channels, self.network.config.side
        sizes = [(c, side, side), (c, side // 2, side // 2)]
        need = f"the features {self.name!r} are those of {sizes}; resize the images, or leave these features out"
        require(tuple(event_shape) in sizes, need, images=tuple(event_shape))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [−1, 1] to (N, F) float64 on the CPU. Raises InputError as `check`, or for another dtype."""
        check_samples(images)
        known = images.ndim == 4 and images.is_floating_point()
        require(known, "need floating point (N, C, H, W)", shape=tuple(images.shape), dtype=images.dtype)
        self.check(tuple(images.shape[1:]))
        parameter = self.network.head.weight
        return torch.cat([self.network.features(x.to(parameter)) for x in images.split(self.batch)]).double().cpu()


def names() -> tuple[str, ...]:
    """The features shipped with the package."""
    return tuple(sorted(p.name.removesuffix(SUFFIX) for p in WEIGHTS.glob(f"*{SUFFIX}")))


def load_features(name: str | Path = "cifar10", device: str | torch.device = "cpu") -> Features:
    """Shipped features by name, or those of a classifier file of `recipes/train_classifier.py`.

    Raises InputError where there is no such name or file, ModelFileError for one that is truncated or not a classifier.
    """
    path = store.place("features", name, {name: WEIGHTS / f"{name}{SUFFIX}" for name in names()})
    info, tensors = store.read(path, kinds=(KIND,))
    with store.described(path):
        network: Classifier = unfilled(lambda: Classifier(ClassifierConfig(**info["classifier"])))
        network.load_state_dict(tensors, assign=True)
    frozen = network.float().to(device).eval().requires_grad_(False)
    return Features(str(info.get("name", path.stem)), frozen, info, sha256(path))


def features_for(event_shape: tuple[int, ...], name: str | Path = "cifar10", device: str = "cpu") -> Features | None:
    """The features of images of a shape; None where shipped ones do not fit it. Raises InputError where a file's do not."""
    features = load_features(name, device)
    try:
        features.check(event_shape)
    except InputError:
        if str(name) in names():
            return None
        raise
    return features
