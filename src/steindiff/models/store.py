"""Model files: safetensors with a JSON description in the header. Loading one never executes code.

A file holds tensors and, under the metadata key "steindiff", {"format": 1, "kind": …, "name": …, "event_shape": […], …}.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steindiff.analytic import FactorMixture
from steindiff.denoisers import Denoiser
from steindiff.errors import InputError, ModelFileError, unknown_name
from steindiff.files import atomic, sha256
from steindiff.networks import EDMPrecond, UNet, UNetConfig

__all__ = ["Model", "load", "names", "read", "save"]

FORMAT = 1
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Model:
    """A denoiser with what is known about it.

    Attributes:
        denoiser: D(x, sigma) in VE coordinates, images in [−1, 1].
        event_shape: of one image, (C, H, W).
        info: the file's description: kind, recipe, data hashes.
        sha256: of the file.
    """

    name: str
    denoiser: Denoiser
    event_shape: tuple[int, ...]
    info: dict[str, Any]
    path: Path
    sha256: str


def names() -> tuple[str, ...]:
    """The models shipped with the package."""
    return tuple(sorted(p.stem for p in WEIGHTS.glob("*.safetensors")))


def load(name: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Model:
    """A shipped model by name, or a model file by path.

    Raises:
        InputError: no such name, or no such file; a dtype that is not float32 or float64.
        ModelFileError: the file is truncated, corrupted, or not a steindiff model.
    """
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype={dtype}: models run in float32 or float64")
    path = WEIGHTS / f"{name}.safetensors"
    if str(name) not in names():
        path = Path(name)
        if path.suffix != ".safetensors":
            raise unknown_name("model", name, [*names(), "<path to a .safetensors file>"])
        if not path.is_file():
            raise InputError(f"no model file at {path}: give an existing path, or one of {', '.join(names())}")
    info, tensors = read(path)
    try:
        event_shape = tuple(int(n) for n in info["event_shape"])
        denoiser = _BUILDERS[info["kind"]](info, tensors, event_shape, dtype, torch.device(device))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{path} does not hold what its description says: {error}; make or fetch it again") from error
    return Model(str(info.get("name", path.stem)), denoiser, event_shape, info, path, sha256(path))


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of a model file. Raises ModelFileError as `load`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is not a readable safetensors file: {error}; it may be truncated") from error
    try:
        info = json.loads(metadata["steindiff"])
    except (KeyError, ValueError):
        raise ModelFileError(
            f"{path} has no 'steindiff' description in its header: it is not a model of this package"
        ) from None
    if not isinstance(info, dict) or info.get("format") != FORMAT or info.get("kind") not in _BUILDERS:
        got = f"format {info.get('format')!r}, kind {info.get('kind')!r}" if isinstance(info, dict) else repr(info)
        raise ModelFileError(f"{path} is of {got}: this version reads format {FORMAT}, kinds {', '.join(_BUILDERS)}")
    return info, tensors


def save(path: str | Path, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Write a model file atomically; `info` needs kind, name and event_shape.

    Raises:
        InputError: an entry is missing, or the folder cannot be written to.
    """
    missing = {"kind", "name", "event_shape"} - set(info)
    if missing or info["kind"] not in _BUILDERS:
        raise InputError(f"model description lacks {sorted(missing)} or has an unknown kind; kinds: {', '.join(_BUILDERS)}")
    contiguous = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
    with atomic(path) as temporary:
        save_file(contiguous, temporary, {"steindiff": json.dumps({"format": FORMAT, **info})})


def _factor_mixture(
    info: dict[str, Any], tensors: dict[str, Tensor], event_shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Denoiser:
    """x* = μ_k + W_k z + √ψ_k ε: tensors weights, means, loadings, log_diagonal (ψ in logarithm, to keep float16's digits)."""
    weights, means, loadings, log_psi = (tensors[k].to(device, dtype) for k in ("weights", "means", "loadings", "log_diagonal"))
    return FactorMixture(weights / weights.sum(), means.reshape(-1, *event_shape), loadings, log_psi.exp())


def _edm_unet(
    info: dict[str, Any], tensors: dict[str, Tensor], event_shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Denoiser:
    """An EDM-preconditioned UNet; weights are stored in float16 and run in float32 or better."""
    network = EDMPrecond(UNet(UNetConfig(**info["unet"])), float(info["sigma_data"]))
    network.load_state_dict(tensors)
    return network.to(device, dtype).eval().requires_grad_(False)


_BUILDERS: dict[str, Callable[..., Denoiser]] = {"factor_mixture": _factor_mixture, "edm_unet": _edm_unet}
