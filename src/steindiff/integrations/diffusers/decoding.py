"""From what a network denoises to images: unpacked, out of the autoencoder's units, and decoded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steindiff.errors import InputError

AUTOENCODERS = ("vae", "vqvae", "vq_model", "movq")
"""What pipelines call their autoencoder."""


@dataclass(frozen=True, eq=False)
class Decoder:
    """What makes images of denoised latents.

    Attributes:
        pipe: whose latents they are; None for a network alone, which denoises images.
        size: height and width of an image in pixels, which packed latents do not say.
    """

    pipe: Any = None
    size: tuple[int, int] | None = None

    @classmethod
    def of(cls, pipe: Any, call: Mapping[str, Any]) -> "Decoder":
        """That of a pipeline that is called like this."""
        usual = getattr(pipe, "default_sample_size", 0) * getattr(pipe, "vae_scale_factor", 0)
        height, width = (call.get(name) or usual for name in ("height", "width"))
        return cls(pipe, (int(height), int(width)) if height and width else None)

    @property
    def autoencoder(self) -> nn.Module | None:
        """The pipeline's autoencoder; None where it denoises images themselves."""
        found = (getattr(self.pipe, name, None) for name in AUTOENCODERS)
        return next((part for part in found if isinstance(part, nn.Module)), None)

    @torch.no_grad()
    def images(self, x: Tensor, batch: int = 8) -> Tensor:
        """Images in [−1, 1], (B, C, H, W) in float32, of denoised x, (B, *event); so many at once.

        Raises:
            InputError: the latents are packed, and the pipeline does not say how.
        """
        autoencoder = self.autoencoder
        if autoencoder is None:
            return x.float().clamp(-1, 1)
        parts = [self._decoded(autoencoder, part) for part in self._unpacked(x).split(batch)]
        return torch.cat(parts).float().clamp(-1, 1)

    def _unpacked(self, x: Tensor) -> Tensor:
        """(B, C, h, w), of latents that may be a sequence of patches."""
        if x.ndim != 3:
            return x
        unpack = getattr(self.pipe, "_unpack_latents", None)
        if unpack is None or self.size is None:
            raise InputError(f"latents of shape {tuple(x.shape)}: {type(self.pipe).__name__} does not say how to unpack them")
        unpacked: Tensor = unpack(x, *self.size, self.pipe.vae_scale_factor)
        return unpacked

    @staticmethod
    def _decoded(autoencoder: nn.Module, latents: Tensor) -> Tensor:
        config: Any = autoencoder.config
        shift, scale = getattr(config, "shift_factor", None) or 0.0, config.scaling_factor
        mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and deviation is not None:
            shape = (1, -1, *[1] * (latents.ndim - 2))
            latents = latents * latents.new_tensor(deviation).view(shape) / scale + latents.new_tensor(mean).view(shape)
        else:
            latents = latents / scale + shift
        own = next(autoencoder.parameters()).dtype
        if own != torch.float16 or not getattr(config, "force_upcast", False):
            decoded: Tensor = autoencoder.decode(latents.to(own), return_dict=False)[0]  # type: ignore[operator]
            return decoded
        try:  # as the pipelines do: such an autoencoder overflows in half precision
            decoded = autoencoder.float().decode(latents.float(), return_dict=False)[0]  # type: ignore[operator]
        finally:
            autoencoder.to(own)
        return decoded
