"""`steindiff calibrate`: tables made to measure for one network.

Examples:
  steindiff calibrate --model digits --nfe 5 --out outputs/digits.safetensors
  steindiff sample --model digits --nfe 5 --table outputs/digits.safetensors --seeds 0-63 --outdir outputs/calibrated
  steindiff calibrate --model digits_classes --guidance 3 --nfe 4,6,8 --out outputs/guided.safetensors
  steindiff calibrate --model my/model.safetensors --nfe 3-10 --trajectories 32 --out my/tables/model.safetensors

A table in the folder `tables` beside a model file is what solver auto takes. Killed at any moment, the same command goes on.
"""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from steindiff import grids
from steindiff.cli.options import Device
from steindiff.errors import InputError
from steindiff.solvers import Table


def calibrate_command(
    model: Annotated[str, typer.Option(help="The name of a shipped model, a .safetensors file, or a testbed of the study.")],
    out: Annotated[Path, typer.Option(help="The tables go into this .safetensors file, beside those that it holds of others.")],
    nfe: Annotated[str, typer.Option(help="Numbers of network evaluations: 5 or 3,5-10.")] = "3-10",
    guidance: Annotated[float | None, typer.Option(help="The scale of guidance, for a model with a null class.")] = None,
    trajectories: Annotated[int, typer.Option(help="The number of noises; 16 already do.", min=1)] = 64,
    sigma_max: Annotated[float, typer.Option(help="The highest noise level.")] = grids.SIGMA_MAX,
    sigma_min: Annotated[float, typer.Option(help="The lowest noise level, above 0.")] = grids.SIGMA_MIN,
    device: Device = "cpu",
) -> None:
    """Fit a table of coefficients for each number of evaluations to the network's own fine runs, and say what it gains."""
    from steindiff import report
    from steindiff.run import parse_seeds
    from steindiff.study import testbed
    from steindiff.study.calibrating import calibrate_bed, kept_beside

    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: tables are .safetensors files; give a name that ends so")
    name = f"{model}_guided_{guidance:g}" if guidance is not None else model
    bed = testbed.make(name, device) if guidance is None else testbed.guided_model(name, model, guidance, device)
    work = out.parent / f".{out.stem}.parts"
    tables = calibrate_bed(
        bed, parse_seeds(nfe), trajectories, sigma_max=sigma_max, sigma_min=sigma_min, work=work, progress=True
    )
    kept_beside(out, tables)
    shutil.rmtree(work, ignore_errors=True)
    console = report.console()
    for table in tables:
        console.print(escape(_line(table)), highlight=False)
    console.print(f"{len(tables)} tables in [bold]{escape(str(out))}[/bold]", highlight=False)


def _line(table: Table) -> str:
    """What the gate saw, in a sentence."""
    gate = table.report["gate"]
    theirs = gate["others"][gate["best"]]
    seen = f"RMSE {gate['rmse']:.4f}, and {theirs:.4f} by the best of the others, {gate['best']} ({gate['images']} images)"
    return f"{table.nfe} evaluations: {seen}; kept: {gate['kept']}; {table.report['seconds']:.0f} s"
