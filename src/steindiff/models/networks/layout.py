"""What the networks of EDM and EDM2 have in common: the U of named stages, limits on its size, labels and the noise embedding.

A U of resolutions R, R/2, … has an encoder, whose every output is kept, and a decoder, whose blocks take these back, last one
first. A stage is named by its resolution and its part, `16x16_block0`; files have these names (Karras et al. 2022, 2024).

    encoder:  conv, block0 … block(n−1);   then for each lower level: down, block0 … block(n−1)
    decoder:  in0, in1, block0 … block(n); then for each higher level: up, block0 … block(n)
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from steindiff.errors import InputError, require
from steindiff.io import limits

_LEVELS, _BLOCKS, _MULT = 8, 32, 64
_LARGEST = {
    "img_resolution": 2048, "in_channels": 64, "out_channels": 128, "label_dim": 1_000_000, "augment_dim": 1024,
    "model_channels": 4096, "num_blocks": _BLOCKS, "channel_mult_emb": _MULT, "channel_mult_noise": _MULT,
    "channels_per_head": 4096,
}  # fmt: skip
_ZERO_TOO = ("label_dim", "augment_dim")

Role = Literal["conv", "down", "up", "in", "block"]


@dataclass(frozen=True)
class Stage:
    """One place of the U.

    Args:
        name: its name, RxR_PART.
        role: conv is the first convolution; down and up halve and double the resolution, in comes first at the lowest.
        n_in: channels it takes; with those of a kept output, where it takes one.
        n_out: channels it gives.
        skip: channels of the kept output that a block of the decoder takes; 0 for none.
        attends: whether it has attention.
    """

    name: str
    role: Role
    n_in: int
    n_out: int
    skip: int = 0
    attends: bool = False

    @property
    def place(self) -> str:
        """The resolution's part of the name, RxR."""
        return self.name.partition("_")[0]


@dataclass(frozen=True)
class Shape:
    """The arguments that all three networks have, by the names in the files.

    Args:
        img_resolution: height and width of the image.
        in_channels: channels C of the image.
        out_channels: channels of the output: C, or 2C of a network that learned variances too.
        label_dim: the number of classes; 0 for none.
        model_channels: base width.
        channel_mult: width multiplier of each level, highest resolution first.
        num_blocks: residual blocks of an encoder level; a decoder level has one more.
        attn_resolutions: resolutions whose blocks attend.

    Raises:
        InputError: a value of another type, or beyond the limit, before anything is made of it.
    """

    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(self, _LARGEST, _ZERO_TOO)
        for name in ("channel_mult", "attn_resolutions"):
            given = getattr(self, name)
            need = "need a list of a few whole numbers"
            require(isinstance(given, list | tuple) and len(given) <= _BLOCKS and all(map(whole, given)), need, **{name: given})
            object.__setattr__(self, name, tuple(given))
        mults, levels = self.channel_mult, len(self.channel_mult)
        known = 1 <= levels <= _LEVELS and all(1 <= m <= _MULT for m in mults)
        require(known, f"need 1 to {_LEVELS} levels, each 1 to {_MULT} times the base width", channel_mult=mults)
        divides = self.img_resolution % 2 ** (levels - 1) == 0
        require(divides, f"must be a multiple of {2 ** (levels - 1)}: it is halved at every level", size=self.img_resolution)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, highest resolution first."""
        return tuple(self.model_channels * m for m in self.channel_mult)

    def attends(self, resolution: int) -> bool:
        """Whether blocks of this resolution attend."""
        return resolution in self.attn_resolutions

    def check(self, x: Tensor, c_noise: Tensor) -> None:
        """Refuse what this network does not take; values are not looked at."""
        want = (self.in_channels, self.img_resolution, self.img_resolution)
        require(x.shape[1:] == want, f"this network takes (B, {', '.join(map(str, want))})", x=tuple(x.shape))
        require(c_noise.shape == x.shape[:1], "need one per image", c_noise=tuple(c_noise.shape), images=len(x))


def unfilled(make: Callable[[], Any]) -> Any:
    """What `make` makes, without memory for its numbers. Raises InputError where it would have too many parameters."""
    with torch.device("meta"):
        network = make()
    limits.within("parameters", sum(p.numel() for p in network.parameters()), "the network has parameters:")
    return network


def check_sizes(config: Any, largest: Mapping[str, int], zero_too: Collection[str] = ()) -> None:
    """Raise InputError for a field that is no whole number from 1, or 0, to its largest value; None is no value."""
    for name, most in largest.items():
        value, least = getattr(config, name, None), 0 if name in zero_too else 1
        need = f"need a whole number from {least} to {most:,}: the description is not that of a usable network"
        require(value is None or (whole(value) and least <= value <= most), need, **{name: value})


def whole(value: Any) -> bool:
    """Whether a value is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def stages(shape: Shape, n_in: int, n_stem: int, last_only: bool = False) -> tuple[list[Stage], list[Stage]]:
    """Encoder and decoder.

    Args:
        shape: widths, blocks and attention.
        n_in: channels that the first convolution takes.
        n_stem: channels that it gives.
        last_only: of the decoder's blocks of a level only the last one attends.
    """
    encoder, decoder, width = list[Stage](), list[Stage](), n_stem
    sizes = [shape.img_resolution >> level for level in range(len(shape.widths))]
    for level, (size, n) in enumerate(zip(sizes, shape.widths, strict=True)):
        place = f"{size}x{size}"
        first = Stage(f"{place}_down", "down", width, width) if level else Stage(f"{place}_conv", "conv", n_in, n_stem)
        encoder.append(first)
        for i in range(shape.num_blocks):
            encoder.append(Stage(f"{place}_block{i}", "block", width, n, attends=shape.attends(size)))
            width = n
    kept = [stage.n_out for stage in encoder]
    for size, n in reversed(list(zip(sizes, shape.widths, strict=True))):
        place = f"{size}x{size}"
        if decoder:
            decoder.append(Stage(f"{place}_up", "up", width, width))
        else:
            decoder += [Stage(f"{place}_in{i}", "in", width, width, attends=i == 0) for i in (0, 1)]
        for i in range(shape.num_blocks + 1):
            attends, skip = shape.attends(size) and (i == shape.num_blocks or not last_only), kept.pop()
            decoder.append(Stage(f"{place}_block{i}", "block", width + skip, n, skip, attends))
            width = n
    return encoder, decoder


