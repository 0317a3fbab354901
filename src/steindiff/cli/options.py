"""The options that several commands share and no configuration has."""

import os
from pathlib import Path
from typing import Annotated

import torch
import typer

from steindiff.errors import require
from steindiff.metrics import JudgeFiles

Device = Annotated[
    str, typer.Option(help="The model computes on cpu, cuda, cuda:1, …; with cuda, several processes take one device each.")
]
Dinov2 = Annotated[Path | None, typer.Option(help="A folder of a local DINOv2 of transformers, for FD-DINOv2.")]
Dinov2Reference = Annotated[Path | None, typer.Option(help="Its statistics of real images, .npz.")]
Inception = Annotated[
    Path | None, typer.Option(help="NVIDIA's inception-2015-12-05.pt, a program that is run, for FID and inception score.")
]
InceptionReference = Annotated[Path | None, typer.Option(help="Its statistics of real images, EDM's .npz.")]
ReportFolder = Annotated[Path, typer.Option("--outdir", help="The report and its pictures go into this folder.")]
Threads = Annotated[int, typer.Option(help="The number of CPU threads; 0 leaves torch's default.", min=0)]


def judges(**named: tuple[Path | str | None, Path | None]) -> tuple[JudgeFiles, ...]:
    """The files of every judge of which something is named: by its kind, weights and reference."""
    return tuple(JudgeFiles(kind, str(path or ""), reference) for kind, (path, reference) in named.items() if path or reference)


def use_threads(count: int) -> None:
    """Let torch compute with so many CPU threads; 0 changes nothing. Raises InputError beyond four for each processor."""
    if count:
        most = 4 * (os.cpu_count() or 1)
        need = f"this machine takes at most {most}, four for each processor; 0 leaves torch's default"
        require(count <= most, need, threads=count)
        torch.set_num_threads(count)
