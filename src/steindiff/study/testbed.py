"""What a study runs on: a denoiser, what determines it, and what its derivatives cost.

Any denoiser makes a testbed: `Testbed(name, denoiser, event_shape, digest)`.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from steindiff import models
from steindiff.analytic import ExactModel, FactorMixture, Gaussian, GaussianMixture
from steindiff.denoisers import Denoiser, Guided
from steindiff.divergence import Choice, choose
from steindiff.errors import InputError, needs, require
from steindiff.integrations.loading import load
from steindiff.io import processes
from steindiff.io.files import digest
from steindiff.models.datasets import load_digits
from steindiff.models.model import label_of
from steindiff.noise import initial_noise
from steindiff.schedules import VE, Schedule
from steindiff.solvers import Setting
from steindiff.study.store import kept_together

REPEATS = 10
"""Timings of a derivative and of a forward, in turns; the least of each counts."""
FINE_STEPS, GUIDED_STEPS = 50, 200
"""Steps of the fine runs of a network, and of a guided law, whose flow is less smooth."""
MIXTURES = ("digits", "wine", "cifar10_mixture")
"""Exact mixtures that make guided testbeds, each guided to one of its components."""
GUIDED = tuple(f"{what}_guided_{w}" for what in (*MIXTURES, "digits_classes") for w in (1, 2, 3, 5, 8))
"""Guided testbeds: mixtures, and a network. Another scale in the place of these makes another."""


@dataclass(frozen=True, eq=False)
class Testbed:
    """A denoiser to study.

    Attributes:
        denoiser: D(x, sigma), VE coordinates; an `ExactModel` has exact references.
        digest: a hash of all that determines the denoiser; results are kept under it.
        device: where the denoiser computes; it changes speed and rounding only.
        conditioned: gives the denoiser for images of these seeds, where they have classes; None where one serves all.
        fine_steps: steps of the fine runs that stand for the flow of a denoiser whose law is not known.
        kind: what a report calls the denoiser where its law is not known: network, guided or guided network.
        classes: how many classes there are, of which a seed names one; 0 where images have none.
    """

    name: str
    denoiser: Denoiser
    event_shape: tuple[int, ...]
    digest: str
    device: str = "cpu"
    conditioned: Callable[[Sequence[int]], Denoiser] | None = None
    fine_steps: int = FINE_STEPS
    kind: str = "network"
    classes: int = 0

    @property
    def law(self) -> ExactModel | None:
        """The law, where it is known."""
        return self.denoiser if isinstance(self.denoiser, ExactModel) else None

    @property
    def is_image(self) -> bool:
        """Whether samples are grey or RGB images."""
        return len(self.event_shape) == 3 and self.event_shape[0] in (1, 3)

    @cached_property
    def setting(self) -> Setting:
        """What a run plans for: EDM's range within the denoiser's own, and the σ_data and guidance that it states."""
        return Setting.of(self.denoiser_for((0,)), event=self.event_shape)

    def label(self, seed: int) -> int:
        """The class that a seed names, where there are classes."""
        return label_of(seed, self.classes)

    def denoiser_for(self, seeds: Sequence[int]) -> Denoiser:
        """The denoiser of a batch whose images have these seeds."""
        return self.denoiser if self.conditioned is None else self.conditioned(seeds)


def names() -> tuple[str, ...]:
    """The testbeds that are always there."""
    return ("digits_mixture", "wine_mixture", *models.names(), *GUIDED)


def make(name: str, device: str = "cpu") -> Testbed:
    """The testbed of a name or of a model file.

    WHAT_guided_W is one of `MIXTURES` or a model, by name or file, guided with the scale W to the class of a seed.

    Raises:
        InputError: as `models.load`, and where the model is not one for guidance.
    """
    # Keys are of the data and the recipe, since the fitted numbers' last digits depend on the machine and its threads.
    if name == "digits_mixture":
        return Testbed(name, digits_mixture().to(torch.float32, device), (1, 8, 8), _digits_key(name), device)
    if name == "wine_mixture":
        key = digest(law=name, version=1, data=hashlib.sha256(_wine()[0].numpy().tobytes()).hexdigest())
        return Testbed(name, wine_mixture().to(torch.float32, device), (13,), key, device)
    if found := re.fullmatch(r"(.+)_guided_(\d+(?:\.\d+)?)", name):
        # The networks of these names have no classes.
        return (_guided_mixture if found[1] in MIXTURES else guided_model)(name, found[1], float(found[2]), device)
    model = load(name, device=device)
    bed = Testbed(model.name, model.denoiser, model.event_shape, digest(file=model.sha256), device)
    return replace(bed, conditioned=model.of_seeds, classes=model.classes) if model.needs_class else bed


def digits_mixture() -> GaussianMixture:
    """One Gaussian per class of scikit-learn's 8×8 digits in [−1, 1], covariances + 0.01, as images (1, 8, 8)."""
    parts = load_digits()
    pixels = torch.cat([part.points() for part in parts]).double().flatten(1)
    labels = torch.cat([part.labels for part in parts if part.labels is not None])
    return _by_class(pixels, labels, (1, 8, 8), 0.01)


def wine_mixture() -> GaussianMixture:
    """One Gaussian per class of scikit-learn's wine data, each coordinate of deviation 0.5, covariances + 0.01·0.25."""
    points, labels = _wine()
    return _by_class(0.5 * (points - points.mean(0)) / points.std(0), labels, (13,), 0.0025)


