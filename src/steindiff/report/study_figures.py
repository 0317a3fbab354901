"""The pictures of a study: quality against cost, γ and σ̂/σ, spectra, and images of the same seeds.

A correction has one colour, marker and line style everywhere: Okabe–Ito colours that are told apart on white and on black, the
plain solver in the text's colour. Each drawing is made twice, as PNG on white and as SVG that takes the colour of its page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor

from steindiff.metrics import TITLES, Value
from steindiff.report.blocks import Figure, Strips, slug
from steindiff.report.figures import Image, drawing, figure, plain_ticks, strips, style
from steindiff.report.palette import INK, look
from steindiff.report.tables import HEADLINE, Study, cost, short
from steindiff.study.grid import PLAIN, Cell
from steindiff.study.store import Result

__all__ = ["AXES", "image_strips", "overview", "quality", "shown_nfe", "shown_solvers", "spectra", "traces"]

Point: TypeAlias = tuple[float, Value, bool]
"""Abscissa, value, and whether the run diverged."""

_PANELS, _COLUMNS = 12, 4
_SEEDS = 8
_PREFERRED = ("dpmpp_2m", "unipc_3", "heun", "ipndm_3")
AXES = {"nfe": "NFE", "forward_equivalents": "forward-equivalents"}


def shown_nfe(study: Study) -> list[int]:
    """The few that images and spectra are shown at: the smallest, and the first of 8 or more."""
    return sorted({study.nfe[0], next((n for n in study.nfe if n >= 8), study.nfe[-1])})


def shown_solvers(study: Study) -> list[str]:
    """Up to four, those of _PREFERRED first."""
    names = [s for s in _PREFERRED if s in study.config.solvers]
    return [*names, *(s for s in study.config.solvers if s not in names)][:4]


def overview(study: Study, axis: str) -> Figure:
    """A panel per testbed and grid, a line per correction: the best of all solvers at this NFE, or up to this cost."""
    pairs = [(bed, grid) for bed in study.config.beds for grid in study.config.grids][:_PANELS]
    lines = {
        f"{short(bed)}, {grid}": {rule: _front(study, bed, grid, rule, axis) for rule in (PLAIN, *study.corrections)}
        for bed, grid in pairs
    }
    floors = [_floor(study, bed) for bed, _ in pairs]
    left_out = len(study.config.beds) * len(study.config.grids) - len(pairs)
    at = "at each NFE" if axis == "nfe" else "up to each cost"
    caption = f"{TITLES[HEADLINE]} of the best of {len(study.config.solvers)} solvers {at}, against {AXES[axis]}; {_LEGEND}"
    return _curves(
        _file("overview", axis), caption + (f" {left_out} panels are left out." if left_out else ""), lines, floors, axis
    )


def quality(study: Study, bed: str, grid: str, axis: str) -> Figure:
    """A panel per solver, a line per correction."""
    solvers = study.config.solvers[:_PANELS]
    lines = {
        solver: {
            rule: _points(study, [Cell(bed, solver, grid, nfe, rule) for nfe in study.nfe], axis)
            for rule in (PLAIN, *study.corrections)
        }
        for solver in solvers
    }
    caption = f"{TITLES[HEADLINE]} on {short(bed)}, {grid}, against {AXES[axis]}, solver by solver; {_LEGEND}{_CROSSES}"
    left_out = len(study.config.solvers) - len(solvers)
    caption += f" {left_out} solvers are left out." if left_out else ""
    return _curves(_file(bed, grid, axis), caption, lines, [_floor(study, bed)] * len(solvers), axis)


def traces(study: Study, bed: str) -> Figure | None:
    """γ per step above, σ̂/σ below, at the largest NFE of `shown_nfe` on the first grid; None without any trace."""
    nfe, grid = shown_nfe(study)[-1], study.config.grids[0]
    runs = _runs(study, bed, grid, nfe)
    if not any(r.trace for found in runs.values() for rule, r in found.items() if rule != PLAIN):
        return None
    with style():
        plot = figure(3.0 * len(runs), 4.6)
        axes = plot.subplots(2, len(runs), squeeze=False, sharex="col")
        for column, (solver, found) in zip(axes.T, runs.items(), strict=True):
            for axis, key in zip(column, ("gamma", "noise_ratio"), strict=True):
                _trace(axis, study, {rule: r for rule, r in found.items() if rule != PLAIN}, key)
            column[0].set_title(solver)
            column[1].set_xlabel("step")
        axes[0, 0].set_ylabel("γ (1: plain solver)")
        axes[1, 0].set_ylabel("σ̂/σ (1: as told)")
        caption = (
            f"γ per step on {short(bed)}, {grid}, NFE {nfe}, first batch; and σ̂/σ, the noise that a batch has over what the "
            "step is told, where a derivative was taken. Values that are not positive are gaps; lines that leave a panel "
            "are of diverged runs."
        )
        return drawing(_file(bed, "traces"), caption, plot, [_title(rule) for rule in study.corrections])


def _trace(axis: Any, study: Study, runs: dict[str, Result], key: str) -> None:
    """One line per correction; diverged runs do not set the scale."""
    seen = [1.0]
    for rule, result in runs.items():
        values = [_number(record.get(key)) for record in result.trace]
        kept = [v if 0 < v < math.inf else math.nan for v in values]
        if not all(map(math.isnan, kept)):
            axis.semilogy(kept, **_look(study, rule), label=_title(rule))
        if study.verdict(result.cell, HEADLINE) != "diverged":
            seen += [v for v in kept if not math.isnan(v)]
    axis.axhline(1.0, color=INK, lw=0.6, alpha=0.5)
    axis.set_yscale("log")
    axis.set_ylim(min(0.9, min(seen) / 1.2), max(1.2, 1.2 * max(seen)))
    axis.xaxis.get_major_locator().set_params(integer=True)
    plain_ticks(axis)


def spectra(study: Study, bed: str) -> Figure | None:
    """Log ratio of power to the target's per band, per solver, at the NFE of `shown_nfe`; None where there are no spectra."""
    grid, rows = study.config.grids[0], shown_nfe(study)
    found = [_runs(study, bed, grid, nfe) for nfe in rows]
    if not any(r.spectrum for runs in found for some in runs.values() for r in some.values()):
        return None
    summary = study.bed(bed)
    colour = summary is not None and summary.event_shape[0] == 3
    with style():
        plot = figure(3.0 * len(found[0]), 2.3 * len(rows) + 0.4)
        axes = plot.subplots(len(rows), len(found[0]), squeeze=False, sharex=True)
        for line, nfe, runs in zip(axes, rows, found, strict=True):
            for axis, (solver, some) in zip(line, runs.items(), strict=True):
                for rule, result in some.items():
                    if study.verdict(result.cell, HEADLINE) != "diverged":
                        _spectrum(axis, result.spectrum, colour, {**_look(study, rule), "label": _title(rule)})
                axis.axhline(0.0, color=INK, lw=0.6, alpha=0.5)
                axis.set_title(f"{solver}, NFE {nfe}")
            line[0].set_ylabel("log power ratio")
        for axis in axes[-1]:
            axis.set_xlabel("band: luma, then chroma" if colour else "band, low to high frequency")
        where = f"{short(bed)}, {grid}"
        caption = f"Log ratio of power to the target's by band, {where}; below 0 too little; without diverged runs."
        return drawing(_file(bed, "spectra"), caption, plot, _titles(study))


