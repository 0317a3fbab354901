"""What a denoiser is, D(y, σ) ≈ E[x* | y = x* + σ ε], and what a network is before an adapter makes a denoiser of it."""

from collections.abc import Callable

import torch
from torch import Tensor

from steindiff.errors import InputError

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""D(x, sigma) -> x0-hat; x: (B, *event) in VE coordinates, sigma: (B,) or ()."""

Network = Callable[[Tensor, Tensor], Tensor]
"""F(x, t) -> prediction; x in the model's own coordinates, t: (B,) in the schedule's time."""


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    """σ of shape () or (B,) made broadcastable against x: (B, *event). Raises InputError on any other shape."""
    if sigma.ndim == 0:
        return sigma
    if sigma.shape != x.shape[:1]:
        raise InputError(f"sigma of shape {tuple(sigma.shape)} for a batch of {x.shape[0]}: need () or ({x.shape[0]},)")
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


def wide(sigma: Tensor, x: Tensor) -> Tensor:
    """σ on x's device in float64: discrete schedules' times and small σ lose several digits in float32."""
    s = torch.as_tensor(sigma, device=x.device)
    return s if s.device.type == "mps" else s.to(torch.float64)
