"""Accuracy against cost of the divergence estimators, on models whose divergence is known in closed form.

    python -m research.divergence_study --outdir outputs/divergence

One batch of B states y = x* + σ ε per seed and noise level; the step is DDIM's, u = (1−r)(y − D), whatever r. Two errors, each
relative, root mean square over seeds and noise levels:

    E[∇·u]   against the closed form's mean over the same batch: the error of probes and sub-batches alone
    γ        against 1/(1−r), what Eq. 11 gives for the whole law: that of the batch is in it too

Costs are timed in turns with a plain forward of the same batch; 1 is the forward that the step needs anyway. Writes
table.md, divergence_accuracy.png and study.json (all numbers, and how they were made); a law that an earlier run left in that
study.json and this one does not measure is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from steindiff import models
from steindiff.analytic import ExactModel
from steindiff.denoisers import Denoiser
from steindiff.divergence import Hutchinson, HutchPlusPlus
from steindiff.errors import InputError
from steindiff.io.files import atomic, manifest, write_json, write_text
from steindiff.study.testbed import digits_mixture

PROBES = (1, 2, 3, 5, 8, 16)
PARTS = (4, 8, 16, 32, 64)
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
# Okabe–Ito colours: told apart by the colour-blind.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#000000", "#F0E442")
Errors = dict[str, list[tuple[float, float]]]


def law_of(name: str) -> ExactModel:
    """A law in float32, what networks run in."""
    if name == "digits_mixture":
        return digits_mixture().to(torch.float32)
    law = models.load(name).denoiser
    if not isinstance(law, ExactModel):
        raise InputError(f"model {name!r} is a network, its divergence unknown: choose from {', '.join(LAWS)}")
    return law


def residual(sigma: Tensor, denoiser: Denoiser, y: Tensor) -> tuple[Tensor, Tensor]:
    """U/(1−r) = y − D(y), and D(y)."""
    denoised = denoiser(y, sigma)
    return y - denoised, denoised


@dataclass(frozen=True, eq=False)
class Batch:
    """States of one noise level, with what is known of them exactly."""

    y: Tensor
    sigma: Tensor
    divergence: float
    """Closed form of mean ∇·(y − D)."""
    spread: float
    """Mean ‖y − D‖²."""

    @classmethod
    def draw(cls, law: ExactModel, sigma: float, size: int, seed: int) -> Batch:
        """B states of the marginal at sigma."""
        generator = torch.Generator().manual_seed(seed)
        clean = law.sample(size, generator)
        y = clean + sigma * torch.randn(clean.shape, generator=generator)
        level = torch.tensor(sigma, dtype=torch.float64)
        precise = law.to(torch.float64)
        trace = y[0].numel() - float(precise.divergence(y.double(), level).mean())
        spread = float((y.double() - precise(y.double(), level)).square().flatten(1).sum(1).mean())
        return cls(y, level, trace, spread)

    def errors(self, mean: float) -> tuple[float, float]:
        """Relative errors of an estimate of E[∇·(y−D)], and of the γ it gives: (1−r)γ = σ² E[∇·]/E‖y−D‖²."""
        return mean / self.divergence - 1, float(self.sigma) ** 2 * mean / self.spread - 1

    def values(self, law: Denoiser, estimator: Hutchinson) -> Tensor:
        """(k, B) estimates."""
        return estimator.through(partial(residual, self.sigma), law, self.y, 0)[0].values.double()


def label(family: str, k: int, m: int | None = None) -> str:
    """A row's name."""
    return f"{family}, k = {k}" + (f", m = {m}" if m else "")