def image_strips(study: Study, bed: str, solver: str) -> Strips | None:
    """One row per correction and the reference flow last, the same seeds everywhere; None where there are no images."""
    grid, nfe = study.config.grids[0], shown_nfe(study)
    rows: list[tuple[str, list[Image | None]]] = []
    for rule in (PLAIN, *study.corrections):
        results = [study.results.get(Cell(bed, solver, grid, n, rule)) for n in nfe]
        rows.append((solver if rule == PLAIN else f"+ {_title(rule)}", [_images(r.shown) if r else None for r in results]))
    summary = study.bed(bed)
    if all(image is None for _, images in rows for image in images):
        return None
    if summary is not None and summary.shown.numel():
        rows.append(("reference flow", [_images(summary.shown)] * len(nfe)))
    caption = f"Samples on {short(bed)}, {solver}, {grid}, the same seeds in every row; “–”: no result, or no number left."
    columns = tuple(f"NFE {n}" for n in nfe)
    return strips(_file(bed, solver, "images"), caption, columns, rows)


def _runs(study: Study, bed: str, grid: str, nfe: int) -> dict[str, dict[str, Result]]:
    """By solver and correction, the results there are."""
    rules = (PLAIN, *study.corrections)
    cells = {s: {r: Cell(bed, s, grid, nfe, r) for r in rules} for s in shown_solvers(study)}
    return {s: {r: study.results[c] for r, c in some.items() if c in study.results} for s, some in cells.items()}


def _points(study: Study, cells: Sequence[Cell], axis: str) -> list[Point]:
    """What a line is drawn through; runs without numbers have a NaN."""
    points = []
    for cell in cells:
        result = study.results.get(cell)
        if result is None:
            continue
        lost = study.verdict(cell, HEADLINE) == "diverged"
        x = cell.nfe if axis == "nfe" or not math.isfinite(cost(result)) else cost(result)
        value = Value(math.nan, math.nan) if lost else result.values.get(HEADLINE, Value(math.nan, math.nan))
        points.append((float(x), value, lost))
    return points


