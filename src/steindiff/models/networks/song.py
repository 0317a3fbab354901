"""SongUNet: DDPM++ and NCSN++ of Song et al. (2021), in the form in which EDM's files hold them.

    e = silu(W₁ silu(W₀ (φ(c) + W_y √n y))),   y the label as a one-hot row of n

with φ positional (DDPM++) or random Fourier features (NCSN++). Beside the U of blocks there may be two side paths. On the way
down the filtered image enters every level of the encoder (`skip`), or what entered the level above does (`residual`). On the
way up every level of the decoder adds to the output (`skip`).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steindiff.errors import require
from steindiff.models.networks.blocks import Block, Conv, FilteredDown, Resample, Style, group_norm
from steindiff.models.networks.layout import Shape, Stage, known, one_hot, positional, stages, waves

_EPS = 1e-6


@dataclass(frozen=True)
class SongConfig(Shape):
    """The shape of a `SongUNet`, by the names in the files.

    Args:
        augment_dim: numbers of an augmentation label, which sampling leaves out: its weights stay unused.
        channel_mult_emb: width of the embedding, in base widths.
        channel_mult_noise: width of φ, in base widths.
        embedding_type: positional or fourier.
        encoder_type: standard, residual or skip.
        decoder_type: standard or skip.
        resample_filter: the filter along one axis, [1, 1] or [1, 3, 3, 1].
        dropout: of training alone.
        label_dropout: the share of labels that training left out; above 0 there is a null class.
    """

    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    label_dropout: float = 0.0
    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        known("embedding_type", self.embedding_type, ("positional", "fourier"))
        known("encoder_type", self.encoder_type, ("standard", "residual", "skip"))
        known("decoder_type", self.decoder_type, ("standard", "skip"))
        taps = isinstance(self.resample_filter, list | tuple) and len(self.resample_filter) in (2, 4)
        require(taps, "need a filter of two or four numbers", resample_filter=self.resample_filter)
        object.__setattr__(self, "resample_filter", tuple(self.resample_filter))
        n = self.model_channels * self.channel_mult_noise
        require(n % 2 == 0, "the embedding needs an even width", noise_channels=n)

    @property
    def taps(self) -> int:
        """The side of the resampling kernel."""
        return len(self.resample_filter)


class SongUNet(nn.Module):
    """F(x; c, y): images (B, C, H, W), noise conditions (B,), labels (B,) or none, to (B, out_channels, H, W)."""

    def __init__(self, config: SongConfig) -> None:
        super().__init__()
        self.config = config
        n, n_embed = config.model_channels * config.channel_mult_noise, config.model_channels * config.channel_mult_emb
        if config.embedding_type == "fourier":
            self.map_noise = nn.Module()
            self.map_noise.register_buffer("freqs", torch.empty(n // 2))
        if config.label_dim:
            self.map_label = nn.Linear(config.label_dim, n)
        if config.augment_dim:
            self.map_augment = nn.Linear(config.augment_dim, n, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(n, n_embed), nn.Linear(n_embed, n_embed)
        style = Style(scale=0.5**0.5, eps=_EPS, modulates=False, head=0, taps=config.taps, mixes=True)
        self.encoder, self.decoder = stages(config, config.in_channels, config.model_channels, last_only=True)
        stem, *blocks = self.encoder
        self.enc = nn.ModuleDict({stem.name: Conv(stem.n_in, stem.n_out, 3)})
        self.enc.update({stage.name: Block(stage, n_embed, style) for stage in blocks})
        self.dec = nn.ModuleDict({stage.name: Block(stage, n_embed, style) for stage in self.decoder})
        self._side_paths(config)

    def _side_paths(self, config: SongConfig) -> None:
        """The modules of both side paths; `standard` has the output of the last level alone."""
        n_side = config.in_channels
        for stage in self.encoder:
            if stage.role == "down" and config.encoder_type == "residual":
                self.enc[f"{stage.place}_aux_residual"] = FilteredDown(n_side, stage.n_out, config.taps)
                n_side = stage.n_out
            elif stage.role == "down" and config.encoder_type == "skip":
                self.enc[f"{stage.place}_aux_down"] = Resample(config.taps, "down")
                self.enc[f"{stage.place}_aux_skip"] = Conv(n_side, stage.n_out, 1)
        for i, stage in enumerate(self._ends()):
            if i:
                self.dec[f"{stage.place}_aux_up"] = Resample(config.taps, "up")
            self.dec[f"{stage.place}_aux_norm"] = group_norm(stage.n_out, _EPS)
            self.dec[f"{stage.place}_aux_conv"] = Conv(stage.n_out, config.out_channels, 3)

    def _ends(self) -> list[Stage]:
        """The last stages of the levels that have an output, lowest resolution first."""
        ends = [stage for stage in self.decoder if stage.name == f"{stage.place}_block{self.config.num_blocks}"]
        return ends if self.config.decoder_type == "skip" else ends[-1:]

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The prediction. Raises InputError for shapes that the network does not take."""
        self.config.check(x, c_noise)
        e = self._embedded(c_noise, labels)
        return self._decoded(*self._encoded(x, e), e)

    def _embedded(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        if self.config.embedding_type == "fourier":
            e = waves(c_noise, 2 * math.pi * self.map_noise.get_buffer("freqs").to(c_noise))
        else:
            e = positional(c_noise, self.config.model_channels * self.config.channel_mult_noise, endpoint=True)
        e = torch.cat(e.chunk(2, dim=1)[::-1], dim=1)  # here sines come first
        if self.config.label_dim:
            n = self.config.label_dim
            e = e + self.map_label(math.sqrt(n) * one_hot(labels, n, e))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(e))))

    def _encoded(self, x: Tensor, e: Tensor) -> tuple[Tensor, list[Tensor]]:
        kept: list[Tensor] = []
        h, side = x, x
        for stage in self.encoder:
            module = self.enc[stage.name]
            h = module(h) if stage.role == "conv" else module(h, e)
            if stage.role == "down" and self.config.encoder_type == "residual":
                h = side = (h + self.enc[f"{stage.place}_aux_residual"](side)) * 0.5**0.5
            elif stage.role == "down" and self.config.encoder_type == "skip":
                side = self.enc[f"{stage.place}_aux_down"](side)
                h = h + self.enc[f"{stage.place}_aux_skip"](side)
            kept.append(h)
        return h, kept

    def _decoded(self, h: Tensor, kept: list[Tensor], e: Tensor) -> Tensor:
        ends, output = self._ends(), torch.zeros(())
        for stage in self.decoder:
            h = self.dec[stage.name](torch.cat([h, kept.pop()], 1) if stage.skip else h, e)
            if stage in ends:
                own: Tensor = self.dec[f"{stage.place}_aux_conv"](F.silu(self.dec[f"{stage.place}_aux_norm"](h)))
                output = own if stage is ends[0] else own + self.dec[f"{stage.place}_aux_up"](output)
        return output
