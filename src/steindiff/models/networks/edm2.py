"""EDM2's network, in which every layer keeps the magnitude of what it is given (Karras et al. 2024, Sections 2 and B).

    weights     W' = W/RMS(W) · g/√n, each output's n weights apart         silu'(x) = silu(x)/0.596
    sum         a ⊕ b = ((1−t) a + t b)/√((1−t)² + t²)
    pair        (w_a a, w_b b), w_a = C (1−t)/√n_a, w_b = C t/√n_b, C = √((n_a+n_b)/((1−t)² + t²))
    embedding   e = silu'(W₀ √2 cos(f c + p) ⊕ W_y √n y)
    block       y = x ⊕ W₁ silu'((1 + W_e e) W₀ silu'(x));   then y ⊕ W_a attention(W_qkv y), and |y| is cut off

In the encoder x is first brought to unit magnitude, pixel by pixel. No layer has a bias; the image has a channel of ones more.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steindiff.errors import require
from steindiff.models.networks.layout import Shape, Stage, attention, one_hot, stages, unit

_BALANCES = ("label_balance", "concat_balance", "res_balance", "attn_balance")


@dataclass(frozen=True)
class EDM2Config(Shape):
    """The shape of an `EDM2UNet`, by the names in the files.

    Args:
        channel_mult_noise: width of the Fourier features, in base widths; None: that of the first level.
        channel_mult_emb: width of the embedding, in base widths; None: that of the widest level.
        label_balance, concat_balance, res_balance, attn_balance: t of the sums and pairs.
        channels_per_head: channels of an attention head.
        clip_act: where states are cut off; None: nowhere.
        resample_filter: [1, 1], means of 2×2 pixels; no published network has another.
        dropout: of training alone.
    """

    attn_resolutions: tuple[int, ...] = (16, 8)
    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    channels_per_head: int = 64
    clip_act: float | None = 256
    resample_filter: tuple[int, ...] = (1, 1)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _BALANCES:
            require(0 <= getattr(self, name) <= 1, "need a share in [0, 1]", **{name: getattr(self, name)})
        require(tuple(self.resample_filter) == (1, 1), "this version knows [1, 1]", resample_filter=self.resample_filter)
        require(self.clip_act is None or self.clip_act > 0, "need a positive bound", clip_act=self.clip_act)

    @property
    def noise_width(self) -> int:
        """Channels of the Fourier features."""
        return self.widths[0] if self.channel_mult_noise is None else self.model_channels * self.channel_mult_noise

    @property
    def embed_width(self) -> int:
        """Channels of e."""
        return max(self.widths) if self.channel_mult_emb is None else self.model_channels * self.channel_mult_emb


def silu(x: Tensor) -> Tensor:
    """The usual one over 0.596, of unit magnitude for normal x."""
    return F.silu(x) / 0.596


def balanced(a: Tensor, b: Tensor, t: float) -> Tensor:
    """A ⊕ b: of unit magnitude for independent a and b of unit magnitude."""
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


def paired(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The channels of a and b side by side, of unit magnitude, in which b has the share t."""
    n_a, n_b = a.shape[1], b.shape[1]
    c = math.sqrt(n_a + n_b) / math.hypot(1 - t, t)
    return torch.cat([c * (1 - t) / math.sqrt(n_a) * a, c * t / math.sqrt(n_b) * b], dim=1)


class Weight(nn.Module):
    """A matrix (k = 0) or a k×k convolution with weights of unit magnitude, which are stored without that."""

    def __init__(self, n_in: int, n_out: int, k: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in, k, k) if k else torch.empty(n_out, n_in))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """W'x, (B, n_in) or (B, n_in, H, W)."""
        w: Tensor = self.weight
        w = unit(w, tuple(range(1, w.ndim))) * (gain / math.sqrt(w[0].numel()))
        return F.linear(x, w) if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


