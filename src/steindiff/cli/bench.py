"""`steindiff bench`: the study with one command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from steindiff import specs
from steindiff.cli.options import Device, Dinov2, Dinov2Reference, Inception, InceptionReference, Threads, use_threads
from steindiff.errors import unknown_name
from steindiff.study.grid import METRICS, PRESETS, Config, read_config
from steindiff.study.testbed import names as bed_names

__all__ = ["EXAMPLES", "bench_command", "configure"]

EXAMPLES = """

[bold]Examples[/bold]

  steindiff bench --preset quick --outdir outputs/quick

  steindiff bench --preset paper --beds digits --solvers heun,unipc_3 --nfe 5,6 --corrections energy --outdir outputs/some

  steindiff bench --preset full --beds cifar10 --samples 2560 --inception inception-2015-12-05.pt --outdir outputs/fid

  torchrun --nproc_per_node=2 -m steindiff bench --preset quick --outdir outputs/quick

Killed at any moment, the same command goes on. A reference that is not named is made of the testbed's own target. A spec with
options, such as 'energy(bands=8)', needs quotes in a shell.
"""


def bench_command(
    outdir: Annotated[Path, typer.Option(help="Cells, references and the report go into this folder.")],
    preset: Annotated[str, typer.Option(help=f"The study is one of {', '.join(PRESETS)}, before changes.")] = "quick",
    config: Annotated[Path | None, typer.Option(help="The entries of this TOML file replace the preset's.")] = None,
    beds: Annotated[str, typer.Option(help=f"Testbeds, comma-separated: {', '.join(bed_names())}, or model files.")] = "",
    solvers: Annotated[str, typer.Option(help="Solvers, comma-separated names or specs; default: the preset's.")] = "",
    grids: Annotated[str, typer.Option(help="Noise grids, comma-separated names or specs; default: the preset's.")] = "",
    nfe: Annotated[str, typer.Option(help="Network evaluations, comma-separated; default: the preset's.")] = "",
    corrections: Annotated[str, typer.Option(help="Corrections, comma-separated names or specs; default: the preset's.")] = "",
    n: Annotated[int | None, typer.Option("--samples", help="Images in a cell; default: the preset's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images in a batch; default: the preset's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Image i comes from this seed plus i; default: the preset's.")] = None,
    divergence: Annotated[str | None, typer.Option(help="Derivatives are taken by vjp, jvp or fd, or are exact.")] = None,
    probes: Annotated[int | None, typer.Option(help="Hutchinson probes in a step; default: the preset's.")] = None,
    probe_kind: Annotated[str | None, typer.Option(help="The probes are rademacher or gaussian.")] = None,
    sub_batch: Annotated[int | None, typer.Option(help="Take derivatives for so many images of a batch; 0 for all.")] = None,
    metrics: Annotated[str, typer.Option(help=f"Metrics, comma-separated, of {', '.join(METRICS)}; default: all.")] = "",
    axes: Annotated[int | None, typer.Option(help="Principal axes of the pixel Fréchet distance.")] = None,
    checked: Annotated[
        int | None, typer.Option(help="Fine runs repeated with twice the steps, to say how exact a network's references are.")
    ] = None,
    inception: Inception = None,
    inception_reference: InceptionReference = None,
    dinov2: Dinov2 = None,
    dinov2_reference: Dinov2Reference = None,
    device: Device = "cpu",
    threads: Threads = 0,
) -> None:
    """Run every solver, grid, NFE and correction on every testbed, and report with standard errors, floors, wins and losses."""
    from steindiff.io import processes
    from steindiff.io.files import manifest
    from steindiff.metrics import JudgeFiles
    from steindiff.report.study import write_report
    from steindiff.study.run import run_study

    use_threads(threads)
    lists = {"beds": beds, "solvers": solvers, "grids": grids, "nfe": nfe, "corrections": corrections, "metrics": metrics}
    others = {
        "n": n, "batch": batch, "first_seed": seed, "divergence": divergence, "probes": probes, "probe_kind": probe_kind,
        "sub_batch": sub_batch, "axes": axes, "checked": checked,
    }  # fmt: skip
    study = configure(preset, config, lists, {k: v for k, v in others.items() if v is not None})
    named = {"inception": (inception, inception_reference), "dinov2": (dinov2, dinov2_reference)}
    judges = [JudgeFiles(kind, path or "", reference) for kind, (path, reference) in named.items() if path or reference]
    with processes.joined(device):
        found = run_study(study, outdir, judges=judges, device=device)
        if processes.rank():
            return
        about = manifest(device=device, rerun=shlex.join(["steindiff", *sys.argv[1:]]))
        write_report(outdir, found, about)
        typer.echo(f"everything is in {outdir}: report.md, report.html, cells/")


def configure(preset: str, file: Path | None, lists: dict[str, str], others: Mapping[str, int | str]) -> Config:
    """A preset, changed by a file, changed by flags.

    Raises:
        InputError: an unknown preset, or as `read_config` and `Config`.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    base = PRESETS[preset] if file is None else read_config(file, PRESETS[preset])
    changes: dict[str, Any] = {name: _words(name, text) for name, text in lists.items() if text}
    return base.but({**changes, **others})


def _words(name: str, text: str) -> list[Any]:
    words = specs.split(text)
    return [int(w) if w.isdecimal() else w for w in words] if name == "nfe" else words
