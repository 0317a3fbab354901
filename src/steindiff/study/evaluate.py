"""An evaluation from end to end: draw, measure, write."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from steindiff.errors import InputError, NonFiniteError
from steindiff.io.files import writable_folder, write_json, write_text
from steindiff.metrics import Features, endpoint_rmse, load_features
from steindiff.metrics.features import names
from steindiff.models import Model
from steindiff.models.datasets import ImageSet
from steindiff.report.evaluate import Floor, Report, Row, Source, draw_sheet
from steindiff.study.evaluate_measure import Distances, Points, Rulers, kept
from steindiff.study.evaluate_samples import Sampler, Samples, Tick, points
from steindiff.study.evaluate_settings import FINE, Run, Settings, build

__all__ = ["evaluate"]

LEAST = 4


def evaluate(
    model: Model, train: ImageSet, held: ImageSet, settings: Settings, outdir: str | Path, *, progress: bool = True
) -> Report:
    """Draw every run from the same seeds and measure how far it is from training and from held-out images.

    Writes quality.json, quality.md and samples.png to `outdir`, and the samples beside them. Samples and distances that are
    there already are not computed again.

    Args:
        model: on the settings' device.
        train: images the model was trained on, of its shape.
        held: images it never saw, of its shape.
        settings: what to run.
        outdir: made if need be.
        progress: bars on stderr.

    Raises:
        InputError: images of another shape than the model's, fewer than four of them, or features that do not fit them.
    """
    _check(model, train, held)
    folder = writable_folder(outdir)
    features = _features(model, settings)
    sampler = Sampler(model, settings, _labels(model, train), folder / "samples")
    runs = [build(name, settings) for name in settings.runs]
    drawn, failures = _draw(sampler, runs, progress)
    used = train.shuffled(settings.n), held.shuffled(settings.n)
    least = min([len(used[0]), len(used[1]), *(run.n for run in runs)])
    place = settings.device if settings.device.startswith("cuda") else "cpu"  # Apple's devices have no float64
    bench = _Bench(*used, Rulers(features, settings.groups, least, place), folder / "distances.json")
    rows, floors = bench.measure(runs, drawn, failures, progress)
    sources = tuple(Source.of(whole, part) for whole, part in zip((train, held), used, strict=True))
    split = train.source == held.source and sources[0] != sources[1]
    report = Report(model, settings, sources[0], sources[1], features, rows, floors, split)
    write_json(folder / "quality.json", report.as_json())
    write_text(folder / "quality.md", f"## Quality\n\n{report.markdown()}")
    if drawn:
        draw_sheet(folder / "samples.png", {name: samples.images for name, samples in drawn.items()})
    return report


def _check(model: Model, train: ImageSet, held: ImageSet) -> None:
    for what, images in (("training", train), ("held-out", held)):
        if images.event_shape != model.event_shape:
            raise InputError(
                f"the {what} images of {images.source} have shape {images.event_shape}, those of model {model.name} "
                f"{model.event_shape}: load them with its resolution and channels"
            )
        if len(images) < LEAST:
            raise InputError(f"{len(images)} {what} images in {images.source}: need at least {LEAST}")


def _features(model: Model, settings: Settings) -> Features | None:
    """Shipped ones only where they fit the images; a file of the user's has to."""
    if settings.features == "none":
        return None
    features = load_features(settings.features, settings.device)
    try:
        features.check(model.event_shape)
    except InputError:
        if settings.features in names():
            return None
        raise
    return features


def _labels(model: Model, train: ImageSet) -> Tensor | None:
    """The training images' classes, for a class-conditional model. Raises InputError where they do not fit it."""
    classes = int(model.info.get("unet", {}).get("num_classes", 0))
    if not classes:
        return None
    if train.labels is None or len(train.classes) != classes:
        raise InputError(
            f"model {model.name} has {classes} classes, {train.source} {len(train.classes)}: give the images it was trained on"
        )
    return train.labels.cpu()


