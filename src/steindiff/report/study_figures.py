"""The pictures of a study: quality against cost, γ and σ̂/σ, spectra, and images of the same seeds.

A correction has one colour, marker and line style everywhere; see `palette`.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median_high
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from steindiff.metrics import HIGHER, TITLES, Value
from steindiff.report.blocks import Figure, Strips, slug
from steindiff.report.figures import Image, Line, Panel, charts, drawing, figure, plain_ticks, strips, style
from steindiff.report.palette import look
from steindiff.report.tables import short
from steindiff.study.compare import HEADLINE, Study, cost, front
from steindiff.study.grid import PLAIN, Cell
from steindiff.study.store import Result

AXES = {"nfe": "NFE", "forward_equivalents": "forward-equivalents"}
_PANELS, _COLUMNS = 12, 4
_SEEDS, _SETS = 8, 4
_PREFERRED = ("dpmpp_2m", "unipc_3", "heun", "ipndm_3")
_LEGEND = "bars: one standard error; grey: the reference flow ± 2 standard errors."
_Curves: TypeAlias = tuple[str, str, str, Mapping[str, Sequence[Result]]]
"""Title, testbed, metric, and by correction the runs of a line."""
_CROSSES = " × in the upper rows, one for each correction: diverged."


def shown_nfe(study: Study) -> list[int]:
    """The few that images and spectra are shown at: the smallest, and the first of 8 or more."""
    return sorted({study.nfe[0], next((n for n in study.nfe if n >= 8), study.nfe[-1])})


def shown_solvers(study: Study) -> list[str]:
    """Up to four, those of _PREFERRED first."""
    names = [s for s in _PREFERRED if s in study.config.solvers]
    return [*names, *(s for s in study.config.solvers if s not in names)][:4]


def overview(study: Study, axis: str) -> Figure:
    """A panel per testbed and grid, a line per correction: the best of all solvers at this NFE, or up to this cost."""
    panels = [
        (
            f"{short(bed)}, {grid}",
            bed,
            HEADLINE,
            {rule: front(study, bed, grid, rule, by_cost=axis != "nfe") for rule in study.rules},
        )
        for bed, grid in study.places
    ]
    at = "at each NFE" if axis == "nfe" else "up to each cost"
    caption = f"{TITLES[HEADLINE]} of the best of a grid's solvers {at}, against {AXES[axis]}; {_LEGEND}"
    return _curves(study, _file("overview", axis), caption, panels, axis)


def quality(study: Study, bed: str, grid: str, axis: str) -> Figure:
    """A panel per solver, a line per correction."""
    panels = [
        (solver, bed, HEADLINE, {rule: study.found(study.row(bed, solver, grid, rule)) for rule in study.rules})
        for solver in study.config.solvers_on(grid)
    ]
    caption = f"{TITLES[HEADLINE]} on {short(bed)}, {grid}, against {AXES[axis]}, solver by solver; {_LEGEND}{_CROSSES}"
    return _curves(study, _file(bed, grid, axis), caption, panels, axis)


def every_metric(study: Study, bed: str, solver: str) -> Figure:
    """The paper's Fig. 7: a panel per metric, FID and inception score among them where they were measured; a line per rule."""
    grid = study.config.grids_of(solver)[0]
    lines = {rule: study.found(study.row(bed, solver, grid, rule)) for rule in study.rules}
    panels = [(_metric(metric), bed, metric, lines) for metric in study.metrics[bed]]
    caption = f"Every metric of {solver} on {short(bed)}, {grid}, against NFE; ↓ less is better, ↑ more is; {_LEGEND}{_CROSSES}"
    return _curves(study, _file(bed, solver, "metrics"), caption, panels, "nfe")


