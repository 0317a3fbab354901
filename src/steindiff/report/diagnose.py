"""The report of `steindiff diagnose`: tables, pictures, and sentences made from the numbers, whatever they are."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from steindiff.diagnostics.results import Diagnosis, Flow, StepRun, TraceRun, largest, median
from steindiff.diagnostics.toy import STEPS, Turn, predicted
from steindiff.io.folders import Claim, begins
from steindiff.report import write
from steindiff.report.blocks import Block, Bullets, Heading, Markup, Table, Text, notes
from steindiff.report.diagnose_figures import LABELS, profiles, step_peaks, toy, traces
from steindiff.report.markdown import escape
from steindiff.report.numbers import NONE, number

_PICTURES = ("steps.png", "denoiser.png", "gamma.png", "toy.png", "shift.png")
_PLACES = ("report.md", "report.html", "results.json", "run.json", *_PICTURES)
CLAIM = Claim("diagnose", _PLACES, (), begins("report.md", "# steindiff diagnose"))
_STEP_COLUMNS = (
    "NFE", "solver", "measured", "peak ‖∂T/∂x‖₂", "at σ", "over 1?", "random there", "actual there", "peak actual", "at σ",
)  # fmt: skip
_TRACE_COLUMNS = ("solver", "run", "γ per step", "σ̂/σ per step", "bounds met")
_TOY_COLUMNS = ("map", "Lipschitz constant", "γ", "‖x'‖/‖x‖ a step", "closed form", "distance after the last step")
_ABOVE = 1 + 1e-3  # values are lower bounds; this is for rounding


def write_report(folder: Path, found: Diagnosis) -> None:
    """Write report.md, report.html and the pictures. Raises InputError where the folder cannot be written to."""
    *steps, findings = summary(found)
    blocks: list[Block] = [*map(Text, notes("diagnose")), Heading("What this shows"), findings]
    blocks += [Heading("Fig. 4, rebuilt"), step_peaks(found), *steps]
    blocks += [Heading("The denoiser along the exact flow"), profiles(found)]
    blocks += [Heading(f"γ and σ̂/σ at NFE {found.setup.trace_nfe}"), traces(found)]
    for flow in found.flows:
        rows = tuple(_trace_row(run) for run in found.traces if run.model == flow.name)
        blocks += [Heading(flow.name, 3), Table(_TRACE_COLUMNS, rows)]
    blocks += [Heading(f"Fig. 3, rebuilt: {STEPS} steps"), toy(found.toy), Table(_TOY_COLUMNS, _toy_rows(found.toy))]
    write(folder, "steindiff diagnose", [*blocks, Heading("How to read the numbers"), Bullets(notes("diagnose numbers"))])


def summary(found: Diagnosis) -> list[Block]:
    """What the terminal shows: the tables of steps, model by model in order of NFE, and what was found."""
    blocks: list[Block] = []
    for flow in found.flows:
        rows = tuple(map(_step_row, sorted(found.runs(flow), key=lambda run: run.nfe)))
        blocks += [Heading(f"{flow.name}: {len(flow.noise)} trajectories", 3), Table(_STEP_COLUMNS, rows)]
    return [*blocks, Bullets(tuple(Markup(line) for flow in found.flows for line in _of_model(flow, found)))]


def _toy_rows(turns: Sequence[Turn]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (turn.name, *map(number, (turn.lipschitz, o.gamma, o.factor, predicted(o.gamma, turn.angle), float(o.path[-1].norm()))))
        for turn in turns for o in turn.orbits
    )  # fmt: skip


def _step_row(run: StepRun) -> tuple[str, ...]:
    top, value = run.peak("lipschitz")
    random, here = run.beside_peak()
    actual, gain = run.peak("actual")
    unfinished = sum(not c for r in run.reports for c in r.converged)
    mark = f" ({unfinished} open)" if unfinished else ""
    over, at = "yes" if value > _ABOVE else "no", number(actual.sigma) if gain == gain else NONE
    measured = f"{len(run.reports)} of {run.steps}"
    peak = (number(value) + mark, number(top.sigma), over, number(random), number(here), number(gain), at)
    return str(run.nfe), run.solver, measured, *peak


def _trace_row(run: TraceRun) -> tuple[str, ...]:
    gammas = " ".join(map(number, run.gammas)) if run.rule != "none" else "1"
    noise = " ".join(map(number, run.noise))
    if run.summary is None:
        return run.solver, LABELS[run.rule], NONE, noise, f"stopped: {run.failure.partition(':')[0]}"
    reasons = ", ".join(f"{n} {r.replace('_', ' ')}" for r, n in run.summary.reasons.items())
    return run.solver, LABELS[run.rule], gammas, noise, reasons


def _of_model(flow: Flow, found: Diagnosis) -> Iterator[str]:
    """What the numbers of one model say."""
    name, sigmas, runs = escape(flow.name), flow.profile.sigmas, found.runs(flow)
    peaks = [(*run.peak("lipschitz"), run) for run in runs]
    over = sum(value > _ABOVE for _, value, _ in peaks)
    report, value, worst = max(peaks, key=lambda peak: peak[1])
    yield (
        f"**{name}**: the worst direction expands in {over} of {len(runs)} runs. The largest peak is {number(value)} "
        f"({escape(worst.solver)}, NFE {worst.nfe}, σ = {number(report.sigma)})."
    )
    gains = [(run.beside_peak()[1], value) for _, value, run in peaks]
    ratios = [v / g for g, v in gains if g == g]
    yield (
        f"{name}: where the worst direction peaks it grows {number(median(ratios))} times as fast as the actual error "
        f"(median over runs; from {number(min(ratios, default=None))} to {number(largest(ratios))})."
    )
    curve = flow.profile.lipschitz.amax(1)
    high = sigmas[curve > _ABOVE]
    where = f"above 1 between σ = {number(float(high.max()))} and {number(float(high.min()))}" if len(high) else "at most 1"
    yield (
        f"{name}: along the exact flow L_D is largest, {number(float(curve.max()))}, at σ = "
        f"{number(float(sigmas[curve.argmax()]))}. The threshold is 1, and its maximum over trajectories is {where}."
    )
    longest = max(run.nfe for run in runs)
    last = [value for _, value, run in peaks if run.nfe == longest]
    yield f"{name}: at NFE {longest} the peaks lie between {number(min(last))} and {number(max(last))}."
