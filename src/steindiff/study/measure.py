"""What samples of a testbed are measured against, and every metric of them.

References are samples of the testbed's law and the end points of its exact flow: exact for an `ExactModel`, else the network's
own fine runs. A metric is a `Paired`: its difference to another set from the same seeds has a standard error.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from steindiff import solvers
from steindiff.analytic import ExactModel, Flow
from steindiff.corrections.bands import Cosine
from steindiff.grids import SIGMA_MAX, SIGMA_MIN
from steindiff.io import processes
from steindiff.metrics import (
    EnergyTarget,
    Features,
    FrechetTarget,
    Judge,
    JudgeFiles,
    ManifoldTarget,
    Paired,
    Shares,
    SlicedTarget,
    SpectrumTarget,
    Value,
    component_weights,
    endpoint_rmse,
    judge,
    principal_features,
)
from steindiff.metrics.features import features_for
from steindiff.noise import initial_noise
from steindiff.study.draw import draw
from steindiff.study.grid import AXES, METRICS
from steindiff.study.store import kept_together
from steindiff.study.testbed import Testbed

_TARGET_SEED, _FLOOR_SEED = 1_000_000_000, 2_000_000_000
_NEAR = ("precision", "recall", "coverage")


@dataclass(frozen=True, eq=False)
class References:
    """What samples of a testbed are measured against.

    Attributes:
        endpoints: where the exact flow takes the noise of the study's seeds, (n, *event).
        target: independent samples of the law at σ_min; none where only end points are compared.
        floor: n others, which stand for a perfect sampler's; none as for the target.
        how: one sentence on how they were made.
        error: the estimated RMS error of a coordinate of the end points; None where nobody asked.
    """

    endpoints: Tensor
    target: Tensor
    floor: Tensor
    how: str
    error: float | None = None


def references(
    bed: Testbed, seeds: Sequence[int], folder: Path | None = None, checked: int = 0, law: bool = True
) -> References:
    """The references for consecutive seeds, made once in a study's folder; `law`: with samples of the law.

    So many (`checked`) of a network's fine runs are repeated with twice the steps, for `References.error`. Processes that have
    joined call this together and share the work. Raises NonFiniteError
    where a fine run diverged.
    """

    def new() -> References:
        return _exact(bed, bed.law, seeds, law) if bed.law else _fine_runs(bed, seeds, checked, law)

    levels = bed.setting.sigma_min, bed.setting.sigma_max
    how = {"steps": bed.fine_steps, "sigmas": levels, "checked": 0 if bed.law else checked, **({} if law else {"law": False})}
    parts = {"bed": bed.digest, "first": seeds[0], "n": len(seeds), **how}
    return kept_together(folder and folder / "references", bed.name, parts, References, "they are made again", new)


def _exact(bed: Testbed, exact: ExactModel, seeds: Sequence[int], law: bool) -> References:
    mine = processes.share(len(seeds))
    noise = initial_noise(seeds[mine.start : mine.stop], bed.event_shape, SIGMA_MAX, device=bed.device)
    part = exact.flow_with_error(noise, SIGMA_MAX, SIGMA_MIN, tol=2e-3)
    steps = int(processes.gather(torch.tensor([part.steps])).max())
    flow = Flow.of(processes.gather(part.x), processes.gather(part.errors), steps)
    here, n, error = exact.to(device="cpu"), len(seeds), float(flow.error)
    how = f"flow by up to {steps} Adams steps of order five, off by about {error:.1e} RMS"
    if not law:
        none = flow.x[:0].cpu()
        return References(flow.x.cpu(), none, none, how, error)
    target, floor = _noisy(here, 4 * n, _TARGET_SEED), _noisy(here, n, _FLOOR_SEED)
    return References(flow.x.cpu(), target, floor, f"{len(target)} exact samples; {how}", error)


def _noisy(law: ExactModel, count: int, seed: int) -> Tensor:
    """Draw samples of the law at σ_min."""
    first, second = (torch.Generator().manual_seed(seed % 2**31 + i) for i in (0, 1))
    clean = law.sample(count, first)
    return clean + SIGMA_MIN * torch.randn(clean.shape, generator=second, dtype=clean.dtype)


def _fine_runs(bed: Testbed, seeds: Sequence[int], checked: int, law: bool) -> References:
    """A denoiser's own samples by UniPC-3, the most accurate solver per evaluation on smooth networks."""
    n, run = len(seeds), partial(draw, solvers.make("unipc_3"), bed, together=True)
    sigmas, finer_sigmas = (bed.setting.karras(steps) for steps in (bed.fine_steps, 2 * bed.fine_steps))
    endpoints = run(sigmas, seeds).samples
    target = floor = endpoints[:0]
    how, error = f"flow by {bed.fine_steps}-step UniPC-3 runs", None
    if law:
        target, floor = (run(sigmas, range(first, first + n)).samples for first in (_TARGET_SEED, _FLOOR_SEED))
        how = f"{n} of its own {bed.fine_steps}-step UniPC-3 samples, other seeds; flow by the same solver"
    if checked:
        finer = run(finer_sigmas, seeds[:checked]).samples
        error = endpoint_rmse(finer, endpoints[:checked]).value
        how = f"{how}, off by about {error:.1e} RMS"
    return References(endpoints, target, floor, how, error)


