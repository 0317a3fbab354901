"""Training batches as a function of the step alone, so that a resumed run sees what an unbroken one would have seen.

Image i of step k is number k·B + i of a sequence of epochs, each a random order of the data.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from steindiff.errors import InputError, require
from steindiff.models.datasets import ImageSet
from steindiff.noise import mix
from steindiff.train.objective import stratified_sigmas
from steindiff.train.recipe import Recipe

_ORDER, _LEVELS, _NOISE, _DROPOUT, _LABELS = range(5)  # one random stream each


class Batch(NamedTuple):
    """What one step of one process works on."""

    x0: Tensor
    labels: Tensor | None
    sigma: Tensor
    noise: Tensor


@dataclass(frozen=True, eq=False)
class Feed:
    """Batches by step, for one of `world` processes: every world-th image of the whole batch.

    Args:
        data: the training images, on the device that trains.
        recipe: what batches depend on: size, noise law, flips, label dropout and seed.
        conditional: hand out labels.
    """

    data: ImageSet
    recipe: Recipe
    conditional: bool = False
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        need = f"the batch must be a multiple of {self.world}"
        require(self.recipe.batch % self.world == 0, need, batch=self.recipe.batch, processes=self.world)
        if self.conditional and self.data.labels is None:
            raise InputError(f"{self.data.source} has no classes: give each class its own folder, or train without classes")

    def batch(self, step: int) -> Batch:
        """x₀ (b, C, H, W), labels (b,) or None, σ (b,), ε like x₀; b = batch / world."""
        r, device = self.recipe, self.data.pixels.device
        generator = torch.Generator().manual_seed(mix(r.seed, _LEVELS, step))
        sigma = stratified_sigmas(r.batch, r.p_mean, r.p_std, generator)
        flips = torch.rand(r.batch, generator=generator) < 0.5
        mine = slice(self.rank, None, self.world)
        index = self._index(step)[mine].to(device)
        x0 = self.data.points(index)
        if r.flip:
            x0 = torch.where(flips[mine].to(device)[:, None, None, None], x0.flip(-1), x0)
        # From the device's own generator: for large batches the CPU's would hold up a GPU. Every process draws the whole
        # batch's, so that a run does not depend on how many there are.
        generator = torch.Generator(device).manual_seed(mix(r.seed, _NOISE, step, 0))
        noise = torch.randn(r.batch, *x0.shape[1:], generator=generator, device=device)[mine]
        labels = self.data.labels[index] if self.conditional and self.data.labels is not None else None
        if labels is not None and r.label_dropout:
            generator = torch.Generator().manual_seed(mix(r.seed, _LABELS, step))
            dropped = torch.rand(r.batch, generator=generator) < r.label_dropout
            labels = torch.where(dropped[mine].to(device), len(self.data.classes), labels)
        return Batch(x0, labels, sigma[mine].to(device), noise)

    def dropout_seed(self, step: int) -> int:
        """The seed of torch's global generators, which dropout draws from."""
        return mix(self.recipe.seed, _DROPOUT, step, self.rank)

    def _index(self, step: int) -> Tensor:
        n, b = len(self.data), self.recipe.batch
        first, last = step * b // n, ((step + 1) * b - 1) // n
        orders = torch.cat([_order(n, self.recipe.seed, epoch) for epoch in range(first, last + 1)])
        start = step * b - first * n
        return orders[start : start + b]


@lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(mix(seed, _ORDER, epoch)))
