"""Networks: a compact UNet and the preconditioning that turns a network into a denoiser."""

from steindiff.models.networks.precond import EDMPrecond
from steindiff.models.networks.unet import UNet, UNetConfig

__all__ = ["EDMPrecond", "UNet", "UNetConfig"]
