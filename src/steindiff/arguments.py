"""Wrong arguments of public functions: what no torch operation says clearly is refused before one is tried."""

import torch
from torch import Tensor

from steindiff.errors import InputError, require


def check_dense(name: str, x: Tensor) -> None:
    """Raise InputError for a tensor that is nested or sparse, or has no numbers."""
    if x.is_nested or x.layout is not torch.strided:
        kind = "nested" if x.is_nested else f"{x.layout}"
        raise InputError(f"{name} is {kind}: need a dense tensor (x.to_dense() makes one of a sparse one)")
    if x.is_meta:
        raise InputError(f"{name} is on the device meta, and has no numbers: make it on a device that holds data, such as cpu")


def check_samples(samples: Tensor, least: int = 1) -> Tensor:
    """The samples: a dense tensor (n, …) of real numbers, n ≥ `least`. Raises InputError for anything else."""
    if not isinstance(samples, Tensor):
        raise InputError(f"samples are {type(samples).__name__}: need a tensor (n, …); torch.as_tensor makes one of an array")
    check_dense("samples", samples)
    if samples.is_complex():
        raise InputError(f"samples are {samples.dtype}: need real numbers (torch.view_as_real makes them of complex ones)")
    shape = tuple(samples.shape)
    require(len(shape) > 1 and 0 not in shape[1:], "need samples (n, …), of at least one number each", shape=shape)
    require(shape[0] >= least, f"need at least {least} sample{'s'[: least - 1]}", shape=shape)
    return samples.detach()


def check_state(x: object) -> None:
    """Raise InputError for a state that is no dense tensor of float32 or float64 with its numbers."""
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"x is {got}: the state must be float32 or float64 (x.float()); a network's own dtype is the adapter's"
        )
    check_dense("x", x)


def check_batch(x: Tensor) -> None:
    """Raise InputError as `check_state`, and for no batch of states."""
    check_state(x)
    if x.ndim < 2 or x.numel() == 0:
        raise InputError(f"x of shape {tuple(x.shape)}: need a batch of at least one, (B, *event) with B ≥ 1")


def check_callable(f: object, what: str, example: str) -> None:
    """Raise InputError for what cannot be called."""
    if not callable(f):
        raise InputError(f"the {what} is {type(f).__name__}: give a function {example}")


def check_denoiser(denoiser: object) -> None:
    """Raise InputError for no function."""
    check_callable(denoiser, "denoiser", "D(x, sigma), such as model.denoiser")