def _front(study: Study, bed: str, grid: str, rule: str, axis: str) -> list[Point]:
    """The best of all solvers: per NFE, or in order of cost those that are better than all cheaper ones."""
    cells = [Cell(bed, solver, grid, nfe, rule) for solver in study.config.solvers for nfe in study.nfe]
    points = sorted((p for p in _points(study, cells, axis) if not math.isnan(p[1].value)), key=lambda p: (p[0], p[1].value))
    front: list[Point] = []
    for point in points:
        if axis == "nfe" and (not front or point[0] > front[-1][0]):
            front.append(point)
        if axis != "nfe" and (not front or point[1].value < front[-1][1].value):
            front.append(point)
    return front


def _floor(study: Study, bed: str) -> Value | None:
    """The headline metric of the reference flow's end points."""
    summary = study.bed(bed)
    return summary.perfect.get(HEADLINE) if summary else None


_LEGEND = "bars: one standard error; grey: the reference flow ± 2 standard errors."
_CROSSES = " × in the upper rows, one for each correction: diverged."


def _curves(
    name: str, caption: str, panels: dict[str, dict[str, list[Point]]], floors: Sequence[Value | None], axis: str
) -> Figure:
    """Small multiples: a panel per title, a line per correction."""
    looks = {rule: look(i) for i, rule in enumerate(next(iter(panels.values())))}
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with style():
        plot = figure(max(3.0 * columns, 5.0), 2.6 * rows + 0.5)
        axes = plot.subplots(rows, columns, squeeze=False)
        for panel in axes.flat[len(panels) :]:
            panel.set_axis_off()
        for panel, (title, lines), floor in zip(axes.flat, panels.items(), floors, strict=False):
            _panel(panel, lines, looks, floor)
            plain_ticks(panel)
            panel.set_title(title)
            if axis == "nfe":
                panel.set_xticks(sorted({x for points in lines.values() for x, _, _ in points}))
        for line in axes:
            line[0].set_ylabel(TITLES[HEADLINE])
        for i in range(columns):
            axes[(len(panels) - 1 - i) // columns, i].set_xlabel(AXES[axis])
        return drawing(name, caption, plot, [_title(rule) for rule in looks])


def _panel(plot: Any, lines: dict[str, list[Point]], looks: dict[str, dict[str, Any]], floor: Value | None) -> None:
    """Lines with error bars; logarithmic, and linear near zero where an unbiased distance is not positive."""
    drawn = [v for points in lines.values() for _, v, _ in points if math.isfinite(v.value)]
    crosses = 0
    for rule, points in lines.items():
        kept = [(x, v) for x, v, _ in points if math.isfinite(v.value)]
        lost = [x for x, _, diverged in points if diverged]
        if kept:
            x, values, errors = [p[0] for p in kept], [p[1].value for p in kept], [max(p[1].se, 0.0) for p in kept]
            plot.errorbar(x, values, errors, **looks[rule], elinewidth=0.8, label=_title(rule))
        if lost:
            look = {"color": looks[rule]["color"], "ms": 4, "transform": plot.get_xaxis_transform(), "label": _title(rule)}
            plot.plot(lost, [0.98 - 0.05 * crosses] * len(lost), "x", **look)
            crosses += 1
    if floor is not None and math.isfinite(floor.se):
        plot.axhspan(floor.value - 2 * floor.se, floor.value + 2 * floor.se, color="0.5", alpha=0.25, lw=0)
    if drawn:
        _scale(plot, drawn)


def _scale(plot: Any, drawn: Sequence[Value]) -> None:
    low, high = min(v.value for v in drawn), max(v.value for v in drawn)
    if low > 0:
        plot.set_yscale("log")
        plot.set_ylim(low / 1.6, high * 1.8)
        return
    noise = sorted(v.se for v in drawn if v.se > 0)
    plot.set_yscale("symlog", linthresh=max(noise[len(noise) // 2] if noise else 0.0, 1e-6 * max(high, 1e-3)))


def _titles(study: Study) -> list[str]:
    return [_title(rule) for rule in (PLAIN, *study.corrections)]


def _title(rule: str) -> str:
    return "plain" if rule == PLAIN else short(rule)


def _look(study: Study, rule: str) -> dict[str, Any]:
    return look(0 if rule == PLAIN else 1 + study.corrections.index(rule))


def _spectrum(axis: Any, ratios: Sequence[float | None], colour: bool, look: dict[str, Any]) -> None:
    """One line, or one for luma and one for chroma."""
    values = [_number(r) for r in ratios]
    half = len(values) // 2 if colour else len(values)
    for part in (range(half), range(half, len(values))):
        if part:
            axis.plot(list(part), [values[i] for i in part], **look)


def _number(value: Any) -> float:
    """A trace's number; JSON has None for NaN."""
    return float(value) if isinstance(value, int | float) else math.nan


def _images(shown: Tensor) -> Image | None:
    return shown[:_SEEDS].cpu().numpy() if shown.ndim == 4 and len(shown) else None


def _file(*parts: str) -> str:
    return f"figures/{slug('-'.join(parts))}"
