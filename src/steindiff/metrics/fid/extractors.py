"""Feature extractors of published metrics, from local files that the user names; nothing is downloaded.

    FID, inception score   `inception(path)`    NVIDIA's TorchScript of the 2015 Inception network
    FD-DINOv2              `dinov2(folder)`     DINOv2 as transformers keeps it: config.json and *.safetensors
    no FID                 `classifier(name)`   the package's own small classifier of CIFAR-10

Images pass through 8 bits, as they would through files, since the published numbers are of files; grey ones become RGB. Numbers
compare only with the same weights and the same resizing, so each extractor carries its hash and says how it resizes.
"""

import hashlib
import importlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

from steindiff.arguments import check_samples
from steindiff.errors import InputError, ModelFileError, require, unknown_name
from steindiff.io import processes
from steindiff.io.files import sha256
from steindiff.io.images import to_uint8
from steindiff.io.processes import local_device
from steindiff.metrics.features import load_features
from steindiff.metrics.fid.references import grouped_moments
from steindiff.metrics.moments import CHUNK, SampleMoments, check_enough

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the channels, in [0, 1]."""


class Summary(NamedTuple):
    """What a judge needs of images: moments of groups of features, and class probabilities, (n, classes), by Inception."""

    parts: list[SampleMoments]
    probabilities: Tensor | None


@dataclass(frozen=True, eq=False)
class Extractor(ABC):
    """images ↦ features, float64 on the CPU, by a frozen network that sees a batch of images at a time.

    Its hash is that of its file, or of its files' hashes. The batch changes memory and rounding only. Where several processes
    are to work `together`, all ask for the same images, each computes its share, and each gets all features.
    """

    network: Any
    sha256: str
    device: torch.device
    batch: int
    together: bool = field(default=False, kw_only=True)

    name: ClassVar[str]
    resize: ClassVar[str]
    """How images of any size become those the network sees."""
    numbers: ClassVar[tuple[str, ...]]
    """The names of the numbers that follow from it, the Fréchet distance first."""
    least: ClassVar[int] = 0
    """The fewest images that it can be asked about."""

    def __post_init__(self) -> None:
        require(self.batch > 0, "need at least one image at a time", batch=self.batch)

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 1 or 3, H, W), uint8 or floating point in [−1, 1] and finite, to (N, F)."""
        return self._map(self._features, images)

    @property
    def about(self) -> dict[str, str]:
        """Its name, hash and resizing, for files."""
        return {"name": self.name, "sha256": self.sha256, "resize": self.resize}

    @cached_property
    def dimension(self) -> int:
        """F, the number of features of an image."""
        return self(_noise()).shape[1]

    def check(self, n: int, groups: int, few: bool) -> None:
        """Raises InputError for fewer images than two a group or split, and, unless `few`, for no more than features."""
        least, d = max(2 * groups, self.least), self.dimension
        if n < least:
            raise InputError(f"{n} images in {groups} groups: need at least {least}; draw more, or take fewer groups")
        check_enough(n, d, few, f"n = {n} images, d = {d} features of {self.name}")

    def moments(self, chunks: Iterable[Tensor]) -> SampleMoments:
        """Mean and scatter of the features of images that come in chunks. Raises InputError where none come."""
        parts = map(SampleMoments.of, _packed(map(self, chunks)))
        if (first := next(parts, None)) is None:
            raise InputError("no images came: give at least one chunk")
        return reduce(SampleMoments.merge, parts, first)

    def summary(self, chunks: Iterable[Tensor], groups: int) -> Summary:
        """What a judge needs to know of images that come in chunks. Raises InputError for fewer than two a group."""
        probabilities: list[Tensor] = []
        parts = grouped_moments(_packed(self._seen(chunk, probabilities) for chunk in chunks), groups)
        return Summary(parts, torch.cat(probabilities) if probabilities else None)

    def _seen(self, images: Tensor, probabilities: list[Tensor]) -> Tensor:
        """Features; class probabilities join the list where the extractor has such."""
        return self(images)

    @abstractmethod
    def _features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to (B, F)."""

    @torch.no_grad()
    def _map(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """A function of RGB bytes over batches."""
        shape, dtype = tuple(check_samples(images, 0).shape), images.dtype
        fit = len(shape) == 4 and shape[0] > 0 and shape[1] in (1, 3)
        require(fit, "need (N, 1 or 3, H, W) with N ≥ 1", shape=shape)
        require(dtype == torch.uint8 or dtype.is_floating_point, "need uint8, or floating point in [−1, 1]", dtype=dtype)
        if not bool(images.isfinite().all()):
            raise InputError("images hold NaN or infinity: a run that diverged has no features; leave it out")
        shared = self.together and len(images) >= processes.world_size()
        block = processes.share(len(images)) if shared else range(len(images))
        parts = images[block.start : block.stop].split(self.batch)
        found = torch.cat([function(_rgb_bytes(part).to(self.device)).cpu().double() for part in parts])
        return processes.gather(found) if shared else found


@final
class Inception(Extractor):
    """The 2015 Inception network; it resizes to 299 × 299 by itself, as TensorFlow 1 did."""

    name = "inception"
    resize = "inside the network"
    numbers = ("fid", "inception_score")
    least = 20  # two a split of the inception score

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities for the inception score, (N, classes); the last layer's bias is left out, as published."""
        return self._map(lambda x: self.network(x, no_output_bias=True), images)

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images, return_features=True)
        return features

    def _seen(self, images: Tensor, probabilities: list[Tensor]) -> Tensor:
        features, w = self(images), self._last_layer
        probabilities.append(self.probabilities(images) if w is None else (features @ w.mT).softmax(1))
        return features

    @cached_property
    def _last_layer(self) -> Tensor | None:
        """W, (classes, d) float64, where softmax(W f) is what the network gives for noise; else None."""
        weight = getattr(getattr(self.network, "output", None), "weight", None)
        if not isinstance(weight, Tensor):
            return None
        w = weight.detach().double().cpu()
        features, given = self(_noise()), self.probabilities(_noise())
        fits = w.shape == (given.shape[1], features.shape[1])
        return w if fits and torch.allclose((features @ w.mT).softmax(1), given, rtol=1e-3, atol=1e-7) else None


