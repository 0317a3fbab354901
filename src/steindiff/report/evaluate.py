"""What an evaluation found: JSON, a section for a model card, and a picture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from torch import Tensor

from steindiff.io.files import manifest, sha256
from steindiff.io.images import save_labelled_rows
from steindiff.metrics import Features, Value
from steindiff.models import Model
from steindiff.models.datasets import ImageSet
from steindiff.models.store import WEIGHTS
from steindiff.study.evaluate_measure import Distances
from steindiff.study.evaluate_settings import RUNS, Settings

__all__ = ["Floor", "Report", "Row", "Source", "draw_sheet"]

COLUMNS = 12
"""Seeds in the picture."""


@dataclass(frozen=True)
class Source:
    """Where real images come from.

    Attributes:
        name: of the file or folder, without this machine's path.
        images: in it.
        used: of these, at random.
        sha256: of all of them.
    """

    name: str
    images: int
    used: int
    sha256: str

    @classmethod
    def of(cls, whole: ImageSet, part: ImageSet) -> Source:
        """Of a set and the part of it that is measured against."""
        return cls(Path(whole.source).name, len(whole), len(part), whole.sha256)


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        n: its samples.
        train, held: distances to training and to held-out images; None where it failed.
        error: endpoint RMSE to the fine run, image by image; None for the fine run itself, and without one.
        effect: endpoint RMSE between bf16 and float32; None in float32.
        seconds: of sampling.
        failure: why there are no samples.
    """

    name: str
    nfe: int
    n: int
    train: Distances | None = None
    held: Distances | None = None
    error: Value | None = None
    effect: Value | None = None
    seconds: float = 0.0
    failure: str = ""


@dataclass(frozen=True)
class Floor:
    """Real images in the place of n samples: training ones against the held-out, held-out ones against the training.

    Attributes:
        n: real images.
        train: held-out images to training ones; None where there are too few of them.
        held: training images to held-out ones.
    """

    n: int
    train: Distances | None
    held: Distances