def traces(study: Study, bed: str) -> Figure | None:
    """γ per step above, σ̂/σ below, at the largest NFE of `shown_nfe` on the first grid; None without any trace."""
    nfe, grid = shown_nfe(study)[-1], study.config.used_grids[0]
    runs = {s: study.found(_cell(study, bed, s, nfe, rule) for rule in study.corrections) for s in shown_solvers(study)}
    if not any(run.trace for some in runs.values() for run in some):
        return None
    caption = (
        f"Above γ, step by step, of the first batch on {short(bed)}, {grid}, NFE {nfe}; below σ̂/σ, the noise that a batch "
        "has over what the step is told, where a derivative was taken. Values that are not positive are gaps. Lines that "
        "leave a panel are those of diverged runs."
    )
    above = [_trace(study, s, some, "gamma") for s, some in runs.items()]
    below = [_trace(study, "", some, "noise_ratio") for some in runs.values()]
    return charts(_file(bed, "traces"), caption, [above, below], x="step", y=("γ (1: plain solver)", "σ̂/σ (1: as told)"))


def spectra(study: Study, bed: str) -> Figure | None:
    """Log ratio of power to the target's per band, per solver, at the NFE of `shown_nfe`; None where there are no spectra."""
    grid, solvers, rows = study.config.used_grids[0], shown_solvers(study), shown_nfe(study)
    runs = {(n, s): study.found(_cell(study, bed, s, n, rule) for rule in study.rules) for n in rows for s in solvers}
    if not any(run.spectrum for some in runs.values() for run in some):
        return None
    summary = study.bed(bed)
    colour = summary is not None and summary.event_shape[0] == 3
    x = "band: luma, then chroma" if colour else "band, low to high frequency"
    panels = [[Panel(f"{s}, NFE {n}", _spectrum(study, runs[n, s], colour), level=0.0) for s in solvers] for n in rows]
    caption = f"Log ratio of power to the target's by band, {short(bed)}, {grid}; below 0 is too little; without diverged runs."
    return charts(_file(bed, "spectra"), caption, panels, x=x, y=["log power ratio"] * len(rows), log=False)


def image_strips(study: Study, bed: str, solver: str) -> Strips | None:
    """The paper's Figs. 5, 11 and 12: a row per correction and the reference flow last, a set per NFE; None without images.

    The same seeds are in every set; where there are classes, one image of each, in their order.
    """
    grid, nfe = study.config.grids_of(solver)[0], study.nfe if len(study.nfe) <= _SETS else shown_nfe(study)
    summary = study.bed(bed)
    count = len(summary.labels) if summary is not None and summary.labels else _SEEDS
    rows: list[tuple[str, list[Image | None]]] = []
    for rule in study.rules:
        results = [study.results.get(Cell(bed, solver, grid, n, rule)) for n in nfe]
        rows.append(
            (solver if rule == PLAIN else f"+ {_title(rule)}", [_images(r.shown, count) if r else None for r in results])
        )
    if all(image is None for _, images in rows for image in images):
        return None
    if summary is not None and summary.shown.numel():
        rows.append(("reference flow", [_images(summary.shown, count)] * len(nfe)))
    labels = ", ".join(map(str, summary.labels)) if summary is not None else ""
    classes = f", one of each class ({labels})" if labels else ""
    caption = (
        f"Samples on {short(bed)}, {solver}, {grid}, the same seeds in every row{classes}; “–”: no result, or no number left."
    )
    return strips(_file(bed, solver, "images"), caption, [f"NFE {n}" for n in nfe], rows)


