"""An evaluation from end to end: a model as a testbed whose target is real images.

Samples are kept as they grow. A file holds the 8-bit images of seeds first, first + 1, … under a name with the digest of all
that determines them, and is written anew, whole, after every chunk. A killed evaluation loses at most a chunk, and a later one
may ask for more images.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import InputError, NonFiniteError, needs, require
from steindiff.io import folders
from steindiff.io.files import digest
from steindiff.io.images import to_uint8
from steindiff.io.names import file_name
from steindiff.io.processes import barrier, rank
from steindiff.metrics import EnergyTarget, Features, FrechetTarget, Value, endpoint_rmse
from steindiff.metrics.features import features_for
from steindiff.models import Model
from steindiff.models.datasets import ImageSet
from steindiff.noise import mix
from steindiff.study.draw import draw
from steindiff.study.evaluation import FINE, Distances, Evaluation, Row, Run, Settings, Source
from steindiff.study.store import FORMAT, held, keep, kept
from steindiff.study.testbed import Testbed

with needs("cli", "a study"):
    from tqdm.auto import tqdm

LEAST, SHOWN, GROUPS = 4, 12, 20
ROOMS = ("samples", "distances")
"""Folders of an evaluation's own."""


def evaluate(
    model: Model,
    train: ImageSet,
    held: ImageSet,
    settings: Settings,
    outdir: str | Path,
    *,
    progress: bool = True,
    together: bool = False,
) -> Evaluation:
    """Draw every run from the same seeds and measure how far it is from training and from held-out images.

    The model is on the settings' device. Samples and distances are kept in `outdir`, and those that are there already are not
    computed again. Where all processes call this `together`, they share out the drawing of every batch; the first one measures
    and writes, and the others get an evaluation without rows.

    Raises:
        InputError: images of another shape than the model's, fewer than four of them, or features that do not fit them; another
            process has the folder.
    """
    _check(model, train, held)
    with folders.locked(outdir, ROOMS) as folder:
        return _evaluate(model, train, held, settings, folder, progress and not (together and rank()), together)


def _evaluate(
    model: Model, train: ImageSet, held: ImageSet, settings: Settings, folder: Path, progress: bool, together: bool
) -> Evaluation:
    features = None if settings.features == "none" else features_for(model.event_shape, settings.features, settings.device)
    bed, exact = (_testbed(model, train, precision, settings.device) for precision in (settings.precision, "no"))
    sampler = _Sampler(bed, exact, settings, folder / "samples", together)
    runs = [Run.of(name, settings, bed.setting) for name in settings.runs]
    drawn, failures = _draw(sampler, runs, progress)
    if together and rank():
        return Evaluation(model, settings, Source.of(train, train), Source.of(held, held), features, (), (), False, {})
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
        other = f"{what} images of shape {images.event_shape}, those of model {model.name} {model.event_shape}"
        fit = images.event_shape == model.event_shape
        require(fit, f"{other}: load them with its resolution and channels", source=images.source)
        require(len(images) >= LEAST, f"{len(images)} {what} images: need at least {LEAST}", source=images.source)
    if model.classes and (train.labels is None or len(train.classes) != model.classes):
        raise InputError(
            f"model {model.name} has {model.classes} classes, {train.source} {len(train.classes)}: give the images it was "
            "trained on"
        )


def _testbed(model: Model, train: ImageSet, precision: str, device: str) -> Testbed:
    """A model as a testbed; where it has classes, image i has that of a training image which its seed names."""
    labels = train.labels.cpu() if model.classes and train.labels is not None else None

    def conditioned(seeds: Sequence[int]) -> Denoiser:
        denoiser = model.denoiser
        if labels is not None:
            denoiser = model.labelled(labels[[mix(seed) % len(labels) for seed in seeds]])

        def in_bf16(x: Tensor, sigma: Tensor) -> Tensor:
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                return denoiser(x, sigma).to(x.dtype)

        return denoiser if precision == "no" else in_bf16

    classes = None if labels is None else hashlib.sha256(labels.numpy().tobytes()).hexdigest()
    key = digest(model=model.sha256, precision=precision, labels=classes)
    return Testbed(model.name, model.denoiser, model.event_shape, key, device, conditioned)


@dataclass(frozen=True, eq=False)
class _Samples:
    """Images of one run, uint8 (n, C, H, W)."""

    images: Tensor
    seconds: float = 0.0
    effect: Value | None = None
    """Endpoint RMSE between bf16 and float32, of unrounded images; None for float32 runs."""

    def points(self, n: int | None = None) -> Tensor:
        """The first n images, or all, as float32 in [−1, 1]."""
        return self.images[:n].float().mul_(2 / 255).sub_(1)


