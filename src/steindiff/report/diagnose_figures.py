"""The pictures of `steindiff diagnose`, in Okabe–Ito colours, worst cases on logarithmic axes."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from steindiff.diagnostics.study import Bed, Cell, TraceRun
from steindiff.diagnostics.toy import Toy, law
from steindiff.io.files import atomic

__all__ = ["LABELS", "draw_profiles", "draw_steps", "draw_toy", "draw_traces", "largest"]

LABELS = {"none": "plain", "clamped": "Eq. 11, γ ≤ 1", "literal": "Eq. 11 as printed"}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = {"none": ":", "clamped": "-", "literal": "--"}


def largest(values: tuple[float, ...]) -> float:
    """The largest of those that are numbers; NaN if none is."""
    return max((v for v in values if v == v), default=float("nan"))


def draw_steps(path: Path, beds: list[Bed], cells: list[Cell]) -> None:
    """Fig. 4 rebuilt: peak over steps and trajectories against NFE; above, the worst direction, below, the actual error."""
    figure = _figure(len(beds), rows=2)
    axes = figure.subplots(2, len(beds), squeeze=False, sharex=True, sharey="row")
    for column, bed in zip(axes.T, beds, strict=True):
        mine = [c for c in cells if c.model == bed.model.name]
        styles = cycle([(c, m) for m in "osD^" for c in _COLOURS])
        for name in dict.fromkeys(c.solver for c in mine):
            runs = [c for c in mine if c.solver == name]
            colour, marker = next(styles)
            for axis, key in zip(column, ("lipschitz", "actual"), strict=True):
                peaks = [largest(tuple(v for r in c.reports for v in getattr(r, key))) for c in runs]
                axis.loglog([c.nfe for c in runs], peaks, marker=marker, ms=4, color=colour, label=name)
        for axis in column:
            axis.axhline(1.0, color="0.3", lw=1, ls="--")
        column[0].set_title(f"{bed.model.name}, {len(bed.noise)} trajectories")
        ticks = sorted({c.nfe for c in mine})
        column[1].set_xticks(ticks, [str(n) for n in ticks])
        column[1].minorticks_off()
        column[1].set_xlabel("NFE")
    axes[0, 0].set_ylabel("peak ‖∂T/∂x‖₂\n(dashed: contraction)")
    axes[1, 0].set_ylabel("peak amplification\nof the actual error")
    axes[0, 0].legend(fontsize=7, ncols=2)
    _save(figure, path)


def draw_profiles(path: Path, beds: list[Bed]) -> None:
    """L_D along the exact flow against σ: worst direction of every trajectory, random directions, and the threshold."""
    figure = _figure(len(beds))
    for axis, bed in zip(figure.subplots(1, len(beds), squeeze=False, sharey=True)[0], beds, strict=True):
        p = bed.profile
        for i, curve in enumerate(p.lipschitz.T):
            axis.loglog(
                p.sigmas.numpy(), curve.numpy(), color=_COLOURS[0], lw=1, alpha=0.6, label="worst direction" if i == 0 else None
            )
        axis.loglog(p.sigmas.numpy(), p.random.median(1).values.numpy(), color=_COLOURS[1], label="random direction, median")
        axis.axhline(1.0, color="0.3", lw=1, ls="--", label="certificate's threshold (EDM: 1)")
        axis.set(title=bed.model.name, xlabel="σ")
        axis.invert_xaxis()
    figure.axes[0].set_ylabel("local Lipschitz constant of D")
    figure.axes[0].legend(fontsize=7)
    _save(figure, path)


def draw_traces(path: Path, traces: list[TraceRun]) -> None:
    """γ per step above, σ̂/σ at the state of each step below; plain dotted, clamped solid, literal dashed."""
    names = list(dict.fromkeys(t.model for t in traces))
    figure = _figure(len(names), rows=2)
    axes = figure.subplots(2, len(names), squeeze=False, sharex="col", sharey="row")
    colours = dict(zip(dict.fromkeys(t.solver for t in traces), _COLOURS, strict=False))
    for column, name in zip(axes.T, names, strict=True):
        for t in [t for t in traces if t.model == name]:
            look = {"color": colours[t.solver], "ls": _STYLES[t.rule], "marker": "o", "ms": 3}
            if t.rule != "none":
                column[0].semilogy(t.gammas, **look)
            column[1].semilogy(t.noise, **look, label=f"{t.solver}, {LABELS[t.rule]}")
        for axis in column:
            axis.axhline(1.0, color="0.5", lw=0.8)
        column[0].set_title(name)
        column[1].set_xlabel("step")
        column[1].xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("γ (1 = plain solver)")
    axes[1, 0].set_ylabel("σ̂/σ (1 = as told)")
    axes[1, 0].legend(fontsize=7)
    _save(figure, path)


def draw_toy(path: Path, toy: Toy, shown: int = 25) -> None:
    """Trajectories in x/√(1 + σ²) against σ; grey where L_D > 1, so that the certificate is lost."""
    figure = _figure(len(toy.panels) * 0.62)
    order = toy.panels[0].paths[0].argsort()
    some = order[torch.linspace(0, len(order) - 1, shown).round().long()]
    for axis, panel in zip(figure.subplots(1, len(toy.panels), sharey=True), toy.panels, strict=True):
        _shade(axis, panel.sigmas)
        sigmas = panel.sigmas[: len(panel.paths)]
        scaled = panel.paths[:, some] / (1 + sigmas[:, None] ** 2).sqrt()
        axis.semilogx(sigmas.numpy(), scaled.numpy(), color=_COLOURS[0], lw=0.7, marker="o" if len(sigmas) < 10 else None, ms=2)
        axis.set(title=panel.name, xlabel="σ", xlim=(float(panel.sigmas[0]), float(panel.sigmas[-1])), ylim=(-3, 3))
        axis.title.set_fontsize(9)
    figure.axes[0].set_ylabel("x/√(1 + σ²)")
    figure.suptitle("Toy of Fig. 3, rebuilt: x* = ±1 + 0.05 ε; grey: L_D > 1", fontsize=10)
    _save(figure, path)


def _shade(axis: Any, sigmas: torch.Tensor) -> None:
    levels = torch.logspace(float(sigmas[-1].log10()), float(sigmas[0].log10()), 80, dtype=torch.float64)
    y = torch.linspace(-3, 3, 121, dtype=torch.float64)
    slopes = torch.stack([law().divergence((y * (1 + s**2).sqrt())[:, None], s) for s in levels])
    axis.contourf(levels.numpy(), y.numpy(), slopes.T.numpy(), levels=[1.0, 1e9], colors=["0.85"])


def _figure(columns: float, rows: int = 1) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(5 * columns, 3.4 * rows), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
