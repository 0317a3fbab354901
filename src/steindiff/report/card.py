"""A model's card: what was trained, on what, how well, and the command that does it again."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from steindiff.io.files import write_text
from steindiff.metrics import Value
from steindiff.models.networks import UNet, UNetConfig
from steindiff.report.blocks import Block, Code, Heading, Markup, Table, Text
from steindiff.report.markdown import markdown
from steindiff.report.numbers import show
from steindiff.train.objective import SIGMAS
from steindiff.train.recipe import Recipe


def write_card(path: Path, info: dict[str, Any], files: list[Path], quality: Sequence[Block], notes: str) -> None:
    """Write the card beside the model: data, network, recipe, loss per noise level, quality.

    `info` is the description in the model's `files`, `quality` the section on samples, and `notes` are Markdown, shown first.
    """
    unet, recipe = UNetConfig(**info["unet"]), info["recipe"]
    first = [Text(Markup(notes.strip()))] if notes.strip() else []
    sections = [*_data(recipe), *_network(unet, info["sigma_data"], files), *_recipe(recipe)]
    blocks = [Heading(info["name"], 1), _what(unet, info["event_shape"]), *first, *sections, Heading("Quality"), *quality]
    write_text(path, markdown(blocks))


def _what(unet: UNetConfig, shape: Sequence[int]) -> Block:
    null = " and the null class" if unet.null_class else ""
    kind = f"A class-conditional ({unet.num_classes} classes{null})" if unet.num_classes else "An unconditional"
    parameters = sum(p.numel() for p in UNet(unet).parameters())
    return Text(
        Markup(
            f"{kind} diffusion model of {'×'.join(map(str, shape))} images: a UNet of {parameters:,} parameters under EDM "
            "preconditioning, stored as float16 and computed in float32. Images are on the scale [−1, 1]. Written by "
            "`steindiff train`."
        )
    )


def _data(recipe: dict[str, Any]) -> list[Block]:
    rows = []
    for what, images in (("trained on", recipe["data"]), ("held out", recipe["held_out"])):
        rows.append((f"{what}: {images['source']}", f"{images['images']:,}", Markup(f"`{images['sha256']}`")))
    table = Table(("", "images", "SHA-256 of the decoded pixels and labels"), tuple(rows))
    return [Heading("Data"), table, Text("The images are not contained here.")]


def _network(unet: UNetConfig, sigma_data: float, files: list[Path]) -> list[Block]:
    network = ", ".join(f"{k}={v!r}" for k, v in asdict(unet).items())
    sizes = ", ".join(f"`{f.name}` {f.stat().st_size:,} bytes" for f in files)
    text = (
        f"`UNetConfig({network})` in `EDMPrecond`, σ_data = {sigma_data} (the standard deviation of the training "
        f"pixels). Files: {sizes}."
    )
    return [Heading("Network"), Text(Markup(text))]


def _recipe(recipe: dict[str, Any]) -> list[Block]:
    settings = ", ".join(f"{f.name} = {recipe.get(f.name, f.default)}" for f in fields(Recipe))
    where = (
        f"{settings}. Python {recipe['python']}, torch {recipe['torch']}, {recipe['machine']['platform']}; "
        f"{recipe['seconds']} s of training on {recipe['machine']['threads']} threads. Another machine gives weights that "
        "differ in rounding, hence slightly in their numbers."
    )
    losses = (
        "λ-weighted denoising loss per noise level, mean over pixels and images ± one standard error (fixed noise; at most "
        "1024 images, evenly spaced through either set):"
    )
    pairs = zip(SIGMAS, recipe["losses"]["held_out"], recipe["losses"]["trained_on"], strict=True)
    rows = [(f"{sigma:g}", show(Value(*held)), show(Value(*seen))) for sigma, held, seen in pairs]
    table = Table(("σ", "held out", "trained on"), tuple(rows))
    return [Heading("Recipe"), Code(recipe["command"]), Text(where), Text(losses), table]
