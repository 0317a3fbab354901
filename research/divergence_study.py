"""Accuracy against cost of the divergence estimators, on laws whose divergence is known in closed form.

    python -m research.divergence_study --outdir outputs/divergence
    python -m research.divergence_study --laws digits_mixture --seeds 4 --outdir outputs/divergence

One batch of B states y = x* + σ ε is drawn for each seed and noise level; the step is DDIM's, u = (1−r)(y − D), whatever r. Two
errors, each relative, are root mean squares over seeds and noise levels:

    E[∇·u]   against the closed form's mean over the same batch: the error of probes and sub-batches alone
    γ        against 1/(1−r), what Eq. 11 gives for the whole law: that of the batch is in it too

Costs are timed in turns with a plain forward of the same batch; 1 is the forward that the step needs anyway. The command writes
table.md, divergence_accuracy.png and study.json (all numbers, and how they were made); a law that an earlier run left in that
study.json and this one does not measure is kept.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from recipes.command import command
from torch import Tensor
from tqdm import tqdm

from steindiff.analytic import ExactModel
from steindiff.denoisers import Denoiser
from steindiff.divergence import Hutchinson, HutchPlusPlus
from steindiff.divergence.choosing import excess
from steindiff.errors import InputError
from steindiff.io.files import atomic, manifest, read_json, write_json, write_text
from steindiff.report.blocks import Block, Figure, Heading, Markup, Table, Text
from steindiff.report.figures import Line, Panel, charts
from steindiff.report.markdown import markdown
from steindiff.report.numbers import NONE
from steindiff.report.palette import COLOURS, INK
from steindiff.study import testbed

PROBES = (1, 2, 3, 5, 8, 16)
PARTS = (4, 8, 16, 32, 64)
SUB = (1, 5)
SIGMAS = (10.0, 2.0, 0.5, 0.1)
LAWS = ("digits_mixture", "cifar10_mixture")
FAMILIES: dict[str, Hutchinson] = {
    "Rademacher, VJP": Hutchinson(method="vjp"),
    "Gaussian, VJP": Hutchinson(kind="gaussian", method="vjp"),
    "Hutch++, VJP": HutchPlusPlus(method="vjp"),
    "Rademacher, VJP batched": Hutchinson(method="vjp", batched=True),
    "Rademacher, JVP": Hutchinson(method="jvp"),
    "Rademacher, JVP batched": Hutchinson(method="jvp", batched=True),
    "Rademacher, central differences": Hutchinson(method="fd"),
    "Rademacher, forward differences": Hutchinson(method="fd", antithetic=False),
}
EXACT = "exact divergence"
Errors = tuple[float, float]
Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """The command line."""

    outdir: Annotated[Path, "where the three files go"] = Path("outputs/divergence")
    laws: Annotated[tuple[str, ...], "testbeds whose law is known"] = LAWS
    batch: Annotated[int, "states of a batch", 4] = 64
    seeds: Annotated[int, "batches per noise level", 1] = 16
    first_seed: Annotated[int, "seed of the first batch", 0] = 0
    rounds: Annotated[int, "timings of every row", 1] = 5


def law_of(name: str) -> ExactModel:
    """A law in float32, what networks run in. Raises InputError for a network."""
    law = testbed.make(name).law
    if law is None:
        raise InputError(f"model {name!r} is a network, its divergence unknown: choose from {', '.join(LAWS)}")
    return law


def residual(sigma: Tensor, denoiser: Denoiser, y: Tensor) -> tuple[Tensor, Tensor]:
    """U/(1−r) = y − D(y), and D(y)."""
    denoised = denoiser(y, sigma)
    return y - denoised, denoised


class Batch(NamedTuple):
    """States of one noise level, with the closed form of mean ∇·(y − D), and mean ‖y − D‖²."""

    y: Tensor
    sigma: Tensor
    divergence: float
    spread: float

    @classmethod
    def draw(cls, law: ExactModel, sigma: float, size: int, seed: int) -> "Batch":
        """B states of the marginal at sigma."""
        generator = torch.Generator().manual_seed(seed)
        clean = law.sample(size, generator)
        y = clean + sigma * torch.randn(clean.shape, generator=generator)
        level, precise = torch.tensor(sigma, dtype=torch.float64), law.to(torch.float64)
        trace = y[0].numel() - float(precise.divergence(y.double(), level).mean())
        spread = float((y.double() - precise(y.double(), level)).square().flatten(1).sum(1).mean())
        return cls(y, level, trace, spread)

    def errors(self, mean: float) -> Errors:
        """Relative errors of an estimate of E[∇·(y−D)], and of the γ it gives: (1−r)γ = σ² E[∇·]/E‖y−D‖²."""
        return mean / self.divergence - 1, float(self.sigma) ** 2 * mean / self.spread - 1

    def values(self, law: Denoiser, estimator: Hutchinson) -> Tensor:
        """(k, B) estimates."""
        return estimator.through(partial(residual, self.sigma), law, self.y, 0)[0].values.double()


def label(family: str, k: int, m: int | None = None) -> str:
    """A row's name."""
    return f"{family}, k = {k}" + (f", m = {m}" if m else "")