@final
class Dinov2(Extractor):
    """DINOv2's class token after the last normalisation; images resized to 224 × 224, antialiased bicubic, not clipped."""

    name = "dinov2"
    resize = "bicubic antialiased 224"
    numbers = ("fd_dinov2",)

    def _features(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), size=(224, 224), mode="bicubic", antialias=True) / 255
        mean, std = (torch.tensor(values, device=x.device).reshape(1, 3, 1, 1) for values in IMAGENET)
        token: Tensor = self.network(pixel_values=(x - mean) / std).last_hidden_state[:, 0]
        return token


@final
class Classified(Extractor):
    """Features of the package's own classifier (`metrics.load_features`): quick, for CIFAR-10, and no FID."""

    name = "classifier"
    resize = "half its side enlarged, else none"
    numbers = ("fd_classifier",)

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images.float() / 127.5 - 1)
        return features

    @cached_property
    def dimension(self) -> int:
        """F."""
        return int(self.network.count)


def load_extractor(kind: str, path: str | Path, device: str | torch.device = "cpu", batch: int = 64) -> Extractor:
    """An extractor by its kind, "inception", "dinov2" or "classifier", and its file or folder."""
    loaders = {"inception": inception, "dinov2": dinov2, "classifier": classifier}
    if kind not in loaders:
        raise unknown_name("extractor", kind, loaders)
    return loaders[kind](path, local_device(str(device)), batch)


def classifier(name: str | Path = "cifar10", device: str | torch.device = "cpu", batch: int = 64) -> Classified:
    """The package's own classifier, by name or file."""
    features = load_features(name, device)
    return Classified(features, features.sha256, torch.device(device), batch)