def measure(law: ExactModel, batch: Batch, seed: int, sub_batches: Iterable[int], kept: Errors) -> None:
    """One batch's errors; fewer probes are a prefix of more, and a sub-batch a part of the rows."""
    kept["exact divergence"].append(batch.errors(batch.divergence))
    for family, estimator in FAMILIES.items():
        if "batched" in family or "JVP" in family:
            continue  # the same numbers up to rounding: tests/test_divergence.py
        if isinstance(estimator, HutchPlusPlus):
            for k in PROBES[2:]:
                mean = batch.values(law, replace(estimator, probes=k, seed=seed)).mean()
                kept[label(family, k)].append(batch.errors(float(mean)))
            continue
        values = batch.values(law, replace(estimator, probes=max(PROBES), seed=seed))
        for k in PROBES:
            kept[label(family, k)].append(batch.errors(float(values[:k].mean())))
        if family == "Rademacher, VJP":
            for k in (1, 5):
                for m in sub_batches:
                    kept[label(family, k, m)].append(batch.errors(float(values[:k, :m].mean())))


def rms(errors: list[tuple[float, float]]) -> tuple[float, float]:
    """Root mean squares of both."""
    first, second = (math.sqrt(sum(e * e for e in column) / len(column)) for column in zip(*errors, strict=True))
    return first, second


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def costs(law: ExactModel, batch: Batch, sub_batches: Iterable[int], rounds: int) -> dict[str, float]:
    """Forwards that a step with an estimate takes: its time over that of a forward just before, the least of each."""
    runs = {
        label(family, k): replace(estimator, probes=k)
        for family, estimator in FAMILIES.items()
        for k in (PROBES[2:] if isinstance(estimator, HutchPlusPlus) else PROBES)
    }
    runs |= {label("Rademacher, VJP", k, m): Hutchinson(k, method="vjp", samples=m) for k in (1, 5) for m in sub_batches}
    best: dict[str, float] = defaultdict(lambda: math.inf)
    plain = math.inf
    for i in tqdm(range(rounds + 1), desc="costs", unit="round"):
        for name, estimator in runs.items():
            forward = seconds(lambda: law(batch.y, batch.sigma))
            taken = seconds(partial(batch.values, law, estimator))
            if i:  # the first round warms up
                best[name], plain = min(best[name], taken), min(plain, forward)
    return {name: value / plain for name, value in best.items()}


