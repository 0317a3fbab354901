"""An evaluation from end to end: a model as a testbed whose target is real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from tqdm.auto import tqdm

from steindiff.errors import InputError, NonFiniteError
from steindiff.io.files import digest, writable_folder
from steindiff.metrics import EnergyTarget, Features, FrechetTarget, endpoint_rmse
from steindiff.metrics.features import features_for
from steindiff.models import Model
from steindiff.models.datasets import ImageSet
from steindiff.study.evaluation import FINE, Distances, Evaluation, Row, Run, Settings, Source
from steindiff.study.samples import Sampler, Samples, testbed
from steindiff.study.store import FORMAT, Kind, file_name, kept

__all__ = ["evaluate"]

LEAST, SHOWN = 4, 12
WIDE = 1000
"""Dimensions beyond which the jackknife takes 5 groups and not 20: every group costs two sets of eigenvalues."""


def evaluate(
    model: Model, train: ImageSet, held: ImageSet, settings: Settings, outdir: str | Path, *, progress: bool = True
) -> Evaluation:
    """Draw every run from the same seeds and measure how far it is from training and from held-out images.

    Samples and distances are kept in `outdir`, and those that are there already are not computed again.

    Args:
        model: on the settings' device.
        train: images the model was trained on, of its shape.
        held: images it never saw, of its shape.
        settings: what to run.
        outdir: a folder, made if need be.
        progress: show bars on stderr.

    Raises:
        InputError: images of another shape than the model's, fewer than four of them, or features that do not fit them.
    """
    _check(model, train, held)
    folder, labels = writable_folder(outdir), _labels(model, train)
    features = None if settings.features == "none" else features_for(model.event_shape, settings.features, settings.device)
    bed, exact = (testbed(model, labels, precision, settings.device) for precision in (settings.precision, "no"))
    sampler = Sampler(bed, None if settings.precision == "no" else exact, settings, folder / "samples")
    runs = [Run.of(name, settings) for name in settings.runs]
    drawn, failures = _draw(sampler, runs, progress)
    used = train.shuffled(settings.n), held.shuffled(settings.n)
    bench = _Bench(*used, features, settings, min([len(used[0]), len(used[1]), *(run.n for run in runs)]), folder / "distances")
    keys = {run.name: f"{sampler.key(run)}, {run.n}" for run in runs}
    sizes = sorted({run.n for run in runs}, reverse=True)
    floors = tuple(bench.floor(n) for n in tqdm(sizes, unit="set", desc="real images", disable=not progress))
    rows = tuple(
        bench.row(run, drawn, keys) if run.name in drawn else Row(run.name, run.nfe, run.n, failure=failures[run.name])
        for run in tqdm(runs, unit="set", desc="distances", disable=not progress)
    )
    sources = [Source.of(whole, part) for whole, part in zip((train, held), used, strict=True)]
    split = train.source == held.source and sources[0] != sources[1]
    shown = {name: samples.images[:SHOWN] for name, samples in drawn.items()}
    return Evaluation(model, settings, sources[0], sources[1], features, rows, floors, split, shown)


def _check(model: Model, train: ImageSet, held: ImageSet) -> None:
    for what, images in (("training", train), ("held-out", held)):
        if images.event_shape != model.event_shape:
            raise InputError(
                f"the {what} images of {images.source} have shape {images.event_shape}, those of model {model.name} "
                f"{model.event_shape}: load them with its resolution and channels"
            )
        if len(images) < LEAST:
            raise InputError(f"{len(images)} {what} images in {images.source}: need at least {LEAST}")


def _labels(model: Model, train: ImageSet) -> Tensor | None:
    """The training images' classes, for a class-conditional model. Raises InputError where they do not fit it."""
    if not model.classes:
        return None
    if train.labels is None or len(train.classes) != model.classes:
        raise InputError(
            f"model {model.name} has {model.classes} classes, {train.source} {len(train.classes)}: give the images it was "
            "trained on"
        )
    return train.labels.cpu()