def _curves(study: Study, name: str, caption: str, panels: Sequence[_Curves], axis: str) -> Figure:
    """Small multiples, as far as there is room."""
    left_out, panels = len(panels[_PANELS:]), panels[:_PANELS]
    caption += f" {left_out} panels are left out." if left_out else ""
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with style():
        plot = figure(max(3.0 * columns, 5.0), 2.6 * rows + 0.5)
        axes = plot.subplots(rows, columns, squeeze=False)
        for panel in axes.flat[len(panels) :]:
            panel.set_axis_off()
        for panel, (title, bed, metric, lines) in zip(axes.flat, panels, strict=False):
            _panel(panel, study, bed, metric, lines, axis)
            plain_ticks(panel)
            panel.set_title(title)
            if axis == "nfe":
                panel.set_xticks(sorted({run.cell.nfe for runs in lines.values() for run in runs}))
        for line in axes if all(metric == HEADLINE for _, _, metric, _ in panels) else ():
            line[0].set_ylabel(TITLES[HEADLINE])
        for i in range(columns):
            axes[(len(panels) - 1 - i) // columns, i].set_xlabel(AXES[axis])
        return drawing(name, caption, plot, list(map(_title, study.rules)))


def _panel(panel: Any, study: Study, bed: str, metric: str, lines: Mapping[str, Sequence[Result]], axis: str) -> None:
    """Lines with error bars, crosses for diverged runs, and the floor; logarithmic where less is better."""

    def x(run: Result) -> float:
        return run.cell.nfe if axis == "nfe" or not math.isfinite(cost(run)) else cost(run)

    drawn: list[Value] = []
    crosses = 0
    for rule, runs in lines.items():
        title, settings = _title(rule), _look(study, rule)
        lost = [run for run in runs if _diverged(study, run)]
        kept = [run for run in runs if run not in lost and metric in run.values]
        if kept:
            values = [run.values[metric] for run in kept]
            errors = [max(v.se, 0.0) for v in values]
            panel.errorbar([*map(x, kept)], [v.value for v in values], errors, **settings, elinewidth=0.8, label=title)
            drawn += values
        if lost:
            y, above = [0.98 - 0.05 * crosses] * len(lost), panel.get_xaxis_transform()
            panel.plot([*map(x, lost)], y, "x", color=settings["color"], ms=4, transform=above, label=title)
            crosses += 1
    summary = study.bed(bed)
    floor = summary.perfect.get(metric) if summary else None
    if floor is not None and math.isfinite(floor.se) and floor != (0, 0):  # the reference flow is no way from itself
        panel.axhspan(floor.value - 2 * floor.se, floor.value + 2 * floor.se, color="0.5", alpha=0.25, lw=0)
    low, high = (f((v.value for v in drawn), default=1.0) for f in (min, max))
    if metric in HIGHER:
        return
    if drawn and low > 0:
        panel.set(yscale="log", ylim=(low / 1.6, high * 1.8))
    elif drawn:  # linear near zero, where an unbiased distance is not positive
        noise = median_high([v.se for v in drawn if v.se > 0] or [0.0])
        panel.set_yscale("symlog", linthresh=max(noise, 1e-6 * max(high, 1e-3)))


def _trace(study: Study, title: str, runs: Sequence[Result], key: str) -> Panel:
    """One line per correction; diverged runs do not set the scale."""
    seen, lines = [1.0], []
    for run in runs:
        values = np.array([record.get(key) for record in run.trace], float)  # JSON's None becomes NaN
        kept = np.where((values > 0) & (values < math.inf), values, math.nan)
        if np.isfinite(kept).any():
            lines.append(Line(_title(run.cell.correction), _look(study, run.cell.correction), kept.tolist()))
        if not _diverged(study, run):
            seen += kept[np.isfinite(kept)].tolist()
    return Panel(title, lines, limits=(min(0.9, min(seen) / 1.2), max(1.2, 1.2 * max(seen))))


def _spectrum(study: Study, runs: Sequence[Result], colour: bool) -> list[Line]:
    """One line for each run, or one for luma and one for chroma."""
    lines = []
    for run in (run for run in runs if not _diverged(study, run)):
        values, rule = np.array(run.spectrum, float), run.cell.correction
        for part in np.array_split(np.arange(len(values)), 2 if colour else 1):
            lines.append(Line(_title(rule), _look(study, rule), values[part].tolist(), part.tolist()))
    return lines


def _cell(study: Study, bed: str, solver: str, nfe: int, rule: str) -> Cell:
    """A run on the first grid that its solver has."""
    return Cell(bed, solver, study.config.grids_of(solver)[0], nfe, rule)


def _diverged(study: Study, run: Result) -> bool:
    return study.verdict(run.cell, HEADLINE) == "diverged"


def _look(study: Study, rule: str) -> dict[str, Any]:
    return look(study.rules.index(rule))


def _title(rule: str) -> str:
    return "plain" if rule == PLAIN else short(rule)


def _metric(name: str) -> str:
    """A metric's name above a panel, and where better is."""
    return f"{TITLES.get(name, name)} {'↑' if name in HIGHER else '↓'}"


def _images(shown: Tensor, count: int) -> Image | None:
    return shown[:count].cpu().numpy() if shown.ndim == 4 and len(shown) else None


def _file(*parts: str) -> str:
    return f"figures/{slug('-'.join(parts))}"