def study(name: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every row of one law: cost, pooled errors, errors per noise level."""
    law = law_of(name)
    parts = [m for m in PARTS if m <= args.batch]
    levels: dict[float, Errors] = {}
    cells = [sigma for sigma in SIGMAS for _ in range(args.seeds)]
    for seed, sigma in enumerate(tqdm(cells, desc=name, unit="batch"), start=args.first_seed):
        kept = levels.setdefault(sigma, defaultdict(list))
        measure(law, Batch.draw(law, sigma, args.batch, seed), seed, parts, kept)
    price = costs(law, Batch.draw(law, 1.0, args.batch, args.first_seed), parts, args.rounds)
    rows: dict[str, dict[str, Any]] = {}
    for row in {**price, "exact divergence": None}:
        source = row.replace("JVP", "VJP").replace(" batched", "")
        pooled, gamma = rms([pair for kept in levels.values() for pair in kept[source]])
        by_level = {str(s): rms(kept[source])[0] for s, kept in levels.items()}
        rows[row] = {"cost": price.get(row), "divergence": pooled, "gamma": gamma, "divergence_by_sigma": by_level}
    return rows


def table(name: str, rows: dict[str, dict[str, Any]], batch: int) -> str:
    """Markdown: errors by probes, costs by probes, one probe by noise level, sub-batches."""
    exact = rows["exact divergence"]
    heads = [f"k = {k}" for k in PROBES]
    errors, prices = [], []
    for family in FAMILIES:
        found = [rows.get(label(family, k)) for k in PROBES]
        prices.append([family, *(f"{r['cost']:.1f}" if r else "–" for r in found)])
        if "JVP" not in family and "batched" not in family:
            errors.append([family, *(f"{_percent(r['divergence'])} / {_percent(r['gamma'])}" if r else "–" for r in found)])
    levels = [
        [row, *(_percent(rows[row]["divergence_by_sigma"][str(s)]) for s in SIGMAS)]
        for row in (label(f, k) for f in list(FAMILIES)[:3] for k in (1, 5) if label(f, k) in rows)
    ]
    parts = [
        [str(m), *(f"{_percent(r['divergence'])} / {_percent(r['gamma'])} / {r['cost']:.1f}" for r in found)]
        for m in PARTS
        if (found := [rows[label("Rademacher, VJP", k, m)] for k in (1, 5) if label("Rademacher, VJP", k, m) in rows])
    ]
    return "\n".join([
        f"### {name}, B = {batch}\n\nError of E[∇·u] / of γ; with the exact ∇·u: 0 / {_percent(exact['gamma'])}.\n",
        _markdown(["estimator", *heads], errors),
        "Cost of a step with the estimate, in forwards (1: no estimate).\n",
        _markdown(["estimator", *heads], prices),
        "Error of E[∇·u] by noise level.\n",
        _markdown(["estimator", *(f"σ = {s:g}" for s in SIGMAS)], levels),
        "Sub-batches, Rademacher by VJP: error of E[∇·u] over the whole batch / of γ / cost.\n",
        _markdown(["m", "k = 1", "k = 5"], parts),
    ])  # fmt: skip


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(results: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Two panels a law: error of E[∇·u] against cost by estimator, and by sub-batch."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(results), figsize=(6 * len(results), 9), squeeze=False, layout="constrained")
    for (name, rows), (top, bottom) in zip(results.items(), axes.T, strict=True):
        for family, colour in zip(FAMILIES, COLOURS, strict=True):
            _curve(top, [rows[label(family, k)] for k in PROBES if label(family, k) in rows], family, colour, "o-")
        parts = [m for m in PARTS if label("Rademacher, VJP", 1, m) in rows]
        for k, colour in ((1, COLOURS[0]), (5, COLOURS[4])):
            _curve(bottom, [rows[label("Rademacher, VJP", k, m)] for m in parts], f"k = {k}, m = {parts}", colour, "s-")
        _curve(bottom, [rows[label("Rademacher, VJP", k)] for k in PROBES], "whole batch, k = 1 … 16", COLOURS[2], "o-")
        floor = 100 * rows["exact divergence"]["gamma"]
        for axis in (top, bottom):
            axis.axhline(floor, color="grey", ls=":", label="error of γ from the batch alone (exact ∇·u)")
            axis.set(
                title=name, xscale="log", yscale="log", xlabel="cost of the step, forwards", ylabel="RMS error of E[∇·u], %"
            )
            axis.legend(fontsize=7)
            axis.grid(alpha=0.3, which="both")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def _curve(axis: Any, rows: list[dict[str, Any]], name: str, colour: str, style: str) -> None:
    axis.plot([r["cost"] for r in rows], [100 * r["divergence"] for r in rows], style, color=colour, label=name, ms=4, lw=1)


def main(argv: list[str] | None = None) -> None:
    """Measure, write, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m research.divergence_study --laws digits_mixture --seeds 4 --outdir outputs/divergence",
    )
    parser.add_argument("--outdir", type=Path, default=Path("outputs/divergence"))
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=16, help="batches per noise level")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5, help="timings of every row")
    args = parser.parse_args(argv)
    if min(args.batch, args.seeds, args.rounds) < 1 or args.batch < 4:
        parser.error(f"--batch {args.batch}, --seeds {args.seeds}, --rounds {args.rounds}: need 4, 1 and 1 or more")
    done = args.outdir / "study.json"
    laws: dict[str, Any] = json.loads(done.read_text())["laws"] if done.exists() else {}
    for name in args.laws:
        laws[name] = manifest(settings=vars(args), results=study(name, args))
    laws = {name: laws[name] for name in LAWS if name in laws}
    text = "\n".join(table(name, law["results"], law["settings"]["batch"]) for name, law in laws.items())
    write_text(args.outdir / "table.md", text)
    draw({name: law["results"] for name, law in laws.items()}, args.outdir / "divergence_accuracy.png")
    write_json(done, {"sigmas": SIGMAS, "laws": laws})
    print(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