def _draw(sampler: Sampler, runs: list[Run], progress: bool) -> tuple[dict[str, Samples], dict[str, str]]:
    """The samples by name of their run, and why others failed."""
    drawn, failures = {}, {}
    total = sum(sampler.left(run) for run in runs)
    with tqdm(total=total, unit="eval", unit_scale=True, desc="sampling", disable=not progress, mininterval=1.0) as bar:
        for run in runs:
            try:
                drawn[run.name] = sampler.draw(run, _ticker(bar, run))
            except NonFiniteError as error:
                failures[run.name] = str(error)
    return drawn, failures


def _ticker(bar: Any, run: Run) -> Tick:
    """Moves the bar and says how fast the run is."""
    start, done = time.perf_counter(), 0

    def tick(evaluations: int) -> None:
        nonlocal done
        done += evaluations
        speed = done / run.nfe / (time.perf_counter() - start)
        bar.set_postfix_str(f"{run.name}: {speed:.1f} images/s", refresh=False)
        bar.update(evaluations)

    return tick


@dataclass(frozen=True, eq=False)
class _Bench:
    """Measures against the real images; what the file at `path` holds is not measured again."""

    train: ImageSet
    held: ImageSet
    rulers: Rulers
    path: Path

    def measure(
        self, runs: list[Run], drawn: dict[str, Samples], failures: dict[str, str], progress: bool
    ) -> tuple[tuple[Row, ...], tuple[Floor, ...]]:
        """Every run's distances, and what real images of the same numbers have among themselves."""
        rows, floors = [], []
        sizes = sorted({run.n for run in runs}, reverse=True)
        with tqdm(total=len(sizes) + len(drawn), unit="set", desc="distances", disable=not progress) as bar:
            for n in sizes:
                bar.set_postfix_str(f"real images, {n}")
                floors.append(self._floor(n))
                bar.update()
            for run in runs:
                if run.name not in drawn:
                    rows.append(Row(run.name, run.nfe, run.n, failure=failures[run.name]))
                    continue
                bar.set_postfix_str(run.name)
                rows.append(self._row(run, drawn[run.name], drawn.get(FINE)))
                bar.update()
        return tuple(rows), tuple(floors)

    def _row(self, run: Run, samples: Samples, fine: Samples | None) -> Row:
        made = Points(lambda: points(samples.images), self.rulers)
        key = f"{samples.digest}, {run.n}"
        to_train, to_held = (self._distances(run.name, key, made, which) for which in ("train", "held-out"))
        error = None
        if fine is not None and run.name != FINE:
            count = min(len(fine.images), len(samples.images))
            error = endpoint_rmse(points(samples.images[:count]), points(fine.images[:count]))
        return Row(run.name, run.nfe, run.n, to_train, to_held, error, samples.effect, samples.seconds)

    def _floor(self, n: int) -> Floor:
        """Training images stand for samples and, where there are enough, held-out ones beside the training images."""
        train, held = self.train.take(slice(n)), self.held.take(slice(n))
        to_held = self._distances("floor", train.sha256, Points(train.points, self.rulers), "held-out")
        if len(held) < n:
            return Floor(len(train), None, to_held)
        if len(self.train) == len(self.held) == n:
            return Floor(n, to_held, to_held)
        return Floor(len(train), self._distances("floor", held.sha256, Points(held.points, self.rulers), "train"), to_held)

    def _distances(self, name: str, key: str, images: Points, which: str) -> Distances:
        real, target = (self.train, self._train) if which == "train" else (self.held, self._held)
        parts = {"images": key, "real": real.sha256, "rulers": self.rulers.digest}
        return kept(self.path, f"{name}-{which}", lambda: images.to(target), **parts)

    @cached_property
    def _train(self) -> Points:
        return Points(self.train.points, self.rulers)

    @cached_property
    def _held(self) -> Points:
        return Points(self.held.points, self.rulers)