def rows_of(size: int) -> dict[str, Hutchinson]:
    """Every row's estimator for batches of this size; Hutch++ needs three probes."""
    rows = {
        label(family, k): replace(estimator, probes=k)
        for family, estimator in FAMILIES.items()
        for k in PROBES
        if k >= 3 or not isinstance(estimator, HutchPlusPlus)
    }
    parts = {label("Rademacher, VJP", k, m): Hutchinson(k, method="vjp", samples=m) for k in SUB for m in PARTS if m <= size}
    return rows | parts


def measure(law: ExactModel, batch: Batch, seed: int) -> dict[str, Errors]:
    """One batch's errors; fewer probes are a prefix of more, and a sub-batch a part of the rows.

    Batched products and JVPs take the errors of their twins: they give the same numbers up to rounding
    (tests/divergence/test_divergence.py).
    """
    means: dict[str, float] = {EXACT: batch.divergence}

    @cache
    def values(family: str, probes: int) -> Tensor:
        return batch.values(law, replace(FAMILIES[family], probes=probes, seed=seed))

    for row, estimator in rows_of(len(batch.y)).items():
        family = row.split(", k")[0].replace("JVP", "VJP").replace(" batched", "")
        k = estimator.probes
        drawn = values(family, k if isinstance(estimator, HutchPlusPlus) else max(PROBES))
        means[row] = float(drawn[:k, : estimator.samples].mean())
    return {row: batch.errors(mean) for row, mean in means.items()}


def rms(errors: Sequence[Errors]) -> Errors:
    """Root mean squares of both."""
    first, second = (math.sqrt(sum(e * e for e in column) / len(column)) for column in zip(*errors, strict=True))
    return first, second


def study(name: str, law: ExactModel, o: Options) -> Rows:
    """Every row of one law: cost, pooled errors, errors per noise level."""
    found = defaultdict[float, list[dict[str, Errors]]](list)
    cells = [sigma for sigma in SIGMAS for _ in range(o.seeds)]
    for seed, sigma in enumerate(tqdm(cells, desc=name, unit="batch"), start=o.first_seed):
        found[sigma].append(measure(law, Batch.draw(law, sigma, o.batch, seed), seed))
    batch = Batch.draw(law, 1.0, o.batch, o.first_seed)
    plain, price = partial(law, batch.y, batch.sigma), dict[str, float]()
    for row, estimator in tqdm(rows_of(o.batch).items(), desc="costs", unit="row"):
        price[row] = 1 + excess(partial(batch.values, law, estimator), plain, batch.y, o.rounds)
    rows: Rows = {}
    for row in (*price, EXACT):
        pooled, gamma = rms([one[row] for batches in found.values() for one in batches])
        by_level = {str(sigma): rms([one[row] for one in batches])[0] for sigma, batches in found.items()}
        rows[row] = {"cost": price.get(row), "divergence": pooled, "gamma": gamma, "divergence_by_sigma": by_level}
    return rows


