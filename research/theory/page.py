"""Makes every number and picture of docs/theory.md: the theory behind the correction, run on exact Gaussians and mixtures.

    python -m research.theory --outdir docs --samples 20000 --seed 1

The command fills page.md beside this file and writes OUTDIR/theory.md and OUTDIR/images/theory_*.png; a minute and a half on
one core.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
from matplotlib import rc_context
from recipes.command import run
from tqdm.auto import tqdm

from research.theory import runs
from research.theory.core import (
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
from steindiff.metrics import Value
from steindiff.report.blocks import Figure, Markup, Table
from steindiff.report.figures import drawing, figure, style
from steindiff.report.markdown import markdown
from steindiff.report.palette import COLOURS

TEMPLATE = Path(__file__).with_name("page.md")
LAWS = ("gaussian", "mixture")
FIELDS = ("constant", "wave", "aligned")
NOISES = (0.5, 0.8, 1.0, 1.25, 1.6, 2.5)
STEPS = (3, 5, 8, 10, 20)
Cells = dict[tuple[str, str, int], list[runs.Run]]


def table(head: str, rows: Iterable[Sequence[object]]) -> str:
    """Markdown; the columns' names are separated by bars."""
    cells = tuple(tuple(Markup(number(c)) for c in row) for row in rows)
    return markdown([Table(tuple(map(Markup, head.split(" | "))), cells)]).rstrip("\n")


def number(value: object) -> str:
    """Four figures; a value to two digits of its standard error, without one where it is constant over the draws."""
    match value:
        case Value(mean, se) if se > 1e-9 * abs(mean):
            digits = max(0, 1 - math.floor(math.log10(se)))
            return f"{mean:.{digits}f} ± {se:.{digits}f}"
        case Value(mean, _):
            return f"{mean:.4g}"
        case float():
            return "–" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:.4g}"
    return str(value)


# ---------------------------------------------------------------- the statements


def identities(n: int, seed: int) -> dict[str, str]:
    """Both sides of seven statements on every case, and the two inequalities."""
    found: dict[str, list[tuple[Case, Comparison]]] = {name: [] for name in STATEMENTS}
    criterion: list[tuple[bool, bool, bool]] = []
    rhos, margins = [], []
    for i, case in enumerate(tqdm(cases(), desc="identities", unit="case")):
        a, b = (sample_of(case, n, seed + 2 * i + j) for j in (0, 1))
        for name, statement in STATEMENTS.items():
            found[name].append((case, statement(a, b)))
        criterion += improvement(a, b)
        least = b.estimate(lambda m: m.loss(m.best))
        margins.append(least.value / least.se)
        rhos.append(float(b.means.best**2 * b.means.c / b.means.ee))
    zs = [abs(c.z) for rows in found.values() for _, c in rows]
    agreeing = [predicted == measured for predicted, measured, clear in criterion if clear]
    return {
        "cases": str(len(rhos)),
        "comparisons": str(len(zs)),
        "worst_z": f"{max(zs):.1f}",
        "beyond_two": f"{100 * sum(z > 2 for z in zs) / len(zs):.1f} %",
        "identity_table": _identity_table(found),
        "gamma_table": table(
            "law | schedule | solver | step | γ, Eq. 11 | γ, regression on x* | z",
            [
                [c.law, c.schedule, c.solver, c.level, x.predicted, x.measured, f"{x.z:+.1f}"]
                for c, x in found["Thm 4.7"]
                if c.frame == "model"
            ],
        ),
        "decided": str(len(agreeing)),
        "agreeing": str(sum(agreeing)),
        "undecided": str(len(criterion) - len(agreeing)),
        "largest_rho": f"{max(rhos):.3f}",
        "margin": f"{min(margins):.0f}",
    }


def _identity_table(found: dict[str, list[tuple[Case, Comparison]]]) -> str:
    """The non-linear case of each statement that a reader may check, and the worst of all cases."""
    shown = Case("mixture", "vp-linear", "model", "dpmpp_2m", 1)
    rows = []
    for name, results in found.items():
        mine = dict(results)[shown]
        rows.append([name, mine.predicted, mine.measured, f"{mine.z:+.1f}", f"{max(abs(c.z) for _, c in results):.1f}"])
    return table("statement | predicted | measured with x* | z | largest z of all, in size", rows)


