"""`steindiff train`: from a folder of images to a model file with its card.

Examples:
  steindiff train --preset smoke --data digits --outdir outputs/smoke
  steindiff train --preset cifar10 --data train.tar.xz --held-out test.tar.xz --outdir outputs/cifar10 --evaluate 10000
  steindiff train --preset cifar10 --data photos/ --held-out 1000 --set lr=5e-4 --set channels=48 --outdir outputs/photos

Killed at any moment, the same command goes on from the last checkpoint, with the losses of an unbroken run.
"""

from __future__ import annotations

import math
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields, replace
from glob import escape
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from steindiff import models
from steindiff.cli.derive import options_of
from steindiff.errors import MOST, InputError
from steindiff.io import processes
from steindiff.io.files import read_text
from steindiff.io.folders import Claim, claimed, made
from steindiff.io.names import checked_name, file_name
from steindiff.io.streams import say
from steindiff.models.datasets import ImageSet
from steindiff.models.networks import UNetConfig
from steindiff.report.blocks import Block, Markup, Text
from steindiff.train.plan import PRESETS, SETTINGS, Options, Plan
from steindiff.train.recipe import Recipe

_SAMPLES = tuple(f"samples/{'[0-9]' * digits}.png" for digits in (8, 9, 10))
"""The pictures of a run: the name of each is the number of a step."""


@options_of(Plan)
@options_of(Options)
def train_command(
    outdir: Annotated[Path, typer.Option(help="Checkpoint, log, samples, model and card go into this folder.")],
    preset: Annotated[str, typer.Option(help="; ".join(f"{k}: {v.about}" for k, v in PRESETS.items()))] = "cifar10",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help=f"NAME=VALUE changes the recipe or network (repeatable): {', '.join(SETTINGS)}."),
    ] = None,
    name: Annotated[str, typer.Option(help="The model file's name; default: the last part of --outdir.")] = "",
    notes: Annotated[Path | None, typer.Option(help="A Markdown file to put into the card.")] = None,
    evaluate: Annotated[int, typer.Option(help="How many samples the card judges the network by.", min=0, max=MOST)] = 1000,
    features: Annotated[str, typer.Option(help="--evaluate takes cifar10, none, or a classifier file.")] = "cifar10",
    budget_minutes: Annotated[
        float | None, typer.Option(help="Choose the number of steps from a short trial, to fill this time.", min=0.1)
    ] = None,
    session_minutes: Annotated[float, typer.Option(help="Stop after this; the same command goes on.", min=0.01)] = math.inf,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that --outdir holds, and start anew.")] = False,
    **given: Any,
) -> None:
    """Train a denoiser with EDM's objective; write a model file and a card that says how good it is.

    Also under `accelerate launch -m steindiff train …` or `torchrun -m steindiff train …`, on several processes.
    """
    how = {f.name: given.pop(f.name) for f in fields(Options) if f.name in given}
    plan, options = Plan(preset, changes=tuple(changes or ()), **given), Options(session_seconds=60 * session_minutes, **how)
    output = Output(name=name or _default_name(outdir), notes=notes, samples=evaluate, features=features)
    run_training(plan, outdir, options, output, budget_minutes=budget_minutes, overwrite=overwrite)


@dataclass(frozen=True)
class Output:
    """What a finished run writes: a model of this name, and a card, with notes, that judges it by samples and features."""

    name: str
    notes: Path | None = None
    samples: int = 0
    features: str = "cifar10"


def _default_name(outdir: Path) -> str:
    last = outdir.resolve().name
    with suppress(InputError):
        return checked_name(last, "--outdir")
    return file_name(last)


def run_training(
    plan: Plan, outdir: Path, options: Options, output: Output, budget_minutes: float | None = None, overwrite: bool = False
) -> list[Path]:
    """Train to the end of the run or the session; return the files of a finished model, which has a card beside it.

    The first of several processes has the folder for all.

    Raises:
        InputError: settings, data or folders do not serve, the name is no file's, or another run has the folder; this is said
            before any training.
        NonFiniteError: as `loop.train`.
    """
    checked_name(output.name, "--name")
    with claimed(outdir, _claim(output.name)) if processes.leads() else nullcontext():
        return _train(plan, outdir, options, output, budget_minutes, overwrite)


