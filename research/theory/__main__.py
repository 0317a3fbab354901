"""Makes every number and picture of docs/theory.md: the theory behind the correction, run on exact Gaussians and mixtures.

    python -m research.theory --outdir docs --samples 20000 --seed 1

The command fills page.md beside this file and writes OUTDIR/theory.md and OUTDIR/images/theory_*.png; a minute and a half on
one core.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Annotated, Any

import torch
from recipes.command import command
from tqdm.auto import tqdm

from research.theory import certificate, drift, runs
from research.theory.core import DIM, SCHEDULES, STATEMENTS, Case, cases, displacement, improvement, law, sample_of, violated
from research.theory.trajectory import Setting, whole_run
from steindiff.io.files import atomic, write_text
from steindiff.metrics import Value
from steindiff.report.blocks import Figure
from steindiff.report.figures import Line, Panel, charts
from steindiff.report.palette import COLOURS

TEMPLATE = Path(__file__).with_name("page.md")
LAWS = ("gaussian", "mixture")
FIELDS = ("constant", "wave", "aligned")
NOISES = (0.5, 0.8, 1.0, 1.25, 1.6, 2.5)
STEPS = (3, 5, 8, 10, 20)
RULES = {"plain": None, "as printed": runs.LITERAL, "γ ≤ 1": runs.CLAMPED}
OTHERS = (runs.FREE, runs.FROZEN, replace(runs.FROZEN, gamma_max=1.0))
"""Beyond RULES: without a derivative, and for 2M with its history held constant, as printed and with γ ≤ 1."""
EQUAL = {"color": "0.5", "lw": 0.8}
Values = dict[str, Any]
"""By name: a number, a text, or the rows of a table whose head is in page.md."""
Key = tuple[str, str, int]


# ---------------------------------------------------------------- the statements


def identities(n: int, seed: int) -> Values:
    """Both sides of seven statements on every case, and the inequalities."""
    found = {case: tuple(sample_of(case, n, seed + 2 * i + j) for j in (0, 1)) for i, case in enumerate(tqdm(cases()))}
    compared = {name: {case: statement(*pair) for case, pair in found.items()} for name, statement in STATEMENTS.items()}
    moved = {case: displacement(a, n, seed + 999 + i) for i, (case, (a, _)) in enumerate(found.items())}
    compared["Cor. 4.9"] = {case: one.distance for case, one in moved.items()}
    shown = Case("mixture", "vp-linear", "model", "dpmpp_2m", 1)  # not linear: the case that a reader may check
    rows = []
    for name, results in compared.items():
        mine, worst = results[shown], max(abs(c.z) for c in results.values())
        rows.append([name, mine.predicted, mine.measured, f"{mine.z:+.1f}", f"{worst:.1f}"])
    zs = [abs(c.z) for results in compared.values() for c in results.values()]
    criterion = [one for pair in found.values() for one in improvement(*pair)]
    agreeing = [predicted == measured for predicted, measured, clear in criterion if clear]
    gammas = [(c, x) for c, x in compared["Thm 4.7"].items() if c.frame == "model"]
    return {
        "cases": len(found),
        "comparisons": len(zs),
        "worst_z": f"{max(zs):.1f}",
        "beyond_two": f"{100 * sum(z > 2 for z in zs) / len(zs):.1f} %",
        "identity_table": rows,
        "gamma_table": [[c.law, c.schedule, c.solver, c.level, x.predicted, x.measured, f"{x.z:+.1f}"] for c, x in gammas],
        "decided": len(agreeing),
        "agreeing": sum(agreeing),
        "undecided": len(criterion) - len(agreeing),
        "largest_rho": f"{max(float(b.means.best**2 * b.means.c / b.means.ee) for _, b in found.values()):.3f}",
        "margin": f"{min(one.margin.value / one.margin.se for one in moved.values()):.0f}",
        "least_share": f"{min(one.share for one in moved.values()):.1g}",
        "most_share": f"{max(one.share for one in moved.values()):.2f}",
        **_variances({case: b.estimate(lambda m: m.gamma) for case, (_, b) in found.items()}),
    }


def _variances(gammas: Mapping[Case, Value]) -> Values:
    """The relative standard error of γ̂ in the model's frame, over that in VE coordinates, of every VP case."""
    relative = {case: gamma.se / abs(gamma.value) for case, gamma in gammas.items()}
    ratios = [relative[replace(case, frame="model")] / own for case, own in relative.items() if case.frame == "ve"]
    least, most = (f"{f(ratios):.2g}" for f in (min, max))
    return {"variance_cases": sum(ratio > 1 for ratio in ratios), "variance_least": least, "variance_most": most}


