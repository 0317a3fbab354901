"""From a model file to a model: what each kind of file says is built, and nothing else."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steindiff.analytic import FactorMixture
from steindiff.denoisers import Denoiser
from steindiff.errors import require
from steindiff.io import limits
from steindiff.io.files import sha256
from steindiff.io.names import printable
from steindiff.models.model import Model
from steindiff.models.networks import EDMPrecond, UNet, UNetConfig
from steindiff.models.networks.checkpoint import build
from steindiff.models.networks.layout import unfilled
from steindiff.models.store import KINDS, WEIGHTS, described, files, names, place, read

Device = str | torch.device


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
    own = {name: _laid(tensor.to(device, dtype)) for name, tensor in tensors.items()}
    network.load_state_dict(own, assign=True)
    return Built(network.eval().requires_grad_(False), config.num_classes, config.null_class)


def _laid(tensor: Tensor) -> Tensor:
    """A parameter; on the CPU a kernel has its channels side by side, which takes a wide network's convolution less time."""
    kernel = tensor.ndim == 4 and tensor.device.type == "cpu"
    return tensor.contiguous(memory_format=torch.channels_last) if kernel else tensor


def _edm_network(
    info: dict[str, Any], tensors: dict[str, Tensor], event_shape: tuple[int, ...], device: Device, dtype: torch.dtype
) -> Built:
    """A converted EDM or EDM2 checkpoint."""
    denoiser, found = build(info, tensors, event_shape, device, dtype)
    return Built(denoiser, found.config.label_dim, found.has_null_class)


_BUILDERS: dict[str, Callable[..., Built]] = dict(zip(KINDS, (_factor_mixture, _edm_unet, _edm_network), strict=True))
