"""Samples of a run, kept on disk as they grow: what is there is not drawn again.

A file holds the 8-bit images of seeds first, first + 1, … under a name with the digest of all that determines them, and is
written anew, whole, after every chunk. A killed evaluation loses at most a chunk, and a later one may ask for more images.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import InputError
from steindiff.io.files import digest, read_tensors, write_tensors
from steindiff.io.images import to_uint8
from steindiff.metrics import Value, endpoint_rmse
from steindiff.models import Model
from steindiff.noise import initial_noise, mix
from steindiff.sampling import sample
from steindiff.study.evaluate_settings import SIGMA_MAX, Run, Settings

__all__ = ["Sampler", "Samples", "points"]

FORMAT = 1
Tick = Callable[[int], object]
"""Told the network evaluations of each finished batch, summed over its images."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Images of one run.

    Attributes:
        images: uint8, (n, C, H, W).
        seconds: of sampling.
        effect: endpoint RMSE between bf16 and float32, of unrounded images; None for float32 runs.
        digest: of what determines them.
    """

    images: Tensor
    seconds: float
    effect: Value | None
    digest: str

    def take(self, n: int) -> Samples:
        """The first n."""
        return Samples(self.images[:n], self.seconds * n / len(self.images), self.effect, self.digest)


def points(images: Tensor) -> Tensor:
    """8-bit images as float32 in [−1, 1]."""
    return images.float().mul_(2 / 255).sub_(1)


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws the runs of one model.

    Args:
        model: on the settings' device.
        settings: of the evaluation.
        labels: classes of the training images, for a class-conditional model: image i takes that of a training image which
            its seed names.
        folder: where the files are.
    """

    model: Model
    settings: Settings
    labels: Tensor | None
    folder: Path

    def draw(self, run: Run, tick: Tick) -> Samples:
        """The run's images: those on disk, and the rest drawn in chunks.

        Raises:
            InputError: a file that is not what its name says, or a folder that cannot be written to.
            NonFiniteError: the run diverged.
        """
        settings, key = self.settings, self._digest(run)
        path = self._path(run, key)
        held = _read(path, key, self.model.event_shape)
        while len(held.images) < run.n:
            first = settings.first_seed + len(held.images)
            seeds = range(first, first + min(settings.chunk, run.n - len(held.images)))
            start = time.perf_counter()
            states = self._states(run, seeds, settings.precision, tick)
            seconds = held.seconds + time.perf_counter() - start
            effect = held.effect if len(held.images) else self._effect(run, seeds, states, tick)
            images = torch.from_numpy(to_uint8(states)).permute(0, 3, 1, 2)
            held = Samples(torch.cat([held.images, images]), seconds, effect, key)
            _write(path, held)
        return held.take(run.n)

    def left(self, run: Run) -> int:
        """Network evaluations still to be made, those that state the effect of bf16 included, summed over images."""
        key = self._digest(run)
        have = len(_read(self._path(run, key), key, self.model.event_shape).images)
        return (max(0, run.n - have) + (0 if have else self._checked(run))) * run.nfe

    def _path(self, run: Run, key: str) -> Path:
        return self.folder / f"{run.name}-{key}.safetensors"

    def _checked(self, run: Run) -> int:
        return 0 if self.settings.precision == "no" else min(self.settings.checked, self.settings.chunk, run.n)

    def _digest(self, run: Run) -> str:
        labels = None if self.labels is None else hashlib.sha256(self.labels.numpy().tobytes()).hexdigest()
        return digest(
            format=FORMAT,
            model=self.model.sha256,
            first_seed=self.settings.first_seed,
            solver=repr(run.solver),
            sigmas=run.sigmas.tolist(),
            precision=self.settings.precision,
            labels=labels,
        )

    def _effect(self, run: Run, seeds: Sequence[int], states: Tensor, tick: Tick) -> Value | None:
        """Of the first chunk's first images."""
        count = self._checked(run)
        return endpoint_rmse(states[:count], self._states(run, seeds[:count], "no", tick)) if count else None

    def _states(self, run: Run, seeds: Sequence[int], precision: str, tick: Tick) -> Tensor:
        """End points, float32, unclipped, on the CPU."""
        parts = []
        for i in range(0, len(seeds), self.settings.batch):
            batch = seeds[i : i + self.settings.batch]
            x = initial_noise(batch, self.model.event_shape, SIGMA_MAX, device=self.settings.device)
            result = sample(run.solver, self._denoiser(batch, precision), x, run.sigmas)
            parts.append(result.x.cpu())
            tick(len(batch) * run.nfe)
        return torch.cat(parts)

    def _denoiser(self, seeds: Sequence[int], precision: str) -> Denoiser:
        """The model's, in that precision, with its labels bound."""
        denoise: Callable[..., Tensor] = self.model.denoiser
        kind = torch.device(self.settings.device).type
        extra: tuple[Tensor, ...] = ()
        if self.labels is not None:
            extra = (self.labels[[mix(seed) % len(self.labels) for seed in seeds]].to(self.settings.device),)

        def call(x: Tensor, sigma: Tensor) -> Tensor:
            with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
                return denoise(x, sigma, *extra).to(x.dtype)

        return call


def _read(path: Path, key: str, event_shape: tuple[int, ...]) -> Samples:
    """What is on disk; nothing where there is no file. Raises InputError where it is something else."""
    if not path.exists():
        return Samples(torch.empty(0, *event_shape, dtype=torch.uint8), 0.0, None, key)
    try:
        about, (images,) = read_tensors(path, "images")
        if about["digest"] != key or images.shape[1:] != event_shape or images.dtype != torch.uint8:
            raise ValueError(f"images of shape {tuple(images.shape)}, digest {about['digest']}")
        effect = None if about["effect"] is None else Value.parse(about["effect"])
        return Samples(images, float(about["seconds"]), effect, key)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not hold the samples its name says ({error}): remove it, and they are drawn again"
        ) from error


def _write(path: Path, samples: Samples) -> None:
    about = {"digest": samples.digest, "seconds": samples.seconds, "effect": samples.effect}
    write_tensors(path, {"images": samples.images}, about)
