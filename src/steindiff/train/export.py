"""The model file, and its description: what was trained, on what, and the command that does it again."""

from __future__ import annotations

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
from steindiff.train.loop import LOG
from steindiff.train.objective import SIGMAS
from steindiff.train.recipe import Recipe

__all__ = ["describe", "export"]


def describe(
    name: str,
    command: str,
    data: ImageSet,
    held_out: ImageSet,
    config: UNetConfig,
    recipe: Recipe,
    seconds: float,
    outdir: Path,
) -> dict[str, Any]:
    """The description in a model file's header; paths of this machine are left out."""
    record = manifest(
        **dataclasses.asdict(recipe),
        data={"source": Path(data.source).name, "images": len(data), "sha256": data.sha256},
        held_out={"source": Path(held_out.source).name, "images": len(held_out), "sha256": held_out.sha256},
        seconds=round(seconds),
        losses=_last_report(outdir / LOG),
    )
    record["command"] = command
    sigma_data = round(float(data.points().std()), 4)
    return {
        "kind": "edm_unet",
        "name": name,
        "event_shape": list(data.event_shape),
        "sigma_data": sigma_data,
        "unet": dataclasses.asdict(config),
        "classes": list(data.classes) if config.num_classes else [],
        "recipe": record,
    }


def export(path: Path, denoiser: EDMPrecond, info: dict[str, Any]) -> tuple[list[Path], dict[str, Any]]:
    """Write the network as float16, in parts where it is large; the files, and the description in them.

    Where these weights are there already, the files stay as they are, and what was measured on them stays true.

    Raises:
        InputError: as `models.save`.
    """
    tensors = {k: v.to(torch.float16) for k, v in denoiser.state_dict().items()}
    try:
        held, old = models.read(path)
    except ModelFileError:
        return models.save(path, tensors, info), info
    if {**held, "recipe": None} == {**_read_back(info), "recipe": None} and _equal(tensors, old):
        return models.files(path), held
    return models.save(path, tensors, info), info


def _read_back(info: dict[str, Any]) -> dict[str, Any]:
    """The description as it would be read from a file: with its format, and lists for tuples."""
    description: dict[str, Any] = json.loads(json.dumps({"format": models.FORMAT, **info}))
    return description


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _last_report(log: Path) -> dict[str, Any]:
    """The loss per noise level at the end of the run."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    last = [row for row in rows if "held_out" in row][-1]
    return {"step": last["step"], "held_out": last["held_out"], "trained_on": last["trained_on"], "sigmas": list(SIGMAS)}