def attention(qkv: Tensor, heads: int, normalise: bool = False) -> Tensor:
    """Σ_j softmax_j(q_iᵀ k_j / √d) v_j over pixels, (B, 3C, H, W) to (B, C, H, W), by one fused call.

    Channel (h d + c)·3 + p of the input is coordinate c of head h of the query, key or value, p = 0, 1, 2; its root mean square
    over c is made one where `normalise` says so.
    """
    b, channels, height, width = qkv.shape
    split = qkv.reshape(b, heads, channels // (3 * heads), 3, height * width)
    split = unit(split, 2) if normalise else split
    q, k, v = (part.transpose(2, 3) for part in split.unbind(3))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(2, 3).reshape(b, channels // 3, height, width)


def unit(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """x / (10⁻⁴ + RMS of x over these dimensions) (Karras et al. 2024, Eq. 52; the small number keeps zero finite)."""
    return x / (1e-4 + x.square().mean(dim, keepdim=True).sqrt())


def one_hot(labels: Tensor | None, classes: int, like: Tensor) -> Tensor:
    """Row i has a one at label i, (B, classes), in the type of `like` (B, …); label `classes`, or none, is a row of zeros.

    Raises:
        InputError: labels of another shape or type. Values are not looked at, which would wait for the device.
    """
    if labels is None:
        return like.new_zeros(len(like), classes)
    whole = labels.shape == like.shape[:1] and not labels.is_floating_point()
    require(whole, f"pass whole numbers of shape ({len(like)},)", labels=tuple(labels.shape), dtype=labels.dtype)
    return (labels[:, None] == torch.arange(classes, device=labels.device)).to(like)


def positional(c: Tensor, channels: int, endpoint: bool) -> Tensor:
    """Return `waves` of ω_i = 10^(−4i/(n−e)), i = 0 … n−1, n = channels/2, e = 1 with endpoint (Vaswani et al. 2017)."""
    n = channels // 2
    i = torch.arange(n, dtype=c.dtype, device=c.device)
    return waves(c, torch.exp(i * (-math.log(1e4) / max(n - endpoint, 1))))


def waves(c: Tensor, frequencies: Tensor) -> Tensor:
    """(cos f c, sin f c) for c (B,) and f (n,), (B, 2n)."""
    phase = c[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def known(kind: str, value: str, names: Sequence[str]) -> None:
    """Raise InputError unless the value is one of the names."""
    if value not in names:
        raise InputError(f"{kind} = {value!r}: this version knows {', '.join(names)}")
