"""`steindiff bench`: the study with one command.

Examples:
  steindiff bench --preset quick --outdir outputs/quick
  steindiff bench --preset paper --beds digits --solvers heun,unipc_3 --nfe 5,6 --corrections energy --outdir outputs/some
  steindiff bench --preset full --beds cifar10 --samples 2560 --inception inception-2015-12-05.pt --outdir outputs/fid
  torchrun --nproc_per_node=2 -m steindiff bench --preset quick --outdir outputs/quick

Killed at any moment, the same command goes on. A reference that is not named is made of the testbed's own target.
A spec with options, such as 'energy(bands=8)', needs quotes in a shell.
"""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from steindiff.cli.derive import options_of
from steindiff.cli.options import Device, Dinov2, Dinov2Reference, Inception, InceptionReference, Threads, judges, use_threads
from steindiff.errors import unknown_name
from steindiff.io.streams import say
from steindiff.report.paper import MODELS, check
from steindiff.study.grid import FLAGS, METRICS, PRESETS, Config, read_config
from steindiff.study.testbed import names as bed_names


@options_of(Config, changes=True, flags=FLAGS, beds=bed_names(), metrics=METRICS)
def bench_command(
    outdir: Annotated[Path, typer.Option(help="Cells, references and the report go into this folder.")],
    preset: Annotated[str, typer.Option(help=f"The study is one of {', '.join(PRESETS)}, with the changes below.")] = "quick",
    config: Annotated[Path | None, typer.Option(help="The entries of this TOML file replace the preset's.")] = None,
    inception: Inception = None,
    inception_reference: InceptionReference = None,
    dinov2: Dinov2 = None,
    dinov2_reference: Dinov2Reference = None,
    paper_model: Annotated[
        str, typer.Option(help=f"The testbed is this model of the paper, whose FID is then subtracted: {', '.join(MODELS)}.")
    ] = "",
    device: Device = "cpu",
    threads: Threads = 0,
    **given: Any,
) -> None:
    """Run every solver, grid, NFE and correction on every testbed, and report with standard errors, floors, wins and losses."""
    from steindiff.io import folders, processes
    from steindiff.io.files import manifest
    from steindiff.report.study import CLAIM, write_report
    from steindiff.study.run import run_study

    use_threads(threads)
    study = configure(preset, config, given)
    check(paper_model, study.beds, inception is not None)
    named = judges(inception=(inception, inception_reference), dinov2=(dinov2, dinov2_reference))
    with processes.joined(device), folders.claimed(outdir, CLAIM):
        found = run_study(study, outdir, judges=named, device=device)
        about = manifest(device=device, rerun=shlex.join(["steindiff", *sys.argv[1:]]))
        write_report(outdir, found, about, paper_model)
    if processes.leads():
        say(f"everything is in {outdir}: report.md, report.html, cells/")


def configure(preset: str, file: Path | None, changes: Mapping[str, Any]) -> Config:
    """A preset, changed by a file, and then by entries. Raises InputError for an unknown preset."""
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    base = PRESETS[preset] if file is None else read_config(file, PRESETS[preset])
    return base.but(changes)