@dataclass(frozen=True, eq=False)
class Report:
    """An evaluation's numbers, with all that led to them; split: the held-out images were held out of the training data."""

    model: Model
    settings: Settings
    train: Source
    held: Source
    features: Features | None
    rows: tuple[Row, ...]
    floors: tuple[Floor, ...]
    split: bool = False

    def as_json(self) -> dict[str, Any]:
        """Everything, for `write_json`."""
        features = self.features
        return manifest(
            model={"name": self.model.name, "sha256": self.model.sha256},
            settings=dataclasses.asdict(self.settings),
            train=dataclasses.asdict(self.train),
            held_out=dataclasses.asdict(self.held),
            features=features and {"name": features.name, "sha256": features.sha256, "accuracy": features.info.get("accuracy")},
            runs=[_tree(row) for row in self.rows],
            floors=[_tree(floor) for floor in self.floors],
        )

    def command(self) -> str:
        """The command that does it again, without this machine's folders."""
        s, default = self.settings, Settings()
        parts = ["steindiff evaluate", f"--model {self._model_name()}"]
        parts.append(f"--data {quote(self.train.name)}")
        if self.train.name != "digits":
            parts.append(f"--held-out {self.held.images if self.split else quote(self.held.name)}")
        parts.append(f"--n {s.n}")
        for option, name in (("n-few", "n_few"), ("seed", "first_seed"), ("fine-steps", "fine_steps"), ("groups", "groups")):
            if getattr(s, name) != getattr(default, name):
                parts.append(f"--{option} {getattr(s, name)}")
        if s.runs != RUNS:
            parts.append(f"--runs {','.join(s.runs)}")
        if s.features != default.features:
            parts.append(f"--features {quote(Path(s.features).name)}")
        if s.precision != default.precision:
            parts.append(f"--precision {s.precision}")
        return " ".join([*parts, f"--outdir outputs/quality-{self.model.name}"])

    def _model_name(self) -> str:
        """A shipped model's name, also for the file it was copied from; else the file's, without its folder."""
        path = self.model.path
        shipped = WEIGHTS / path.name
        same = path.parent == WEIGHTS or (shipped.is_file() and sha256(shipped) == self.model.sha256)
        return path.stem if same else quote(path.name)

    def markdown(self) -> str:
        """The section of a model card, without its heading."""
        return "\n".join(["```", self.command(), "```", "", self._setting(), "", self._table(), "", self._reading()])

    def _setting(self) -> str:
        s = self.settings
        few = "" if s.n_few in (None, s.n) else f" ({s.n_few:,} in the few-step runs)"
        last = s.first_seed + max(row.n for row in self.rows) - 1
        lines = [
            f"{s.n:,} samples{few}, image by image from seeds {s.first_seed}–{last}, the same in every run. Noise levels "
            f"80 → 0.002 with ρ = 7; `fine` is Heun's method on {s.fine_steps} such steps and one more to 0.",
            self._precision(),
            "Samples are clipped to [−1, 1] and rounded to 8 bits, as they would be saved, and measured so.",
        ]
        for what, source in (("Training", self.train), ("held-out", self.held)):
            share = "all" if source.used == source.images else f"{source.used:,}, drawn at random once,"
            lines.append(
                f"{what} images: {share} of the {source.images:,} of `{source.name}`{',' if what == 'Training' else '.'}"
            )
        shape = "×".join(map(str, self.model.event_shape))
        return "\n".join(lines) + f" All have shape {shape}."

    def _precision(self) -> str:
        if self.settings.precision == "no":
            return "Network and state are float32."
        effects = [row.effect.value for row in self.rows if row.effect is not None]
        found = f": it moves the end points by {min(effects):.4f}…{max(effects):.4f} RMSE" if effects else ""
        count = min(self.settings.checked, self.settings.chunk, *(row.n for row in self.rows))
        return (
            f"The network runs in {self.settings.precision} under autocast, the state is float32{found} "
            f"(range over the runs, the first {count} images of each, before rounding to 8 bits)."
        )

    def _table(self) -> str:
        kinds = {"energy": "energy distance", "pixels": "pixel Fréchet", "features": "feature Fréchet"}
        if self.features is None:
            del kinds["features"]
        titles = [f"{title} to {which}" for title in kinds.values() for which in ("train", "held-out")]
        lines = ["| " + " | ".join(["run", "NFE", "n", *titles, "RMSE to `fine`"]) + " |", "|" + "---|" * (len(titles) + 4)]
        for floor in self.floors:
            cells = [_cell(d, kind) for kind in kinds for d in (floor.train, floor.held)]
            lines.append("| " + " | ".join(["real images (floor)", "–", f"{floor.n:,}", *cells, "–"]) + " |")
        for row in self.rows:
            cells = ["diverged" if row.failure else _cell(d, kind) for kind in kinds for d in (row.train, row.held)]
            error = "–" if row.error is None else str(row.error)
            lines.append("| " + " | ".join([f"`{row.name}`", str(row.nfe), f"{row.n:,}", *cells, error]) + " |")
        return "\n".join(lines)

    def _reading(self) -> str:
        lines = [
            "- ± is one standard error over both sets, not over trainings: the Hájek projection for the energy distance, only "
            "indicative near zero; a jackknife over groups for Fréchet distances.",
            "- Energy distance: 2E‖X−Y‖ − E‖X−X′‖ − E‖Y−Y′‖ of flattened images in [−1, 1], unbiased, may be negative.",
            "- Fréchet distance: ‖Δμ‖² + tr(C + C′ − 2(CC′)^½), no square root; biased upwards, the more the fewer the images: "
            "compare it at equal n only, and with the floor.",
            "- Floor: training images, as many as samples, against the held-out ones; in the columns of distances to training "
            "images, held-out ones against these. “–”: not enough images for that.",
            "- These are **not FID** and cannot be compared with published ones: other features, other sizes, and the images "
            "as the data file has them.",
        ]
        if self.features is not None:
            lines.insert(3, f"- {_about(self.features)}")
        failures = [f"- `{row.name}` diverged: {row.failure}" for row in self.rows if row.failure]
        return "\n".join([*lines, *failures]) + "\n"


def draw_sheet(path: Path, images: dict[str, Tensor]) -> None:
    """Write a picture of 8-bit images (n, C, H, W): one row per run, one column per seed."""
    columns = min([COLUMNS, *(len(x) for x in images.values())])
    save_labelled_rows(path, [(name, x[:columns].permute(0, 2, 3, 1).numpy()) for name, x in images.items()])


def _cell(distances: Distances | None, kind: str) -> str:
    value = None if distances is None else getattr(distances, kind)
    return "–" if value is None else str(value)


def _about(features: Features) -> str:
    found = [f"{100 * v[0]:.1f} ± {100 * v[1]:.1f} % at {k}×{k}" for k, v in features.info.get("accuracy", {}).items()]
    rate = f"; test accuracy {', '.join(found)}" if found else ""
    return f"Features: the {features.count} of the classifier `{features.name}`{rate} (SHA-256 `{features.sha256[:16]}…`)."


def _tree(item: Any) -> Any:
    """Dataclasses and named tuples as dictionaries."""
    match item:
        case Row() | Floor():
            return {f.name: _tree(getattr(item, f.name)) for f in dataclasses.fields(item)}
        case Distances() | Value():
            return {name: _tree(value) for name, value in item._asdict().items()}
    return item
