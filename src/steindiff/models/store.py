"""Model files: safetensors with a JSON description in the header. Loading one never executes code.

A file holds tensors and, under the metadata key "steindiff", {"format": 1, "kind": …, "name": …, "event_shape": […], …}.
Large models lie in several files, NAME-00001-of-00003.safetensors and so on.
"""

import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steindiff.analytic import FactorMixture
from steindiff.denoisers import Denoiser, Guided, Labelled, check_labels, noise_range_of, sigma_data_of
from steindiff.errors import InputError, ModelFileError, require, unknown_name
from steindiff.io import limits
from steindiff.io.files import NoDescription, read_all, read_tensors, sha256, write_tensors
from steindiff.io.folders import refuse
from steindiff.io.names import printable
from steindiff.models.networks import EDMPrecond, UNet, UNetConfig
from steindiff.models.networks.checkpoint import build
from steindiff.models.networks.layout import unfilled
from steindiff.noise import mix

Device = str | torch.device
FORMAT = 1
PART_BYTES = 15 * 2**20
_PART = re.compile(r"-\d{5}-of-\d{5}$")
WEIGHTS = Path(__file__).parent / "weights"


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


def names() -> tuple[str, ...]:
    """The models shipped with the package."""
    return tuple(sorted({_PART.sub("", p.stem) for p in WEIGHTS.glob("*.safetensors")}))


