"""The report of `steindiff diagnose`: tables, pictures, and sentences made from the numbers, whatever they are."""

from __future__ import annotations

from pathlib import Path

from steindiff.diagnostics.results import Diagnosis, Flow, StepRun, TraceRun, largest, median
from steindiff.report import write
from steindiff.report.blocks import Block, Bullets, Heading, Markup, Table, Text
from steindiff.report.diagnose_figures import LABELS, profiles, step_peaks, toy, traces
from steindiff.report.markdown import escape
from steindiff.report.numbers import NONE, number

_STEP_COLUMNS = (
    "NFE", "solver", "measured", "peak ‖∂T/∂x‖₂", "at σ", "over 1?", "random there", "actual there", "peak actual", "at σ",
)  # fmt: skip
_TRACE_COLUMNS = ("solver", "run", "γ per step", "σ̂/σ per step", "bounds met")
_TOY_COLUMNS = ("method", "RMS to the exact flow's end points", "at the wrong mode", "at no mode")
_ABOVE = 1 + 1e-3  # values are lower bounds; this is for rounding


def write_report(folder: Path, found: Diagnosis) -> None:
    """Write report.md, report.html and the pictures. Raises InputError where the folder cannot be written to."""
    blocks: list[Block] = [
        Text(_PREAMBLE), Heading("What this shows"), Bullets(_findings(found)), Heading("Fig. 4, rebuilt"), step_peaks(found),
    ]  # fmt: skip
    blocks += _step_tables(found)
    blocks += [Heading("The denoiser along the exact flow"), profiles(found)]
    blocks += [Heading(f"γ and σ̂/σ at NFE {found.setup.trace_nfe}"), traces(found)]
    for flow in found.flows:
        rows = [_trace_row(t) for t in found.traces if t.model == flow.name]
        blocks += [Heading(flow.name, 3), Table(_TRACE_COLUMNS, tuple(rows))]
    blocks += [Heading(f"The toy of Fig. 3, rebuilt: {found.toy.steps} steps"), toy(found.toy)]
    numbers = [(name, *map(number, values.values())) for name, values in found.toy.numbers().items()]
    blocks += [Table(_TOY_COLUMNS, tuple(numbers)), Heading("How to read the numbers"), Bullets(tuple(map(Markup, _NOTES)))]
    write(folder, "steindiff diagnose", blocks)


def summary(found: Diagnosis) -> list[Block]:
    """What the terminal shows: the tables of steps, and what was found."""
    return [*_step_tables(found), Bullets(_findings(found))]


_PREAMBLE = (
    "The paper's Fig. 4 shows a local Lipschitz constant of the step map that peaks at about 24 at NFE 6 and stays above the "
    "threshold even at NFE 100, for a CIFAR-10 network. Its estimator is not stated and cannot be recovered. Here it is the "
    "largest singular value of the step's Jacobian, on other models, and beside it stands what random directions and the "
    "actual error do. Compare the shape, not the numbers."
)

_NOTES = (
    "*Peak ‖∂T/∂x‖₂* is the largest singular value of the step map's Jacobian, with the state frozen, over the measured steps "
    "and all trajectories. Power iteration on JᵀJ with Rayleigh–Ritz finds it from below, to the tolerance in run.json; "
    '"(n open)" says that n values did not reach it.',
    "*Measured*: the quick preset measures 6 steps of a run of more than 10. Half are evenly spread, half are where the "
    "certificate's bound is largest. The peak over them is a lower bound.",
    "*Over 1?* says whether the step is not a contraction there. The certificate's threshold on L_D is 1 in EDM coordinates.",
    "*Random there* and *actual there* hold on the trajectory and at the step of the peak: the median of ‖Jv‖/‖v‖ for Gaussian "
    "v, and ‖T(x) − T(x̄)‖/‖x − x̄‖ with x̄ on the exact flow. There is a “–” at the first step, where x = x̄, and where x − x̄ "
    "is no larger than what x̄ changes by when the reference's steps double.",
    "*Peak actual* is the largest of the latter over steps and trajectories.",
    "*σ̂/σ* is the noise level that a batch has over the one it is told, asked of the denoiser at each state; “–” where it is "
    "not positive.",
    "Histories of multistep solvers are constants in the Jacobian. UniPC as published starts a step from a stored evaluation, "
    "which would be a constant too and make its steps look like contractions whatever the model. It is measured in the variant "
    'that evaluates again ("refresh", n steps for 2n − 1 evaluations); the NFE column is that of the published variant.',
    "A large worst direction does not mean a large error: see the column beside it.",
)


