"""A compact UNet F(x; c) for small images, every operation of which has a forward-mode derivative.

Residual block, with e the embedding of the noise level (and of the class), γ, β linear in e:

    h ← x + W₂ silu( (1 + γ(e)) norm(W₁ silu(norm(x))) + β(e) )

Attention is written as einsum and softmax, not as a fused kernel: fused kernels have no Jacobian-vector product.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steindiff.divergence.plain import pushed
from steindiff.errors import InputError, require
from steindiff.models.networks.layout import check_sizes, waves, whole

_LEVELS, _MULT = 8, 64
_LARGEST = {
    "image_channels": 64, "channels": 4096, "blocks": 32, "heads": 1024, "groups": 4096, "num_classes": 1_000_000,
}  # fmt: skip


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a `UNet`; `UNetConfig(**dataclasses.asdict(config)) == config`, also by way of JSON.

    Level l works at resolution H / 2^l with channels · mults[l] channels.

    Args:
        image_channels: channels C of the image.
        channels: base width.
        mults: width multiplier of each level, finest first; H and W must be divisible by 2^(len(mults) − 1).
        blocks: residual blocks per level, on the way down and again on the way up.
        attention: levels (0 = full resolution) whose blocks attend; if there are any, so does the middle.
        heads: attention heads; must divide the width of the attending levels and of the middle.
        groups: groups of every GroupNorm; must divide every level's width.
        dropout: dropout probability inside the residual blocks, in [0, 1).
        num_classes: number of class labels, 0 for an unconditional network.
        null_class: the label `num_classes` says that the class is unknown, as guidance needs it, and so do no labels.
    """

    image_channels: int = 1
    channels: int = 32
    mults: tuple[int, ...] = (1, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (1,)
    heads: int = 2
    groups: int = 8
    dropout: float = 0.0
    num_classes: int = 0
    null_class: bool = False

    def __post_init__(self) -> None:
        # JSON knows no tuples: lists come back, and become tuples so that equality and hashing hold.
        object.__setattr__(self, "mults", tuple(self.mults))
        object.__setattr__(self, "attention", tuple(self.attention))
        check_sizes(self, _LARGEST, ("num_classes",))
        names_levels = 0 < len(self.mults) <= _LEVELS and all(whole(m) and 1 <= m <= _MULT for m in self.mults)
        require(
            names_levels,
            f"must name at least one level and at most {_LEVELS}, each 1 to {_MULT}, such as (1, 2)",
            mults=self.mults,
        )
        require(all(map(whole, self.attention)), "need whole numbers", attention=self.attention)
        for level in self.attention:
            if not 0 <= level < len(self.mults):
                raise InputError(f"attention level {level} must be in 0..{len(self.mults) - 1}: mults = {self.mults}")
        require(0 <= self.dropout < 1, "must be in [0, 1)", dropout=self.dropout)
        if self.null_class and not self.num_classes:
            raise InputError("null_class = True with num_classes = 0: a network without classes needs no null class")
        for level, width in enumerate(self.widths):
            if width % self.groups:
                raise InputError(f"groups = {self.groups} must divide the width {width} of level {level}")
            attends = level in self.attention or (self.attention and level == len(self.mults) - 1)
            if attends and width % self.heads:
                raise InputError(f"heads = {self.heads} must divide the width {width} of level {level}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.channels * m for m in self.mults)


class _GroupNorm(nn.GroupNorm):
    """A group norm that has a forward derivative wherever its channels lie."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous() if pushed(x) else x)


class _Attention(nn.Module):
    """Residual self-attention over pixels: x + W softmax(qᵀk / √d) v, on (B, C, H, W)."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _GroupNorm(groups, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = _zero(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        d = c // self.heads
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, d, h * w).unbind(1)
        a = torch.einsum("bhdi,bhdj->bhij", q / math.sqrt(d), k).softmax(-1)
        y: Tensor = self.out(torch.einsum("bhij,bhdj->bhdi", a, v).reshape(b, c, h, w))
        return x + y


class _Block(nn.Module):
    """The residual block of the module's docstring, (B, n_in, H, W) and e (B, E) to (B, n_out, H, W)."""

    def __init__(self, n_in: int, n_out: int, config: UNetConfig, attend: bool) -> None:
        super().__init__()
        self.norm1 = _GroupNorm(config.groups, n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.film = _zero(nn.Linear(4 * config.channels, 2 * n_out))
        self.norm2 = _GroupNorm(config.groups, n_out)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = _zero(nn.Conv2d(n_out, n_out, 3, padding=1))
        self.skip = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)
        self.attention = _Attention(n_out, config.heads, config.groups) if attend else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        gamma, beta = self.film(e)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        h = self.conv2(self.dropout(F.silu(h * (1 + gamma) + beta)))
        y: Tensor = self.attention(self.skip(x) + h)
        return y


class _Resize(nn.Module):
    """Halves (3×3 convolution, stride 2) or doubles (nearest neighbour, then 3×3 convolution) the resolution."""

    def __init__(self, n_in: int, n_out: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(n_in, n_out, 3, padding=1, stride=1 if up else 2)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else x)
        return y


class _Embedding(nn.Module):
    """e = silu(W₂ silu(W₁ φ(c) + w_y)), φ(c) = (cos ωₖc, sin ωₖc), ωₖ geometric in [1/4, 16].

    c = log(σ)/4 spans about [−1.6, 1.1] for σ in [0.002, 80]; ω ≤ 16 keeps ∂F/∂σ moderate, which solvers need.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.n = config.channels
        n_embed = 4 * config.channels
        self.linear1 = nn.Linear(2 * self.n, n_embed)
        self.linear2 = nn.Linear(n_embed, n_embed)
        self.label = nn.Embedding(config.num_classes + config.null_class, n_embed) if config.num_classes else None
        self.null = config.num_classes if config.null_class else None

    def forward(self, c: Tensor, labels: Tensor | None) -> Tensor:
        omega = torch.linspace(math.log(0.25), math.log(16.0), self.n, dtype=c.dtype, device=c.device).exp()
        h = self.linear1(waves(c, omega))
        if labels is not None:
            h = h + self._label(labels, c.shape[0])
        elif self.label is not None and self.null is not None:
            h = h + self.label.weight[self.null]
        return F.silu(self.linear2(F.silu(h)))

    def _label(self, labels: Tensor, batch: int) -> Tensor:
        if self.label is None:
            raise InputError("labels were given to a network with num_classes = 0: leave them out")
        if labels.shape != (batch,) or labels.is_floating_point():
            raise InputError(
                f"labels have shape {tuple(labels.shape)}, dtype {labels.dtype}: pass integers of shape ({batch},)"
            )
        n = self.label.num_embeddings
        if batch and (int(labels.min()) < 0 or int(labels.max()) >= n):  # on a GPU it would abort the process
            raise InputError(f"labels span {int(labels.min())}..{int(labels.max())}: they must be in 0..{n - 1}")
        return F.embedding(labels, self.label.weight)


class UNet(nn.Module):
    """A residual UNet F(x; c) with noise-level modulation; its output is zero at initialisation.

    Encoder levels of `blocks` residual blocks each, a middle of two, and a decoder whose every block sees the output
    of its mirror image in the encoder, as in Ronneberger et al. (2015) and Ho et al. (2020); the modulation
    (1 + γ) norm(h) + β is that of Perez et al. (2018).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.embedding = _Embedding(config)
        self.stem = nn.Conv2d(config.image_channels, widths[0], 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            if level:
                self.encoder.append(_Resize(widths[level - 1], width, up=False))
            for _ in range(config.blocks):
                self.encoder.append(_Block(width, width, config, level in config.attention))
        attends = bool(config.attention), False
        self.middle = nn.ModuleList([_Block(widths[-1], widths[-1], config, attend) for attend in attends])
        for level in reversed(range(len(widths))):
            for _ in range(config.blocks):
                self.decoder.append(_Block(2 * widths[level], widths[level], config, level in config.attention))
            if level:
                self.decoder.append(_Resize(widths[level], widths[level - 1], up=True))
        self.norm = _GroupNorm(config.groups, widths[0])
        self.head = _zero(nn.Conv2d(widths[0], config.image_channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """F(x; c) for images x (B, C, H, W), noise conditions c (B,) and optional labels (B,), to (B, C, H, W).

        Without labels the class is the null class; where there is none, the class term is left out. Raises InputError for
        shapes and labels that the configuration excludes.
        """
        self._check(x, c_noise)
        e = self.embedding(c_noise, labels)
        h = self.stem(x)
        skips: list[Tensor] = []
        for module in self.encoder:
            h = module(h, e)
            if isinstance(module, _Block):
                skips.append(h)
        for module in self.middle:
            h = module(h, e)
        for module in self.decoder:
            h = module(torch.cat([h, skips.pop()], dim=1) if isinstance(module, _Block) else h, e)
        y: Tensor = self.head(F.silu(self.norm(h)))
        return y

    def _check(self, x: Tensor, c_noise: Tensor) -> None:
        c, factor = self.config.image_channels, 2 ** (len(self.config.mults) - 1)
        require(x.ndim == 4 and x.shape[1] == c, f"this network takes (B, {c}, H, W)", x=tuple(x.shape))
        need = f"H and W must be multiples of {factor}: pad or resize the images"
        require(not (x.shape[2] % factor or x.shape[3] % factor), need, x=tuple(x.shape), mults=self.config.mults)
        require(c_noise.shape == x.shape[:1], "need one per image", c_noise=tuple(c_noise.shape), images=len(x))


def _zero(module: nn.Conv2d | nn.Linear) -> nn.Module:
    """The module with all parameters zero, so that its branch starts as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module
