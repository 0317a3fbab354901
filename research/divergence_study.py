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

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from matplotlib import rc_context
from recipes.command import run
from torch import Tensor
from tqdm import tqdm

from steindiff.analytic import ExactModel
from steindiff.denoisers import Denoiser
from steindiff.divergence import Hutchinson, HutchPlusPlus
from steindiff.errors import InputError
from steindiff.io.files import atomic, manifest, read_json, write_json, write_text
from steindiff.report.blocks import Block, Figure, Heading, Markup, Table, Text
from steindiff.report.figures import drawing, figure, style
from steindiff.report.markdown import markdown
from steindiff.report.palette import COLOURS, INK
from steindiff.study import testbed

PROBES = (1, 2, 3, 5, 8, 16)
PARTS = (4, 8, 16, 32, 64)
SIGMAS = (10.0, 2.0, 0.5, 0.1)
Law = Literal["digits_mixture", "cifar10_mixture"]
LAWS: tuple[Law, ...] = ("digits_mixture", "cifar10_mixture")
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
    laws: Annotated[tuple[Law, ...], f"laws, of {', '.join(LAWS)}"] = LAWS
    batch: Annotated[int, "states of a batch", 4] = 64
    seeds: Annotated[int, "batches per noise level", 1] = 16
    first_seed: Annotated[int, "seed of the first batch", 0] = 0
    rounds: Annotated[int, "timings of every row", 1] = 5

    @property
    def parts(self) -> list[int]:
        """The sub-batches that a batch has."""
        return [m for m in PARTS if m <= self.batch]


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


@dataclass(frozen=True, eq=False)
class Batch:
    """States of one noise level, with the closed form of mean ∇·(y − D), and mean ‖y − D‖²."""

    y: Tensor
    sigma: Tensor
    divergence: float
    spread: float

    @classmethod
    def draw(cls, law: ExactModel, sigma: float, size: int, seed: int) -> Batch:
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


def measure(law: ExactModel, batch: Batch, seed: int, parts: Iterable[int]) -> dict[str, Errors]:
    """One batch's errors; fewer probes are a prefix of more, and a sub-batch a part of the rows.

    Batched products and JVPs are left out: they give the same numbers up to rounding (tests/divergence/test_divergence.py).
    """
    means = {EXACT: batch.divergence}
    for family, estimator in FAMILIES.items():
        if isinstance(estimator, HutchPlusPlus):
            for k in PROBES[2:]:
                means[label(family, k)] = float(batch.values(law, replace(estimator, probes=k, seed=seed)).mean())
        elif "batched" not in family and "JVP" not in family:
            values = batch.values(law, replace(estimator, probes=max(PROBES), seed=seed))
            means |= {label(family, k): float(values[:k].mean()) for k in PROBES}
            if family == "Rademacher, VJP":
                means |= {label(family, k, m): float(values[:k, :m].mean()) for k in (1, 5) for m in parts}
    return {row: batch.errors(mean) for row, mean in means.items()}


def rms(errors: Sequence[Errors]) -> Errors:
    """Root mean squares of both."""
    first, second = (math.sqrt(sum(e * e for e in column) / len(column)) for column in zip(*errors, strict=True))
    return first, second


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def costs(law: ExactModel, batch: Batch, parts: Iterable[int], rounds: int) -> dict[str, float]:
    """Forwards that a step with an estimate takes: its time over that of a forward just before, the least of each."""
    runs = {
        label(family, k): replace(estimator, probes=k)
        for family, estimator in FAMILIES.items()
        for k in (PROBES[2:] if isinstance(estimator, HutchPlusPlus) else PROBES)
    }
    runs |= {label("Rademacher, VJP", k, m): Hutchinson(k, method="vjp", samples=m) for k in (1, 5) for m in parts}
    best: dict[str, float] = defaultdict(lambda: math.inf)
    plain = math.inf
    for i in tqdm(range(rounds + 1), desc="costs", unit="round"):
        for name, estimator in runs.items():
            forward = seconds(lambda: law(batch.y, batch.sigma))
            taken = seconds(partial(batch.values, law, estimator))
            if i:  # the first round warms up
                best[name], plain = min(best[name], taken), min(plain, forward)
    return {name: value / plain for name, value in best.items()}


def study(name: str, o: Options) -> Rows:
    """Every row of one law: cost, pooled errors, errors per noise level."""
    law, found = law_of(name), defaultdict[float, list[dict[str, Errors]]](list)
    cells = [sigma for sigma in SIGMAS for _ in range(o.seeds)]
    for seed, sigma in enumerate(tqdm(cells, desc=name, unit="batch"), start=o.first_seed):
        found[sigma].append(measure(law, Batch.draw(law, sigma, o.batch, seed), seed, o.parts))
    price = costs(law, Batch.draw(law, 1.0, o.batch, o.first_seed), o.parts, o.rounds)
    rows: Rows = {}
    for row in (*price, EXACT):
        source = row.replace("JVP", "VJP").replace(" batched", "")
        errors = {sigma: [one[source] for one in batches] for sigma, batches in found.items()}
        pooled, gamma = rms([pair for pairs in errors.values() for pair in pairs])
        by_level = {str(sigma): rms(pairs)[0] for sigma, pairs in errors.items()}
        rows[row] = {"cost": price.get(row), "divergence": pooled, "gamma": gamma, "divergence_by_sigma": by_level}
    return rows


