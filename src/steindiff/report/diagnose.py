"""The report of `steindiff diagnose`: tables, pictures, and sentences made from the numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from steindiff.diagnostics import StepReport
from steindiff.diagnostics.setup import Setup
from steindiff.diagnostics.study import Bed, Cell, TraceRun
from steindiff.diagnostics.toy import STEPS, Toy
from steindiff.io.files import write_text
from steindiff.report.diagnose_figures import LABELS, draw_profiles, draw_steps, draw_toy, draw_traces, largest

__all__ = ["write_report"]

_STEP_COLUMNS = (
    "NFE", "solver", "measured", "peak ‖∂T/∂x‖₂", "at σ", "over 1?", "random there", "actual there", "peak actual", "at σ",
)  # fmt: skip
_ABOVE = 1 + 1e-3  # values are lower bounds; this is for rounding
_TRACE_COLUMNS = ("solver", "run", "γ per step", "σ̂/σ per step", "bounds met")
_TOY_COLUMNS = ("method", "RMS to the exact flow's end points", "at the wrong mode", "at no mode")


def write_report(
    folder: Path, setup: Setup, beds: list[Bed], cells: list[Cell], traces: list[TraceRun], toy: Toy, console: Console
) -> None:
    """Write report.md and its pictures; print the tables and the findings."""
    draw_steps(folder / "steps.png", beds, cells)
    draw_profiles(folder / "denoiser.png", beds)
    draw_traces(folder / "gamma.png", traces)
    draw_toy(folder / "toy.png", toy)
    findings = [line for bed in beds for line in _findings(bed, cells)]
    parts = ["# steindiff diagnose\n", _PREAMBLE, "## What this shows\n", "\n".join(findings) + "\n"]
    parts += ["## Fig. 4, rebuilt\n", "![peaks against NFE](steps.png)\n"]
    for bed in beds:
        rows = [_step_row(c) for c in sorted(cells, key=lambda c: c.nfe) if c.model == bed.model.name]
        title = f"{bed.model.name}: {len(bed.noise)} trajectories"
        parts.append(f"### {title}\n\n{_markdown(_STEP_COLUMNS, rows)}")
        _print(console, title, _STEP_COLUMNS, rows)
    parts += ["## The denoiser along the exact flow\n", "![L_D against sigma](denoiser.png)\n"]
    parts += [f"## γ and σ̂/σ at NFE {setup.trace_nfe}\n", "![gamma and noise ratio](gamma.png)\n"]
    for bed in beds:
        rows = [_trace_row(t) for t in traces if t.model == bed.model.name]
        parts.append(f"### {bed.model.name}\n\n{_markdown(_TRACE_COLUMNS, rows)}")
    rows = [[name, *(f"{v:.3g}" for v in n.values())] for name, n in toy.numbers().items()]
    parts += [f"## The toy of Fig. 3, rebuilt: {STEPS} steps\n", "![toy](toy.png)\n", _markdown(_TOY_COLUMNS, rows), _NOTES]
    write_text(folder / "report.md", "\n".join(parts))
    console.print("\n".join(findings), highlight=False)


_PREAMBLE = """The paper's Fig. 4 shows a local Lipschitz constant of the step map that peaks at about 24 at NFE 6 and stays
above the threshold even at NFE 100, for a CIFAR-10 network. Its estimator is not stated and cannot be recovered. Here it is
the largest singular value of the step's Jacobian, on other models, and beside it what random directions and the actual error
do. Compare the shape, not the numbers.
"""

_NOTES = """## How to read the numbers

- *Peak ‖∂T/∂x‖₂*: largest singular value of the step map's Jacobian, state frozen, over the measured steps and all
  trajectories; power iteration on JᵀJ with Rayleigh–Ritz, to the tolerance in run.json, from below ("(n open)": n values
  did not reach it). *Measured*: the quick preset measures 6 steps of a run of more than 10, half of them evenly spread, half
  where the certificate's bound is largest: its peak is a lower bound.
- *Over 1?*: the step is not a contraction there. The certificate's threshold on L_D is 1 in EDM coordinates.
- *Random there*, *actual there*: on the trajectory and at the step of the peak, the median of ‖Jv‖/‖v‖ for Gaussian v, and
  ‖T(x) − T(x̄)‖/‖x − x̄‖ with x̄ on the exact flow; "–" at the first step, where x = x̄, and where x − x̄ is no larger than
  what x̄ changes by when the reference's steps double.
