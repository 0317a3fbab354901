"""ADM: the network of Dhariwal and Nichol (2021), in the form in which EDM's files hold it.

    e = silu(W₁ silu(W₀ φ(c)) + W_y y),   F = W_out silu(N h)

with φ the positional embedding, y the label as a one-hot row, h the last state of the U, and blocks that scale and shift.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steindiff.errors import require
from steindiff.models.networks.blocks import Block, Conv, Style, group_norm
from steindiff.models.networks.layout import Shape, one_hot, positional, stages

_STYLE = Style(scale=1.0, eps=1e-5, modulates=True, head=64, taps=2, mixes=False)


@dataclass(frozen=True)
class ADMConfig(Shape):
    """The shape of an `ADM`, by the names in the files.

    Args:
        augment_dim: numbers of an augmentation label, which sampling leaves out: its weights stay unused.
        channel_mult_emb: width of the embedding, in base widths.
        dropout: of training alone.
        label_dropout: the share of labels that training left out; above 0 there is a null class.
    """

    augment_dim: int = 0
    channel_mult_emb: int = 4
    attn_resolutions: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.1
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.model_channels % 2 == 0, "the embedding needs an even base width", model_channels=self.model_channels)


class ADM(nn.Module):
    """F(x; c, y): images (B, C, H, W), noise conditions (B,), labels (B,) or none, to (B, out_channels, H, W)."""

    def __init__(self, config: ADMConfig) -> None:
        super().__init__()
        self.config = config
        n, n_embed = config.model_channels, config.model_channels * config.channel_mult_emb
        if config.augment_dim:
            self.map_augment = nn.Linear(config.augment_dim, n, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(n, n_embed), nn.Linear(n_embed, n_embed)
        if config.label_dim:
            self.map_label = nn.Linear(config.label_dim, n_embed, bias=False)
        self.encoder, self.decoder = stages(config, config.in_channels, config.widths[0])
        stem, *blocks = self.encoder
        self.enc = nn.ModuleDict({stem.name: Conv(stem.n_in, stem.n_out, 3)})
        self.enc.update({stage.name: Block(stage, n_embed, _STYLE) for stage in blocks})
        self.dec = nn.ModuleDict({stage.name: Block(stage, n_embed, _STYLE) for stage in self.decoder})
        self.out_norm = group_norm(config.widths[0], _STYLE.eps)
        self.out_conv = Conv(config.widths[0], config.out_channels, 3)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The prediction. Raises InputError for shapes that the network does not take."""
        self.config.check(x, c_noise)
        kept: list[Tensor] = []
        e, h = self._embedded(c_noise, labels), x
        for stage in self.encoder:
            module = self.enc[stage.name]
            h = module(h) if stage.role == "conv" else module(h, e)
            kept.append(h)
        for stage in self.decoder:
            h = self.dec[stage.name](torch.cat([h, kept.pop()], 1) if stage.skip else h, e)
        y: Tensor = self.out_conv(F.silu(self.out_norm(h)))
        return y

    def _embedded(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        e = positional(c_noise, self.config.model_channels, endpoint=False)
        e = self.map_layer1(F.silu(self.map_layer0(e)))
        if self.config.label_dim:
            e = e + self.map_label(one_hot(labels, self.config.label_dim, e))
        return F.silu(e)