class EDM2Block(nn.Module):
    """The block of the module's docstring, (B, n_in, H, W) and e (B, E) to (B, n_out, H', W')."""

    def __init__(self, stage: Stage, config: EDM2Config, encodes: bool) -> None:
        super().__init__()
        self.config, self.role, self.encodes = config, stage.role, encodes
        n_in, n = stage.n_in, stage.n_out
        self.emb_gain = nn.Parameter(torch.empty(()))
        self.conv_res0 = Weight(n if encodes else n_in, n, 3)
        self.emb_linear = Weight(config.embed_width, n)
        self.conv_res1 = Weight(n, n, 3)
        self.conv_skip = Weight(n_in, n, 1) if n_in != n else nn.Identity()
        self.heads = n // config.channels_per_head if stage.attends else 0
        if self.heads:
            self.attn_qkv, self.attn_proj = Weight(n, 3 * n, 1), Weight(n, n, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """The next h."""
        if self.role == "down":
            x = F.avg_pool2d(x, 2)
        elif self.role == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.encodes:
            x = unit(self.conv_skip(x), 1)
        modulation = 1 + self.emb_linear(e, self.emb_gain)[:, :, None, None]
        y = self.conv_res1(silu(self.conv_res0(silu(x)) * modulation))
        x = balanced(x if self.encodes else self.conv_skip(x), y, self.config.res_balance)
        if self.heads:
            seen = attention(self.attn_qkv(x), self.heads, normalise=True)
            x = balanced(x, self.attn_proj(seen), self.config.attn_balance)
        limit = self.config.clip_act
        return x if limit is None else x.clamp(-limit, limit)


class EDM2UNet(nn.Module):
    """F(x; c, y): images (B, C, H, W), noise conditions (B,), labels (B,) or none, to (B, out_channels, H, W)."""

    def __init__(self, config: EDM2Config) -> None:
        super().__init__()
        self.config = config
        self.out_gain = nn.Parameter(torch.empty(()))
        self.emb_fourier = nn.Module()
        for name in ("freqs", "phases"):
            self.emb_fourier.register_buffer(name, torch.empty(config.noise_width))
        self.emb_noise = Weight(config.noise_width, config.embed_width)
        if config.label_dim:
            self.emb_label = Weight(config.label_dim, config.embed_width)
        self.encoder, self.decoder = stages(config, config.in_channels + 1, config.widths[0])
        stem, *blocks = self.encoder
        self.enc = nn.ModuleDict({stem.name: Weight(stem.n_in, stem.n_out, 3)})
        self.enc.update({stage.name: EDM2Block(stage, config, encodes=True) for stage in blocks})
        self.dec = nn.ModuleDict({stage.name: EDM2Block(stage, config, encodes=False) for stage in self.decoder})
        self.out_conv = Weight(config.widths[0], config.out_channels, 3)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The prediction. Raises InputError for shapes that the network does not take."""
        self.config.check(x, c_noise)
        kept: list[Tensor] = []
        e = self._embedded(c_noise, labels)
        h = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        for stage in self.encoder:
            module = self.enc[stage.name]
            h = module(h) if stage.role == "conv" else module(h, e)
            kept.append(h)
        for stage in self.decoder:
            h = paired(h, kept.pop(), self.config.concat_balance) if stage.skip else h
            h = self.dec[stage.name](h, e)
        y: Tensor = self.out_conv(h, self.out_gain)
        return y

    def _embedded(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        frequencies, phases = (self.emb_fourier.get_buffer(name).to(c_noise) for name in ("freqs", "phases"))
        e: Tensor = self.emb_noise(math.sqrt(2) * torch.cos(c_noise[:, None] * frequencies + phases))
        if self.config.label_dim:
            n = self.config.label_dim
            e = balanced(e, self.emb_label(math.sqrt(n) * one_hot(labels, n, e)), self.config.label_balance)
        return silu(e)

    @torch.no_grad()
    def round_gains(self) -> None:
        """Round every gain g, in place, to where g/√n is a float16 number: published files were made by such quotients.

        Without this the output of a file whose gains are float16 differs from the published network's by up to 5·10⁻⁴.
        """
        pairs = [(m.emb_gain, m.emb_linear) for m in self.modules() if isinstance(m, EDM2Block)]
        for gain, layer in (*pairs, (self.out_gain, self.out_conv)):
            root = math.sqrt(layer.weight[0].numel())
            gain.copy_((gain / root).half().to(gain) * root)
