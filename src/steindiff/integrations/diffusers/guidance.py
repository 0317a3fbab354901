"""How a pipeline makes one prediction of several: classifier-free guidance in the forms that pipelines of diffusers have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steindiff.errors import InputError

SCALES, RESCALES = ("true_cfg_scale", "guidance_scale"), ("guidance_rescale",)
"""Arguments of pipelines that name the scale of guidance, and how much of it is rescaled."""
_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Guidance:
    """f = u + w (c − u), and with a rescale φ: f ← φ f std(c)/std(f) + (1−φ) f (Ho & Salimans 2022; Lin et al. 2024).

    Args:
        scale: w; 1 is none.
        rescale: φ, from 0 to 1.
        branches: how many predictions there are, 1 or 2.
        conditional_first: whether c comes before u.
    """

    scale: float = 1.0
    rescale: float = 0.0
    branches: int = 1
    conditional_first: bool = False

    def __call__(self, predictions: Sequence[Tensor]) -> Tensor:
        """One prediction, (B, *event), of the branches."""
        if self.branches == 1:
            return predictions[0]
        c, u = predictions if self.conditional_first else reversed(predictions)
        guided = u + self.scale * (c - u)
        if self.rescale == 0:
            return guided
        axes = tuple(range(1, c.ndim))
        ratio = c.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
        return torch.lerp(guided, guided * ratio, self.rescale)


def found(predictions: Sequence[Tensor], combined: Tensor, said: Mapping[str, Any], pipeline: str) -> Guidance:
    """The guidance that makes of these predictions what a pipeline has made of them.

    Args:
        predictions: of each branch, in the order in which the network was asked.
        combined: what the pipeline handed to its scheduler.
        said: the arguments of the pipeline, with its defaults.
        pipeline: its class, for the error.

    Raises:
        InputError: no known form of guidance gives it.
    """
    scales = [float(said[name]) for name in SCALES if isinstance(said.get(name), float | int)]
    rescales = {0.0, *(float(said[name]) for name in RESCALES if isinstance(said.get(name), float | int))}
    candidates = [Guidance()] if len(predictions) == 1 else []
    if len(predictions) == 2:
        candidates = [Guidance(w, r, 2, first) for w in scales for r in sorted(rescales) for first in (False, True)]
    errors = [_distance(guidance(predictions), combined) for guidance in candidates]
    if not errors or min(errors) > _TOLERANCE.get(combined.dtype, 1e-3):
        raise InputError(
            f"{pipeline} makes one prediction of {len(predictions)} in a way that we do not know (scales {scales}, rescales "
            f"{sorted(rescales)}): we know none, and u + w (c − u) of two, rescaled or not; pass the network and a scheduler "
            "config, and combine the denoisers with steindiff.denoisers.Guided"
        )
    return candidates[errors.index(min(errors))]


def _distance(one: Tensor, other: Tensor) -> float:
    """The relative distance; infinite for other shapes."""
    if one.shape != other.shape:
        return float("inf")
    return float((one.float() - other.float()).norm() / other.float().norm().clamp_min(1e-12))