def hypotheses(n: int, seed: int) -> dict[str, str]:
    """Lemma 4.6 with a hypothesis changed, and what becomes of γ."""
    changes: dict[str, tuple[dict[str, object], int]] = {
        "none": ({}, n),
        "one fixed x* (the conditional law)": ({"fixed": True}, n),
        "noise 1.3 times what the step assumes": ({"noise": 1.3}, n),
        "skewed noise, same variance": ({"shape": "skewed"}, 5 * n),
        "2M, history on the flow, differentiated through": ({"solver": "dpmpp_2m", "history": "flow"}, n),
        "2M, history on the flow, held constant": ({"solver": "dpmpp_2m", "history": "frozen"}, n),
    }
    rows: list[list[object]] = []
    for label, (change, count) in tqdm(changes.items(), desc="hypotheses", unit="row"):
        for name in LAWS:
            found = violated(Case(name, level=1), count, seed, **change)
            rows.append([label, name, found.predicted, found.measured, f"{found.z:+.1f}"])
    gammas = []
    for name, level in product(LAWS, (0, 1)):
        case = Case(name, solver="dpmpp_2m", level=level)
        held, whole = (sample_of(replace(case, history=h), n, seed) for h in ("frozen", "flow"))
        gammas.append([name, level, *(s.estimate(lambda m: m.gamma) for s in (held, whole)), whole.estimate(lambda m: m.best)])
    return {
        "hypothesis_table": table("changed | law | σ² E[∇·u] | E⟨u, x − αx*⟩ | z", rows),
        "history_table": table(
            "law | step | γ, history held constant | γ, differentiated through | γ, regression on x*", gammas
        ),
    }


def edm_values(n: int, seed: int) -> dict[str, str]:
    """The EDM special case: γ*, and the least J against the MMSE."""
    rows = []
    for name, level in product(LAWS, (0, 1)):
        case = Case(name, level=level)
        s, s_next = (float(z) for z in case.sigmas[1:])
        sample, m = sample_of(case, n, seed), runs.second(name, s)
        measured = (sample.estimate(f) for f in (lambda m: m.gamma, lambda m: m.ee, lambda m: m.loss(m.gamma)))
        rows.append([name, f"{s:g} → {s_next:g}", 1 / (1 - s_next / s), *measured, m.yD - m.DD, s_next**2 * DIM])
    return {
        "edm_table": table("law | σ → σ' | 1/(1−r) | γ* | E_k | E_{k−1} | MMSE(σ) | σ'² d, what the next step assumes", rows)
    }


def frames(n: int, seed: int) -> dict[str, str]:
    """γ, its drift term and the state it leads to, in both frames, against three second moments."""
    rows = []
    for name, schedule, level in tqdm(list(product(LAWS, SCHEDULES, (0, 1))), desc="frames"):
        case = Case(name, schedule, level=level)
        moments, s = runs.second(name, float(case.sigmas[1])), sample_of(case, n, seed)
        predicted, other = runs.ddim_gamma(case, moments), runs.ddim_gamma(replace(case, frame="ve"), moments)
        drift = s.estimate(lambda m: (1 - 1 / m.moments.alpha) * m.moments.ux / m.c)
        gap, measured = runs.frame_gap(case, moments, n, seed)
        cells = [predicted.gamma, s.estimate(lambda m: m.gamma), predicted.drift, drift, other.gamma, gap]
        rows.append([name, schedule, level, float(case.alphas[0]), *cells, "0" if schedule == "edm" else measured])
    head = "law | schedule | step | α | γ predicted | γ measured | drift term predicted | measured | γ, VE frame"
    steps = ((-5.0, -3.0), (-3.0, -1.0), (-1.0, 1.0), (1.0, 3.0), (3.0, 5.0))
    columns = [runs.vp_gammas(name, steps) for name in (*LAWS, "unit")]
    vp = [[f"{r[0].start:.0f} → {r[0].stop:.0f}", *[c.model for c in r], r[0].ve] for r in zip(*columns, strict=True)]
    return {
        "frame_table": table(f"{head} | states apart, predicted | measured", rows),
        "vp_table": table("half-log-SNR | gaussian | mixture | N(0, I) | VE frame, any law", vp),
    }


