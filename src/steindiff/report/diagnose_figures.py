"""The pictures of `steindiff diagnose`: worst cases on logarithmic axes, a column for each model."""

from __future__ import annotations

from typing import Any

import torch

from steindiff.analytic import GaussianMixture
from steindiff.diagnostics.results import Diagnosis, Quantity, Toy
from steindiff.report.blocks import Figure
from steindiff.report.figures import drawing, figure, integer_ticks, plain_ticks, style
from steindiff.report.palette import COLOURS, INK, look

__all__ = ["LABELS", "profiles", "step_peaks", "toy", "traces"]

LABELS = {"none": "plain", "clamped": "Eq. 11, γ ≤ 1", "literal": "Eq. 11 as printed"}
_QUANTITIES: tuple[Quantity, ...] = ("lipschitz", "actual")
_STYLES = {"none": ":", "clamped": "-", "literal": "--"}


def step_peaks(found: Diagnosis) -> Figure:
    """Fig. 4 rebuilt: peak over steps and trajectories against NFE; above the worst direction, below the actual error."""
    names = list(dict.fromkeys(run.solver for run in found.cells))
    with style():
        plot, axes = _columns(found, rows=2, sharex=True, sharey="row")
        for column, flow in zip(axes.T, found.flows, strict=True):
            runs = [run for run in found.cells if run.model == flow.name]
            for i, name in enumerate(names):
                mine = [run for run in runs if run.solver == name]
                for axis, key in zip(column, _QUANTITIES, strict=True):
                    peaks = [run.peak(key)[1] for run in mine]
                    axis.loglog([run.nfe for run in mine], peaks, **look(i + 1), label=name)
            for axis in column:
                axis.axhline(1.0, color=INK, lw=1, ls="--", alpha=0.6)
            column[0].set_title(f"{flow.name}, {len(flow.noise)} trajectories")
            ticks = sorted({run.nfe for run in runs})
            column[1].set_xlabel("NFE")
            plain_ticks(column[0])
            plain_ticks(column[1])
            column[1].set_xticks(ticks, [str(n) for n in ticks])
            column[1].minorticks_off()
        axes[0, 0].set_ylabel("peak ‖∂T/∂x‖₂")
        axes[1, 0].set_ylabel("peak amplification\nof the actual error")
        caption = (
            "Peak over steps and trajectories against NFE: above of the worst direction, below of the actual error. Steps "
            "below the dashed line are contractions."
        )
        return drawing("steps", caption, plot, names)


def profiles(found: Diagnosis) -> Figure:
    """L_D along the exact flow against σ: worst direction of every trajectory, random directions, and the threshold."""
    labels = ["worst direction", "random direction, median", "certificate's threshold (EDM: 1)"]
    with style():
        plot, axes = _columns(found, rows=1, sharey=True)
        for axis, flow in zip(axes[0], found.flows, strict=True):
            p = flow.profile
            for curve in p.lipschitz.T:
                axis.loglog(p.sigmas.numpy(), curve.numpy(), color=COLOURS[0], lw=1, alpha=0.6, label=labels[0])
            axis.loglog(p.sigmas.numpy(), p.random.median(1).values.numpy(), color=COLOURS[1], label=labels[1])
            axis.axhline(1.0, color=INK, lw=1, ls="--", alpha=0.6, label=labels[2])
            axis.set(title=flow.name, xlabel="σ")
            axis.invert_xaxis()
            plain_ticks(axis)
        axes[0, 0].set_ylabel("local Lipschitz constant of D")
        return drawing("denoiser", "Local Lipschitz constant of the denoiser along the exact flow, against σ.", plot, labels)


def traces(found: Diagnosis) -> Figure:
    """γ per step above, σ̂/σ at the state of each step below; plain dotted, clamped solid, literal dashed."""
    colours = dict(zip(dict.fromkeys(t.solver for t in found.traces), COLOURS, strict=False))
    labels: list[str] = []
    with style():
        plot, axes = _columns(found, rows=2, sharex="col", sharey="row")
        for column, flow in zip(axes.T, found.flows, strict=True):
            for t in [t for t in found.traces if t.model == flow.name]:
                label = f"{t.solver}, {LABELS[t.rule]}"
                settings = {"color": colours[t.solver], "ls": _STYLES[t.rule], "marker": "o", "ms": 3, "label": label}
                labels.append(label)
                if t.rule != "none":
                    column[0].semilogy(t.gammas, **settings)
                column[1].semilogy(t.noise, **settings)
            for axis in column:
                axis.axhline(1.0, color=INK, lw=0.8, alpha=0.5)
            column[0].set_title(flow.name)
            column[1].set_xlabel("step")
            integer_ticks(column[1])
        for axis, title in zip(axes[:, 0], ("γ (1: plain solver)", "σ̂/σ (1: as told)"), strict=True):
            plain_ticks(axis)
            axis.set_ylabel(title)
        caption = "Above γ of each step, below the noise level that a batch has over the one it is told."
        return drawing("gamma", caption, plot, labels)


def toy(found: Toy, shown: int = 25) -> Figure:
    """Trajectories in x/√(1 + σ²) against σ; grey where L_D > 1, so that the certificate is lost."""
    order = found.panels[0].paths[0].argsort()
    some = order[torch.linspace(0, len(order) - 1, shown).round().long()]
    with style():
        plot = figure(3.1 * len(found.panels), 3.4)
        axes = plot.subplots(1, len(found.panels), sharey=True)
        for axis, panel in zip(axes, found.panels, strict=True):
            _shade(axis, panel.sigmas, found.law)
            sigmas = panel.sigmas[: len(panel.paths)]
            scaled = panel.paths[:, some] / (1 + sigmas[:, None] ** 2).sqrt()
            marker = "o" if len(sigmas) < 10 else None
            axis.semilogx(sigmas.numpy(), scaled.numpy(), color=COLOURS[0], lw=0.7, marker=marker, ms=2)
            axis.set(title=panel.name, xlabel="σ", xlim=(float(panel.sigmas[0]), float(panel.sigmas[-1])), ylim=(-3, 3))
            plain_ticks(axis)
        axes[0].set_ylabel("x/√(1 + σ²)")
        return drawing("toy", "The toy of Fig. 3, rebuilt: x* = ±1 + 0.05 ε. L_D > 1 where it is grey.", plot)


def _shade(axis: Any, sigmas: torch.Tensor, law: GaussianMixture) -> None:
    levels = torch.logspace(float(sigmas[-1].log10()), float(sigmas[0].log10()), 80, dtype=torch.float64)
    y = torch.linspace(-3, 3, 121, dtype=torch.float64)
    slopes = torch.stack([law.divergence((y * (1 + s**2).sqrt())[:, None], s) for s in levels])
    axis.contourf(levels.numpy(), y.numpy(), slopes.T.numpy(), levels=[1.0, 1e9], colors=["0.5"], alpha=0.3)


def _columns(found: Diagnosis, rows: int, **shared: Any) -> tuple[Any, Any]:
    """A figure and its axes, a column for each model."""
    plot = figure(5.0 * len(found.flows), 3.0 * rows + 0.4)
    return plot, plot.subplots(rows, len(found.flows), squeeze=False, **shared)
