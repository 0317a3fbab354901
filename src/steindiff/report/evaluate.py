"""What an evaluation found: a section for a model card, JSON, and a picture."""

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

from steindiff import solvers
from steindiff.io.files import atomic, manifest, sha256, write_json, write_text
from steindiff.io.folders import Claim, begins
from steindiff.models.store import WEIGHTS
from steindiff.report.blocks import Block, Bullets, Code, Heading, Markup, Table, Text, notes
from steindiff.report.figures import strips
from steindiff.report.markdown import escape, markdown
from steindiff.report.numbers import NONE, show, tree
from steindiff.study.evaluate import ROOMS
from steindiff.study.evaluation import FINE, Evaluation, Settings

CLAIM = Claim("evaluate", ("quality.json", "quality.md", "samples.png"), ROOMS, begins("quality.json", '"steindiff":'))
_OPTIONS = ("n_few", "first_seed", "fine_steps", "checked", "groups", "runs", "features", "precision")
_FLAGS = {"first_seed": "seed"}
_KINDS = {"energy": "energy distance", "pixels": "pixel Fréchet", "features": "feature Fréchet"}


def write(folder: Path, found: Evaluation) -> None:
    """Write quality.json, quality.md and, of the runs that have samples, samples.png: a row a run, a column a seed."""
    write_json(folder / "quality.json", as_json(found))
    write_text(folder / "quality.md", markdown([Heading("Quality"), *blocks(found)]))
    if found.shown:
        columns = min(map(len, found.shown.values()))
        rows = [(name, [x[:columns].permute(0, 2, 3, 1).numpy()]) for name, x in found.shown.items()]
        with atomic(folder / "samples.png") as temporary:
            temporary.write_bytes(strips("samples", "", [""], rows).png)


def as_json(found: Evaluation) -> dict[str, Any]:
    """Everything."""
    features = found.features
    return manifest(
        model={"name": found.model.name, "sha256": found.model.sha256},
        settings=asdict(found.settings),
        train=asdict(found.train),
        held_out=asdict(found.held),
        features=features and {"name": features.name, "sha256": features.sha256, "accuracy": features.info.get("accuracy")},
        runs=[tree(row) for row in found.rows],
        floors=[{name: tree(getattr(floor, name)) for name in ("n", "train", "held")} for floor in found.floors],
    )


def blocks(found: Evaluation) -> tuple[Block, ...]:
    """The section of a model card, without its heading."""
    return Code(command(found)), Text(Markup(_setting(found))), _table(found), Bullets(_reading(found))


def command(found: Evaluation) -> str:
    """The command that does it again, without this machine's folders."""
    s, default = found.settings, Settings()
    parts = ["steindiff evaluate", f"--model {_model_name(found)}", f"--data {quote(found.train.name)}"]
    if found.train.name != "digits":
        parts.append(f"--held-out {found.held.images if found.split else quote(found.held.name)}")
    parts.append(f"--n {s.n}")
    for name in _OPTIONS:
        value, option = getattr(s, name), _FLAGS.get(name, name.replace("_", "-"))
        if value != getattr(default, name):
            parts.append(f"--{option} {quote(','.join(value) if isinstance(value, tuple) else Path(str(value)).name)}")
    return " ".join([*parts, f"--outdir outputs/quality-{found.model.name}"])


def _model_name(found: Evaluation) -> str:
    """A shipped model's name, also for the file it was copied from; else the file's, without its folder."""
    path = found.model.path
    shipped = WEIGHTS / path.name
    same = path.parent == WEIGHTS or (shipped.is_file() and sha256(shipped) == found.model.sha256)
    return path.stem if same else quote(path.name)


def _setting(found: Evaluation) -> str:
    s, train, held = found.settings, found.train, found.held
    few = "" if s.n_few in (None, s.n) else f" ({s.n_few:,} in the few-step runs)"
    last = s.first_seed + max(row.n for row in found.rows) - 1
    training, other = (
        f"{'all' if source.used == source.images else f'{source.used:,}, drawn at random once,'} of the {source.images:,} of "
        f"`{source.name}`"
        for source in (train, held)
    )
    precision = "Network and state are float32."
    if s.precision != "no":
        effects = [row.effect.value for row in found.rows if row.effect is not None]
        moved = f": it moves the end points by {min(effects):.4f}…{max(effects):.4f} RMSE" if effects else ""
        count = min(s.checked, s.chunk, *(row.n for row in found.rows))
        precision = (
            f"The network runs in {s.precision} under autocast, the state is float32{moved} "
            f"(range over the runs, the first {count} images of each, before rounding to 8 bits)."
        )
    return (
        f"{s.n:,} samples{few}, image by image from seeds {s.first_seed}–{last}, the same in every run. Noise levels "
        f"80 → 0.002 with ρ = 7{_own_levels(found)}; `fine` is Heun's method on {s.fine_steps} such steps and one more to 0. "
        f"{precision} "
        "Samples are clipped to [−1, 1] and rounded to 8 bits, as they would be saved, and measured so. "
        f"Training images: {training}, held-out images: {other}. All have shape {'×'.join(map(str, found.model.event_shape))}."
    )


def _own_levels(found: Evaluation) -> str:
    """Which runs have other levels than the rest."""
    named = {row.name: row.name.rpartition("-")[0] for row in found.rows if row.name != FINE}
    own = [name for name, solver in named.items() if solvers.make(solver).plans]
    return f", but for {', '.join(f'`{name}`' for name in own)}, whose solvers choose their own" if own else ""


def _table(found: Evaluation) -> Table:
    kinds = [kind for kind in _KINDS if kind != "features" or found.features is not None]
    titles = [f"{_KINDS[kind]} to {which}" for kind in kinds for which in ("train", "held-out")]
    named = [(row.name, row) for row in found.floors] + [(Markup(f"`{row.name}`"), row) for row in found.rows]
    rows = []
    for name, row in named:
        sets = [(d, kind) for kind in kinds for d in (row.train, row.held)]
        cells = ["diverged" if row.failure else show(getattr(d, kind, None)) for d, kind in sets]
        rows.append((name, NONE if row.nfe is None else str(row.nfe), f"{row.n:,}", *cells, show(row.error)))
    return Table(("run", "NFE", "n", *titles, Markup("RMSE to `fine`")), tuple(rows))


def _reading(found: Evaluation) -> tuple[str, ...]:
    about = []
    if found.features:
        name, count, sha256 = found.features.name, found.features.count, found.features.sha256[:16]
        rates = found.features.info.get("accuracy", {}).items()
        rate = ", ".join(f"{100 * value:.1f} ± {100 * se:.1f} % at {size}×{size}" for size, (value, se) in rates)
        test = f"; test accuracy {rate}" if rate else ""
        about.append(f"Features: the {count} of the classifier `{name}`{test} (SHA-256 `{sha256}…`).")
    failed = [f"`{row.name}` diverged: {escape(row.failure)}" for row in found.rows if row.failure]
    return *notes("evaluate"), *map(Markup, about), *notes("evaluate floors"), *map(Markup, failed)
