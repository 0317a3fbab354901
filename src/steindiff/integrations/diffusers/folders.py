"""A pipeline of diffusers in a folder on this machine as a model of the commands and of the study.

`FOLDER` is what `save_pretrained` has written. Text-to-image pipelines take their prompts from a text file with one a line:
`FOLDER@FILE` names it, and FOLDER/steindiff/prompts.txt is taken where none is named. The seed of an image draws its prompt, as
it draws the class of a class-conditional model. Nothing is downloaded, and no code of the folder is run: weights are
safetensors, and classes are those of diffusers and transformers.
"""

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import InputError, ModelFileError, needs, require
from steindiff.integrations.diffusers.beside import FOLDER
from steindiff.integrations.diffusers.denoising import PipelineDenoiser, denoiser
from steindiff.io import digests
from steindiff.io.files import read_json, sha256
from steindiff.models import Model

_LIBRARIES = ("diffusers", "transformers")
INDEX, PROMPTS = "model_index.json", "prompts.txt"
_AT_ONCE = 64
"""How many prompts or classes have their conditions kept together."""
_MOST_LAYERS = 10_000


@dataclass(frozen=True, eq=False)
class PipelineModel(Model):
    """A pipeline with what is known about it; prompts are its classes, one of which is drawn by an image's seed.

    Attributes:
        pipe: the pipeline.
        said: what images are to be: prompts, or the labels of all classes; none for an unconditional pipeline.
        argument: what the pipeline calls this.
    """

    pipe: Any = None
    said: Sequence[Any] = ()
    argument: str = ""
    _known: dict[tuple[float, tuple[int, ...]], PipelineDenoiser] = field(default_factory=dict, repr=False)

    def labelled(self, labels: Tensor) -> Denoiser:
        """The denoiser of images of these classes or prompts, without guidance; as `guided`."""
        return self.guided(labels, 1.0)

    def guided(self, labels: Tensor, scale: float) -> Denoiser:
        """The denoiser of images of these classes or prompts, int64, (B,) or (), guided as the pipeline does it.

        Raises:
            InputError: a label that is none, or the pipeline is not understood.
        """
        known = len(self.said)
        inside = known > 0 and bool(((labels >= 0) & (labels < known)).all())
        require(inside, f"{self.name} has {known} classes or prompts, from 0 on", labels=labels.tolist())
        if known <= _AT_ONCE:
            made = self._of(tuple(range(known)), scale)
            return made if known == 1 else made.of(labels.reshape(-1)) if labels.ndim else made.of(labels[None])
        some = tuple(sorted(set(labels.reshape(-1).tolist())))
        places = torch.tensor([some.index(label) for label in labels.reshape(-1).tolist()])
        made = self._of(some, scale)
        return made if len(some) == 1 else made.of(places)

    def decode(self, x: Tensor) -> Tensor:
        """Images in [−1, 1] of denoised latents, by the pipeline's autoencoder."""
        return self._shown.decode(x)

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of a decoded image, (C, H, W)."""
        return tuple(self.decode(self._shown.noise((0,)))[0].shape)

    @property
    def _shown(self) -> PipelineDenoiser:
        assert isinstance(self.denoiser, PipelineDenoiser)
        return self.denoiser

    def _of(self, places: tuple[int, ...], scale: float) -> PipelineDenoiser:
        """The denoiser of some conditions, recorded once."""
        key = (float(scale), places)
        if key not in self._known:
            if len(self._known) >= _AT_ONCE:
                self._known.clear()
            call: dict[str, Any] = {self.argument: [self.said[place] for place in places], **_scaled(self.pipe, scale)}
            self._known[key] = denoiser(self.pipe, **call)
        return self._known[key]


def is_folder(name: str | Path) -> bool:
    """Whether a name is that of a pipeline's folder, with or without a file of prompts."""
    return (_split(name)[0] / INDEX).is_file()


