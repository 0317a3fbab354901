"""What to train: a published recipe by name, the user's changes to it, and the data; and the command that says it again."""

import ast
import dataclasses
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from steindiff.errors import InputError, at_least, require, unknown_name
from steindiff.models.datasets import ImageSet, load_pair
from steindiff.models.networks import UNetConfig
from steindiff.train.recipe import Recipe


@dataclass(frozen=True)
class Preset:
    """A recipe, a network and the resolution they are for."""

    about: str
    recipe: Recipe
    unet: UNetConfig
    resolution: int | None = None


PRESETS: dict[str, Preset] = {
    "digits": Preset(
        "the embedded digits model: 8×8, 0.9 M parameters, 8 minutes on one core; data: digits",
        Recipe(steps=2500, batch=128, lr=2e-3, warmup=100, p_mean=-1.0, ema_length=300.0),
        UNetConfig(dropout=0.25),
    ),
    "digits_classes": Preset(
        "the embedded digits_classes model: the digits network for guidance; data: digits, with --classes",
        Recipe(steps=2500, batch=128, lr=2e-3, warmup=100, p_mean=-1.0, ema_length=300.0, label_dropout=0.15),
        UNetConfig(dropout=0.25),
    ),
    "cifar10": Preset(
        "the embedded cifar10 model: 16×16, 3.7 M parameters, two hours on two cores with bfloat16 instructions",
        Recipe(
            steps=30000, batch=64, lr=1e-3, warmup=500, clip_norm=1.0, ema="power", ema_length=0.05, flip=True, precision="bf16"
        ),
        UNetConfig(image_channels=3, channels=64, mults=(1, 2, 2), blocks=1, attention=(1, 2), heads=4),
        resolution=16,
    ),
    "cifar10-gpu": Preset(
        "32×32, 23 M parameters, for one large GPU; give --budget-minutes, and the steps are chosen to fill them",
        Recipe(
            steps=15000, batch=1024, lr=1e-3, warmup=500, decay=0.6, clip_norm=1.0, ema="power", ema_length=0.05, flip=True,
            precision="bf16",
        ),
        UNetConfig(image_channels=3, channels=128, mults=(1, 2, 2), blocks=2, attention=(1,), heads=4, groups=32, dropout=0.1),
        resolution=32,
    ),
    "smoke": Preset(
        "two minutes at most: shows that everything works, and makes a poor model; data: digits",
        Recipe(steps=300, batch=64, lr=2e-3, warmup=30, p_mean=-1.0, ema_length=50.0),
        UNetConfig(channels=16, heads=1),
    ),
}  # fmt: skip

_Settings = TypeVar("_Settings", Recipe, UNetConfig)
_FIELDS = (*dataclasses.fields(Recipe), *dataclasses.fields(UNetConfig))
SETTINGS = tuple(f.name for f in _FIELDS if f.name not in ("image_channels", "num_classes", "null_class"))