def whole_runs(n: int, seed: int) -> Values:
    """Thm 4.8 along whole runs: with x* known, and with what a sampler knows."""
    settings = [
        *(Setting(name, solver) for name in LAWS for solver in ("ddim", "dpmpp_2m")),
        Setting("mixture", "heun"),
        Setting("mixture", first=1.0),
        *(Setting("mixture", "ddim", "vp-linear", frame) for frame in ("ve", "model")),
        Setting("mixture", "dpmpp_2m", "vp-linear"),
    ]
    exact, known = [], []
    for o in tqdm(settings, desc="whole runs"):
        w = whole_run(o, n, seed)
        start = [o.law, o.solver, f"{o.schedule}, {o.frame}", o.first, w.first_gammas, w.steps[0].error]
        exact.append([*start, f"{w.product:.10g}", f"{w.end:.10g}", w.mmse, w.variance, w.spread])
    for name, (rule, label) in product(LAWS, {"eq9": "Eq. 9", "eq11": "Eq. 11", "tweedie": "Eq. 11, no derivative"}.items()):
        w = whole_run(Setting(name, rule=rule), n, seed)  # type: ignore[arg-type]
        known.append([name, label, w.first_gammas, w.product, w.end, w.variance, w.spread])
    return {"trajectory_table": exact, "sampler_table": known}


def shifts(n: int, seed: int) -> Values:
    """Thm 4.10 and Cor. 4.12 with the law of a run of five steps."""
    rows = []
    for name, solver, schedule in product(("gaussian", "line"), ("ddim", "dpmpp_2m"), ("edm", "vp-linear")):
        for d in drift.drifts(name, solver, schedule):
            gap, cost = abs(d.drifted - d.star), drift.excess(d, name, n, seed)
            numbers = [d.level, d.score, d.star, d.drifted, gap, d.two_terms, d.bound, cost, d.there.B * d.bound**2]
            rows.append([name, solver, schedule, *numbers])
    return {"drift_table": rows}


def hypotheses(n: int, seed: int) -> Values:
    """Lemma 4.6 with a hypothesis changed, and what becomes of γ."""
    changes: dict[str, dict[str, object]] = {
        "none": {},
        "one fixed x* (the conditional law)": {"fixed": True},
        "noise 1.3 times what the step assumes": {"noise": 1.3},
        "skewed noise, same variance": {"shape": "skewed"},
        "2M, history on the flow, differentiated through": {"solver": "dpmpp_2m", "history": "flow"},
        "2M, history on the flow, held constant": {"solver": "dpmpp_2m", "history": "frozen"},
    }
    rows, gammas = [], []
    for (label, change), name in tqdm(list(product(changes.items(), LAWS)), desc="hypotheses", unit="row"):
        found = violated(Case(name, level=1), 5 * n if "shape" in change else n, seed, **change)
        rows.append([label, name, found.predicted, found.measured, f"{found.z:+.1f}"])
    for name, level in product(LAWS, (0, 1)):
        case = Case(name, solver="dpmpp_2m", level=level)
        held, whole = (sample_of(replace(case, history=h), n, seed) for h in ("frozen", "flow"))
        gammas.append([name, level, *(s.estimate(lambda m: m.gamma) for s in (held, whole)), whole.estimate(lambda m: m.best)])
    return {"hypothesis_table": rows, "history_table": gammas}