def _claim(name: str) -> Claim:
    """What a run of this name writes anew, or goes on with."""
    from steindiff.train import loop
    from steindiff.train.checkpoint import steps_of

    def begun(folder: Path) -> bool:
        with suppress(InputError):
            return steps_of(folder / loop.CHECKPOINT) is not None
        return False

    model = (f"{escape(name)}{end}" for end in (".safetensors", "-?????-of-?????.safetensors", ".md"))
    return Claim("train", (loop.CHECKPOINT, loop.LOG, *_SAMPLES, *model), ("samples",), begun, exact=False)


def _remove(outdir: Path, name: str) -> None:
    """Remove the run that a claimed folder holds: its checkpoint, log and samples. A finished model stays until the next one.

    The checkpoint goes first: without it the folder holds no run that could be gone on with.
    """
    from steindiff.train import loop

    samples = made(outdir, _claim(name), *_SAMPLES)
    for path in (outdir / loop.CHECKPOINT, outdir / loop.LOG, *samples):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # it is not there, or holds something else
        (outdir / "samples").rmdir()


def _train(
    plan: Plan, outdir: Path, options: Options, output: Output, budget_minutes: float | None, overwrite: bool
) -> list[Path]:
    from steindiff.report.card import write_card
    from steindiff.train import loop
    from steindiff.train.export import describe, export

    try:
        note = read_text(output.notes).strip() + "\n" if output.notes else ""
    except (OSError, ValueError) as error:
        raise InputError(f"--notes {output.notes} cannot be read: {error}") from error
    recipe = plan.recipe()
    data, held_out = plan.load(options.progress)
    config = plan.network(data)
    if overwrite and processes.leads():
        _remove(outdir, output.name)
    if budget_minutes is not None:
        recipe = _fit(data, config, recipe, outdir, options, budget_minutes)
    trained = loop.train(data, held_out, config, recipe, outdir, options)
    processes.part()
    if not trained.main_process:
        return []
    if trained.step < recipe.steps:
        say(f"stopped at step {trained.step} of {recipe.steps}: the same command goes on")
        return []
    command = plan.command(recipe, output.name)
    info = describe(output.name, command, data, held_out, config, recipe, trained.seconds, outdir / loop.LOG)
    files, info = export(outdir / f"{output.name}.safetensors", trained.denoiser, info)
    write_card(outdir / f"{output.name}.md", info, files, _quality(files[0], data, held_out, recipe, output, options), note)
    say(f"{', '.join(map(str, files))}; card: {outdir / output.name}.md")
    return files


def _fit(data: ImageSet, config: UNetConfig, recipe: Recipe, outdir: Path, options: Options, minutes: float) -> Recipe:
    """The recipe with as many steps as fill the time, or as many as the run in `outdir` began with."""
    from steindiff.train import loop
    from steindiff.train.checkpoint import steps_of

    begun = steps_of(outdir / loop.CHECKPOINT)
    if begun is not None:
        return replace(recipe, steps=begun)
    seconds = loop.seconds_per_step(data, config, recipe, outdir, options)
    steps = max(1, int(60 * minutes / seconds))
    say(f"{seconds:.4f} s a step, {recipe.batch / seconds:.0f} images/s: {steps} steps fill {minutes:g} minutes")
    return replace(recipe, steps=steps)


def _quality(
    file: Path, data: ImageSet, held_out: ImageSet, recipe: Recipe, output: Output, options: Options
) -> tuple[Block, ...]:
    """The card's section on samples; an interrupted evaluation goes on from the folder `quality`."""
    if not output.samples:
        return (Text(Markup("Not measured (`--evaluate 0`).")),)
    from steindiff.report.evaluate import CLAIM, blocks, write
    from steindiff.study.evaluate import evaluate
    from steindiff.study.evaluation import Settings

    device = "cuda" if torch.cuda.is_available() and not options.cpu else "cpu"
    precision = "bf16" if recipe.precision == "bf16" else "no"
    settings = Settings(output.samples, precision=precision, features=output.features, device=device)
    model = models.load(file, device=device)
    folder = file.parent / "quality"
    with claimed(folder, CLAIM):
        found = evaluate(model, data, held_out, settings, folder, progress=options.progress)
        write(folder, found)
    return blocks(found)
