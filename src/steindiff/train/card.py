"""The model file and its card: what was trained, on what, how well, and the command that does it again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from steindiff import models
from steindiff.errors import ModelFileError
from steindiff.io.files import manifest, write_text
from steindiff.models.datasets import ImageSet
from steindiff.models.networks import EDMPrecond, UNet, UNetConfig
from steindiff.train.loop import LOG
from steindiff.train.objective import SIGMAS
from steindiff.train.recipe import Recipe

__all__ = ["describe", "export", "loss_table", "write_card"]


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
    """As it would be read from a file: format, and lists for tuples."""
    description: dict[str, Any] = json.loads(json.dumps({"format": models.FORMAT, **info}))
    return description


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def write_card(path: Path, info: dict[str, Any], files: list[Path], quality: str, notes: str) -> None:
    """The card beside the model: data, network, recipe, loss per noise level, quality, notes."""
    r, unet = info["recipe"], UNetConfig(**info["unet"])
    parameters = sum(p.numel() for p in UNet(unet).parameters())
    shape = "×".join(map(str, info["event_shape"]))
    kind = f"A class-conditional ({unet.num_classes} classes)" if unet.num_classes else "An unconditional"
    sizes = ", ".join(f"`{f.name}` {f.stat().st_size:,} bytes" for f in files)
    settings = {f.name: r[f.name] for f in dataclasses.fields(Recipe)}
    network = ", ".join(f"{k}={v!r}" for k, v in dataclasses.asdict(unet).items())
    text = f"""# {info["name"]}

{kind} diffusion model of {shape} images: a UNet of {parameters:,} parameters under EDM preconditioning, stored as
float16 and computed in float32. Images are on the scale [−1, 1]. Written by `steindiff train`.

{notes}
## Data

| | images | SHA-256 of the decoded pixels and labels |
|---|---|---|
| trained on: {r["data"]["source"]} | {r["data"]["images"]:,} | `{r["data"]["sha256"]}` |
| held out: {r["held_out"]["source"]} | {r["held_out"]["images"]:,} | `{r["held_out"]["sha256"]}` |

The images are not contained here.

## Network

`UNetConfig({network})`
in `EDMPrecond`, σ_data = {info["sigma_data"]} (the standard deviation of the training pixels). Files: {sizes}.

## Recipe

    {r["command"]}

{", ".join(f"{k} = {v}" for k, v in settings.items())}.
Python {r["python"]}, torch {r["torch"]}, {r["machine"]["platform"]};
{r["seconds"]} s of training on {r["machine"]["threads"]} threads.
Another machine gives weights that differ in rounding, hence slightly in their numbers.

λ-weighted denoising loss per noise level, mean over pixels and images ± one standard error (fixed noise; at most 1024 images,
evenly spaced through either set):

{loss_table(r["losses"])}

## Quality

{quality}
"""
    write_text(path, text)


def loss_table(losses: dict[str, Any]) -> str:
    """Markdown: one row per noise level."""
    lines = ["| σ | held out | trained on |", "|---|---|---|"]
    for sigma, held, seen in zip(SIGMAS, losses["held_out"], losses["trained_on"], strict=True):
        lines.append(f"| {sigma:g} | {held[0]:.4f} ± {held[1]:.4f} | {seen[0]:.4f} ± {seen[1]:.4f} |")
    return "\n".join(lines)


def _last_report(log: Path) -> dict[str, Any]:
    """The loss per noise level at the end of the run."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    last = [row for row in rows if "held_out" in row][-1]
    return {"step": last["step"], "held_out": last["held_out"], "trained_on": last["trained_on"], "sigmas": list(SIGMAS)}