def edm_values(n: int, seed: int) -> Values:
    """The EDM special case: γ*, and the least J against the MMSE."""
    rows = []
    for name, level in product(LAWS, (0, 1)):
        case = Case(name, level=level)
        s, s_next = case.sigmas[1:].tolist()
        sample, m = sample_of(case, n, seed), runs.second(name, s)
        measured = (sample.estimate(f) for f in (lambda m: m.gamma, lambda m: m.ee, lambda m: m.loss(m.gamma)))
        rows.append([name, f"{s:g} → {s_next:g}", 1 / (1 - s_next / s), *measured, m.yD - m.DD, s_next**2 * DIM])
    return {"edm_table": rows}


def frames(n: int, seed: int) -> Values:
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
    vp = []
    for start in (-5.0, -3.0, -1.0, 1.0, 3.0):
        found = [runs.vp_gamma(name, start, start + 2) for name in (*LAWS, "unit")]
        vp.append([f"{start:.0f} → {start + 2:.0f}", *(model for model, _ in found), found[0][1]])
    return {"frame_table": rows, "vp_table": vp}


def bounds(n: int, seed: int) -> tuple[Values, Figure]:
    """Thm 4.10 under controlled shifts, Prop. 4.1 and Eqs. 38–46, with the picture of the first."""
    sizes = torch.logspace(-2, 0.5, 11, dtype=torch.float64).tolist()
    case, kappas = Case("mixture", level=1), (0.5, 0.7, 0.85, 0.95, 1.05, 1.2, 1.5, 2.0, 3.0)
    estimates = {f"{f} δ": [runs.shifted_estimate(case, f, z, n, seed)[0] for z in sizes] for f in FIELDS}
    networks = {f"{f} δ": [runs.shifted_network("mixture", 0.5, 0.4, f, z, n, seed) for z in sizes] for f in FIELDS}
    laws = [runs.shifted_law("mixture", 0.5, 0.4, k, 5 * n, seed)[0] for k in kappas]
    rows = [[k, *s, s.measured / s.bound] for k, s in zip(kappas, laws, strict=True)]
    lip, noise = [], []
    for name, schedule, level in tqdm(list(product(LAWS, SCHEDULES, (0, 1))), desc="Lipschitz"):
        case = Case(name, schedule, level=level)
        x, (a_s, a_t) = certificate.lipschitz(case, min(n, 2000), seed), map(float, case.alphas)
        noise.append([name, schedule, level, x.step, x.bound, x.noise_least, a_t / a_s])
        lip.append([name, schedule, level, x.threshold, x.denoiser, f"{100 * x.lost:.1f} %", x.step, x.flow, x.random])
    panels = {"an estimate from a shifted score": {**estimates, "state at κσ": laws}, "a step from a shifted network": networks}
    drawn = {}
    for title, found in panels.items():
        ends = (min(s.bound for group in found.values() for s in group), sizes[-1])
        shown = {name: [(s.measured, s.bound) for s in group if s.measured > 1e-12] for name, group in found.items()}
        lines = [_line(name, 0, i, *zip(*shown[name], strict=True)) for i, name in enumerate(found) if shown[name]]
        drawn[title] = [*lines, Line("equality", EQUAL, ends, ends)]
    picture = _figure("shift", "bounds", drawn, x="bound", y="measured", abscissa=_log)
    return {"shift_table": rows, "lipschitz_table": lip, "noise_table": noise}, picture


# ---------------------------------------------------------------- what the coefficient does