def tables(name: str, rows: Rows, batch: int) -> list[Block]:
    """Errors by probes, costs by probes, some estimators by noise level, sub-batches."""
    measured = [f for f in FAMILIES if "JVP" not in f and "batched" not in f]
    some = [label(f, k) for f in list(FAMILIES)[:3] for k in SUB if label(f, k) in rows]
    probes, levels = {f"k = {k}": k for k in PROBES}, {f"σ = {s:g}": str(s) for s in SIGMAS}

    def percent(value: float) -> str:
        return f"{100 * value:.2g} %"

    def row(name: str, *keys: str) -> str:
        found = rows.get(name, {})
        return " / ".join(f"{found[k]:.1f}" if k == "cost" else percent(found[k]) for k in keys) if found else NONE

    def part(m: int, k: int) -> str:
        return row(label("Rademacher, VJP", k, m), "divergence", "gamma", "cost")

    def table(corner: str, lines: Sequence[Any], columns: dict[str, Any], cell: Callable[[Any, Any], str]) -> Table:
        return Table((corner, *columns), tuple((str(line), *(cell(line, c) for c in columns.values())) for line in lines))

    return [
        Heading(f"{name}, B = {batch}", 3),
        Text(Markup(f"Error of E[∇·u] / of γ; with the exact ∇·u: 0 / {percent(rows[EXACT]['gamma'])}.")),
        table("estimator", measured, probes, lambda family, k: row(label(family, k), "divergence", "gamma")),
        Text("Cost of a step with the estimate, in forwards (1: no estimate)."),
        table("estimator", list(FAMILIES), probes, lambda family, k: row(label(family, k), "cost")),
        Text(Markup("Error of E[∇·u] by noise level.")),
        table("estimator", some, levels, lambda name, s: percent(rows[name]["divergence_by_sigma"][s])),
        Text(Markup("Sub-batches, Rademacher by VJP: error of E[∇·u] over the whole batch / of γ / cost.")),
        table("m", [m for m in PARTS if m <= batch], {f"k = {k}": k for k in SUB}, part),
    ]


def draw(results: dict[str, Rows]) -> Figure:
    """Two panels a law: error of E[∇·u] against cost by estimator, and by sub-batch."""
    top = {family: [label(family, k) for k in PROBES] for family in FAMILIES}
    bottom = {f"k = {k}, sub-batches of {PARTS[0]} … {PARTS[-1]}": [label("Rademacher, VJP", k, m) for m in PARTS] for k in SUB}
    bottom["whole batch, k = 1 … 16"] = top["Rademacher, VJP"]

    def panel(name: str, rows: Rows, lines: dict[str, list[str]]) -> Panel:
        found = []
        for (title, names), colour in zip(lines.items(), (*COLOURS, INK), strict=False):
            shown = [rows[n] for n in names if n in rows]
            look = {"marker": "o" if names in top.values() else "s", "ms": 4, "lw": 1, "color": colour}
            found.append(Line(title, look, [100 * r["divergence"] for r in shown], [r["cost"] for r in shown]))
        ends, floor = [f([x for line in found for x in line.x]) for f in (min, max)], 100 * rows[EXACT]["gamma"]
        batch_alone = Line("error of γ from the batch alone (exact ∇·u)", {"color": "grey", "ls": ":"}, [floor] * 2, ends)
        return Panel(name, [*found, batch_alone], level=math.nan)

    panels = [[panel(*law, lines) for law in results.items()] for lines in (top, bottom)]
    axes: Any = {"x": "cost of the step, forwards", "y": ["RMS error, %"] * 2, "width": 4.5}
    return charts("divergence_accuracy", "error against cost", panels, **axes, abscissa=lambda axis: axis.set_xscale("log"))


@command
def main(o: Options) -> None:
    """Measure, write, print the tables."""
    done = o.outdir / "study.json"
    laws: dict[str, Any] = read_json(done)["laws"] if done.exists() else {}
    known = {name: law_of(name) for name in o.laws}  # what is no law is refused before anything is measured
    laws |= {name: manifest(settings=asdict(o), results=study(name, law, o)) for name, law in known.items()}
    laws = {name: laws[name] for name in dict.fromkeys((*LAWS, *laws)) if name in laws}
    text = markdown([b for name, law in laws.items() for b in tables(name, law["results"], law["settings"]["batch"])])
    write_text(o.outdir / "table.md", text)
    with atomic(o.outdir / "divergence_accuracy.png") as temporary:
        temporary.write_bytes(draw({name: law["results"] for name, law in laws.items()}).png)
    write_json(done, {"sigmas": SIGMAS, "laws": laws})
    print(text)