@dataclass(frozen=True)
class Plan:
    """What to train.

    Args:
        preset: where recipe and network start from.
        data: a folder, zip or tar of images to train on, or: digits.
        held_out: images that are not trained on: a folder, zip or tar, or how many of `data` are held out.
        changes: NAME=VALUE, to the recipe or the network.
        resolution: crop to squares and resize; by default the preset's.
        grey: make the images grey.
        classes: condition on classes: folders, or dataset.json.

    Raises:
        InputError: a setting that neither has, or a value of another type.
    """

    LEAST: ClassVar[Any] = {"resolution": 1}

    preset: str
    data: str
    held_out: str = ""
    changes: tuple[str, ...] = ()
    resolution: int | None = None
    grey: bool = False
    classes: bool = False

    def __post_init__(self) -> None:
        for change in self.changes:
            name, equals, _ = change.partition("=")
            if not equals or name not in SETTINGS:
                raise unknown_name("setting (write NAME=VALUE)", name, SETTINGS)

    @property
    def base(self) -> Preset:
        """The preset itself. Raises InputError for an unknown name."""
        if self.preset not in PRESETS:
            raise unknown_name("preset", self.preset, PRESETS)
        return PRESETS[self.preset]

    def load(self, progress: bool = True) -> tuple[ImageSet, ImageSet]:
        """Training and held-out images."""
        return load_pair(self.data, self.held_out, self.resolution or self.base.resolution, self.grey, progress)

    def recipe(self) -> Recipe:
        """The preset's recipe with the changes."""
        return _changed(self.base.recipe, self.changes)

    def network(self, data: ImageSet) -> UNetConfig:
        """The preset's network with the changes, for these images. Raises InputError where it should have classes they lack."""
        if self.classes and not data.classes:
            raise InputError(f"--classes: {self.data} has no classes; give each class its own folder, or leave the flag away")
        classes, dropout = len(data.classes) if self.classes else 0, self.recipe().label_dropout
        if dropout and not classes:
            raise InputError(f"label_dropout={dropout:g} without classes: give --classes, or --set label_dropout=0")
        shape = replace(self.base.unet, image_channels=data.event_shape[0], num_classes=classes, null_class=dropout > 0)
        return _changed(shape, self.changes)

    def command(self, recipe: Recipe, name: str) -> str:
        """The command that does it again, without this machine's folders."""
        base = self.base
        parts = ["steindiff train", f"--preset {self.preset}", f"--data {Path(self.data).name}"]
        if self.data != "digits":
            parts.append(f"--held-out {Path(self.held_out).name}")
        if self.resolution and self.resolution != base.resolution:
            parts.append(f"--resolution {self.resolution}")
        parts += [flag for flag, on in (("--grey", self.grey), ("--classes", self.classes)) if on]
        changes = [c for c in self.changes if not c.startswith("steps=")]
        if recipe.steps != base.recipe.steps:
            changes.append(f"steps={recipe.steps}")
        return " ".join([*parts, *(f"--set {c}" for c in changes), f"--outdir outputs/{name}"])


@dataclass(frozen=True)
class Options:
    """How a run is carried out; the recipe holds none of it.

    A run stops after `session_seconds`, at the first log line from then on, with a checkpoint to go on from. Its first process
    shows a bar where there is to be `progress`.

    Args:
        log_every: steps between log lines; checkpoints are written at such steps only.
        report_every: steps between reports (loss per noise level, sample grid); 0: only at the end.
        checkpoint_seconds: least time between checkpoints; 0: at every log line.
        compile: use torch.compile on the network.
        cpu: stay on the CPU where there is another device.
    """

    LEAST: ClassVar[Any] = {"log_every": 1, "report_every": 0, "checkpoint_seconds": 0}

    log_every: int = 50
    report_every: int = 1000
    checkpoint_seconds: float = 120.0
    session_seconds: float = math.inf
    compile: bool = False
    cpu: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        at_least(self, self.LEAST)
        require(self.session_seconds > 0, "must be positive", session_seconds=self.session_seconds)


def _changed(base: _Settings, changes: tuple[str, ...]) -> _Settings:
    """`base` with those of the changes that are to its fields."""
    old, pairs = vars(base), (change.partition("=") for change in changes)
    new: dict[str, Any] = {name: _parse(name, text, old[name]) for name, _, text in pairs if name in old}
    return replace(base, **new)


def _parse(name: str, text: str, old: object) -> object:
    """A value of the type of the old one; tuples as 1,2,2."""
    if isinstance(old, str):
        return text
    try:
        value: Any = ast.literal_eval(f"({text},)" if isinstance(old, tuple) and text else text or "()")
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two of a text that nests too deep
        value = None
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(old) or (isinstance(value, tuple) and not all(type(v) is int for v in value)):
        raise InputError(f"{name}={text}: need a value like {old!r}; flags are True or False, tuples 1,2,2")
    return value
