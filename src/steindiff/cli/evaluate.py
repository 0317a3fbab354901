r"""`steindiff evaluate`: how far a model's samples are from real images, in a fine run and in few-step ones.

Examples:
  steindiff evaluate --model digits --data digits --n 1500 --outdir outputs/quality-digits
  steindiff evaluate --model cifar10 --data train.tar.xz --held-out test.tar.xz --precision bf16 --outdir outputs/quality
  steindiff evaluate --model my.safetensors --data photos/ --held-out others.zip --n 1000 --runs fine,heun-10,unipc_3-6 \
    --outdir outputs/my

Killed at any moment, the same command goes on where it was; a larger --n adds images to those that are there.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from steindiff import models, report
from steindiff.cli.derive import options_of
from steindiff.cli.options import Threads, use_threads
from steindiff.errors import require
from steindiff.io import processes
from steindiff.io.folders import claimed
from steindiff.io.streams import say
from steindiff.models import Model
from steindiff.models.datasets import ImageSet, load_pair
from steindiff.report.evaluate import CLAIM, blocks, write
from steindiff.study.evaluate import evaluate
from steindiff.study.evaluation import Settings


@options_of(Settings)
def evaluate_command(
    model: Annotated[str, typer.Option(help=f"The model is one of {', '.join(models.names())}, or a .safetensors file.")],
    data: Annotated[str, typer.Option(help="The images it was trained on: a folder, zip or tar, or: digits.")],
    outdir: Annotated[Path, typer.Option(help="Samples, quality.json, quality.md and samples.png go into this folder.")],
    held_out: Annotated[
        str, typer.Option(help="Images that are not trained on: a folder, zip or tar, or how many of --data are held out.")
    ] = "",
    threads: Threads = 0,
    **given: Any,
) -> None:
    """Measure energy and Fréchet distances of samples to training and held-out images, beside those between real images.

    Several processes share out the drawing: `torchrun --nproc_per_node=2 -m steindiff evaluate …`.
    """
    use_threads(threads)
    with processes.joined(given["device"]):
        settings = Settings(**given)
        loaded, first = models.load(model, device=settings.device), processes.rank() == 0
        with claimed(outdir, CLAIM):
            train, held = load_data(loaded, data, held_out, progress=first)
            found = evaluate(loaded, train, held, settings, outdir, together=processes.active())
            if first:
                write(outdir, found)
        if first:
            report.show(report.console(), blocks(found))
            say(f"everything is in {outdir}: quality.md, quality.json, samples.png")


def load_data(model: Model, data: str, held_out: str, progress: bool = False) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images of the model's resolution and channels.

    Raises:
        InputError: the model's images are not square, or neither grey nor RGB.
    """
    channels, height, width = model.event_shape
    square = height == width and channels in (1, 3)
    require(square, "only square ones, grey or RGB, are loaded", model=model.name, images=model.event_shape)
    return load_pair(data, held_out, height, channels == 1, progress)