def behaviour(n: int, seed: int) -> tuple[Values, Figure]:
    """Runs against the exact flow, the equivalences and one step of several candidates."""
    found: dict[Key, list[runs.Run]] = {}
    for name in LAWS:
        x = runs.start(256, seed)
        exact = law(name).flow(x, 80.0, 0.002, tol=1e-5)
        for (label, solver), steps in tqdm(list(product(runs.NAMED.items(), STEPS)), desc=f"runs, {name}"):
            found[name, label, steps] = [
                runs.run_against_flow(law(name), solver, rule, steps, x, exact) for rule in (*RULES.values(), *OTHERS)
            ]
    rows = []
    for key, (p, q, c, free, held, held_clamped) in found.items():
        frozen = [held.error, held_clamped.error] if "2m" in key[1] else ["–", "–"]
        if key[2] != 20:
            rows.append([*key, p.error, q.error, q.largest, free.error, c.error, f"{c.reduced} of {key[2]}", *frozen])
    one_step, multistep = ([v for key, v in found.items() if ("2m" in key[1]) == several] for several in (False, True))
    columns = {"": (one_step, 1), "held_": (multistep, 4), "total_": (multistep, 1)}
    factors = {name: [cell[i].error / cell[0].error for cell in cells] for name, (cells, i) in columns.items()}
    candidates = [
        [level, name, c.clean, c.consistent, c.flow, c.energy if name != "exact flow" else "0"]
        for level in (0, 1)
        for name, c in runs.candidates(Case("mixture", level=level), n, seed).items()
    ]
    drawn = {
        name: [
            _line(f"{solver}, {rule}", j, i, [found[name, solver, k][j].error for k in STEPS], STEPS)
            for i, solver in enumerate(("ddim", "dpmpp_2m", "heun"))
            for j, rule in enumerate(RULES)
        ]
        for name in LAWS
    }
    axes: Any = {"x": "steps, EDM grid", "y": "RMS distance to the flow", "abscissa": partial(_log, ticks=STEPS)}
    free = {name: [cell[3].error for key, cell in found.items() if key[0] == name] for name in LAWS}
    return {
        "run_table": rows,
        "run_cells": len(found),
        **{f"{name}least": f"{min(values):.2g}" for name, values in factors.items()},
        **{f"{name}most": f"{max(values):.2g}" for name, values in factors.items()},
        **{f"width_{name}": math.sqrt(runs.variance(name) / DIM) for name in LAWS},
        **{f"free_{name}": f"{min(errors):.3g} to {max(errors):.3g}" for name, errors in free.items()},
        "clamp_worse": _named(key for key, (p, _, c, *_rest) in found.items() if c.error > 1.02 * p.error),
        "clamp_better": _named(key for key, (p, _, c, *_rest) in found.items() if c.error < 0.98 * p.error),
        "equivalence_table": [[name, f"{difference:.0e}"] for name, difference in runs.equivalences(seed).items()],
        "candidate_table": candidates,
    }, _figure("literal", "runs", drawn, share=True, **axes)


def _named(cells: Iterable[Key]) -> str:
    """Cells by law and solver, with their numbers of steps."""
    grouped = groupby(cells, lambda key: f"{key[0]} {key[1]}")
    return "; ".join(f"{name} ({', '.join(str(key[2]) for key in keys)})" for name, keys in grouped) or "none"