def load(name: str | Path, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> Model:
    """A shipped model by name, or a model file by path: the file's, that of any of its parts, or the name without a part.

    Raises:
        InputError: no such name, or no such file; a dtype that is not float32 or float64.
        ModelFileError: the file is truncated, corrupted, or not a steindiff model; a part is missing.
    """
    require(dtype in (torch.float32, torch.float64), "models run in float32 or float64", dtype=dtype)
    path = place("model", name, {name: WEIGHTS / f"{name}.safetensors" for name in names()})
    info, tensors = read(path)
    with described(path):
        event_shape = _event(info["event_shape"])
        built = _BUILDERS[info["kind"]](info, tensors, event_shape, device, dtype)
    parts = files(path)
    digest = sha256(parts[0]) if len(parts) == 1 else hashlib.sha256("".join(map(sha256, parts)).encode()).hexdigest()
    called = printable(str(info.get("name", path.stem)))
    return Model(called, built.denoiser, event_shape, info, path, digest, built.classes, built.null)


def _event(sizes: Any) -> tuple[int, ...]:
    """The shape of one image. Raises ValueError where a description has anything but a few whole numbers below the limit."""
    good = isinstance(sizes, list) and 1 <= len(sizes) <= 4 and all(type(n) is int and n >= 1 for n in sizes)
    if not good:
        raise ValueError(f"event_shape = {str(sizes)[:80]}: need a list of one to four whole numbers from 1 on")
    limits.within("event_size", math.prod(sizes), f"images of shape {sizes} have numbers:")
    return tuple(sizes)


def place(kind: str, name: str | Path, shipped: Mapping[str, Path]) -> Path:
    """Where a shipped file lies, or one given by its path. Raises InputError for an unknown name, or where no file is."""
    path = shipped.get(str(name), Path(name))
    if path.suffix == ".pkl":
        raise InputError(
            f"{path} is a pickle, which is a program: steindiff convert {path.name} {path.stem}.safetensors makes a {kind} file"
        )
    if path.suffix != ".safetensors":
        raise unknown_name(kind, name, [*shipped, "<path to a .safetensors file>"])
    if not files(path):
        raise InputError(f"no {kind} file at {path}: give an existing path, or one of {', '.join(shipped)}")
    return path


@contextmanager
def described(path: Path) -> Iterator[None]:
    """Turn what fails while a network is built from a file into a ModelFileError that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{path} does not hold what its description says: {error}; make or fetch it again") from error


def read(path: str | Path, kinds: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a model file of one of `kinds` (default: denoisers). Raises ModelFileError as `load`."""
    found = files(Path(path)) or [Path(path)]
    info, tensors = _read_one(found[0], kinds or _BUILDERS)
    parts = info.pop("parts", 1)
    if parts != len(found):
        raise ModelFileError(f"{path}: {len(found)} of {parts} parts are there: copy the missing ones beside them")
    for file in found[1:]:
        more, others = _read_one(file, kinds or _BUILDERS)
        if more.pop("parts", 1) != parts or more != info:
            raise ModelFileError(f"{file} and {found[0]} are parts of different models: copy all parts of one again")
        tensors |= others
    info.pop("tensors_sha256", None)
    return info, tensors


def is_ours(path: Path, kinds: Collection[str] = ()) -> bool:
    """Whether a file is a model of this package, of one of `kinds` (default: denoisers), by its header."""
    try:
        return read_tensors(path)[0].get("kind") in (kinds or _BUILDERS)
    except ValueError:
        return False


def _read_one(path: Path, kinds: Collection[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        info, tensors = read_all(path)
    except NoDescription:
        raise ModelFileError(f"{path} has no 'steindiff' description in its header: it is no model of this package") from None
    except ValueError as error:
        said = f"{path} is not a readable safetensors file: {error}"
        raise ModelFileError(f"{said}; it may be truncated: fetch or make it again") from error
    form, kind = info.get("format"), info.get("kind")
    if form != FORMAT or not isinstance(kind, str) or kind not in kinds:
        need = f"this version reads format {FORMAT}, kinds {', '.join(kinds)}"
        raise ModelFileError(f"{path} is of format {form!r}, kind {kind!r}: {need}")
    return info, tensors


def save(
    path: str | Path,
    tensors: dict[str, Tensor],
    info: dict[str, Any],
    kinds: Collection[str] = (),
    part_bytes: int = PART_BYTES,
) -> list[Path]:
    """Write a model file of one of `kinds` (default: denoisers) atomically; `info` needs kind, name and event_shape.

    More than `part_bytes` of tensors go to files NAME-00001-of-0000n.safetensors, each whole by itself and of one digest, so
    that parts of different models do not mix. Returns the files; others of an earlier model of this name are removed.

    Raises:
        InputError: an entry is missing, a tensor is larger than a part, or the folder cannot be written to; a file has the name
            of a part, as other programs give it too, and is none of ours.
    """
    kinds = kinds or _BUILDERS
    missing = {"kind", "name", "event_shape"} - set(info)
    if missing or info["kind"] not in kinds:
        raise InputError(f"model description lacks {sorted(missing)} or has an unknown kind; kinds: {', '.join(kinds)}")
    path = Path(path)
    tensors = {key: t.detach().cpu() for key, t in tensors.items()}
    parts = _parts(tensors, part_bytes)
    targets = [path]
    if len(parts) > 1:
        targets = [path.with_name(f"{path.stem}-{i:05d}-of-{len(parts):05d}.safetensors") for i in range(1, len(parts) + 1)]
        info = {**info, "parts": len(parts), "tensors_sha256": _digest(tensors)}
    stale = set(_siblings(path)) - set(targets)
    refuse(path.parent, [file.name for file in stale if not is_ours(file, kinds)], "give another name")
    for target, part in zip(targets, parts, strict=True):
        write_tensors(target, part, {"format": FORMAT, **info})
    for old in stale:
        old.unlink(missing_ok=True)
    return targets


def _parts(tensors: dict[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Tensors in their order, as many to a part as stay below the limit."""
    parts: list[dict[str, Tensor]] = [{}]
    for key, tensor in tensors.items():
        if tensor.nbytes > limit:
            raise InputError(f"{key} has {tensor.nbytes:,} bytes: more than the {limit:,} of a part; allow larger parts")
        if sum(t.nbytes for t in parts[-1].values()) + tensor.nbytes > limit:
            parts.append({})
        parts[-1][key] = tensor
    return parts


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in tensors.items():
        digest.update(key.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def files(path: Path) -> list[Path]:
    """The files of a model: itself, or all its parts in order; none where there is no such model."""
    if path.is_file() and not _PART.search(path.stem):
        return [path]
    return [p for p in _siblings(path) if _PART.search(p.stem)]


def _siblings(path: Path) -> list[Path]:
    """The files that bear a model's name, as one file or as parts."""
    stem = _PART.sub("", path.stem)
    return sorted(p for p in path.parent.glob("*.safetensors") if _PART.sub("", p.stem) == stem)


@dataclass(frozen=True, eq=False)
class Built:
    """What a file's tensors and description make: D, how many classes it knows, and whether a null class too."""

    denoiser: Denoiser
    classes: int = 0
    null: bool = False


def _factor_mixture(
    info: dict[str, Any], tensors: dict[str, Tensor], event_shape: tuple[int, ...], device: Device, dtype: torch.dtype
) -> Built:
    """x* = μ_k + W_k z + √ψ_k ε: tensors weights, means, loadings, log_diagonal (ψ in logarithm, to keep float16's digits)."""
    names = ("weights", "means", "loadings", "log_diagonal")
    weights, means, loadings, log_psi = (tensors[k].to(device, dtype) for k in names)
    return Built(FactorMixture(weights / weights.sum(), means.reshape(-1, *event_shape), loadings, log_psi.exp()))


def _edm_unet(
    info: dict[str, Any], tensors: dict[str, Tensor], event_shape: tuple[int, ...], device: Device, dtype: torch.dtype
) -> Built:
    """An EDM-preconditioned UNet; weights are stored in float16 and run in float32 or better."""
    config = UNetConfig(**info["unet"])
    c, halvings = config.image_channels, len(config.mults) - 1
    if len(event_shape) != 3 or event_shape[0] != c or any(n % 2**halvings for n in event_shape[1:]):
        raise ValueError(f"images of shape {event_shape} for a network of {c} channels that halves them {halvings} times")
    network = EDMPrecond(unfilled(lambda: UNet(config)), float(info["sigma_data"]))
    network.load_state_dict({name: tensor.to(device, dtype) for name, tensor in tensors.items()}, assign=True)
    return Built(network.eval().requires_grad_(False), config.num_classes, config.null_class)


def _edm_network(
    info: dict[str, Any], tensors: dict[str, Tensor], event_shape: tuple[int, ...], device: Device, dtype: torch.dtype
) -> Built:
    """A converted EDM or EDM2 checkpoint."""
    denoiser, found = build(info, tensors, event_shape, device, dtype)
    return Built(denoiser, found.config.label_dim, found.has_null_class)


_BUILDERS: dict[str, Callable[..., Built]] = {
    "factor_mixture": _factor_mixture, "edm_unet": _edm_unet, "edm_network": _edm_network,
}  # fmt: skip