@dataclass(frozen=True, eq=False)
class _Sampler:
    """Draws the runs of a model in the settings' precision, by all processes together if so; `exact` is it in float32."""

    bed: Testbed
    exact: Testbed
    settings: Settings
    folder: Path
    together: bool = False

    def draw(self, run: Run, tick: Callable[[int], object]) -> _Samples:
        """The run's images: those on disk, and the rest in chunks; `tick` is told a batch's network evaluations."""
        s, key = self.settings, self.key(run)
        path = self.folder / f"{file_name(run.name, key)}.safetensors"
        samples = held(path, key, _Samples, "they are drawn again")
        samples = samples or _Samples(torch.empty(0, *self.bed.event_shape, dtype=torch.uint8))
        if self.together:
            barrier()  # all have read before one writes
        tick(min(run.n, len(samples.images)) * run.nfe)
        while (have := len(samples.images)) < run.n:
            seeds = range(s.first_seed + have, s.first_seed + min(have + s.chunk, run.n))
            how: dict[str, Any] = {"batch": s.batch, "together": self.together}
            drawn = draw(run.solver, self.bed, run.sigmas, seeds, **how, tick=lambda images: tick(images * run.nfe))
            images, effect = torch.from_numpy(to_uint8(drawn.samples)).permute(0, 3, 1, 2), samples.effect
            if not have and s.precision != "no":
                exact = draw(run.solver, self.exact, run.sigmas, seeds[: s.checked], **how).samples
                effect = endpoint_rmse(drawn.samples[: len(exact)], exact)
            samples = _Samples(torch.cat([samples.images, images]), samples.seconds + drawn.seconds, effect)
            if not (self.together and rank()):
                keep(path, key, samples)
        return _Samples(samples.images[: run.n], samples.seconds * run.n / len(samples.images), samples.effect)

    def key(self, run: Run) -> str:
        """A digest of all that determines the images, but for their number."""
        parts = {"solver": repr(run.solver), "sigmas": run.sigmas.tolist(), "first_seed": self.settings.first_seed}
        return digest(format=FORMAT, bed=self.bed.digest, **parts)


def _draw(sampler: _Sampler, runs: list[Run], progress: bool) -> tuple[dict[str, _Samples], dict[str, str]]:
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

    def to(self, real: "_Targets") -> Distances:
        features = real.features.distance(self.features) if self.features and real.features else None
        return Distances(real.energy.shares(self.energy).value, real.pixels.distance(self.pixels), features)


@dataclass(frozen=True, eq=False)
class _Bench:
    """Measures against the real images. `least` is of the smallest set: a jackknife's group has never fewer than two."""

    train: ImageSet
    held: ImageSet
    features: Features | None
    settings: Settings
    least: int
    folder: Path

    def row(self, run: Run, drawn: dict[str, _Samples], keys: dict[str, str]) -> Row:
        """A run's distances, and its error where there is a fine run too; a key determines a run's images."""
        samples, fine = drawn[run.name], drawn.get(FINE) if run.name != FINE else None

        def measured() -> Row:
            made, error = self._targets(samples.points()), None
            if fine is not None and not run.solver.stochastic:
                count = min(len(fine.images), len(samples.images))
                error = endpoint_rmse(samples.points(count), fine.points(count))
            to_train, to_held = map(made.to, self._real)
            return Row(run.name, run.nfe, run.n, to_train, to_held, error, samples.effect, samples.seconds)

        return self._kept(run.name, f"{keys[run.name]}, {keys[FINE] if fine else None}", measured)

    def floor(self, n: int) -> Row:
        """Training images stand for samples and, where there are enough, held-out ones beside the training images."""

        def measured() -> Row:
            train, held = self.train.take(slice(n)), self.held.take(slice(n))
            real_train, real_held = self._real
            to_held = self._targets(train.points()).to(real_held)
            if len(held) < n:
                to_train = None
            elif len(self.train) == len(self.held) == n:
                to_train = to_held
            else:
                to_train = self._targets(held.points()).to(real_train)
            return Row("real images (floor)", None, len(train), to_train, to_held)

        return self._kept("floor", f"the first {n} real images", measured)

    def _kept(self, name: str, images: str, measured: Callable[[], Row]) -> Row:
        """The row of a file, or a new one; the key `images` determines its images."""
        real = {"train": self.train.sha256, "held": self.held.sha256, "least": self.least}
        parts = {"images": images, **real, "features": self.features and self.features.sha256, "groups": self.settings.groups}
        return kept(self.folder, name, parts, Row, "it is measured again", measured)

    @cached_property
    def _real(self) -> tuple[_Targets, _Targets]:
        """The training and the held-out images."""
        return self._targets(self.train.points()), self._targets(self.held.points())

    def _targets(self, points: Tensor) -> _Targets:
        """Images (n, C, H, W) in [−1, 1]; pixels are compared in float64, which Apple's devices do not have."""
        place = self.settings.device if self.settings.device.startswith("cuda") else "cpu"
        flat = points.to(place).flatten(1).double()
        features = None if self.features is None else self._frechet(self.features(points))
        return _Targets(EnergyTarget(flat), self._frechet(flat), features)

    def _frechet(self, points: Tensor) -> FrechetTarget:
        return FrechetTarget(points, max(2, min(self.settings.groups or GROUPS, self.least // 2)))