def bounds(n: int, seed: int) -> tuple[dict[str, str], Figure]:
    """Thm 4.10 under controlled shifts and Prop. D.1, with the picture of the first."""
    sizes = torch.logspace(-2, 0.5, 11, dtype=torch.float64).tolist()
    case, kappas = Case("mixture", level=1), (0.5, 0.7, 0.85, 0.95, 1.05, 1.2, 1.5, 2.0, 3.0)
    estimates = {f: [runs.shifted_estimate(case, f, z, n, seed)[0] for z in sizes] for f in FIELDS}
    networks = {f: [runs.shifted_network("mixture", 0.5, 0.4, f, z, n, seed) for z in sizes] for f in FIELDS}
    laws = [runs.shifted_law("mixture", 0.5, 0.4, k, 5 * n, seed)[0] for k in kappas]
    rows = [[k, s.size, s.measured, s.bound, s.measured / s.bound] for k, s in zip(kappas, laws, strict=True)]
    lip = []
    for name, schedule, level in tqdm(list(product(LAWS, SCHEDULES, (0, 1))), desc="Lipschitz"):
        x = runs.lipschitz(Case(name, schedule, level=level), min(n, 2000), seed)
        lip.append([name, schedule, level, x.threshold, x.denoiser, f"{100 * x.lost:.1f} %", x.step, x.flow, x.random])
    head = "law | schedule | step | threshold | largest ‖J_D‖ | states beyond | largest ‖J_T‖"
    return {
        "shift_table": table("κ | √E‖δ‖² | error of γ | bound | share of the bound", rows),
        "lipschitz_table": table(f"{head} | largest ‖J‖, exact flow | random direction, median", lip),
    }, _shifts(estimates, laws, networks)


# ---------------------------------------------------------------- what the coefficient does


def behaviour(n: int, seed: int) -> tuple[dict[str, str], Figure]:
    """Runs against the exact flow, the equivalences and one step of several candidates."""
    found: Cells = {}
    for name in LAWS:
        x = runs.start(256, seed)
        exact = law(name).flow(x, 80.0, 0.002, tol=1e-5)
        for solver, steps in tqdm(list(product(runs.NAMED, STEPS)), desc=f"runs, {name}"):
            rules = (None, runs.LITERAL, runs.CLAMPED)
            found[name, solver, steps] = [runs.run_against_flow(law(name), solver, rule, steps, x, exact) for rule in rules]
    rows = [
        [*key, p.error, q.error, f"{q.error / p.error:.2g}", f"{q.largest:.3g}", c.error, f"{c.reduced} of {key[2]}"]
        for key, (p, q, c) in found.items()
        if key[2] != 20
    ]
    factors = [q.error / p.error for p, q, _ in found.values()]
    candidates = [
        [level, name, c.clean, c.consistent, c.flow, c.energy if name != "exact flow" else "0"]
        for level in (0, 1)
        for name, c in runs.candidates(Case("mixture", level=level), n, seed).items()
    ]
    same = [[name, f"{difference:.0e}"] for name, difference in runs.equivalences(seed).items()]
    return {
        "run_table": table("law | solver | steps | plain | as printed | factor | largest γ* | γ ≤ 1 | steps with γ < 1", rows),
        "run_cells": str(len(found)),
        "least_factor": f"{min(factors):.2g}",
        "most_factor": f"{max(factors):.2g}",
        "clamp_worse": _named(key for key, (p, _, c) in found.items() if c.error > 1.02 * p.error),
        "clamp_better": _named(key for key, (p, _, c) in found.items() if c.error < 0.98 * p.error),
        "equivalence_table": table("pair, five steps on the mixture | largest relative difference", same),
        "candidate_table": table(
            "step | proposal | to x* | to r x + (1−r) x* | to the exact flow | energy, less the exact flow's", candidates
        ),
    }, _runs(found)


def _named(cells: Iterable[tuple[str, str, int]]) -> str:
    """Cells by law and solver, with their numbers of steps."""
    grouped: dict[str, list[str]] = {}
    for name, solver, steps in cells:
        grouped.setdefault(f"{name} {solver}", []).append(str(steps))
    return "; ".join(f"{key} ({', '.join(steps)})" for key, steps in grouped.items()) or "none"


def meter(n: int, seed: int) -> tuple[dict[str, str], Figure]:
    """What the noise meter reads, and what acting on it does."""
    found = {s: [runs.meter("mixture", s, 0.4, k, n, seed) for k in NOISES] for s in (5.0, 0.5, 0.1)}
    rows = [
        [s, m.noise, m.ratio, m.gamma, *(m.after[key] for key in ("plain", "clamped", "literal"))]
        for s, readings in found.items()
        for m in readings
    ]
    gaussian = [
        [s, k, runs.gaussian_reading(s, k), runs.meter("gaussian", s, 0.4, k, n, seed).ratio]
        for s, k in product(found, (0.8, 1.6))
    ]
    return {
        **{f"after_{key}": number(found[5.0][4].after[key]) for key in ("plain", "clamped")},
        "meter_table": table("σ | κ | reading σ̂/σ | γ*, r = 0.4 | after: plain | after: γ ≤ 1 | after: as printed", rows),
        "meter_gaussian": table("σ | κ | reading, closed form | reading, measured", gaussian),
    }, _readings(found)


# ---------------------------------------------------------------- pictures


