"""`steindiff evaluate`: how far a model's samples are from real images, in a fine run and in few-step ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steindiff import models, report, specs
from steindiff.cli.options import Chunk, Device, FirstSeed, HeldOut, ModelName, Threads, use_threads
from steindiff.errors import InputError
from steindiff.models import Model
from steindiff.models.datasets import ImageSet, load_pair
from steindiff.report.evaluate import blocks, write
from steindiff.study.evaluate import evaluate
from steindiff.study.evaluation import RUNS, Settings

__all__ = ["EXAMPLES", "evaluate_command", "load_data"]

EXAMPLES = """

[bold]Examples[/bold]

  steindiff evaluate --model digits --data digits --n 1500 --outdir outputs/quality-digits

  steindiff evaluate --model cifar10 --data train.tar.xz --held-out test.tar.xz --precision bf16 --outdir outputs/quality

  steindiff evaluate --model my.safetensors --data photos/ --held-out others.zip --n 1000 --runs fine,heun-10,unipc_3-6 \\
    --outdir outputs/my

Killed at any moment, the same command goes on where it was; a larger --n adds images to those that are there.
"""


def evaluate_command(
    model: ModelName,
    data: Annotated[str, typer.Option(help="The images it was trained on: a folder, zip or tar, or: digits.")],
    outdir: Annotated[Path, typer.Option(help="Samples, quality.json, quality.md and samples.png go into this folder.")],
    held_out: HeldOut = "",
    n: Annotated[int, typer.Option(help="How many samples, and how many real images of either set at most.", min=4)] = 10000,
    n_few: Annotated[int | None, typer.Option(help="How many samples of the few-step runs; default: --n.", min=4)] = None,
    runs: Annotated[
        str, typer.Option(help="fine, and SOLVER-NFE (a solver or a spec); default: fine and four solvers at NFE 5, 6, 8, 10.")
    ] = "",
    seed: FirstSeed = 0,
    fine_steps: Annotated[int, typer.Option(help="Heun steps of the fine run, before the last one to 0.", min=2)] = 35,
    precision: Annotated[str, typer.Option(help="The network computes in float32 (no) or in bf16.")] = "no",
    features: Annotated[str, typer.Option(help="cifar10 (16×16 or 32×32 in colour), none, or a classifier file.")] = "cifar10",
    groups: Annotated[
        int | None, typer.Option(help="Groups of the jackknife; default: 20, or 5 beyond 1000 dimensions.", min=2)
    ] = None,
    batch: Chunk = 250,
    chunk: Annotated[int, typer.Option(help="Images between writes to disk.", min=1)] = 1000,
    device: Device = "cpu",
    threads: Threads = 0,
) -> None:
    """Measure energy and Fréchet distances of samples to training and held-out images, beside those between real images."""
    use_threads(threads)
    settings = Settings(
        n=n, n_few=n_few, runs=tuple(specs.split(runs)) if runs else RUNS, first_seed=seed, fine_steps=fine_steps,
        precision=precision, features=features, groups=groups, batch=batch, chunk=chunk, device=device,
    )  # fmt: skip
    loaded = models.load(model, device=device)
    train, held = load_data(loaded, data, held_out, progress=True)
    found = evaluate(loaded, train, held, settings, outdir)
    write(outdir, found)
    console = report.console()
    report.show(console, blocks(found))
    console.print(f"everything is in [bold]{outdir}[/bold]: quality.md, quality.json, samples.png", highlight=False)


def load_data(model: Model, data: str, held_out: str, progress: bool = False) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images of the model's resolution and channels.

    Raises:
        InputError: as `load_pair`; the model's images are not square, or neither grey nor RGB.
    """
    channels, height, width = model.event_shape
    if height != width or channels not in (1, 3):
        raise InputError(
            f"model {model.name} makes images of shape {model.event_shape}: only square ones, grey or RGB, are loaded"
        )
    return load_pair(data, held_out, height, channels == 1, progress)