def load(
    name: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", prompt: str | None = None
) -> PipelineModel:
    """The pipeline of a folder, FOLDER or FOLDER@FILE, in its own precision; `dtype` is the state's.

    Args:
        name: the folder, and the file of its prompts.
        dtype: what the network computes in on a CPU.
        device: where it computes.
        prompt: one prompt for all images, in the place of a file.

    Raises:
        InputError: it needs prompts, and there are none; or it takes none, and there are some.
        ModelFileError: the folder is damaged, or a part of it is of a library that is not installed.
    """
    folder, file = _split(name)
    pipe = _loaded(folder).to(device)
    parameters = inspect.signature(type(pipe).__call__).parameters
    argument = next((key for key in ("prompt", "class_labels") if key in parameters), "")
    given = file is not None or prompt is not None
    named = type(pipe).__name__
    require(argument == "prompt" or not given, f"{named} takes no prompts: leave them out", prompts=str(prompt or file))
    said = _prompts(folder, file, prompt) if argument == "prompt" else _labels(pipe) if argument else ()
    first: dict[str, Any] = {argument: [said[0]], **_scaled(pipe, 1.0)} if argument else {}
    shown = denoiser(pipe, **first)
    kind = {"kind": "diffusers", "pipeline": type(pipe).__name__, "prompts": list(said) if argument == "prompt" else []}
    digest = hashlib.sha256(json.dumps([kind, *_hashes(folder)]).encode()).hexdigest()
    return PipelineModel(
        folder.name, shown, shown.event_shape, kind, folder / INDEX, digest, len(said), pipe=pipe, said=said, argument=argument
    )


def _split(name: str | Path) -> tuple[Path, Path | None]:
    """FOLDER and the FILE of prompts behind an @."""
    folder, at, file = str(name).rpartition("@")
    return (Path(folder), Path(file)) if at else (Path(name), None)


def _loaded(folder: Path) -> Any:
    with needs("diffusers", f"the pipeline in {folder}"):
        import diffusers
    reader: Any = diffusers.DiffusionPipeline
    try:
        _check_classes(read_json(folder / INDEX), diffusers)
        for file in sorted(folder.glob("*/*.json")):
            if file.name.endswith("config.json"):
                _check_layers(file, read_json(file))
        pipe = reader.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except InputError:
        raise
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ModelFileError(f"{folder} is no readable pipeline of diffusers: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _check_classes(index: Any, library: Any) -> None:
    """Raise InputError for a pipeline or a part of it whose code would not be diffusers' or transformers' own."""
    name = index.get("_class_name")
    own = isinstance(name, str) and hasattr(library, name)
    require(own, "need the name of a pipeline of diffusers; other code is not run", _class_name=name)
    for part, value in index.items():
        strange = isinstance(value, list) and len(value) == 2 and value[0] not in (None, *_LIBRARIES)
        require(not strange, f"need a class of {' or '.join(_LIBRARIES)}; other code is not run", **{part: value})


def _check_layers(file: Path, config: Any) -> None:
    """Raise ValueError for a part of absurdly many layers: each would be made, though a file has no numbers for it."""
    for name, value in config.items() if isinstance(config, dict) else ():
        many = isinstance(value, int) and value > _MOST_LAYERS
        if many and ("layers" in name or "blocks" in name):
            raise ValueError(f"{file} has {name} = {value}: more than the {_MOST_LAYERS:,} that a network may have")


def _prompts(folder: Path, file: Path | None, prompt: str | None) -> tuple[str, ...]:
    if prompt is not None:
        return (prompt,)
    path = folder / FOLDER / PROMPTS if file is None else file
    lines = _lines(path) if path.is_file() else []
    said = tuple(line.strip() for line in lines if line.strip())
    if not said:
        raise InputError(
            f"{folder} makes images of prompts, and there are none in {path}: write some there, one a line, or name another "
            f"text file, {folder}@FILE"
        )
    return said


def _lines(path: Path) -> list[str]:
    """The lines of a text file. Raises InputError where it is no UTF-8, or too large."""
    try:
        digests.size_of(path, "json_bytes")
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no readable text: {error}; write prompts there, one a line, in UTF-8") from error


def _labels(pipe: Any) -> range:
    """The labels of all classes."""
    return range(int(pipe.transformer.config.num_embeds_ada_norm))


def _scaled(pipe: Any, scale: float) -> dict[str, float]:
    """The scale of guidance, as far as the pipeline takes one."""
    takes = "guidance_scale" in inspect.signature(type(pipe).__call__).parameters
    return {"guidance_scale": float(scale)} if takes else {}


def _hashes(folder: Path) -> list[str]:
    """Of every file that belongs to the pipeline, by name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.relative_to(folder).parts[0] != FOLDER)
    return [f"{path.relative_to(folder)} {sha256(path)}" for path in files]
