"""The report of `steindiff diagnose --shift`: a table and a picture of every run beside the exact flow, level by level."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from steindiff.diagnostics.shift import Level, Shift, ShiftRun
from steindiff.metrics import Value
from steindiff.report import write
from steindiff.report.blocks import Block, Bullets, Code, Figure, Heading, Markup, Table, Text, notes
from steindiff.report.diagnose_figures import LABELS
from steindiff.report.figures import Line, Panel, charts
from steindiff.report.markdown import escape
from steindiff.report.numbers import NONE, number, show
from steindiff.report.palette import look

_COLUMNS = (
    "σ", "gap to the flow", "energy distance, excess", "σ̂/σ", "the flow's", "Stein gap, change", "the flow's", "σ S/√d: median",
    "RMS", "det J < 0", "γ̃", "γ*", "γ̃ − γ*",
)  # fmt: skip
_GREY = {"color": "0.5", "ls": "--", "lw": 1.0}
_LEFT = 10.0  # a run whose gap is so many times the plain run's has left the law, and sets no scale
_ROUNDING = 1e-7
_Of = Callable[[Level], float]


def write_report(folder: Path, found: Shift) -> None:
    """Write report.md, report.html and shift.png. Raises InputError where the folder cannot be written to."""
    *tables, findings = summary(found)
    blocks: list[Block] = [*map(Text, notes("diagnose shift")), Heading("What this shows"), findings, picture(found)]
    blocks += [Heading("Level by level"), *tables, Heading("How to read the numbers"), Bullets(notes("shift numbers"))]
    made = Text(f"The exact flow is off by at most {number(max(found.errors.values()))} over √(σ² + σ_data²). Made by")
    write(folder, "steindiff diagnose --shift", [*blocks, Heading("How this was made"), made, Code(command(found))])


def summary(found: Shift) -> list[Block]:
    """What the terminal shows: a table for every run, and what was found."""
    blocks: list[Block] = []
    for run in found.runs:
        blocks += [Heading(_title(run), 3), Table(_COLUMNS, tuple(map(_row, run.levels)))]
        blocks += [Text(f"The run stopped: {run.failure}.")] if run.failure else []
    return [*blocks, Bullets(tuple(map(Markup, _findings(found))))]


def command(found: Shift) -> str:
    """The command that makes this report."""
    s = found.setup
    lists = {"model": s.beds, "solver": s.solvers, "nfe": s.nfe}
    flags = " ".join(f"--{name} {','.join(map(str, values))}" for name, values in lists.items())
    return f"steindiff diagnose --shift {flags} --samples {s.n} --seed {s.first_seed}"


def picture(found: Shift) -> Figure:
    """Four rows, a column for each testbed, solver and NFE: gap, σ̂/σ, Stein gap beside σ S/√d, γ̃ beside γ*."""
    places = dict.fromkeys(map(_place, found.runs))
    columns = [[run for run in found.runs if _place(run) == place] for place in places]
    titles = [f"{bed}\n{solver}, {nfe}" for bed, solver, nfe in places]
    rows = [
        [_panel(runs, lambda x: x.gap.value, title=title) for runs, title in zip(columns, titles, strict=True)],
        [_panel(runs, lambda x: x.noise.value, lambda x: x.noise_flow.value) for runs in columns],
        [_panel(runs, lambda x: abs(x.stein_change.value), dotted=_median) for runs in columns],
        [_panel(runs, lambda x: x.gamma.value, lambda x: x.gamma_flow.value) for runs in columns],
    ]

    def falling(axis: Any) -> None:
        axis.set_xscale("log")
        if not axis.xaxis_inverted():  # the rows of a column share it
            axis.invert_xaxis()

    caption = (
        "Along a run, against σ: the RMS distance to the exact flow from the same noise; σ̂/σ; the size of the Stein gap's "
        "change, and dotted the median of σ S/√d where it is known; γ̃ of the run's states. Grey: the exact flow's own states. "
        "Lines that leave a panel are those of runs that left the law."
    )
    y = ("gap to the flow", "σ̂/σ (1: as told)", "Stein gap's change", "γ̃ (grey: γ*)")
    return charts("shift", caption, rows, x="σ", y=y, width=2.3, abscissa=falling)


def _panel(runs: Sequence[ShiftRun], of: _Of, flow: _Of | None = None, dotted: _Of | None = None, title: str = "") -> Panel:
    """One line per rule; the scale is that of the runs that did not leave the law."""
    lines, seen = list[Line](), list[float]()
    for i, run in enumerate(runs):
        x = [level.sigma for level in run.levels]
        lines.append(Line(_label(run), look(i), [of(level) for level in run.levels], x))
        if dotted:
            lines.append(Line("", {**look(i), "ls": ":", "marker": ""}, [dotted(level) for level in run.levels], x))
        seen += [] if _left(run, runs) else [y for line in lines[-2 if dotted else -1 :] for y in line.y]
    if flow:
        levels = max((run.levels for run in runs), key=len)
        lines.append(Line("exact flow", _GREY, [flow(level) for level in levels], [level.sigma for level in levels]))
        seen += lines[-1].y
    kept = [y for y in seen if 0 < y < math.inf]
    return Panel(title, lines, limits=(min(kept) / 1.5, max(kept) * 1.5) if kept else None)


def _row(level: Level) -> tuple[str, ...]:
    score = (NONE,) * 3
    if level.score:
        score = (number(level.score.median), show(level.score.rms), f"{level.score.folded:.0%}")
    noise, stein = (
        map(_shown, (level.noise, level.noise_flow)),
        (_shown(level.stein_change, signed=True), _shown(level.stein_flow)),
    )
    gammas = (_shown(level.gamma), _shown(level.gamma_flow), _shown(level.gamma_change, signed=True))
    return number(level.sigma), show(level.gap), show(level.excess, signed=True), *noise, *stein, *score, *gammas


def _shown(value: Value, signed: bool = False) -> str:
    return NONE if math.isnan(value.value) else show(value, signed=signed)


def _findings(found: Shift) -> Iterator[str]:
    """Sentences made from the numbers, whatever they are."""
    for run in found.runs:
        far = max(run.levels, key=lambda x: x.excess.value)
        noise = max(run.levels, key=lambda x: abs(math.log(x.noise.value / x.noise_flow.value)))
        yield (
            f"**{escape(_title(run))}**: the run's law is farthest from the flow's at σ = {number(far.sigma)}, by an energy "
            f"distance of {show(far.excess)} more than the flow's own states. σ̂/σ is {_shown(noise.noise)} at "
            f"σ = {number(noise.sigma)}, where the flow has {_shown(noise.noise_flow)}."
        )
    for place in dict.fromkeys(map(_place, found.runs)):
        runs = [run for run in found.runs if _place(run) == place and run.rule == "none"]
        levels = [x for run in runs for x in run.levels if not math.isnan(x.gamma.value)]
        if levels:
            yield f"{escape(', '.join(map(str, place)))}, plain: {_coefficients(levels)}"
    scored = [(x, x.score) for run in found.runs for x in run.levels if x.score]
    if scored:
        within = sum(abs(x.stein_change.value) <= s.rms.value + 2 * math.hypot(x.stein_change.se, s.rms.se) for x, s in scored)
        yield f"The Stein gap's change is within σ S/√d, its bound, at {within} of the {len(scored)} levels that have both."


def _coefficients(levels: Sequence[Level]) -> str:
    """How far γ̃ is from γ*, and whether a bound at 1 would treat them alike."""
    worst = max(levels, key=lambda x: abs(x.gamma_change.value))
    beyond = sum(abs(x.gamma_change.value) > max(2 * x.gamma_change.se, _ROUNDING * abs(x.gamma.value)) for x in levels)
    sides = sum((x.gamma.value - 1) * (x.gamma_flow.value - 1) < 0 for x in levels)
    return (
        f"γ̃ differs from γ* beyond two standard errors at {beyond} of {len(levels)} levels, most at σ = {number(worst.sigma)}: "
        f"{_shown(worst.gamma)} instead of {_shown(worst.gamma_flow)}. They lie on different sides of 1 at {sides}."
    )


def _left(run: ShiftRun, runs: Sequence[ShiftRun]) -> bool:
    plain = [level.gap.value for other in runs if other.rule == "none" for level in other.levels]
    return bool(plain) and max(level.gap.value for level in run.levels) > _LEFT * max(plain)


def _median(level: Level) -> float:
    return level.score.median if level.score else math.nan


def _place(run: ShiftRun) -> tuple[str, str, str]:
    return run.bed, run.solver, f"NFE {run.nfe}"


def _label(run: ShiftRun) -> str:
    return LABELS.get(run.rule, run.rule)


def _title(run: ShiftRun) -> str:
    return f"{', '.join(_place(run))}, {_label(run)}"