# ---------------------------------------------------------------- tables and figure


def tables(name: str, rows: Rows, batch: int) -> list[Block]:
    """Errors by probes, costs by probes, some estimators by noise level, sub-batches."""
    measured = [f for f in FAMILIES if "JVP" not in f and "batched" not in f]
    some = [label(f, k) for f in list(FAMILIES)[:3] for k in (1, 5) if label(f, k) in rows]
    parts = [m for m in PARTS if m <= batch]
    probes, levels = {f"k = {k}": k for k in PROBES}, {f"σ = {s:g}": str(s) for s in SIGMAS}

    def found(*names: Any) -> dict[str, Any] | None:
        return rows.get(label(*names))

    def part(m: int, k: int) -> str:
        return f"{_errors(found('Rademacher, VJP', k, m))} / {_cost(found('Rademacher, VJP', k, m))}"

    return [
        Heading(f"{name}, B = {batch}", 3),
        Text(Markup(f"Error of E[∇·u] / of γ; with the exact ∇·u: 0 / {_percent(rows[EXACT]['gamma'])}.")),
        _table("estimator", measured, probes, lambda f, k: _errors(found(f, k))),
        Text("Cost of a step with the estimate, in forwards (1: no estimate)."),
        _table("estimator", list(FAMILIES), probes, lambda f, k: _cost(found(f, k))),
        Text(Markup("Error of E[∇·u] by noise level.")),
        _table("estimator", some, levels, lambda row, s: _percent(rows[row]["divergence_by_sigma"][s])),
        Text(Markup("Sub-batches, Rademacher by VJP: error of E[∇·u] over the whole batch / of γ / cost.")),
        _table("m", parts, {f"k = {k}": k for k in (1, 5)}, part),
    ]


def _table(corner: str, rows: Sequence[Any], columns: dict[str, Any], cell: Callable[[Any, Any], str]) -> Table:
    return Table((corner, *columns), tuple((str(row), *(cell(row, c) for c in columns.values())) for row in rows))


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %"


def _errors(row: dict[str, Any] | None) -> str:
    return f"{_percent(row['divergence'])} / {_percent(row['gamma'])}" if row else "–"


def _cost(row: dict[str, Any] | None) -> str:
    return f"{row['cost']:.1f}" if row else "–"


def draw(results: dict[str, Rows]) -> Figure:
    """Two panels a law: error of E[∇·u] against cost by estimator, and by sub-batch."""
    floor, whole = "error of γ from the batch alone (exact ∇·u)", "whole batch, k = 1 … 16"
    subs = {k: f"k = {k}, sub-batches of {PARTS[0]} … {PARTS[-1]}" for k in (1, 5)}
    with style(), rc_context({"text.parse_math": True}):  # powers of ten on the axes
        plot = figure(6 * len(results), 9)
        for (name, rows), pair in zip(results.items(), plot.subplots(2, len(results), squeeze=False).T, strict=True):
            top, bottom = pair
            lines = [(top, family, [label(family, k) for k in PROBES], "o-") for family in FAMILIES]
            lines += [(bottom, subs[k], [label("Rademacher, VJP", k, m) for m in PARTS], "s-") for k in (1, 5)]
            lines += [(bottom, whole, [label("Rademacher, VJP", k) for k in PROBES], "o-")]
            for i, (axis, title, names, mark) in enumerate(lines):
                shown = [rows[n] for n in names if n in rows]
                at, height = [r["cost"] for r in shown], [100 * r["divergence"] for r in shown]
                axis.plot(at, height, mark, color=(*COLOURS, INK)[i % 8], label=title, ms=4, lw=1)
            for axis in pair:
                axis.axhline(100 * rows[EXACT]["gamma"], color="grey", ls=":", label=floor)
                axis.set(title=name, xscale="log", yscale="log", xlabel="cost of the step, forwards", ylabel="RMS error, %")
                axis.grid(alpha=0.3, which="both")
        return drawing("divergence_accuracy", "error against cost", plot, [*FAMILIES, *subs.values(), whole, floor])


def act(o: Options) -> None:
    """Measure, write, print the tables."""
    torch.set_num_threads(1)
    done = o.outdir / "study.json"
    laws: dict[str, Any] = read_json(done)["laws"] if done.exists() else {}
    laws |= {name: manifest(settings=asdict(o), results=study(name, o)) for name in o.laws}
    laws = {name: laws[name] for name in LAWS if name in laws}
    text = markdown([b for name, law in laws.items() for b in tables(name, law["results"], law["settings"]["batch"])])
    write_text(o.outdir / "table.md", text)
    with atomic(o.outdir / "divergence_accuracy.png") as temporary:
        temporary.write_bytes(draw({name: law["results"] for name, law in laws.items()}).png)
    write_json(done, {"sigmas": SIGMAS, "laws": laws})
    print(text)


main = partial(run, Options, act, __doc__)

if __name__ == "__main__":
    sys.exit(main())
