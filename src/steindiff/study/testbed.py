"""What a study runs on: a denoiser, what determines it, and what its derivatives cost.

Any denoiser makes a testbed: `Testbed(name, denoiser, event_shape, digest)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from steindiff import models
from steindiff.analytic import ExactModel, GaussianMixture
from steindiff.denoisers import Denoiser
from steindiff.divergence import Choice, choose
from steindiff.grids import SIGMA_MAX
from steindiff.io.files import digest
from steindiff.models.datasets import load_digits
from steindiff.noise import initial_noise
from steindiff.solvers import Setting
from steindiff.study.store import kept

REPEATS = 10
"""Timings of a derivative and of a forward, in turns; the least of each counts."""


@dataclass(frozen=True, eq=False)
class Testbed:
    """A denoiser to study.

    Attributes:
        denoiser: D(x, sigma), VE coordinates; an `ExactModel` has exact references.
        digest: a hash of all that determines the denoiser; results are kept under it.
        device: where the denoiser computes; it changes speed and rounding only.
        conditioned: gives the denoiser for images of these seeds, where they have classes; None where one serves all.
    """

    name: str
    denoiser: Denoiser
    event_shape: tuple[int, ...]
    digest: str
    device: str = "cpu"
    conditioned: Callable[[Sequence[int]], Denoiser] | None = None

    @property
    def law(self) -> ExactModel | None:
        """The law, where it is known."""
        return self.denoiser if isinstance(self.denoiser, ExactModel) else None

    @property
    def is_image(self) -> bool:
        """Whether samples are grey or RGB images."""
        return len(self.event_shape) == 3 and self.event_shape[0] in (1, 3)

    @property
    def setting(self) -> Setting:
        """What a solver with a grid of its own plans for: EDM's range, and the σ_data and guidance that the denoiser states."""
        return Setting.of(self.denoiser)

    def denoiser_for(self, seeds: Sequence[int]) -> Denoiser:
        """The denoiser of a batch whose images have these seeds."""
        return self.denoiser if self.conditioned is None else self.conditioned(seeds)


def names() -> tuple[str, ...]:
    """The testbeds that are always there."""
    return ("digits_mixture", *models.names())


def make(name: str, device: str = "cpu") -> Testbed:
    """The testbed of a name or of a model file. Raises InputError as `models.load`."""
    if name == "digits_mixture":
        # The key is of the data and the recipe, since the fitted numbers' last digits depend on the machine and its threads.
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


def price(bed: Testbed, seeds: Sequence[int], folder: Path | None = None, method: str = "vjp") -> Choice:
    """The price of a derivative of the testbed by this method (`divergence.METHODS`), measured once in a study's folder.

    The seeds are those of a batch, on whose size a network's price depends. Raises SteindiffError where it has no derivative.
    """

    def new() -> Choice:
        x = initial_noise(seeds, bed.event_shape, SIGMA_MAX, device=bed.device)
        return choose(bed.denoiser_for(seeds), x, x.new_tensor(1.0), methods=(method,), samples=len(x), repeats=REPEATS)

    parts = {"bed": bed.digest, "batch": len(seeds), "device": bed.device, "method": method}
    return kept(folder and folder / "prices", bed.name, parts, Choice, "it is measured again", new)
