"""Forward derivatives through networks of diffusers, whose fused attention has none."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from steindiff.divergence.plain import PlainNorms


class _Plain(PlainNorms):
    """Attention from plain operations too: both then have forward derivatives."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return super().__torch_function__(function, types, args, kwargs)


@contextmanager
def forward_derivatives() -> Iterator[None]:
    """Within it, JVPs work through attention and group norms, at some cost in speed and memory; the values stay the same.

    Example:
        >>> import torch
        >>> attend = lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x)
        >>> with forward_derivatives():
        ...     _, slope = torch.func.jvp(attend, (torch.ones(1, 2, 4),), (torch.ones(1, 2, 4),))
        >>> slope.shape
        torch.Size([1, 2, 4])
    """
    with _Plain():
        yield


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(s q kᵀ + mask) v, s = 1/√d (Vaswani et al. 2017), as torch's function has it; no dropout in evaluation."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (part.repeat_interleave(groups, -3) for part in (key, value))
    logits = (query * (scale or 1 / math.sqrt(query.shape[-1]))) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = logits.new_ones(logits.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    return F.dropout(logits.softmax(-1), dropout_p) @ value
