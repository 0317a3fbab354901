"""Networks: a compact UNet, those of EDM's and EDM2's checkpoints, and the preconditioning that makes denoisers of them."""

from steindiff.models.networks.precond import EDMPrecond
from steindiff.models.networks.unet import UNet, UNetConfig

__all__ = ["EDMPrecond", "UNet", "UNetConfig"]
