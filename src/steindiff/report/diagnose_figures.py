"""The pictures of `steindiff diagnose`: worst cases on logarithmic axes, a column for each model."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch

from steindiff.diagnostics.results import Diagnosis, Flow, Toy, TraceRun
from steindiff.report.blocks import Figure
from steindiff.report.figures import Line, Panel, charts, drawing, figure, plain_ticks, style
from steindiff.report.palette import COLOURS, look

LABELS = {"none": "plain", "clamped": "Eq. 11, γ ≤ 1", "literal": "Eq. 11 as printed"}
_STYLES = {"none": ":", "clamped": "-", "literal": "--"}


def step_peaks(found: Diagnosis) -> Figure:
    """Fig. 4 rebuilt: peak over steps and trajectories against NFE; above the worst direction, below the actual error."""
    names = list(dict.fromkeys(run.solver for run in found.cells))

    def panel(flow: Flow, key: Literal["lipschitz", "actual"], title: str) -> Panel:
        lines = []
        for i, name in enumerate(names):
            runs = [run for run in found.runs(flow) if run.solver == name]
            lines.append(Line(name, look(i + 1), [run.peak(key)[1] for run in runs], [run.nfe for run in runs]))
        return Panel(title, lines)

    def ticks(axis: Any) -> None:
        axis.set_xscale("log")
        axis.set_xticks(sorted(found.setup.nfe))
        axis.minorticks_off()

    worst = [panel(flow, "lipschitz", f"{flow.name}, {len(flow.noise)} trajectories") for flow in found.flows]
    actual = [panel(flow, "actual", "") for flow in found.flows]
    caption = (
        "Peak over steps and trajectories against NFE: above of the worst direction, below of the actual error. Steps below "
        "the line at 1 are contractions."
    )
    y = ("peak ‖∂T/∂x‖₂", "peak amplification\nof the actual error")
    return charts("steps", caption, [worst, actual], x="NFE", y=y, width=5.0, share=True, abscissa=ticks)


def profiles(found: Diagnosis) -> Figure:
    """L_D along the exact flow against σ: worst direction of every trajectory, random directions, and the threshold."""
    row = []
    for flow in found.flows:
        p, x = flow.profile, flow.profile.sigmas.tolist()
        worst = {"color": COLOURS[0], "lw": 1, "alpha": 0.6}
        lines = [Line("worst direction", worst, curve.tolist(), x) for curve in p.lipschitz.T]
        median = Line("random direction, median", {"color": COLOURS[1]}, p.random.median(1).values.tolist(), x)
        row.append(Panel(flow.name, [*lines, median]))

    def falling(axis: Any) -> None:
        axis.set_xscale("log")
        axis.invert_xaxis()

    caption = (
        "Local Lipschitz constant of the denoiser along the exact flow, against σ. The line at 1 is the certificate's "
        "threshold in EDM coordinates."
    )
    y = ("local Lipschitz constant of D",)
    return charts("denoiser", caption, [row], x="σ", y=y, width=5.0, share=True, abscissa=falling)


def traces(found: Diagnosis) -> Figure:
    """γ per step above, σ̂/σ at the state of each step below; plain dotted, clamped solid, literal dashed."""
    colours = dict(zip(dict.fromkeys(t.solver for t in found.traces), COLOURS, strict=False))

    def line(t: TraceRun, y: Sequence[float]) -> Line:
        settings = {"color": colours[t.solver], "ls": _STYLES[t.rule], "marker": "o", "ms": 3}
        return Line(f"{t.solver}, {LABELS[t.rule]}", settings, y)

    above, below = [], []
    for flow in found.flows:
        runs = [t for t in found.traces if t.model == flow.name]
        above.append(Panel(flow.name, [line(t, t.gammas) for t in runs if t.rule != "none"]))
        below.append(Panel("", [line(t, t.noise) for t in runs]))
    caption = "Above γ of each step, below the noise level that a batch has over the one it is told."
    y = ("γ (1: plain solver)", "σ̂/σ (1: as told)")
    return charts("gamma", caption, [above, below], x="step", y=y, width=5.0, share=True)


def toy(found: Toy, shown: int = 25) -> Figure:
    """Trajectories in x/√(1 + σ²) against σ; grey where L_D > 1, so that the certificate is lost."""
    order = found.panels[0].paths[0].argsort()
    some = order[torch.linspace(0, len(order) - 1, shown).round().long()]
    y = torch.linspace(-3, 3, 121, dtype=torch.float64)
    with style():
        plot = figure(3.1 * len(found.panels), 3.4)
        axes = plot.subplots(1, len(found.panels), sharey=True)
        for axis, panel in zip(axes, found.panels, strict=True):
            first, last = float(panel.sigmas[0]), float(panel.sigmas[-1])
            levels = torch.logspace(math.log10(last), math.log10(first), 80, dtype=torch.float64)
            slopes = torch.stack([found.law.divergence((y * (1 + s**2).sqrt())[:, None], s) for s in levels])
            axis.contourf(levels.numpy(), y.numpy(), slopes.T.numpy(), levels=[1.0, 1e9], colors=["0.5"], alpha=0.3)
            sigmas = panel.sigmas[: len(panel.paths)]
            scaled = panel.paths[:, some] / (1 + sigmas[:, None] ** 2).sqrt()
            marker = "o" if len(sigmas) < 10 else None
            axis.semilogx(sigmas.numpy(), scaled.numpy(), color=COLOURS[0], lw=0.7, marker=marker, ms=2)
            axis.set(title=panel.name, xlabel="σ", xlim=(first, last), ylim=(-3, 3))
            plain_ticks(axis)
        axes[0].set_ylabel("x/√(1 + σ²)")
        return drawing("toy", "The toy of Fig. 3, rebuilt: x* = ±1 + 0.05 ε. L_D > 1 where it is grey.", plot)