- *Peak actual*: the largest of the latter over steps and trajectories.
- *σ̂/σ*: the noise level a batch has over the one it is told, asked of the denoiser at each state; "–" where not positive.
- Histories of multistep solvers are constants in the Jacobian. UniPC as published starts a step from a stored evaluation,
  which would be a constant too and make its steps look like contractions whatever the model; it is measured in the variant
  that evaluates again ("refresh", n steps for 2n − 1 evaluations; the NFE column is that of the published variant).
- A large worst direction does not mean a large error: see the column beside it.
"""


def _peak(cell: Cell, key: str) -> tuple[StepReport, float]:
    """The step where the largest value is, and that value."""
    scored = [(r, largest(getattr(r, key))) for r in cell.reports]
    return max(scored, key=lambda s: s[1] if s[1] == s[1] else -1.0)


def _median(values: tuple[float, ...]) -> float:
    kept = torch.tensor([v for v in values if v == v], dtype=torch.float64)
    return float(kept.quantile(0.5)) if len(kept) else float("nan")


def _beside(report: StepReport) -> tuple[float, float]:
    """On the trajectory with the largest ‖J‖₂: the median over random directions, and the actual amplification."""
    j = report.lipschitz.index(largest(report.lipschitz))
    return _median(report.random[j :: len(report.lipschitz)]), report.actual[j]


def _step_row(cell: Cell) -> list[str]:
    top, value = _peak(cell, "lipschitz")
    random, here = _beside(top)
    actual, gain = _peak(cell, "actual")
    unfinished = sum(not c for r in cell.reports for c in r.converged)
    mark = f" ({unfinished} open)" if unfinished else ""
    return [
        str(cell.nfe),
        cell.solver,
        f"{len(cell.reports)} of {cell.steps}",
        _number(value) + mark,
        _number(top.sigma),
        "yes" if value > _ABOVE else "no",
        _number(random),
        _number(here),
        _number(gain),
        _number(actual.sigma) if gain == gain else "–",
    ]


def _trace_row(run: TraceRun) -> list[str]:
    gammas = " ".join(map(_number, run.gammas)) if run.rule != "none" else "1"
    noise = " ".join(map(_number, run.noise))
    if run.summary is None:
        return [run.solver, LABELS[run.rule], "–", noise, f"stopped: {run.failure.partition(':')[0]}"]
    reasons = ", ".join(f"{n} {r.replace('_', ' ')}" for r, n in run.summary.reasons.items())
    return [run.solver, LABELS[run.rule], gammas, noise, reasons]


def _findings(bed: Bed, cells: list[Cell]) -> list[str]:
    """Sentences made from the numbers, whatever they are."""
    name, p = bed.model.name, bed.profile
    mine = [c for c in cells if c.model == name]
    peaks = {(c.solver, c.nfe): _peak(c, "lipschitz") for c in mine}
    over = sum(v > _ABOVE for _, v in peaks.values())
    (solver, nfe), (report, value) = max(peaks.items(), key=lambda item: item[1][1])
    gains = [(_beside(r)[1], v) for r, v in peaks.values()]
    ratios = tuple(v / g for g, v in gains if g == g)
    curve = p.lipschitz.amax(1)
    high = p.sigmas[curve > _ABOVE]
    where = f"above 1 between σ = {_number(float(high.max()))} and {_number(float(high.min()))}" if len(high) else "at most 1"
    lines = [
        f"- **{name}**: the worst direction expands in {over} of {len(mine)} runs; largest peak {_number(value)} "
        f"({solver}, NFE {nfe}, σ = {_number(report.sigma)}).",
        f"- {name}: where the worst direction peaks it grows {_number(_median(ratios))} times as fast as the actual error "
        f"(median over runs; from {_number(min(ratios, default=float('nan')))} to {_number(largest(ratios))}).",
        f"- {name}: along the exact flow L_D is largest, {_number(float(curve.max()))}, at σ = "
        f"{_number(float(p.sigmas[curve.argmax()]))}; the threshold is 1, and its maximum over trajectories is {where}.",
    ]
    biggest = max(mine, key=lambda c: c.nfe).nfe
    last = [v for (_, n), (_, v) in peaks.items() if n == biggest]
    lines.append(f"- {name}: at NFE {biggest} the peaks lie between {_number(min(last))} and {_number(max(last))}.")
    return lines


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.3g}"


def _markdown(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    table = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in table) + "\n"


def _print(console: Console, title: str, columns: tuple[str, ...], rows: list[list[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
