"""Samples of a run, kept on disk as they grow: what is there is not drawn again.

A file holds the 8-bit images of seeds first, first + 1, … under a name with the digest of all that determines them, and is
written anew, whole, after every chunk. A killed evaluation loses at most a chunk, and a later one may ask for more images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.io.files import digest
from steindiff.io.images import to_uint8
from steindiff.metrics import Value, endpoint_rmse
from steindiff.models import Model
from steindiff.noise import mix
from steindiff.study.draw import Drawn, draw
from steindiff.study.evaluation import Run, Settings
from steindiff.study.store import FORMAT, Kind, file_name, held, keep
from steindiff.study.testbed import Testbed

__all__ = ["Sampler", "Samples", "testbed"]


@dataclass(frozen=True, eq=False)
class Samples:
    """Images of one run.

    Attributes:
        images: uint8, (n, C, H, W).
        seconds: how long sampling took.
        effect: endpoint RMSE between bf16 and float32, of unrounded images; None for float32 runs.
    """

    images: Tensor
    seconds: float = 0.0
    effect: Value | None = None

    def points(self, n: int | None = None) -> Tensor:
        """The first n images, or all, as float32 in [−1, 1]."""
        return self.images[:n].float().mul_(2 / 255).sub_(1)


@dataclass(frozen=True, eq=False)
class _Autocast:
    """A denoiser whose network computes in bf16, on states that stay as they are."""

    wrapped: Denoiser
    device: str

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            return self.wrapped(x, sigma).to(x.dtype)


def testbed(model: Model, labels: Tensor | None, precision: str, device: str) -> Testbed:
    """A model as a testbed.

    Args:
        model: on the device.
        labels: classes of the training images, for a class-conditional model: image i has that of a training image which its
            seed names.
        precision: what the network computes in, as in `Settings`.
        device: where the model computes.
    """

    def conditioned(seeds: Sequence[int]) -> Denoiser:
        denoiser = model.denoiser
        if labels is not None:
            denoiser = model.labelled(labels[[mix(seed) % len(labels) for seed in seeds]])
        return denoiser if precision == "no" else _Autocast(denoiser, torch.device(device).type)

    classes = None if labels is None else hashlib.sha256(labels.numpy().tobytes()).hexdigest()
    key = digest(model=model.sha256, precision=precision, labels=classes)
    return Testbed(model.name, model.denoiser, model.event_shape, key, device, conditioned)


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws the runs of one model.

    Args:
        bed: the model, in the settings' precision.
        exact: the model in float32, where that is another; None: there is no effect to state.
        settings: the evaluation's.
        folder: where the files are.
    """

    bed: Testbed
    exact: Testbed | None
    settings: Settings
    folder: Path

    def draw(self, run: Run, tick: Callable[[int], object]) -> Samples:
        """The run's images: those on disk, and the rest drawn in chunks.

        `tick` is told the network evaluations of each finished batch, summed over its images.

        Raises:
            InputError: a file that is not what its name says, or a folder that cannot be written to.
            NonFiniteError: the run diverged.
        """
        first, samples = self.settings.first_seed, self._held(run)
        tick(min(run.n, len(samples.images)) * run.nfe)
        while (have := len(samples.images)) < run.n:
            seeds = range(first + have, first + min(have + self.settings.chunk, run.n))
            drawn = self._drawn(self.bed, run, seeds, lambda images: tick(images * run.nfe))
            effect = samples.effect if have else self._effect(run, seeds, drawn.samples)
            images = torch.from_numpy(to_uint8(drawn.samples)).permute(0, 3, 1, 2)
            samples = Samples(torch.cat([samples.images, images]), samples.seconds + drawn.seconds, effect)
            keep(self._path(run), self.key(run), samples)
        return Samples(samples.images[: run.n], samples.seconds * run.n / len(samples.images), samples.effect)

    def key(self, run: Run) -> str:
        """A digest of all that determines the images, but for their number."""
        parts = {"solver": repr(run.solver), "sigmas": run.sigmas.tolist()}
        return digest(format=FORMAT, bed=self.bed.digest, first_seed=self.settings.first_seed, **parts)

    def _held(self, run: Run) -> Samples:
        """What is on disk; nothing where there is no file. Raises InputError where it is something else."""
        found: Samples | None = held(self._path(run), self.key(run), Kind(self._parse, "they are drawn again"))
        return found or Samples(torch.empty(0, *self.bed.event_shape, dtype=torch.uint8))

    def _parse(self, images: Tensor, seconds: float, effect: list[float] | None) -> Samples:
        if images.shape[1:] != self.bed.event_shape or images.dtype != torch.uint8:
            raise ValueError(f"images of shape {tuple(images.shape)}, {images.dtype}")
        return Samples(images, float(seconds), None if effect is None else Value.parse(effect))

    def _path(self, run: Run) -> Path:
        return self.folder / f"{file_name(run.name, self.key(run))}.safetensors"

    def _effect(self, run: Run, seeds: Sequence[int], states: Tensor) -> Value | None:
        """What bf16 changes in the first chunk's first images."""
        if self.exact is None:
            return None
        count = min(self.settings.checked, len(seeds))
        return endpoint_rmse(states[:count], self._drawn(self.exact, run, seeds[:count]).samples)

    def _drawn(self, bed: Testbed, run: Run, seeds: Sequence[int], tick: Callable[[int], object] | None = None) -> Drawn:
        return draw(run.solver, bed, run.sigmas, seeds, batch=self.settings.batch, tick=tick)