def inception(path: str | Path, device: str | torch.device = "cpu", batch: int = 64) -> Inception:
    """The TorchScript file inception-2015-12-05.pt, which NVIDIA publishes with StyleGAN2-ADA, or one of the same signature.

    A TorchScript file is a program: loading and calling it runs what it says. This function reads the file you name and no
    other; name only files from a source you trust, and compare the hash, which `Inception.sha256` states.

    Raises ModelFileError for what is not TorchScript, or not of the signature (images, return_features, no_output_bias).
    """
    path, device = Path(path), torch.device(device)
    need = "no such file: fetch inception-2015-12-05.pt from NVIDIA and name it; nothing is downloaded here"
    require(path.is_file(), need, path=str(path))
    digest = sha256(path)
    try:
        with warnings.catch_warnings():  # torch 2.13 deprecates the format that these weights are published in
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelFileError(f"{path} is not TorchScript ({reason}): need all of the .pt file, not EDM's .pkl") from error
    missing = {"return_features", "no_output_bias"} - {argument.name for argument in network.forward.schema.arguments}
    if missing:
        raise ModelFileError(f"{path} does not take {', '.join(sorted(missing))}: need NVIDIA's inception-2015-12-05.pt")
    return Inception(network, digest, device, batch)


def dinov2(folder: str | Path, device: str | torch.device = "cpu", batch: int = 64) -> Dinov2:
    """DINOv2 from a folder of transformers: config.json and *.safetensors, such as a copy of facebook/dinov2-large.

    Loads tensors only, and runs no code of the folder's. FD-DINOv2 is published with the large model (1024 features); a
    reference is to be made with the same folder, since transformers and torch.hub interpolate positions slightly differently.

    Raises InputError where transformers or files are missing, ModelFileError for another model, or one without its weights.
    """
    folder, device = Path(folder), torch.device(device)
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if len(files) < 2 or not files[0].is_file():
        raise InputError(f"{folder} lacks config.json or *.safetensors: name the local copy of a DINOv2 model's folder")
    try:
        model = importlib.import_module("transformers").Dinov2Model
    except (ImportError, AttributeError, RuntimeError) as error:  # it imports its models late
        raise InputError(f"DINOv2 features need transformers ({error}): pip install transformers") from error
    digest = hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()
    try:
        kind = json.loads(files[0].read_text(encoding="utf-8"))["model_type"]
        network, loaded = model.from_pretrained(folder, local_files_only=True, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # transformers lets those of safetensors, json and huggingface_hub through
        raise ModelFileError(f"{folder} is not a readable DINOv2 model: {error}; copy it again") from error
    if kind != "dinov2":
        raise ModelFileError(f"{folder} holds a {kind!r} model: need model_type 'dinov2'")
    if lost := sorted(loaded["missing_keys"]):
        raise ModelFileError(f"{folder} lacks {len(lost)} of the model's weights, such as {lost[0]}: copy it again")
    return Dinov2(network.float().to(device).eval().requires_grad_(False), digest, device, batch)


def _packed(parts: Iterable[Tensor], rows: int = CHUNK) -> Iterator[Tensor]:
    """The same rows in order, so many at a time: merging moments costs d² a group, however few rows come."""
    held: list[Tensor] = []
    for part in parts:
        held.append(part)
        while sum(map(len, held)) >= rows:
            whole = torch.cat(held)
            yield whole[:rows]
            held = [whole[rows:]]
    if sum(map(len, held)):
        yield torch.cat(held)


def _noise() -> Tensor:
    """Two images, (2, 3, 32, 32) uint8."""
    return torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def _rgb_bytes(images: Tensor) -> Tensor:
    """The images as a PNG file would hold them: (B, 3, H, W) uint8."""
    if images.dtype != torch.uint8:
        images = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2)
    return images.expand(-1, 3, -1, -1)
