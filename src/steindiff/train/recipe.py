"""The recipe: what trained weights depend on besides network, data and machine; its two schedules."""

import math
from dataclasses import dataclass

import numpy as np

from steindiff.errors import at_least, require

EMAS = ("half_life", "power")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Recipe:
    """The recipe of a training run; two runs with equal recipes, data and machines give equal weights.

    Args:
        steps: optimiser steps.
        batch: images a step, over all processes.
        lr: peak learning rate of AdamW.
        warmup: steps of linear warm-up.
        decay: share of the run, at its end, over which the learning rate falls to zero by a half cosine; 1: all of it.
        weight_decay, beta2: AdamW's decoupled weight decay and second moment decay; β₁ is 0.9.
        clip_norm: gradients of a larger norm are scaled down to it.
        ema: "half_life" (classic) or "power" (the power function of Karras et al. 2024).
        ema_length: half-life in steps, or σ_rel, the width of the power function's profile as a share of the run.
        p_mean, p_std: mean and standard deviation of ln σ in training.
        flip: mirror half of the images.
        label_dropout: share of the labels that become the null class, in [0, 1): classifier-free guidance needs it.
        precision: what the network computes in: "no" (float32), "bf16" or "fp16".
        seed: what initialisation, dropout, order, noise levels and noise are drawn from.
    """

    steps: int = 2500
    batch: int = 128
    lr: float = 2e-3
    warmup: int = 100
    decay: float = 1.0
    weight_decay: float = 0.0
    beta2: float = 0.99
    clip_norm: float = 10.0
    ema: str = "half_life"
    ema_length: float = 300.0
    p_mean: float = -1.2
    p_std: float = 1.2
    flip: bool = False
    label_dropout: float = 0.0
    precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, {"steps": 1, "batch": 1, "warmup": 1, "seed": 0})
        require(0 <= self.weight_decay < math.inf, "must be at least 0 and finite", weight_decay=self.weight_decay)
        for name in ("lr", "ema_length", "p_std", "clip_norm"):
            require(0 < getattr(self, name) < math.inf, "must be positive and finite", **{name: getattr(self, name)})
        require(0 < self.decay <= 1, "need 0 < decay ≤ 1", decay=self.decay)
        require(0 < self.beta2 < 1, "need 0 < beta2 < 1", beta2=self.beta2)
        require(0 <= self.label_dropout < 1, "need 0 ≤ label_dropout < 1", label_dropout=self.label_dropout)
        require(self.ema in EMAS, f"choose from {', '.join(EMAS)}", ema=self.ema)
        require(self.precision in PRECISIONS, f"choose from {', '.join(PRECISIONS)}", precision=self.precision)
        narrow = self.ema != "power" or self.ema_length < 0.28
        require(narrow, "the width σ_rel of a power function is below 0.28, say 0.1", ema_length=self.ema_length)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then constant, then a half cosine to zero over the last `decay` of the run; step counts from 0."""
    warm = min(1.0, (step + 1) / recipe.warmup)
    late = max(0.0, (step / recipe.steps - (1 - recipe.decay)) / recipe.decay)
    return recipe.lr * warm * 0.5 * (1 + math.cos(math.pi * late))


def average_weight(step: int, recipe: Recipe) -> float:
    """The weight that the average gives the newest parameters, after step 0, 1, ….

    half_life   1 − 2^{−1/h},            h = min(ema_length, 1 + step/20)
    power       1 − (1 − 1/t)^{1+γ},     t = step + 1: the average has the profile s^γ over the run so far

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2024), section 3.1.
    """
    if recipe.ema == "power":
        return float(1 - (1 - 1 / (step + 1)) ** (1 + power_exponent(recipe.ema_length)))
    return float(1 - 0.5 ** (1 / min(recipe.ema_length, 1 + step / 20)))


def power_exponent(sigma_rel: float) -> float:
    """γ of the profile s^γ on [0, 1] whose standard deviation is σ_rel: σ_rel² = (γ+1)/((γ+2)²(γ+3)), γ > 0."""
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())
