"""The parts of EDM's networks, SongUNet and ADM: convolutions that resample, and the residual block of both.

Residual block, with e the embedding of noise level and class, N a group norm, W a 3×3 convolution:

    y = s (skip(x) + W₁ silu(h)),   h = N₁(W₀ silu(N₀ x) + a)             SongUNet, s = √½
                                    h = (1 + a) N₁(W₀ silu(N₀ x)) + b     ADM, s = 1           a, b linear in e
    y ← s (y + proj attention(qkv(N₂ y)))                                  where it attends

A block that halves or doubles the resolution does so inside W₀ and skip, before their convolution.
Sources: Song et al. (2021), Dhariwal and Nichol (2021); parameter names are those of the published files.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steindiff.models.networks.layout import Stage, attention

Change = Literal["down", "up"] | None
"""Whether the resolution is halved, doubled or kept."""


def resampled(x: Tensor, kernel: Tensor, change: Change) -> Tensor:
    """Filter every channel with a kernel of sum one, (1, 1, n, n), and halve the resolution, or double it.

    (1, 1) averages 2×2 pixels or repeats each; doubling is four times the transpose of halving.
    """
    if change is None:
        return x
    channels, padding = x.shape[1], (kernel.shape[-1] - 1) // 2
    each = kernel.expand(channels, -1, -1, -1)
    if change == "down":
        return F.conv2d(x, each, stride=2, padding=padding, groups=channels)
    return F.conv_transpose2d(x, 4 * each, stride=2, padding=padding, groups=channels)


class Resample(nn.Module):
    """`resampled` with a kernel of n×n, which the file holds."""

    def __init__(self, taps: int, change: Change) -> None:
        super().__init__()
        self.change: Change = change
        self.register_buffer("resample_filter", torch.empty(1, 1, taps, taps))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2) or (B, C, 2H, 2W)."""
        return resampled(x, self.get_buffer("resample_filter"), self.change)


class Conv(nn.Conv2d):
    """A convolution k×k after `resampled`."""

    def __init__(self, n_in: int, n_out: int, k: int, change: Change = None, taps: int = 2) -> None:
        super().__init__(n_in, n_out, k, padding=k // 2)
        self.change: Change = change
        if change is not None:
            self.register_buffer("resample_filter", torch.empty(1, 1, taps, taps))

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) to (B, n_out, H', W')."""
        x = x if self.change is None else resampled(x, self.get_buffer("resample_filter"), self.change)
        return super().forward(x)


class FilteredDown(nn.Conv2d):
    """A 3×3 convolution at full resolution, with an edge of zeros as wide as both filters need, then the filter."""

    def __init__(self, n_in: int, n_out: int, taps: int) -> None:
        super().__init__(n_in, n_out, 3, padding=1 + (taps - 1) // 2)
        self.register_buffer("resample_filter", torch.empty(1, 1, taps, taps))

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) to (B, n_out, H/2, W/2)."""
        each = self.get_buffer("resample_filter").expand(self.out_channels, -1, -1, -1)
        y = F.conv2d(x, self.weight, padding=self.padding)
        return F.conv2d(y, each, self.bias, stride=2, groups=self.out_channels)


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Groups of four channels and more, 32 at most."""
    return nn.GroupNorm(max(1, min(32, channels // 4)), channels, eps=eps)


@dataclass(frozen=True)
class Style:
    """What tells SongUNet's block from ADM's.

    Args:
        scale: s of the module's docstring.
        eps: the small number of every group norm.
        modulates: whether a multiplies too.
        head: channels of an attention head; 0: there is one head.
        taps: the side of the resampling kernel.
        mixes: whether a skip that resamples has a convolution too.
    """

    scale: float
    eps: float
    modulates: bool
    head: int
    taps: int
    mixes: bool

    def heads(self, channels: int) -> int:
        """How many heads such a block has; 0 where it is too narrow to attend."""
        return channels // self.head if self.head else 1


class Block(nn.Module):
    """The residual block of the module's docstring, (B, n_in, H, W) and e (B, E) to (B, n_out, H', W')."""

    def __init__(self, stage: Stage, n_embed: int, style: Style) -> None:
        super().__init__()
        change: Change = "down" if stage.role == "down" else "up" if stage.role == "up" else None
        self.style, n_in, n = style, stage.n_in, stage.n_out
        self.norm0 = group_norm(n_in, style.eps)
        self.conv0 = Conv(n_in, n, 3, change, style.taps)
        self.affine = nn.Linear(n_embed, 2 * n if style.modulates else n)
        self.norm1 = group_norm(n, style.eps)
        self.conv1 = Conv(n, n, 3)
        self.skip: nn.Module = nn.Identity()
        if n_in != n or (change and style.mixes):
            self.skip = Conv(n_in, n, 1, change, style.taps)
        elif change:
            self.skip = Resample(style.taps, change)
        self.heads = style.heads(n) if stage.attends else 0
        if self.heads:
            self.norm2 = group_norm(n, style.eps)
            self.qkv = Conv(n, 3 * n, 1)
            self.proj = Conv(n, n, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """The next h."""
        a = self.affine(e)[:, :, None, None]
        h = self.conv0(F.silu(self.norm0(x)))
        if self.style.modulates:
            a, b = a.chunk(2, dim=1)
            h = torch.addcmul(b, self.norm1(h), 1 + a)
        else:
            h = self.norm1(h + a)
        y: Tensor = self.style.scale * (self.skip(x) + self.conv1(F.silu(h)))
        if self.heads:
            y = self.style.scale * (y + self.proj(attention(self.qkv(self.norm2(y)), self.heads)))
        return y
