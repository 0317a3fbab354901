"""`steindiff diagnose`: how solver steps stretch errors, and what the corrections see on the way.

Examples:
  steindiff diagnose --outdir outputs/diagnose
  steindiff diagnose --model digits --solver dpmpp_2m,heun --nfe 5,6,8,10 --outdir outputs/diagnose-digits
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from steindiff.cli.options import FirstSeed, ReportFolder


def diagnose_command(
    outdir: ReportFolder = Path("outputs/diagnose"),
    preset: Annotated[
        str,
        typer.Option(help="quick takes minutes and measures long runs at some steps; full measures every solver and step."),
    ] = "quick",
    model: Annotated[str, typer.Option(help="Embedded models or .safetensors files, comma-separated; default: all.")] = "",
    solver: Annotated[str, typer.Option(help="Solvers, comma-separated; default: the preset's.")] = "",
    all_solvers: Annotated[bool, typer.Option("--all", help="Measure every solver.")] = False,
    nfe: Annotated[str, typer.Option(help="Network evaluations, comma-separated; default: the preset's.")] = "",
    samples: Annotated[int | None, typer.Option(help="Trajectories of each model; default: the preset's.", min=1)] = None,
    seed: FirstSeed = 0,
) -> None:
    """Compare local Lipschitz constants of solver steps with the actual error's growth; trace gamma and the noise level."""
    from steindiff import report
    from steindiff.diagnostics.setup import configure
    from steindiff.diagnostics.study import run_diagnose
    from steindiff.report.diagnose import summary, write_report

    setup = configure(preset, model=model, solver=solver, all_solvers=all_solvers, nfe=nfe, samples=samples, first_seed=seed)
    found = run_diagnose(setup, outdir)
    write_report(outdir, found)
    console = report.console()
    report.show(console, summary(found))
    files = "report.md, report.html, pictures, results.json, run.json"
    console.print(f"{found.seconds:.0f} s; everything is in [bold]{escape(str(outdir))}[/bold]: {files}", highlight=False)
