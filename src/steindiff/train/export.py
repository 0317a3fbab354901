"""The model file, and its description: what was trained, on what, and the command that does it again."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from steindiff import models
from steindiff.errors import ModelFileError
from steindiff.io.files import manifest
from steindiff.models.datasets import ImageSet
from steindiff.models.networks import EDMPrecond, UNetConfig
from steindiff.train.objective import SIGMAS
from steindiff.train.recipe import Recipe


def describe(
    name: str, command: str, data: ImageSet, held_out: ImageSet, config: UNetConfig, recipe: Recipe, seconds: float, log: Path
) -> dict[str, Any]:
    """The description in a model file's header, with the losses at the end of the log; paths of this machine are left out."""
    sets = {
        key: {"source": Path(images.source).name, "images": len(images), "sha256": images.sha256}
        for key, images in (("data", data), ("held_out", held_out))
    }
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    last = [row for row in rows if "held_out" in row][-1]
    losses = {key: last[key] for key in ("step", "held_out", "trained_on")} | {"sigmas": list(SIGMAS)}
    made = {**dataclasses.asdict(recipe), **sets, "seconds": round(seconds), "losses": losses, "command": command}
    return {
        "kind": "edm_unet",
        "name": name,
        "event_shape": list(data.event_shape),
        "sigma_data": data.deviation,
        "unet": dataclasses.asdict(config),
        "classes": list(data.classes) if config.num_classes else [],
        "recipe": manifest(**made),
    }


def export(path: Path, denoiser: EDMPrecond, info: dict[str, Any]) -> tuple[list[Path], dict[str, Any]]:
    """Write the network as float16, in parts where it is large; the files, and the description in them.

    Where these weights are there already, the files stay as they are, and what was measured on them stays true.
    """
    tensors = {k: v.to(torch.float16) for k, v in denoiser.state_dict().items()}
    try:
        held, old = models.read(path)
    except ModelFileError:
        return models.save(path, tensors, info), info
    if (
        _network_of(held) == _network_of(info)
        and tensors.keys() == old.keys()
        and all(torch.equal(tensors[k], old[k]) for k in old)
    ):
        return models.files(path), held
    return models.save(path, tensors, info), info


def _network_of(info: dict[str, Any]) -> str:
    """The description without the recipe, as this version would write it: settings that came later are there too."""
    unet = dataclasses.asdict(UNetConfig(**info.get("unet", {})))
    return json.dumps({**info, "unet": unet, "format": models.FORMAT, "recipe": None}, sort_keys=True)