@dataclass(frozen=True, eq=False)
class Measures:
    """One set of samples, measured: statistics by metric, and the log ratio of power to the target's by band."""

    statistics: dict[str, Paired]
    spectrum: list[float]

    @property
    def values(self) -> dict[str, Value]:
        """The numbers by metric."""
        return {name: s.value for name, s in self.statistics.items()}

    @property
    def spread(self) -> dict[str, Tensor]:
        """What the standard error of a difference follows from, by metric."""
        return {name: s.spread for name, s in self.statistics.items()}


def changes(run: Measures, base: Measures) -> dict[str, Value]:
    """A run less another from the same seeds, by metric."""
    return {name: s.minus(base.statistics[name]) for name, s in run.statistics.items() if name in base.statistics}


def judges_of(bed: Testbed, files: Sequence[JudgeFiles], target: Tensor, n: int) -> list[Judge]:
    """What measures FID, inception score and FD-DINOv2 of n images of a testbed; nothing for points that are no images.

    Reference statistics are those of the files or, where none is named, of the testbed's own target; then a number is a
    distance to what the network itself makes in fine runs, and not a published one.
    Raises InputError as `metrics.judge`, and for too few images for a covariance of the extractor's features.
    """
    found = [
        judge(one.kind, one.path, one.reference, device=bed.device, real=None if one.reference else [target])
        for one in (files if bed.is_image else ())
    ]
    for made in found:
        made.check(n)
    return found


@dataclass(frozen=True, eq=False)
class Ruler:
    """Measures samples of a testbed against its references; what belongs to the target is computed once.

    energy      energy distance to the target
    frechet     Fréchet distance, of pixels or of the target's leading principal axes
    features    Fréchet distance in the features of a CIFAR-10 classifier, for RGB images of its sizes
    sliced      sliced 2-Wasserstein distance, squared
    spectrum    RMS log ratio of power over frequency bands, for images
    precision, recall, coverage    by k-NN, in the features or the axes
    components  total variation of the component weights, for mixtures
    endpoint    RMSE to the exact flow's end points of the same noise (not for sets that are no function of that noise)
    fid, inception_score, fd_dinov2    by the judges that are given, for images

    `metrics` are measured as far as the testbed has them. So many `axes` stand for the pixels where there are more pixels.
    `seeds` are those of the end points.
    """

    bed: Testbed
    references: References
    judges: Sequence[Judge] = ()
    metrics: Collection[str] = METRICS
    axes: int = AXES
    seeds: Sequence[int] = ()

    def measure(self, x: Tensor, paired: bool = True) -> Measures:
        """Measure samples (n, *event); paired: they are a function of the noise of the study's seeds."""
        ratios, found = list[float](), {name: statistic(x) for name, statistic in self._statistics.items()}
        if self._spectrum is not None:
            spectrum = self._spectrum.spectrum(x)
            found["spectrum"], ratios = spectrum.rms, spectrum.ratios.tolist()
        if self._manifold is not None:
            manifold = self._manifold.compare(self._view(x))
            found |= {name: getattr(manifold, name) for name in _NEAR if name in self.metrics}
        for one in self.judges:
            found |= one.measure(x)
        if "endpoint" in self.metrics and paired:
            found["endpoint"] = _endpoint(x, self.references.endpoints)
        return Measures(found, ratios)

    @cached_property
    def _statistics(self) -> dict[str, Callable[[Tensor], Paired]]:
        """What measures the wanted metrics that are a number each, and that the testbed has."""
        target, law, found = self.references.target, self.bed.law, dict[str, Callable[[Tensor], Paired]]()
        if "energy" in self.metrics:
            found["energy"] = EnergyTarget(target).shares
        if "frechet" in self.metrics:
            pixels = FrechetTarget(self._axes(target))
            found["frechet"] = lambda x: pixels.replicates(self._axes(x))
        if "sliced" in self.metrics:
            found["sliced"] = SlicedTarget(target, count=64).shares
        if "features" in self.metrics and self._features is not None:
            features = FrechetTarget(self._view(target))
            found["features"] = lambda x: features.replicates(self._view(x))
        if "components" in self.metrics and law is not None:
            found["components"] = lambda x: component_weights(x, law, SIGMA_MIN).total_variation
        return found

    @cached_property
    def _axes(self) -> Callable[[Tensor], Tensor]:
        target = self.references.target
        if target[0].numel() <= self.axes:
            return lambda x: x.flatten(1).double()
        return principal_features(target, min(self.axes, len(target) // 4))

    @cached_property
    def _spectrum(self) -> SpectrumTarget | None:
        if "spectrum" not in self.metrics or not self.bed.is_image:
            return None
        return SpectrumTarget(self.references.target, Cosine(min(8, self.bed.event_shape[-1] // 2)))

    @cached_property
    def _features(self) -> Features | None:
        """The classifier's, where its images have this shape."""
        return features_for(self.bed.event_shape) if self.bed.law is None else None

    @cached_property
    def _manifold(self) -> ManifoldTarget | None:
        if not set(_NEAR) & set(self.metrics):
            return None
        # As many as samples: coverage counts the target's points.
        return ManifoldTarget(self._view(self.references.target[: len(self.references.endpoints)]))

    def _view(self, x: Tensor) -> Tensor:
        """What neighbours are looked for in."""
        return self._axes(x) if self._features is None else self._features(x.clamp(-1, 1))


def _endpoint(x: Tensor, reference: Tensor) -> Shares:
    """The RMSE with each image's share in it by the delta method: s_i/(2 rmse), s_i its mean square."""
    rmse = endpoint_rmse(x, reference).value
    squares = (x.double() - reference.double()).flatten(1).square().mean(1)
    return Shares(rmse, squares / (2 * max(rmse, 1e-300)), torch.zeros(2, dtype=torch.float64))
