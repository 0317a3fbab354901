"""What a study runs on: a denoiser, with where the exact flow takes given noise, and independent samples of its law.

A testbed of one's own is a `Testbed(name, denoiser, event_shape, digest)`: with an `ExactModel` the references are exact, with
any other denoiser they are its own fine runs. Pass it to `bench.run_study(…, beds=[…])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from steindiff import grids, models, solvers
from steindiff.analytic import ExactModel, GaussianMixture
from steindiff.denoisers import Denoiser
from steindiff.errors import InputError
from steindiff.io.files import digest, read_tensors, write_tensors
from steindiff.models.datasets import load_digits
from steindiff.noise import initial_noise
from steindiff.sampling import sample

__all__ = ["SIGMA_MAX", "SIGMA_MIN", "References", "Testbed", "digits_mixture", "make", "names", "references"]

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
_FINE_STEPS = 50
_TARGET_SEED, _FLOOR_SEED = 1_000_000_000, 2_000_000_000
_CHUNK = 128


@dataclass(frozen=True, eq=False)
class Testbed:
    """A denoiser to study.

    Attributes:
        name: in tables and file names.
        denoiser: D(x, sigma), VE coordinates; an `ExactModel` has exact references.
        event_shape: of one sample.
        digest: of all that determines the denoiser: a cell's result is kept under it.
        device: where the denoiser computes; changes speed and rounding only.
    """

    name: str
    denoiser: Denoiser
    event_shape: tuple[int, ...]
    digest: str
    device: str = "cpu"

    @property
    def law(self) -> ExactModel | None:
        """The law, where it is known."""
        return self.denoiser if isinstance(self.denoiser, ExactModel) else None

    @property
    def is_image(self) -> bool:
        """Whether samples are grey or RGB images."""
        return len(self.event_shape) == 3 and self.event_shape[0] in (1, 3)


@dataclass(frozen=True, eq=False)
class References:
    """What samples of a testbed are measured against.

    Attributes:
        endpoints: where the exact flow takes the noise of the study's seeds, (n, *event).
        target: independent samples of the law at σ_min.
        floor: n others, which stand for a perfect sampler's.
        how: they were made.
    """

    endpoints: Tensor
    target: Tensor
    floor: Tensor
    how: str


def names() -> tuple[str, ...]:
    """The testbeds that are always there."""
    return ("digits_mixture", *models.names())


def make(name: str, device: str = "cpu") -> Testbed:
    """A testbed by name, or of a model file. Raises InputError as `models.load`."""
    if name == "digits_mixture":
        # Of the data and the recipe: the fitted numbers' last digits depend on the machine and its threads.
        key = digest(law=name, version=1, data=[part.sha256 for part in load_digits()])
        return Testbed(name, digits_mixture().to(torch.float32, device), (1, 8, 8), key, device)
    model = models.load(name, device=device)
    return Testbed(model.name, model.denoiser, model.event_shape, digest(file=model.sha256), device)


def digits_mixture() -> GaussianMixture:
    """One Gaussian per class of scikit-learn's 8×8 digits in [−1, 1], covariances + 0.01, as images (1, 8, 8)."""
    parts = load_digits()
    pixels = torch.cat([part.points() for part in parts]).double().flatten(1)
    labels = torch.cat([part.labels for part in parts if part.labels is not None])
    groups = [pixels[labels == c] for c in range(10)]
    weights = torch.tensor([len(g) for g in groups], dtype=torch.float64)
    covariances = torch.stack([g.T.cov() + 0.01 * torch.eye(64, dtype=torch.float64) for g in groups])
    means = torch.stack([g.mean(0) for g in groups]).reshape(10, 1, 8, 8)
    return GaussianMixture(weights / weights.sum(), means, covariances)


def references(bed: Testbed, seeds: Sequence[int], folder: Path) -> References:
    """The references for these seeds: those in `folder`, or new ones, which are put there.

    Raises:
        InputError: a file there that is not what its name says.
    """
    key = digest(bed=bed.digest, first=seeds[0], n=len(seeds), steps=_FINE_STEPS, sigmas=(SIGMA_MIN, SIGMA_MAX))
    path = folder / "references" / f"{bed.name}-{key}.safetensors"
    if path.exists():
        return _read(path, key)
    found = _exact(bed, bed.law, seeds) if bed.law else _fine_runs(bed, seeds)
    tensors = {"endpoints": found.endpoints, "target": found.target, "floor": found.floor}
    write_tensors(path, tensors, {"key": key, "how": found.how})
    return found


def _read(path: Path, key: str) -> References:
    try:
        about, (endpoints, target, floor) = read_tensors(path, "endpoints", "target", "floor")
        if about["key"] != key:
            raise ValueError(f"it holds {about['key']}")
        return References(endpoints, target, floor, str(about["how"]))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path} does not hold the references its name says ({error}): remove it, and they are made again"
        ) from error


def _exact(bed: Testbed, law: ExactModel, seeds: Sequence[int]) -> References:
    noise = initial_noise(seeds, bed.event_shape, SIGMA_MAX, device=bed.device)
    flow = law.flow_with_error(noise, SIGMA_MAX, SIGMA_MIN, tol=2e-3)
    here, n = law.to(device="cpu"), len(seeds)
    target, floor = _noisy(here, 4 * n, _TARGET_SEED), _noisy(here, n, _FLOOR_SEED)
    how = (
        f"{len(target)} exact samples; flow by up to {flow.steps} Runge–Kutta steps of order six, off by about "
        f"{float(flow.error):.1e} RMS"
    )
    return References(flow.x.cpu(), target, floor, how)


def _noisy(law: ExactModel, count: int, seed: int) -> Tensor:
    """Samples of the law at σ_min."""
    clean = law.sample(count, torch.Generator().manual_seed(seed % 2**31))
    return clean + SIGMA_MIN * torch.randn(
        clean.shape, generator=torch.Generator().manual_seed(seed % 2**31 + 1), dtype=clean.dtype
    )


def _fine_runs(bed: Testbed, seeds: Sequence[int]) -> References:
    """A network's own: UniPC-3, the most accurate per evaluation on smooth networks, from the study's and from other seeds."""
    n = len(seeds)
    endpoints = _fine(bed, seeds)
    target, floor = (_fine(bed, range(first, first + n)) for first in (_TARGET_SEED, _FLOOR_SEED))
    how = f"{n} of the network's own {_FINE_STEPS}-step UniPC-3 samples, other seeds; flow by the same solver"
    return References(endpoints, target, floor, how)


def _fine(bed: Testbed, seeds: Sequence[int]) -> Tensor:
    sigmas = grids.karras(_FINE_STEPS, SIGMA_MIN, SIGMA_MAX)
    noise = initial_noise(seeds, bed.event_shape, SIGMA_MAX, device=bed.device)
    return torch.cat([sample(solvers.make("unipc_3"), bed.denoiser, x, sigmas).x.cpu() for x in noise.split(_CHUNK)])
