"""The pictures of `steindiff diagnose`: worst cases on logarithmic axes, a column for each model."""

from collections.abc import Sequence
from typing import Any, Literal

from steindiff.diagnostics.results import Diagnosis, Flow, TraceRun
from steindiff.diagnostics.toy import Orbit, Turn
from steindiff.report.blocks import Figure
from steindiff.report.figures import Line, Panel, charts, drawing, figure, style
from steindiff.report.palette import COLOURS, INK, look

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


def toy(found: Sequence[Turn]) -> Figure:
    """Fig. 3 rebuilt: the first coordinate of every run against the step, map by map, and the last map's runs in the plane."""
    with style():
        plot = figure(3.3 * (len(found) + 1), 2.9)
        *axes, plane = plot.subplots(1, len(found) + 1)
        for axis, one in zip(axes, found, strict=True):
            for i, orbit in enumerate(one.orbits):
                axis.plot(orbit.path[:, 0].numpy(), **look(i), label=_gamma(one, orbit))
            axis.set(title=one.name, xlabel="step", ylim=(-1.15, 1.15))
            axis.axhline(0, color=INK, lw=0.6, alpha=0.5)
        axes[0].set_ylabel("first coordinate (fixed point: 0)")
        for i, orbit in enumerate(found[-1].orbits):
            plane.plot(*orbit.path.T.numpy(), **look(i))
        plane.set(title=f"{found[-1].name}, in the plane", aspect="equal", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
        labels = [_gamma(found[0], orbit) for orbit in found[0].orbits]
        caption = (
            "Fig. 3, rebuilt; the maps are ours. A rotation has Lipschitz constant 1. Its own iterates (γ = 1) never come "
            "nearer the fixed point, and every blend with γ < 1 converges."
        )
        return drawing("toy", caption, plot, labels)


def _gamma(one: Turn, orbit: Orbit) -> str:
    return f"γ = {orbit.gamma:.3g}{' (γ*, Eq. 9)' if orbit is one.orbits[-1] else ''}"
