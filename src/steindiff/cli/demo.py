"""`steindiff demo`: the universal solver at few evaluations, and the paper's correction, in a few minutes.

Examples:
  steindiff demo --outdir outputs/demo
"""

from pathlib import Path
from typing import Annotated

import typer

from steindiff.cli.options import ReportFolder
from steindiff.io.streams import say


def demo_command(
    outdir: ReportFolder = Path("outputs/demo"),
    nfe: Annotated[int, typer.Option(help="Every run of the correction spends this many network evaluations.", min=2)] = 5,
    samples: Annotated[int, typer.Option(help="Images in a run; more of them give smaller standard errors.", min=64)] = 192,
    seed: Annotated[int, typer.Option(help="Image i comes from this seed plus i.", min=0)] = 0,
) -> None:
    """Compare the universal solver with plain ones, and corrected solvers with plain ones, on the embedded models.

    All runs are from the same seeds. There are tables, pictures, and the gammas of the corrections. Several processes share out
    the drawing: `torchrun --nproc_per_node=2 -m steindiff demo …`.
    """
    from steindiff.io import processes
    from steindiff.io.folders import claimed
    from steindiff.report import console
    from steindiff.report.demo import CLAIM, write_report
    from steindiff.study.demo import run_demo

    with processes.joined(), claimed(outdir, CLAIM):
        found = run_demo(outdir, nfe=nfe, samples=samples, first_seed=seed)
        if processes.rank():
            return
        write_report(outdir, found, console())
    say(f"everything is in {outdir}: report.md, report.html, pictures, results.json, run.json")
