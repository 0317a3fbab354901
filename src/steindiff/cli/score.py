"""`steindiff score`: FID, inception score and FD-DINOv2 of images, with weights and references that you name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steindiff import report
from steindiff.cli.options import Chunk, Device, Dinov2, Dinov2Reference, Inception, InceptionReference
from steindiff.errors import InputError
from steindiff.io.files import writable_folder, write_json
from steindiff.metrics import JudgeFiles
from steindiff.metrics.features import names as feature_names
from steindiff.report.judge import as_json, blocks
from steindiff.study.judge import judge_images
from steindiff.study.judging import Job

__all__ = ["EXAMPLES", "score_command"]

EXAMPLES = """

[bold]Examples[/bold]

  steindiff score --images outputs/50k --inception inception-2015-12-05.pt --inception-reference cifar10-32x32.npz

  steindiff score --images outputs/50k/samples.npz --against outputs/plain --dinov2 dinov2-large/ --real cifar10.zip \\
    --outdir outputs/score

  steindiff score --real cifar10.zip --inception inception-2015-12-05.pt --write-reference cifar10.npz

  steindiff score --images outputs/few --real photos.zip --resolution 16 --features cifar10 --n 1000

Nothing is downloaded: docs/metrics.md says where the files are to be had. Numbers compare only with the same weights, reference
and n; published ones are of n = 50,000.
"""

_PLACE = "folder, zip, tar or .npz (arr_0, uint8 NHWC)"


def score_command(
    images: Annotated[str, typer.Option(help=f"The samples: a {_PLACE}, or the folder of a `steindiff sample` run.")] = "",
    against: Annotated[str, typer.Option(help="A second set from the same seeds, for a paired difference.")] = "",
    real: Annotated[str, typer.Option(help="Real images, of which references that no file gives are made.")] = "",
    held_out: Annotated[str, typer.Option(help="Real images that are in no reference, for the noise floor.")] = "",
    inception: Inception = None,
    inception_reference: InceptionReference = None,
    dinov2: Dinov2 = None,
    dinov2_reference: Dinov2Reference = None,
    features: Annotated[
        str, typer.Option(help=f"Features of a small classifier: {', '.join(feature_names())}, or a file; no FID.")
    ] = "",
    features_reference: Annotated[Path | None, typer.Option(help="Their statistics of real images, .npz.")] = None,
    write_reference: Annotated[Path | None, typer.Option(help="Keep the reference made of --real in this .npz.")] = None,
    n: Annotated[int | None, typer.Option(help="Score the first so many images; default: all.", min=2)] = None,
    resolution: Annotated[int | None, typer.Option(help="Crop and resize real images to this many pixels.", min=1)] = None,
    groups: Annotated[int, typer.Option(help="The number of groups in the jackknife.", min=2)] = 20,
    few: Annotated[bool, typer.Option("--few", help="Allow no more images than features; the result is very biased.")] = False,
    batch: Chunk = 64,
    device: Device = "cpu",
    outdir: Annotated[Path | None, typer.Option(help="score.json goes here, with hashes, versions and command.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace score.json or the reference.")] = False,
) -> None:
    """Measure FID, inception score and FD-DINOv2 of images, with standard errors; you name the weights and references."""
    named = (
        ("inception", inception, inception_reference),
        ("dinov2", dinov2, dinov2_reference),
        ("classifier", features, features_reference),
    )
    judges = tuple(JudgeFiles(kind, str(path or ""), reference) for kind, path, reference in named if path or reference)
    job = Job(
        judges=judges, images=images, against=against, real=real, held_out=held_out, write_reference=write_reference, n=n,
        groups=groups, few=few, resolution=resolution, batch=batch, device=device,
    )  # fmt: skip
    file = None if outdir is None else outdir / "score.json"
    written = [place for place in (write_reference, file) if place is not None]
    for place in written:
        if place.exists() and not overwrite:
            raise InputError(f"{place} is there already: choose another place, or pass --overwrite")
        writable_folder(place.parent)
    found = judge_images(job, progress=True)
    console = report.console()
    if job.images:
        report.show(console, blocks(found))
    if file is not None:
        write_json(file, as_json(found))
    for place in written:
        console.print(f"written: {place}", highlight=False, markup=False)