def meter(n: int, seed: int) -> tuple[Values, Figure]:
    """What the noise meter reads, and what acting on it does."""
    found = {s: [runs.meter("mixture", s, 0.4, k, n, seed) for k in NOISES] for s in (5.0, 0.5, 0.1)}
    gaussian = [
        [s, k, runs.gaussian_reading(s, k), runs.meter("gaussian", s, 0.4, k, n, seed).ratio]
        for s, k in product(found, (0.8, 1.6))
    ]
    reads, acts = [Line("equality", EQUAL, NOISES, NOISES)], list[Line]()
    for i, (s, readings) in enumerate(found.items()):
        reads.append(_line(f"σ = {s:g}", 0, i, [m.ratio for m in readings], NOISES))
        acts.append(_line(f"σ = {s:g}", 0, i, [m.after["plain"] for m in readings], NOISES))
        acts.append(_line(f"σ = {s:g}, γ ≤ 1", 2, i, [m.after["clamped"] for m in readings], NOISES))
    drawn = {"what the meter says": reads, "what acting on it does, at σ' after it": acts}
    axes: Any = {"x": "true noise κ before the step", "y": "reading σ̂/σ", "abscissa": lambda axis: None}
    return {
        **{f"after_{key}": found[5.0][4].after[key] for key in ("plain", "clamped")},
        "meter_table": [[s, m.noise, m.ratio, m.gamma, *m.after.values()] for s, group in found.items() for m in group],
        "meter_gaussian": gaussian,
    }, _figure("meter", "meter", drawn, log=False, level=1.0, **axes)


# ---------------------------------------------------------------- pictures


LOOKS = ({"marker": "o", "ls": "-"}, {"marker": "^", "ls": "--"}, {"marker": "x", "ls": ":"})
"""By rule, in the order of RULES."""


def _line(label: str, look: int, colour: int, y: Sequence[float], x: Sequence[float]) -> Line:
    return Line(label, {**LOOKS[look], "ms": 4, "color": COLOURS[colour]}, y, x)


def _figure(
    name: str, caption: str, lines: Mapping[str, Sequence[Line]], y: str, level: float = math.nan, **more: Any
) -> Figure:
    """Two panels by their titles; `level` is where the second has a horizontal line."""
    panels = [Panel(title, some, level=one) for (title, some), one in zip(lines.items(), (math.nan, level), strict=True)]
    return charts(f"images/theory_{name}", caption, [panels], y=[y], width=4.2, **more)


def _log(axis: Any, ticks: Sequence[int] = ()) -> None:
    axis.set_xscale("log")
    if ticks:
        axis.set_xticks(ticks)
        axis.minorticks_off()


# ---------------------------------------------------------------- the page


def shown(value: object) -> str:
    """Four figures; a value to two digits of its standard error, without one where it is constant over the draws; rows."""
    match value:
        case Value(mean, se) if se > 1e-9 * abs(mean):
            digits = max(0, 1 - math.floor(math.log10(se)))
            return f"{mean:.{digits}f} ± {se:.{digits}f}"
        case Value(mean, _):
            return f"{mean:.4g}"
        case float():
            return "–" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:.4g}"
        case list():
            return "\n".join("| " + " | ".join(map(shown, row)) + " |" for row in value)
    return str(value)


def fill(template: str, values: Mapping[str, object]) -> str:
    """Each {{name}} by its value. Raises KeyError for a name without one, and for a value that is not used."""
    for name, value in values.items():
        if "{{" + name + "}}" not in template:
            raise KeyError(f"{TEMPLATE.name} does not use {name}")
        template = template.replace("{{" + name + "}}", shown(value))
    if "{{" in template:
        raise KeyError(f"no value for {template[template.index('{{') :][:40]}")
    return template


@command
def main(
    outdir: Annotated[Path, "where theory.md and images/ go"] = Path("docs"),
    samples: Annotated[int, "draws per case and side; fewer give no standard error that means anything", 500] = 20000,
    seed: Annotated[int, "seed of the first draw"] = 1,
) -> None:
    """Compute everything, then write."""
    values: Values = {"samples": samples, "seed": seed}
    for part in (identities, hypotheses, whole_runs, shifts, frames, edm_values):
        values |= part(samples, seed)
    drawn = (bounds(samples, seed), behaviour(samples, seed), meter(min(samples, 20000), seed))
    for found, _ in drawn:
        values |= found
    write_text(outdir / "theory.md", fill(TEMPLATE.read_text(encoding="utf-8"), values))
    for _, picture in drawn:
        with atomic(outdir / f"{picture.name}.png") as temporary:
            temporary.write_bytes(picture.png)
