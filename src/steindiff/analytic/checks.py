"""What a model may be built from and called with; anything else is an InputError."""

import math

import torch
from torch import Tensor

from steindiff.arguments import check_dense
from steindiff.errors import InputError, require_numbers


def check_parameters(**parameters: object) -> None:
    """Parameters are finite float32 or float64 tensors of one dtype on one device."""
    first: tuple[str, Tensor] | None = None
    for name, value in parameters.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{name} is a {type(value).__name__}, not a tensor: pass torch.as_tensor({name}, dtype=...)")
        check_dense(name, value)
        if value.dtype not in (torch.float32, torch.float64):
            raise InputError(f"{name} has dtype {value.dtype}: need float32 or float64; convert it with .double()")
        if not bool(value.isfinite().all()):
            raise InputError(f"{name} has non-finite entries: {int((~value.isfinite()).sum())} of {value.numel()}; remove them")
        first = first or (name, value)
        here, there = (f"{t.dtype} on {t.device}" for t in (value, first[1]))
        if here != there:
            raise InputError(f"{name} is {here} but {first[0]} is {there}: give all parameters one dtype and device")


def check_shape(name: str, value: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    """`value` has the shape that `meaning` spells out."""
    if value.shape != shape:
        raise InputError(f"{name} has shape {tuple(value.shape)}: need {meaning} = {shape}; reshape it")


def check_weights(weights: Tensor, means: Tensor) -> None:
    """w (K,) > 0, Σ w = 1 to 1e-5, means (K, *event)."""
    if weights.ndim != 1 or not weights.numel():
        raise InputError(f"weights have shape {tuple(weights.shape)}: need (K,) with K >= 1; flatten them")
    if means.ndim < 2 or not means.numel():
        raise InputError(f"means have shape {tuple(means.shape)}: need (K, *event) with at least one event axis")
    check_shape("means", means, (weights.numel(), *means.shape[1:]), "(K, *event)")
    if (least := float(weights.min())) <= 0:
        raise InputError(f"the least weight is {least:g}: weights must be positive; drop that component")
    if abs(total := float(weights.double().sum() if weights.device.type != "mps" else weights.sum()) - 1) > 1e-5:
        raise InputError(f"weights sum to {1 + total:g}: need 1 within 1e-5; divide them by their sum")


def check_covariances(covariances: Tensor) -> None:
    """Σ_k (K, d, d) is symmetric to 1000 rounding errors."""
    gap = float((covariances - covariances.mT).abs().max())
    limit = 1e3 * torch.finfo(covariances.dtype).eps * float(covariances.abs().max())
    if gap > limit:
        raise InputError(f"covariance differs from its transpose by {gap:g}, limit {limit:g}: pass (C + C.mT) / 2")


def check_state(x: object, event: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """x is (B, *event) in the model's dtype, on its device."""
    if not isinstance(x, Tensor):
        raise InputError(f"x is a {type(x).__name__}, not a tensor: pass torch.as_tensor(x, dtype={dtype})")
    if not x.is_floating_point():
        raise InputError(f"x has dtype {x.dtype}: need floating point; pass x.to({dtype})")
    if x.shape[1:] != event:
        need = ", ".join(map(str, ("B", *event)))
        raise InputError(f"x has shape {tuple(x.shape)}: need ({need}), a batch of the model's events")
    if x.dtype != dtype:
        raise InputError(f"x is {x.dtype} but the model is {dtype}: pass model.to(x.dtype) or x.to({dtype})")
    if x.device != device:
        raise InputError(f"x is on {x.device} but the model is on {device}: pass model.to(device=x.device)")
    check_dense("x", x)


def check_sigma(name: str, sigma: float | Tensor) -> None:
    """σ >= 0 and finite, a number or a () tensor."""
    require_numbers(**{name: sigma.item() if isinstance(sigma, Tensor) and sigma.ndim == 0 else sigma})
    if not 0 <= sigma < math.inf:
        raise InputError(f"{name} = {sigma}: need a finite sigma >= 0")


def noise_level(sigma: float | Tensor, x: Tensor) -> Tensor:
    """σ ≥ 0 as a () or (B,) tensor on x's device: floats become float64. On another device its values are not checked."""
    if not isinstance(sigma, Tensor):
        check_sigma("sigma", sigma)
        return torch.tensor(sigma, dtype=torch.float32 if x.device.type == "mps" else torch.float64, device=x.device)
    check_dense("sigma", sigma)
    if sigma.ndim and sigma.shape != x.shape[:1]:
        raise InputError(f"sigma has shape {tuple(sigma.shape)} for a batch of {x.shape[0]}: need () or ({x.shape[0]},)")
    if sigma.device.type == "cpu" and not bool(((sigma >= 0) & sigma.isfinite()).all()):
        raise InputError(f"sigma has the value {float(sigma.min())}: need finite sigma >= 0; clamp it")
    return sigma.to(x.device)


def check_flow(sigma_from: float, sigma_to: float, tol: float) -> None:
    """σ_from, σ_to >= 0 and finite, tol > 0."""
    check_sigma("sigma_from", sigma_from)
    check_sigma("sigma_to", sigma_to)
    require_numbers(tol=tol)
    if not tol > 0:
        raise InputError(f"tol = {tol}: need tol > 0, an RMS error in units of x")