def guided(bed: Testbed, classes: int, conditional: Callable[[Tensor], Denoiser], scale: float, fine_steps: int) -> Testbed:
    """A testbed guided to the class that a seed names: D + w (D_c − D), where D is the testbed's; a batch has all classes.

    Its own law is not known; the flow is that of fine runs of the guided denoiser.

    Args:
        bed: the testbed of all classes together.
        classes: how many there are.
        conditional: D_c of labels c, one for each image.
        scale: w.
        fine_steps: steps of the fine runs.
    """
    whole = Guided(bed.denoiser, bed.denoiser, scale)  # it says σ_data and the scale; images have classes
    key = digest(law=bed.digest, guidance=scale)
    made = replace(bed, denoiser=whole, digest=key, fine_steps=fine_steps, classes=classes)

    def conditioned(seeds: Sequence[int]) -> Denoiser:
        return Guided(conditional(torch.tensor([made.label(seed) for seed in seeds])), bed.denoiser, scale)

    return replace(made, conditioned=conditioned)


def _guided_mixture(name: str, what: str, scale: float, device: str) -> Testbed:
    """A mixture, guided to one of its components; every denoiser is exact."""
    whole = make(what if what.endswith("_mixture") else f"{what}_mixture", device)
    key = _digits_key(f"{what}_guided") if what == "digits" else whole.digest
    bed = replace(whole, name=name, digest=key, kind="guided")
    if not isinstance(whole.law, GaussianMixture | FactorMixture):
        raise InputError(f"{name}: {whole.name} is no mixture; take one of {', '.join(MIXTURES)}")
    laws, deviation = components(whole.law), whole.law.sigma_data
    return guided(bed, len(laws), lambda labels: OfClasses(laws, labels, deviation), scale, GUIDED_STEPS)


def components(mixture: GaussianMixture | FactorMixture) -> tuple[ExactModel, ...]:
    """The law of each component."""
    if isinstance(mixture, GaussianMixture):
        return tuple(Gaussian(*part) for part in zip(mixture.means, mixture.covariances, strict=True))
    one, parts = mixture.weights.new_ones(1), (mixture.means, mixture.loadings, mixture.diagonal)
    return tuple(FactorMixture(one, *(number[None] for number in part)) for part in zip(*parts, strict=True))


def guided_model(name: str, what: str, scale: float, device: str) -> Testbed:
    """A class-conditional network, by name or file, guided to one of its classes; the testbed is called as `name` is.

    Raises:
        InputError: as `models.load`, and where the model has no null class.
    """
    model = load(what, device=device)
    whole = model.guided(torch.tensor(0), scale)  # refuses a model that is not one for guidance
    named = Path(name).name.replace(Path(what).name, model.name)
    key = digest(law=digest(file=model.sha256), guidance=scale)
    bed = Testbed(named, whole, model.event_shape, key, device, kind="guided network")
    conditioned = partial(model.of_seeds, scale=scale)
    return replace(bed, fine_steps=GUIDED_STEPS, classes=model.classes, conditioned=conditioned)


@dataclass(frozen=True, eq=False)
class OfClasses:
    """A denoiser whose image i has the law of label i; `sigma_data` is that of all classes together."""

    laws: tuple[ExactModel, ...]
    labels: Tensor
    sigma_data: float
    schedule: ClassVar[Schedule] = VE()
    conditioned: ClassVar[bool] = True

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma), each image by its own law. Raises InputError for another number of images than labels."""
        require(len(x) == len(self.labels), "need an image for each label", images=len(x), labels=len(self.labels))
        order = self.labels.argsort(stable=True)
        classes, counts = self.labels.unique(return_counts=True)
        rows = zip(classes.tolist(), order.split(counts.tolist()), strict=True)
        parts = [self.laws[c](x[i], sigma[i] if sigma.ndim else sigma) for c, i in rows]
        return torch.cat(parts)[order.argsort()]


def _digits_key(name: str) -> str:
    return digest(law=name, version=1, data=[part.sha256 for part in load_digits()])


def _wine() -> tuple[Tensor, Tensor]:
    """The points, (178, 13) float64, and their classes."""
    with needs("metrics", "the testbed of wines"):
        from sklearn.datasets import load_wine
    bunch = load_wine()
    return torch.from_numpy(bunch.data), torch.from_numpy(bunch.target)


def _by_class(points: Tensor, labels: Tensor, shape: tuple[int, ...], ridge: float) -> GaussianMixture:
    """One Gaussian per class of points (n, d), its covariance + ridge."""
    groups = [points[labels == c] for c in range(int(labels.max()) + 1)]
    weights = torch.tensor([len(g) for g in groups], dtype=torch.float64)
    identity = torch.eye(points.shape[1], dtype=torch.float64)
    covariances = torch.stack([g.T.cov() + ridge * identity for g in groups])
    means = torch.stack([g.mean(0) for g in groups]).reshape(len(groups), *shape)
    return GaussianMixture(weights / weights.sum(), means, covariances)


def price(bed: Testbed, seeds: Sequence[int], folder: Path | None = None, method: str = "vjp") -> Choice:
    """The price of a derivative of the testbed by this method (`divergence.METHODS`), measured once in a study's folder.

    The seeds are those of a batch, on whose size a network's price depends. Processes that have joined call this together and
    get the first one's price. Each measures, since the first derivative of a process takes seconds, for which the others would
    wait later. Raises SteindiffError where it has no derivative.
    """

    def new() -> Choice:
        x = initial_noise(seeds, bed.event_shape, bed.setting.sigma_max, device=bed.device)
        return choose(bed.denoiser_for(seeds), x, x.new_tensor(1.0), methods=(method,), samples=len(x), repeats=REPEATS)

    parts = {"bed": bed.digest, "batch": len(seeds), "device": bed.device, "method": method}
    return processes.told(kept_together(folder and folder / "prices", bed.name, parts, Choice, "it is measured again", new))