def _draw(sampler: Sampler, runs: list[Run], progress: bool) -> tuple[dict[str, Samples], dict[str, str]]:
    """The samples by name of their run, and why others failed."""
    drawn, failures = {}, {}
    total = sum(run.n * run.nfe for run in runs)
    with tqdm(total=total, unit="eval", unit_scale=True, desc="sampling", disable=not progress, mininterval=1.0) as bar:
        for run in runs:
            bar.set_postfix_str(run.name)
            try:
                drawn[run.name] = sampler.draw(run, bar.update)
            except NonFiniteError as error:
                failures[run.name] = str(error)
    return drawn, failures


class _Targets(NamedTuple):
    """Images as what is measured, and as what is measured against."""

    energy: EnergyTarget
    pixels: FrechetTarget
    features: FrechetTarget | None

    def to(self, real: _Targets) -> Distances:
        """Distances to other images."""
        features = real.features.distance(self.features) if self.features and real.features else None
        return Distances(real.energy.shares(self.energy).value, real.pixels.distance(self.pixels), features)


@dataclass(frozen=True, eq=False)
class _Bench:
    """Measures against the real images; rows that are in the folder are not measured again.

    Attributes:
        least: images of the smallest set: there are never fewer than two images a group of the jackknife.
    """

    train: ImageSet
    held: ImageSet
    features: Features | None
    settings: Settings
    least: int
    folder: Path

    def row(self, run: Run, drawn: dict[str, Samples], keys: dict[str, str]) -> Row:
        """A run's distances, and its error where there is a fine run too; a key determines a run's images."""
        samples, fine = drawn[run.name], drawn.get(FINE) if run.name != FINE else None

        def measured() -> Row:
            made, error = self._targets(samples.points()), None
            if fine is not None:
                count = min(len(fine.images), len(samples.images))
                error = endpoint_rmse(samples.points(count), fine.points(count))
            to_train, to_held = made.to(self._train), made.to(self._held)
            return Row(run.name, run.nfe, run.n, to_train, to_held, error, samples.effect, samples.seconds)

        return self._kept(run.name, f"{keys[run.name]}, {keys[FINE] if fine else None}", measured)

    def floor(self, n: int) -> Row:
        """Training images stand for samples and, where there are enough, held-out ones beside the training images."""

        def measured() -> Row:
            train, held = self.train.take(slice(n)), self.held.take(slice(n))
            to_held = self._targets(train.points()).to(self._held)
            if len(held) < n:
                to_train = None
            elif len(self.train) == len(self.held) == n:
                to_train = to_held
            else:
                to_train = self._targets(held.points()).to(self._train)
            return Row("real images (floor)", None, len(train), to_train, to_held)

        return self._kept("floor", f"the first {n} real images", measured)

    def _kept(self, name: str, images: str, measured: Callable[[], Row]) -> Row:
        """The row of a file, or a new one; the key `images` determines its images."""
        features = None if self.features is None else self.features.sha256
        key = digest(
            format=FORMAT, images=images, train=self.train.sha256, held=self.held.sha256, features=features,
            groups=self.settings.groups, least=self.least,
        )  # fmt: skip
        return kept(self.folder / f"{file_name(name, key)}.safetensors", key, Kind(Row.parse, "it is measured again"), measured)

    @cached_property
    def _train(self) -> _Targets:
        return self._targets(self.train.points())

    @cached_property
    def _held(self) -> _Targets:
        return self._targets(self.held.points())

    def _targets(self, points: Tensor) -> _Targets:
        """Images (n, C, H, W) in [−1, 1]; pixels are compared in float64, which Apple's devices do not have."""
        place = self.settings.device if self.settings.device.startswith("cuda") else "cpu"
        flat = points.to(place).flatten(1).double()
        features = None if self.features is None else self._frechet(self.features(points))
        return _Targets(EnergyTarget(flat), self._frechet(flat), features)

    def _frechet(self, points: Tensor) -> FrechetTarget:
        wanted = self.settings.groups or (5 if points.shape[1] > WIDE else 20)
        return FrechetTarget(points, max(2, min(wanted, self.least // 2)))
