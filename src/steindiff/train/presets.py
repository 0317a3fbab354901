"""The published recipes by name: what `steindiff train --preset` starts from."""

from __future__ import annotations

from dataclasses import dataclass

from steindiff.errors import unknown_name
from steindiff.models.networks import UNetConfig
from steindiff.train.recipe import Recipe

__all__ = ["PRESETS", "Preset", "preset"]


@dataclass(frozen=True)
class Preset:
    """A recipe, a network and the resolution they are for."""

    about: str
    recipe: Recipe
    unet: UNetConfig
    resolution: int | None = None


PRESETS: dict[str, Preset] = {
    "digits": Preset(
        "the embedded digits model: 8×8, 0.9 M parameters, 8 minutes on one core; data: digits",
        Recipe(steps=2500, batch=128, lr=2e-3, warmup=100, p_mean=-1.0, ema_length=300.0),
        UNetConfig(dropout=0.25),
    ),
    "cifar10": Preset(
        "the embedded cifar10 model: 16×16, 3.7 M parameters, two hours on two cores with bfloat16 instructions",
        Recipe(
            steps=30000, batch=64, lr=1e-3, warmup=500, clip_norm=1.0, ema="power", ema_length=0.05, flip=True, precision="bf16"
        ),
        UNetConfig(image_channels=3, channels=64, mults=(1, 2, 2), blocks=1, attention=(1, 2), heads=4),
        resolution=16,
    ),
    "cifar10-gpu": Preset(
        "32×32, 23 M parameters, for one large GPU; give --budget-minutes, and the steps are chosen to fill them",
        Recipe(
            steps=15000, batch=1024, lr=1e-3, warmup=500, decay=0.6, clip_norm=1.0, ema="power", ema_length=0.05, flip=True,
            precision="bf16",
        ),
        UNetConfig(image_channels=3, channels=128, mults=(1, 2, 2), blocks=2, attention=(1,), heads=4, groups=32, dropout=0.1),
        resolution=32,
    ),
    "smoke": Preset(
        "two minutes at most: shows that everything works, and makes a poor model; data: digits",
        Recipe(steps=300, batch=64, lr=2e-3, warmup=30, p_mean=-1.0, ema_length=50.0),
        UNetConfig(channels=16, heads=1),
    ),
}  # fmt: skip


def preset(name: str) -> Preset:
    """One of `PRESETS`. Raises InputError for an unknown name."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]
