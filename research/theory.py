"""Every number and picture of docs/theory.md: the theory behind the correction, run on exact Gaussians and mixtures.

    python -m research.theory --outdir docs --samples 20000

fills research/theory_page.md and writes OUTDIR/theory.md and OUTDIR/images/theory_*.png, whole or not at all. A minute and a
half on one core. `theory_core` has the identities, `theory_runs` the rest.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from research import theory_runs as runs
from research.theory_core import (
    DIM,
    SCHEDULES,
    STATEMENTS,
    Case,
    Comparison,
    cases,
    improvement,
    law,
    sample_of,
    violated,
)
from steindiff.io.files import atomic, write_text

TEMPLATE = Path(__file__).with_name("theory_page.md")
# Okabe–Ito colours on an opaque white ground: told apart by the colour-blind, readable on a dark page too.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
LAWS = ("gaussian", "mixture")
NOISES = (0.5, 0.8, 1.0, 1.25, 1.6, 2.5)
STEPS = (3, 5, 8, 10, 20)


def table(head: list[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *[[_cell(c) for c in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """Four figures."""
    return "–" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:.4g}"


# ---------------------------------------------------------------- identities


def identities(n: int, seed: int) -> dict[str, str]:
    """Both sides of seven statements on every case, and the two inequalities."""
    found: dict[str, list[tuple[Case, Comparison]]] = {name: [] for name in STATEMENTS}
    decided = agreeing = left = 0
    largest, margin = 0.0, math.inf
    every = cases()
    for i, case in enumerate(tqdm(every, desc="identities", unit="case")):
        a, b = (sample_of(case, n, seed + 2 * i + j) for j in (0, 1))
        for name, sides in STATEMENTS.items():
            found[name].append((case, sides(a, b)))
        for predicted, measured, clear in improvement(a, b):
            decided, agreeing = decided + clear, agreeing + (clear and predicted == measured)
            left += not clear
        m = b.means
        largest = max(largest, float(m.best**2 * m.c / m.ee))
        least = b.estimate(lambda m: m.loss(m.best))
        margin = min(margin, least.value / least.se)
    zs = [c.z for rows in found.values() for _, c in rows]
    return {
        "cases": str(len(every)),
        "comparisons": str(len(zs)),
        "worst_z": f"{max(map(abs, zs)):.1f}",
        "beyond_two": f"{100 * sum(abs(z) > 2 for z in zs) / len(zs):.1f} %",
        "identity_table": _identity_table(found),
        "gamma_table": _gamma_table(found["Thm 4.7"]),
        "decided": str(decided),
        "agreeing": str(agreeing),
        "undecided": str(left),
        "largest_rho": f"{largest:.3f}",
        "margin": f"{margin:.0f}",
    }


def _identity_table(found: dict[str, list[tuple[Case, Comparison]]]) -> str:
    """The non-linear case of each statement that a reader may check, and the worst of all cases."""
    shown = Case("mixture", "vp-linear", "model", "dpmpp_2m", 1)
    rows = []
    for name, results in found.items():
        mine = next(c for case, c in results if case == shown)
        rows.append([name, mine.predicted, mine.measured, f"{mine.z:+.1f}", f"{max(abs(c.z) for _, c in results):.1f}"])
    return table(["statement", "predicted", "measured with x*", "z", "largest z of all, in size"], rows)


def _gamma_table(results: list[tuple[Case, Comparison]]) -> str:
    rows = [
        [c.law, c.schedule, c.solver, c.level, found.predicted, found.measured, f"{found.z:+.1f}"]
        for c, found in results
        if c.frame == "model"
    ]
    return table(["law", "schedule", "solver", "step", "γ, Eq. 11", "γ, regression on x*", "z"], rows)


def hypotheses(n: int, seed: int) -> dict[str, str]:
    """Lemma 4.6 with a hypothesis changed, and what becomes of γ."""
    changes: list[tuple[str, dict[str, object], int]] = [
        ("none", {}, n),
        ("one fixed x* (the conditional law)", {"fixed": True}, n),
        ("noise 1.3 times what the step assumes", {"noise": 1.3}, n),
        ("skewed noise, same variance", {"shape": "skewed"}, 5 * n),
        ("2M, history on the flow, differentiated through", {"solver": "dpmpp_2m", "history": "flow"}, n),
        ("2M, history on the flow, held constant", {"solver": "dpmpp_2m", "history": "frozen"}, n),
    ]
    rows: list[list[object]] = []
    gammas: list[list[object]] = []
    for label, change, count in tqdm(changes, desc="hypotheses", unit="row"):
        for name in LAWS:
            found = violated(Case(name, level=1), count, seed, **change)
            rows.append([label, name, found.predicted, found.measured, f"{found.z:+.1f}"])
    for name in LAWS:
        for level in (0, 1):
            pair = [sample_of(Case(name, solver="dpmpp_2m", level=level, history=h), n, seed) for h in ("frozen", "flow")]
            held, whole = (s.estimate(lambda m: m.gamma) for s in pair)
            gammas.append([name, level, held, whole, pair[1].estimate(lambda m: m.best)])
    return {
        "hypothesis_table": table(["changed", "law", "σ² E[∇·u]", "E⟨u, x − αx*⟩", "z"], rows),
        "history_table": table(
            ["law", "step", "γ, history held constant", "γ, differentiated through", "γ, regression on x*"], gammas
        ),
    }


def frames(n: int, seed: int) -> dict[str, str]:
    """γ, its drift term and the state it leads to, in both frames, against three second moments."""
    rows = []
    for name, schedule, level in tqdm([(a, s, i) for a in LAWS for s in SCHEDULES for i in (0, 1)], desc="frames"):
        case = Case(name, schedule, level=level)
        moments = runs.second(name, float(case.sigmas[1]))
        s = sample_of(case, n, seed)
        predicted, other = runs.ddim_gamma(case, moments), runs.ddim_gamma(replace(case, frame="ve"), moments)
        drift = s.estimate(lambda m: (1 - 1 / m.moments.alpha) * m.moments.ux / m.c)
        gap, measured = runs.frame_gap(case, moments, n, seed)
        cells = [predicted.gamma, s.estimate(lambda m: m.gamma), predicted.drift, drift, other.gamma, gap]
        rows.append([name, schedule, level, float(case.alphas[0]), *cells, "0" if schedule == "edm" else measured])
    head = ["law", "schedule", "step", "α", "γ predicted", "γ measured", "drift term predicted", "measured", "γ, VE frame"]
    return {"frame_table": table([*head, "states apart, predicted", "measured"], rows), "vp_table": _vp_table()}


def _vp_table() -> str:
    steps = ((-5.0, -3.0), (-3.0, -1.0), (-1.0, 1.0), (1.0, 3.0), (3.0, 5.0))
    columns = [runs.vp_gammas(name, steps) for name in (*LAWS, "unit")]
    rows = [[f"{r[0].start:.0f} → {r[0].stop:.0f}", *[c.model for c in r], r[0].ve] for r in zip(*columns, strict=True)]
    return table(["half-log-SNR", "gaussian", "mixture", "N(0, I)", "VE frame, any law"], rows)


# ---------------------------------------------------------------- bounds


def bounds(n: int, seed: int, images: Path) -> dict[str, str]:
    """Thm 4.10 under controlled shifts and Prop. D.1, with the picture of the first."""
    sizes = torch.logspace(-2, 0.5, 11, dtype=torch.float64).tolist()
    estimates = {
        f: [runs.shifted_estimate(Case("mixture", level=1), f, z, n, seed)[0] for z in sizes]
        for f in ("constant", "wave", "aligned")
    }
    kappas = (0.5, 0.7, 0.85, 0.95, 1.05, 1.2, 1.5, 2.0, 3.0)
    laws = [runs.shifted_law("mixture", 0.5, 0.4, k, 5 * n, seed)[0] for k in kappas]
    networks = {
        f: [runs.shifted_network("mixture", 0.5, 0.4, f, z, n, seed) for z in sizes] for f in ("constant", "wave", "aligned")
    }
    _draw_shifts(images / "theory_shift.png", estimates, laws, networks)
    rows = [[k, s.size, s.measured, s.bound, s.measured / s.bound] for k, s in zip(kappas, laws, strict=True)]
    head = ["κ", "√E‖δ‖²", "error of γ", "bound", "share of the bound"]
    lip = []
    for name in LAWS:
        for schedule in tqdm(SCHEDULES, desc="Lipschitz"):
            for level in (0, 1):
                x = runs.lipschitz(Case(name, schedule, level=level), min(n, 2000), seed)
                share = f"{100 * x.lost:.1f} %"
                lip.append([name, schedule, level, x.threshold, x.denoiser, share, x.step, x.flow, x.random])
    names = ["law", "schedule", "step", "threshold", "largest ‖J_D‖", "states beyond", "largest ‖J_T‖"]
    return {
        "shift_table": table(head, rows),
        "lipschitz_table": table([*names, "largest ‖J‖, exact flow", "random direction, median"], lip),
    }


def _draw_shifts(
    path: Path, estimates: dict[str, list[runs.Shift]], laws: list[runs.Shift], networks: dict[str, list[runs.Shift]]
) -> None:
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, shifts), colour in zip(estimates.items(), COLOURS, strict=False):
        left.loglog([s.bound for s in shifts], [s.measured for s in shifts], "o-", ms=4, color=colour, label=f"{name} δ")
    left.loglog([s.bound for s in laws], [s.measured for s in laws], "s", color=PURPLE, label="state at κσ")
    left.set(xlabel="bound  σ²√(E‖δ‖²/c)", ylabel="|γ̂ − γ*|", title="an estimate from a shifted score")
    for (name, shifts), colour in zip(networks.items(), COLOURS, strict=False):
        shown = [s for s in shifts if s.measured > 1e-12]
        if shown:
            right.loglog([s.bound for s in shown], [s.measured for s in shown], "o-", ms=4, color=colour, label=f"{name} δ")
    right.set(xlabel="bound  |γ*|(1−r)σ²√E‖δ‖²", ylabel="√J(γ̃*) − √J(γ*)", title="a step from a shifted network")
    for axis in (left, right):
        low, high = axis.get_xlim()
        axis.plot([low, high], [low, high], color="0.5", lw=0.8)
        axis.legend(fontsize=7)
    _save(figure, path)


# ---------------------------------------------------------------- what the coefficient does


def behaviour(n: int, seed: int, images: Path) -> dict[str, str]:
    """Runs, the meter, the equivalences and one step of several candidates."""
    found: dict[tuple[str, str, int], list[runs.Run]] = {}
    for name in LAWS:
        x = runs.start(256, seed)
        exact = law(name).flow(x, 80.0, 0.002, tol=1e-5)
        for solver in tqdm(runs.NAMED, desc=f"runs, {name}"):
            for steps in STEPS:
                rules = (None, runs.LITERAL, runs.CLAMPED)
                row = [runs.run_against_flow(law(name), solver, rule, steps, x, exact) for rule in rules]
                found[name, solver, steps] = row
    _draw_runs(images / "theory_literal.png", found)
    rows = [
        [*key, p.error, q.error, f"{q.error / p.error:.2g}", f"{q.largest:.3g}", c.error, f"{c.reduced} of {key[2]}"]
        for key, (p, q, c) in found.items()
        if key[2] != 20
    ]
    head = ["law", "solver", "steps", "plain", "as printed", "factor", "largest γ*", "γ ≤ 1", "steps with γ < 1"]
    factors = [q.error / p.error for p, q, _ in found.values()]
    return {
        "run_table": table(head, rows),
        "run_cells": str(len(found)),
        "least_factor": f"{min(factors):.2g}",
        "most_factor": f"{max(factors):.2g}",
        "clamp_worse": _named(key for key, (p, _, c) in found.items() if c.error > 1.02 * p.error),
        "clamp_better": _named(key for key, (p, _, c) in found.items() if c.error < 0.98 * p.error),
        "equivalence_table": table(
            ["pair, five steps on the mixture", "largest relative difference"],
            [[k, f"{v:.0e}"] for k, v in runs.equivalences(seed).items()],
        ),
        "candidate_table": _candidates(n, seed),
        **_meter(min(n, 20000), seed, images),
    }


def _named(cells: Iterable[tuple[str, str, int]]) -> str:
    """Cells by law and solver, with their numbers of steps."""
    grouped: dict[str, list[str]] = {}
    for name, solver, steps in cells:
        grouped.setdefault(f"{name} {solver}", []).append(str(steps))
    return "; ".join(f"{key} ({', '.join(steps)})" for key, steps in grouped.items()) or "none"


def _candidates(n: int, seed: int) -> str:
    rows = [
        [level, name, c.clean, c.consistent, c.flow, c.energy if name != "exact flow" else "0"]
        for level in (0, 1)
        for name, c in runs.candidates(Case("mixture", level=level), n, seed).items()
    ]
    head = ["step", "proposal", "to x*", "to r x + (1−r) x*", "to the exact flow", "energy, less the exact flow's"]
    return table(head, rows)


def _meter(n: int, seed: int, images: Path) -> dict[str, str]:
    levels = (5.0, 0.5, 0.1)
    found = {s: [runs.meter("mixture", s, 0.4, k, n, seed) for k in NOISES] for s in levels}
    _draw_meter(images / "theory_meter.png", found)
    rows = [
        [s, m.noise, m.ratio, m.gamma, *[m.after[key] for key in ("plain", "clamped", "literal")]]
        for s, readings in found.items()
        for m in readings
    ]
    gaussian = [
        [s, k, runs.gaussian_reading(s, k), runs.meter("gaussian", s, 0.4, k, n, seed).ratio]
        for s in levels
        for k in (0.8, 1.6)
    ]
    head = ["σ", "κ", "reading σ̂/σ", "γ*, r = 0.4", "after: plain", "after: γ ≤ 1", "after: as printed"]
    return {
        **{f"after_{key}": number(found[5.0][4].after[key]) for key in ("plain", "clamped")},
        "meter_table": table(head, rows),
        "meter_gaussian": table(["σ", "κ", "reading, closed form", "reading, measured"], gaussian),
    }


def _draw_runs(path: Path, found: dict[tuple[str, str, int], list[runs.Run]]) -> None:
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2, sharey=True), LAWS, strict=True):
        for solver, colour in (("ddim", BLUE), ("dpmpp_2m", ORANGE), ("heun", GREEN)):
            for j, (style, label) in enumerate((("o-", "plain"), ("^--", "as printed"), ("x:", "γ ≤ 1"))):
                errors = [found[name, solver, steps][j].error for steps in STEPS]
                axis.loglog(STEPS, errors, style, ms=4, color=colour, label=f"{solver}, {label}")
        axis.set(title=name, xlabel="steps, EDM grid", xticks=STEPS, xticklabels=[str(s) for s in STEPS])
        axis.minorticks_off()
    figure.axes[0].set_ylabel("RMS distance to the exact flow's end")
    figure.axes[1].legend(fontsize=6.5, loc="center right")
    _save(figure, path)


def _draw_meter(path: Path, found: dict[float, list[runs.Meter]]) -> None:
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (sigma, readings), colour in zip(found.items(), COLOURS, strict=False):
        left.plot(NOISES, [m.ratio for m in readings], "o-", ms=4, color=colour, label=f"σ = {sigma:g}")
        right.plot(NOISES, [m.after["plain"] for m in readings], "o-", ms=4, color=colour, label=f"σ = {sigma:g}, plain")
        right.plot(NOISES, [m.after["clamped"] for m in readings], "x:", ms=5, color=colour, label=f"σ = {sigma:g}, γ ≤ 1")
    left.plot(NOISES, NOISES, color="0.5", lw=0.8)
    left.set(xlabel="true noise κ, in units of σ", ylabel="reading σ̂/σ", title="what the meter says")
    right.axhline(1.0, color="0.5", lw=0.8)
    right.set(xlabel="true noise κ before the step", ylabel="reading σ̂/σ' after it", title="what acting on it does")
    for axis in (left, right):
        axis.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", facecolor="white")


# ---------------------------------------------------------------- the page


def fill(template: str, values: dict[str, str]) -> str:
    """Each {{name}} by its value. Raises KeyError for a name without one; says which values were not used."""
    for name, value in values.items():
        if "{{" + name + "}}" not in template:
            raise KeyError(f"{TEMPLATE.name} does not use {name}")
        template = template.replace("{{" + name + "}}", value)
    if "{{" in template:
        raise KeyError(f"no value for {template[template.index('{{') :][:40]}")
    return template


def edm_values(n: int, seed: int) -> dict[str, str]:
    """The EDM special case: γ*, and the least J against the MMSE, for the non-linear law."""
    rows = []
    for name in LAWS:
        for level in (0, 1):
            case = Case(name, level=level)
            s, s_next = (float(z) for z in case.sigmas[1:])
            sample = sample_of(case, n, seed)
            m = runs.second(name, s)
            measured = (sample.estimate(f) for f in (lambda m: m.gamma, lambda m: m.ee, lambda m: m.loss(m.gamma)))
            rows.append([name, f"{s:g} → {s_next:g}", 1 / (1 - s_next / s), *measured, m.yD - m.DD, s_next**2 * DIM])
    head = ["law", "σ → σ'", "1/(1−r)", "γ*", "E_k", "E_{k−1}", "MMSE(σ)", "σ'² d, what the next step assumes"]
    return {"edm_table": table(head, rows)}


def main() -> None:
    """Compute, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outdir", type=Path, default=Path("docs"), help="where theory.md and images/ go (default: docs)")
    parser.add_argument("--samples", type=int, default=20000, help="draws per case and side (default: 20000)")
    parser.add_argument("--seed", type=int, default=1, help="of the first draw (default: 1)")
    args = parser.parse_args()
    if args.samples < 500:
        parser.error(f"--samples {args.samples}: need at least 500 for a standard error that means anything")
    torch.set_num_threads(1)
    images, n, seed = args.outdir / "images", args.samples, args.seed
    values = {"samples": str(n), "seed": str(seed)}
    values |= identities(n, seed) | hypotheses(n, seed) | frames(n, seed) | edm_values(n, seed)
    values |= bounds(n, seed, images) | behaviour(n, seed, images)
    write_text(args.outdir / "theory.md", fill(TEMPLATE.read_text(encoding="utf-8"), values))


if __name__ == "__main__":
    main()
