"""`steindiff diagnose`: how solver steps stretch errors, and what the corrections see on the way.

Examples:
  steindiff diagnose --outdir outputs/diagnose
  steindiff diagnose --model digits --solver dpmpp_2m,heun --nfe 5,6,8,10 --outdir outputs/diagnose-digits
  steindiff diagnose --shift --outdir outputs/shift
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steindiff.cli.derive import FLAGS, options_of
from steindiff.cli.options import ReportFolder
from steindiff.diagnostics.setup import Setup, configure, configure_shift
from steindiff.io import processes
from steindiff.io.folders import claimed
from steindiff.io.streams import say

if TYPE_CHECKING:
    from steindiff.report.blocks import Block


@options_of(Setup, changes=True, flags={**FLAGS, "models": "--model", "solvers": "--solver"})
def diagnose_command(
    outdir: ReportFolder = Path("outputs/diagnose"),
    preset: Annotated[
        str,
        typer.Option(help="quick takes minutes and measures long runs at some steps; full measures every solver and step."),
    ] = "quick",
    all_solvers: Annotated[bool, typer.Option("--all", help="Measure every solver.")] = False,
    shift: Annotated[
        bool, typer.Option("--shift", help="Measure how far a run's law and gamma are from the exact flow's; nothing else.")
    ] = False,
    **given: Any,
) -> None:
    """Compare local Lipschitz constants of solver steps with the actual error's growth; trace gamma and the noise level."""
    from steindiff import report

    processes.single("steindiff diagnose")
    seconds, blocks = (_shift if shift else _steps)(outdir, preset, all_solvers, given)
    report.show(report.console(), blocks)
    say(f"{seconds:.0f} s; everything is in {outdir}: report.md, report.html, pictures, results.json, run.json")


def _steps(outdir: Path, preset: str, all_solvers: bool, given: dict[str, Any]) -> tuple[float, "list[Block]"]:
    from steindiff.diagnostics.study import run_diagnose
    from steindiff.report.diagnose import CLAIM, summary, write_report

    setup = configure(preset, all_solvers, **given)
    with claimed(outdir, CLAIM):
        found = run_diagnose(setup, outdir)
        write_report(outdir, found)
    return found.seconds, summary(found)


def _shift(outdir: Path, preset: str, all_solvers: bool, given: dict[str, Any]) -> tuple[float, "list[Block]"]:
    from steindiff.diagnostics.shift import run_shift
    from steindiff.report.diagnose import CLAIM
    from steindiff.report.shift import summary, write_report

    setup = configure_shift(preset, all_solvers, **given)
    with claimed(outdir, CLAIM):
        found = run_shift(setup, outdir)
        write_report(outdir, found)
    return found.seconds, summary(found)