def _step_tables(found: Diagnosis) -> list[Block]:
    """Every run, model by model, in order of NFE."""
    blocks: list[Block] = []
    for flow in found.flows:
        runs = sorted((c for c in found.cells if c.model == flow.name), key=lambda c: c.nfe)
        title = Heading(f"{flow.name}: {len(flow.noise)} trajectories", 3)
        blocks += [title, Table(_STEP_COLUMNS, tuple(map(_step_row, runs)))]
    return blocks


def _step_row(run: StepRun) -> tuple[str, ...]:
    top, value = run.peak("lipschitz")
    random, here = run.beside_peak()
    actual, gain = run.peak("actual")
    unfinished = sum(not c for r in run.reports for c in r.converged)
    mark = f" ({unfinished} open)" if unfinished else ""
    return (
        str(run.nfe),
        run.solver,
        f"{len(run.reports)} of {run.steps}",
        number(value) + mark,
        number(top.sigma),
        "yes" if value > _ABOVE else "no",
        number(random),
        number(here),
        number(gain),
        number(actual.sigma) if gain == gain else NONE,
    )


def _trace_row(run: TraceRun) -> tuple[str, ...]:
    gammas = " ".join(map(number, run.gammas)) if run.rule != "none" else "1"
    noise = " ".join(map(number, run.noise))
    if run.summary is None:
        return run.solver, LABELS[run.rule], NONE, noise, f"stopped: {run.failure.partition(':')[0]}"
    reasons = ", ".join(f"{n} {r.replace('_', ' ')}" for r, n in run.summary.reasons.items())
    return run.solver, LABELS[run.rule], gammas, noise, reasons


def _findings(found: Diagnosis) -> tuple[str, ...]:
    return tuple(Markup(line) for flow in found.flows for line in _of_model(flow, found))


def _of_model(flow: Flow, found: Diagnosis) -> tuple[str, ...]:
    """What the numbers of one model say."""
    name, p = escape(flow.name), flow.profile
    runs = [c for c in found.cells if c.model == flow.name]
    peaks = [(*run.peak("lipschitz"), run) for run in runs]
    over = sum(value > _ABOVE for _, value, _ in peaks)
    report, value, worst = max(peaks, key=lambda peak: peak[1])
    gains = [(run.beside_peak()[1], value) for _, value, run in peaks]
    ratios = [v / g for g, v in gains if g == g]
    curve = p.lipschitz.amax(1)
    high = p.sigmas[curve > _ABOVE]
    where = f"above 1 between σ = {number(float(high.max()))} and {number(float(high.min()))}" if len(high) else "at most 1"
    longest = max(run.nfe for run in runs)
    last = [value for _, value, run in peaks if run.nfe == longest]
    return (
        f"**{name}**: the worst direction expands in {over} of {len(runs)} runs. The largest peak is {number(value)} "
        f"({escape(worst.solver)}, NFE {worst.nfe}, σ = {number(report.sigma)}).",
        f"{name}: where the worst direction peaks it grows {number(median(ratios))} times as fast as the actual error "
        f"(median over runs; from {number(min(ratios, default=None))} to {number(largest(ratios))}).",
        f"{name}: along the exact flow L_D is largest, {number(float(curve.max()))}, at σ = "
        f"{number(float(p.sigmas[curve.argmax()]))}. The threshold is 1, and its maximum over trajectories is {where}.",
        f"{name}: at NFE {longest} the peaks lie between {number(min(last))} and {number(max(last))}.",
    )