def _shifts(estimates: dict[str, list[runs.Shift]], laws: list[runs.Shift], networks: dict[str, list[runs.Shift]]) -> Figure:
    with style(), rc_context({"text.parse_math": True}):  # powers of ten on the axes
        plot = figure(8.4, 3.6)
        left, right = plot.subplots(1, 2)
        for axis, found in ((left, estimates), (right, networks)):
            for (name, shifts), colour in zip(found.items(), COLOURS, strict=False):
                shown = [(s.bound, s.measured) for s in shifts if s.measured > 1e-12]
                if shown:
                    axis.loglog(*zip(*shown, strict=True), "o-", ms=4, color=colour, label=f"{name} δ")
        left.loglog([s.bound for s in laws], [s.measured for s in laws], "s", color=COLOURS[3], label="state at κσ")
        left.set(xlabel="bound  σ²√(E‖δ‖²/c)", ylabel="|γ̂ − γ*|", title="an estimate from a shifted score")
        right.set(xlabel="bound  |γ*|(1−r)σ²√E‖δ‖²", ylabel="√J(γ̃*) − √J(γ*)", title="a step from a shifted network")
        for axis in (left, right):
            axis.plot(axis.get_xlim(), axis.get_xlim(), color="0.5", lw=0.8)
        return drawing("images/theory_shift", "bounds", plot, [*(f"{name} δ" for name in FIELDS), "state at κσ"])


def _runs(found: Cells) -> Figure:
    labels = []
    with style(), rc_context({"text.parse_math": True}):  # powers of ten on the axes
        plot = figure(8.4, 3.8)
        for axis, name in zip(plot.subplots(1, 2, sharey=True), LAWS, strict=True):
            for solver, colour in zip(("ddim", "dpmpp_2m", "heun"), COLOURS, strict=False):
                for j, (mark, rule) in enumerate((("o-", "plain"), ("^--", "as printed"), ("x:", "γ ≤ 1"))):
                    errors = [found[name, solver, steps][j].error for steps in STEPS]
                    axis.loglog(STEPS, errors, mark, ms=4, color=colour, label=f"{solver}, {rule}")
                    labels.append(f"{solver}, {rule}")
            axis.set(title=name, xlabel="steps, EDM grid", xticks=STEPS, xticklabels=[str(s) for s in STEPS])
            axis.minorticks_off()
        plot.axes[0].set_ylabel("RMS distance to the exact flow's end")
        return drawing("images/theory_literal", "runs", plot, labels)


def _readings(found: dict[float, list[runs.Meter]]) -> Figure:
    with style(), rc_context({"text.parse_math": True}):  # powers of ten on the axes
        plot = figure(8.4, 3.6)
        left, right = plot.subplots(1, 2)
        for (sigma, readings), colour in zip(found.items(), COLOURS, strict=False):
            left.plot(NOISES, [m.ratio for m in readings], "o-", ms=4, color=colour)
            right.plot(NOISES, [m.after["plain"] for m in readings], "o-", ms=4, color=colour, label=f"σ = {sigma:g}")
            clamped = [m.after["clamped"] for m in readings]
            right.plot(NOISES, clamped, "x:", ms=5, color=colour, label=f"σ = {sigma:g}, γ ≤ 1")
        left.plot(NOISES, NOISES, color="0.5", lw=0.8)
        left.set(xlabel="true noise κ, in units of σ", ylabel="reading σ̂/σ", title="what the meter says")
        right.axhline(1.0, color="0.5", lw=0.8)
        right.set(xlabel="true noise κ before the step", ylabel="reading σ̂/σ' after it", title="what acting on it does")
        return drawing("images/theory_meter", "meter", plot, [f"σ = {s:g}{rule}" for s in found for rule in ("", ", γ ≤ 1")])


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


@dataclass(frozen=True)
class Options:
    """The command line."""

    outdir: Annotated[Path, "where theory.md and images/ go"] = Path("docs")
    samples: Annotated[int, "draws per case and side; fewer give no standard error that means anything", 500] = 20000
    seed: Annotated[int, "seed of the first draw"] = 1


def write(o: Options) -> None:
    """Compute everything, then write."""
    torch.set_num_threads(1)
    n, seed = o.samples, o.seed
    values, figures = {"samples": str(n), "seed": str(seed)}, []
    for part in (identities, hypotheses, frames, edm_values):
        values |= part(n, seed)
    for found, picture in (bounds(n, seed), behaviour(n, seed), meter(min(n, 20000), seed)):
        values |= found
        figures.append(picture)
    write_text(o.outdir / "theory.md", fill(TEMPLATE.read_text(encoding="utf-8"), values))
    for picture in figures:
        with atomic(o.outdir / f"{picture.name}.png") as temporary:
            temporary.write_bytes(picture.png)


main = partial(run, Options, write, __doc__)
