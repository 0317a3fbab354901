"""Sample quality against the number of Hutchinson probes and the size of a sub-batch (the paper's Fig. 9), on models of ours.

    python -m research.probe_quality --model digits_mixture --solvers 2m_unlowered dpmpp_3m heun --nfe 8 --exact

Every run starts from the same noise; the rule is Eq. 11 with γ ≤ 1. A repeat has its own probes and its own order of the images
within each batch, so that a sub-batch (the first m images) is another one. Per solver, NFE and estimator, means over repeats of

    energy distance to samples of the model, above that of the exact flow's end points
    endpoint RMSE to the exact flow, per coordinate

with two spreads: ± is the standard error over images, the noise of the test; SD is over repeats, what the estimator does to a
run. Estimators are given less the reference divergence (`--exact`: all d products; else the most probes), a paired difference
with both spreads in its error. "γ off by" is the RMS distance of γ to the reference's, over the steps where that is between its
bounds. Cost: forward-equivalents as the runs count them. Writes table.md, divergence_quality.png, quality.json into --outdir;
a model and batch size that an earlier run left in that quality.json and this one does not measure is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from research.demo_testbed import SIGMA_MAX, SIGMA_MIN, build
from steindiff import Corrected, grids, initial_noise, sample, solvers
from steindiff.cli.script import run_command
from steindiff.corrections import CleanTarget
from steindiff.denoisers import Denoiser
from steindiff.divergence import Choice, Estimator, Exact, Hutchinson
from steindiff.errors import InputError, NonFiniteError
from steindiff.io.files import atomic, manifest, write_json, write_text
from steindiff.metrics import EnergyTarget, Shares, Value
from steindiff.solvers import Solver
from steindiff.study.testbed import digits_mixture

MODELS = ("digits_mixture", "digits", "cifar10_mixture")
SOLVERS: dict[str, tuple[Solver, str]] = {
    "2m_unlowered": (solvers.DPMpp2M(lower_order_final=False), "2M unlowered"),
    "dpmpp_2m": (solvers.make("dpmpp_2m"), "2M"),
    "dpmpp_3m": (solvers.make("dpmpp_3m"), "3M"),
    "heun": (solvers.make("heun"), "Heun"),
}
# Okabe–Ito colours: told apart by the colour-blind; markers differ too.
STYLES = {"rademacher": ("#0072B2", "o"), "gaussian": ("#E69F00", "s"), "sub-batch": ("#009E73", "^")}
EXACT = "exact"
_TARGET_SEED = 1_000_000_000


@dataclass(frozen=True, eq=False)
class Bed:
    """A model, noise to start from, where the exact flow takes it, and samples of the law to compare with."""

    denoiser: Denoiser
    noise: Tensor
    endpoints: Tensor
    energy: EnergyTarget
    perfect: Shares

    @classmethod
    def of(cls, name: str, samples: int, first_seed: int) -> Bed:
        """An embedded model's testbed, or that of the Gaussian mixture on 8×8 digits."""
        if name != "digits_mixture":
            bed = build(name, samples, first_seed)
            return cls(bed.model.denoiser, bed.noise, bed.endpoints, bed.energy, bed.perfect)
        law = digits_mixture().to(torch.float32)
        noise = initial_noise(range(first_seed, first_seed + samples), law.event_shape, SIGMA_MAX)
        endpoints = law.flow(noise, SIGMA_MAX, SIGMA_MIN, tol=2e-3)
        generator = torch.Generator().manual_seed(_TARGET_SEED)
        clean = law.sample(4 * samples, generator)
        energy = EnergyTarget(clean + SIGMA_MIN * torch.randn(clean.shape, generator=generator))
        return cls(law, noise, endpoints, energy, energy.shares(endpoints))


@dataclass(frozen=True, eq=False)
class Run:
    """One pass over all images: its quality, its γ, (batches, steps), and its cost in forwards."""

    shares: Shares
    squares: Tensor
    """Squared endpoint error per coordinate, of each image."""
    gammas: Tensor
    cost: float

    @property
    def rmse(self) -> float:
        """Root of the mean over images."""
        return float(self.squares.mean().sqrt())

    @property
    def influence(self) -> Tensor:
        """Each image's share in `rmse`, up to a constant."""
        return self.squares / (2 * self.rmse)


def measure(bed: Bed, solver: Solver, steps: int, batch: int, repeat: int) -> Run:
    """All images through `solver`, batch by batch; the repeat's own probes, and its own order within each batch."""
    generator = torch.Generator().manual_seed(repeat)
    rows = [part[torch.randperm(len(part), generator=generator)] for part in torch.arange(len(bed.noise)).split(batch)]
    x, gammas, cost, sigmas = torch.empty_like(bed.noise), [], 0.0, grids.karras(steps, SIGMA_MIN, SIGMA_MAX)
    for i, part in enumerate(rows):
        result = sample(solver.seeded(1000 * repeat + i), bed.denoiser, bed.noise[part], sigmas)
        x[part] = result.x
        gammas.append([record.gamma for record in result.trace])
        cost += result.stats.forward_equivalents * len(part) / len(bed.noise)
    squares = (x.double() - bed.endpoints.double()).flatten(1).square().mean(1)
    return Run(bed.energy.shares(x), squares, torch.tensor(gammas, dtype=torch.float64), cost)


def estimators(args: argparse.Namespace, choice: Choice) -> dict[str, Estimator]:
    """The reference first: all d products, or the most Rademacher probes."""
    family = {
        f"{kind}, k = {k}": Hutchinson(k, kind, "vjp", choice=choice)
        for kind in args.kinds
        for k in sorted(args.probes, reverse=True)
    }
    parts = {f"sub-batch, m = {m}": Hutchinson(1, method="vjp", choice=choice, samples=m) for m in args.parts if m < args.batch}
    return {EXACT: Exact(choice), **family, **parts} if args.exact else {**family, **parts}


def mean_of(runs: Sequence[Run]) -> tuple[Shares, float, Tensor]:
    """Over repeats: the energy distance with its shares, the RMSE, and its influence."""
    of_x, of_y = (torch.stack([getattr(r.shares, part) for r in runs]).mean(0) for part in ("of_x", "of_y"))
    shares = Shares(sum(r.shares.distance for r in runs) / len(runs), of_x, of_y)
    return shares, sum(r.rmse for r in runs) / len(runs), torch.stack([r.influence for r in runs]).mean(0)


def spread(values: Sequence[float]) -> float:
    """Standard deviation over repeats, NaN for one."""
    return float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else math.nan


def summary(runs: Sequence[Run], perfect: Shares, reference: Sequence[Run]) -> dict[str, Any]:
    """One row of the table."""
    (shares, rmse, influence), (base, base_rmse, base_influence) = mean_of(runs), mean_of(reference)
    energy_sd, rmse_sd = spread([r.shares.distance for r in runs]), spread([r.rmse for r in runs])
    excess, change = shares.minus(perfect), shares.minus(base)
    se, rmse_se = (float(z.std()) / math.sqrt(len(z)) for z in (influence, influence - base_influence))
    between = 0.0 if runs is reference else 1 / math.sqrt(len(runs))
    inside = torch.stack([(r.gammas > 1e-5) & (r.gammas < 1) for r in reference]).all(0)
    gamma = torch.stack([r.gammas for r in reference]).mean(0)
    alike = bool(inside.any()) and runs[0].gammas.shape == gamma.shape  # a plain run may have other steps
    off = [(r.gammas - gamma)[inside].square().mean() for r in runs] if alike else []
    return {
        "energy": excess, "energy_sd": energy_sd, "energy_change": _with(change, between * energy_sd),
        "rmse": Value(rmse, se), "rmse_sd": rmse_sd, "rmse_change": _with(Value(rmse - base_rmse, rmse_se), between * rmse_sd),
        "gamma_off": float(torch.stack(off).mean().sqrt()) if off else math.nan,
        "gamma": gamma.mean(0).tolist(), "gamma_spread": gamma.std(0).tolist() if len(gamma) > 1 else None,
        "cost": sum(r.cost for r in runs) / len(runs), "repeats": len(runs),
    }  # fmt: skip


def _with(value: Value, more: float) -> Value:
    """The same with another, independent error in it; NaN (one repeat) adds nothing."""
    return Value(value.value, math.hypot(value.se, 0.0 if math.isnan(more) else more))


def cell(bed: Bed, name: str, nfe: int, args: argparse.Namespace, choice: Choice, tick: Callable[[], object]) -> dict[str, Any]:
    """All rows of one solver and NFE; those without a correction once."""
    solver, steps = SOLVERS[name][0].for_nfe(nfe)
    plain = {"plain": (solver, steps)}
    if name == "2m_unlowered":
        plain["plain, as published"] = solvers.make("dpmpp_2m").for_nfe(nfe)
    published = solvers.make("dpmpp_2m") if name == "2m_unlowered" else solver
    plain["plain, as published, twice the NFE"] = published.for_nfe(2 * nfe)
    rule = CleanTarget(gamma_max=1.0)
    runs: dict[str, list[Run]] = {}
    for label, estimator in estimators(args, choice).items():
        repeats = 1 if label == EXACT else args.repeats
        corrected = Corrected(solver, rule, estimator)
        runs[label] = [measure(bed, corrected, steps, args.batch, r) for r in range(repeats)]
        tick()
    reference = runs[next(iter(runs))]
    rows = {label: summary([measure(bed, s, n, args.batch, 0)], bed.perfect, reference) for label, (s, n) in plain.items()}
    return rows | {label: summary(found, bed.perfect, reference) for label, found in runs.items()}


def literal(bed: Bed, args: argparse.Namespace, choice: Choice) -> dict[str, float]:
    """Endpoint RMSE of the rule without an upper bound, on 2M as published; one repeat; infinite where a run overflows."""
    found = {}
    for label, estimator in {"plain": None, **estimators(args, choice)}.items():
        solver = solvers.make("dpmpp_2m")
        run = solver if estimator is None else Corrected(solver, CleanTarget(), estimator)
        try:
            found[label] = measure(bed, run, args.nfe[0], args.batch, 0).rmse
        except NonFiniteError:
            found[label] = math.inf
    return found


def study(args: argparse.Namespace) -> dict[str, Any]:
    """Every cell of one model."""
    bed = Bed.of(args.model, args.samples, args.first_seed)
    choice = Hutchinson(method="vjp").resolve(bed.denoiser, bed.noise[: args.batch], torch.tensor(1.0)).choice
    assert choice is not None
    cells = [(name, nfe) for name in args.solvers for nfe in args.nfe]
    with tqdm(total=len(cells) * len(estimators(args, choice)), unit="row", desc=args.model) as bar:
        results = {f"{SOLVERS[n][1]}, {nfe} NFE": cell(bed, n, nfe, args, choice, lambda: bar.update()) for n, nfe in cells}
    return {
        "cells": results, "perfect": bed.perfect.value, "vjp_cost": choice.cost("vjp"),
        "literal": literal(bed, args, choice) if args.literal else None,
    }  # fmt: skip


# ---------------------------------------------------------------- tables and figure


def columns(entries: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    """Every cell of every entry by its title, with the label of its reference."""
    return {
        f"{title}: {name}": (rows, next(label for label in rows if not label.startswith("plain")))
        for title, entry in entries.items()
        for name, rows in entry["results"]["cells"].items()
    }


def tables(entries: dict[str, Any]) -> str:
    """Markdown: both qualities, then γ and cost, a column per cell; then what γ was, and the printed rule."""
    cells = columns(entries)
    seen = {label for rows, _ in cells.values() for label in rows if not label.startswith("plain") and label != EXACT}
    labels = sorted(seen, key=lambda x: (list(STYLES).index(x.partition(",")[0]), _number(x)))
    plain = ["plain", "plain, as published", "plain, as published, twice the NFE"]
    parts = []
    for title, key in (("Energy distance above that of the exact flow", "energy"), ("Endpoint RMSE", "rmse")):
        rows = [[x, *(str(Value(*r[x][key])) if x in r else "–" for r, _ in cells.values())] for x in plain]
        rows.append(["reference", *(f"{Value(*r[ref][key])} ({ref})" for r, ref in cells.values())])
        rows += [[x, *(_change(r, x, key, ref) for r, ref in cells.values())] for x in labels]
        parts += [
            f"{title}: plain runs and the reference, ± over images; below, the others less the reference (SD of a run).\n"
        ]
        parts.append(_markdown(["", *cells], rows))
    rows = [[x, *(_gamma_and_cost(r[x], x) if x in r else "–" for r, _ in cells.values())] for x in (*plain, EXACT, *labels)]
    parts += ["γ off by / cost in forward-equivalents.\n", _markdown(["", *cells], rows)]
    for name, (found, ref) in cells.items():
        parts.append(f"- {name}: mean γ with the reference {', '.join(_gamma(g) for g in found[ref]['gamma'])}")
    for title, entry in entries.items():
        if entry["results"]["literal"]:
            errors = ", ".join(f"{label} {value:.2g}" for label, value in entry["results"]["literal"].items())
            nfe = entry["settings"]["nfe"][0]
            parts.append(f"- {title}, Eq. 11 as printed, 2M as published, {nfe} NFE, endpoint RMSE: {errors}")
    return "\n".join(parts) + "\n"


def _gamma(value: float) -> str:
    return "1" if value == 1 else f"{value:.2f}"


def _change(rows: dict[str, Any], label: str, key: str, reference: str) -> str:
    if label not in rows:
        return "–"
    if label == reference:
        return "reference"
    (value, se), sd = rows[label][f"{key}_change"], rows[label][f"{key}_sd"]
    digits = min(5, max(0, 1 - math.floor(math.log10(max(se, 1e-9)))))
    return f"{value:+.{digits}f} ± {se:.{digits}f}" + ("" if sd is None else f" ({sd:.{digits}f})")


def _gamma_and_cost(row: dict[str, Any], label: str) -> str:
    unknown = label.startswith("plain") or row["gamma_off"] is None
    return f"{'–' if unknown else format(row['gamma_off'], '.4f')} / {row['cost']:.1f}"


def _number(label: str) -> int:
    return int(label.rpartition("= ")[2])


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(entries: dict[str, Any], path: Path) -> None:
    """A panel per cell: energy distance against probes per image of the batch, m/B for a sub-batch of m."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(f"{title}\n{name}", rows, e) for title, e in entries.items() for name, rows in e["results"]["cells"].items()]
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(down, across, figsize=(4.2 * across, 3.6 * down), squeeze=False, layout="constrained")
    for axis, (title, rows, entry) in zip(axes.flat, panels, strict=False):
        _panel(axis, title, rows, entry["settings"]["batch"])
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, fontsize=9)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=80)
    plt.close(figure)


def _panel(axis: Any, title: str, rows: dict[str, Any], batch: int) -> None:
    reference = next(row for label, row in rows.items() if not label.startswith("plain"))
    value, se = reference["energy"]
    axis.axhspan(
        value - se, value + se, color="grey", alpha=0.2, lw=0, label="reference divergence ± standard error over images"
    )
    axis.axhline(value, color="grey", lw=1)
    for kind, (colour, marker) in STYLES.items():
        points = sorted((_probes(label, batch), row) for label, row in rows.items() if label.startswith(kind))
        if points:
            at, found = zip(*points, strict=True)
            height, error = [r["energy"][0] for r in found], [r["energy_sd"] or 0.0 for r in found]
            name = "a probe for the first m images" if kind == "sub-batch" else f"{kind.capitalize()} probes"
            axis.errorbar(at, height, error, color=colour, marker=marker, ms=4, lw=1, capsize=2, label=name)
    axis.set_xscale("log", base=2)
    axis.set_xticks([2.0**i for i in range(-4, 5)], ["1/16", "1/8", "1/4", "1/2", "1", "2", "4", "8", "16"])
    axis.set_xlim(0.05, 20)
    axis.set_title(f"{title} (plain {rows['plain']['energy'][0]:.3f})", fontsize=9)
    axis.set_xlabel("probes per image of the batch", fontsize=8)
    axis.set_ylabel("energy distance above the exact flow", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)


def _probes(label: str, batch: int) -> float:
    return _number(label) / (batch if label.startswith("sub-batch") else 1)


# ---------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", choices=MODELS, default="digits_mixture")
    p.add_argument("--solvers", nargs="+", choices=SOLVERS, default=["2m_unlowered", "heun"])
    p.add_argument("--nfe", type=int, nargs="+", default=[8])
    p.add_argument("--samples", type=int, default=512, help="images; default: %(default)s")
    p.add_argument("--batch", type=int, default=64, help="images that share a γ; default: %(default)s")
    p.add_argument("--probes", type=int, nargs="+", default=[1, 2, 3, 5, 8, 16])
    p.add_argument("--kinds", nargs="+", choices=("rademacher", "gaussian"), default=["rademacher"])
    p.add_argument("--parts", type=int, nargs="*", default=[4, 8, 16, 32], help="sub-batches m, one probe each")
    p.add_argument("--repeats", type=int, default=5, help="draws of the probes; default: %(default)s")
    p.add_argument("--first-seed", type=int, default=9000, help="of the images; default: %(default)s")
    p.add_argument("--exact", action="store_true", help="a run with all d products, as the reference")
    p.add_argument("--literal", action="store_true", help="also the rule without an upper bound")
    p.add_argument("--outdir", type=Path, default=Path("outputs/probe_quality"))
    return p


def check_options(a: argparse.Namespace) -> None:
    """Raise InputError for an option that cannot work, before anything runs."""
    for name, least in (("samples", 32), ("batch", 1), ("repeats", 1), ("first_seed", 0)):
        if getattr(a, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(a, name)}: must be at least {least}")
    for name in ("nfe", "probes", "parts"):
        if any(value < 1 for value in getattr(a, name)):
            raise InputError(f"--{name} {' '.join(map(str, getattr(a, name)))}: each must be at least 1")


def write(args: argparse.Namespace) -> None:
    """Measure, write, print the tables."""
    check_options(args)
    torch.set_num_threads(1)
    done = args.outdir / "quality.json"
    entries: dict[str, Any] = json.loads(done.read_text()) if done.exists() else {}
    title = f"{args.model}, B = {args.batch}"
    entries[title] = manifest(settings=vars(args), results=study(args))
    write_json(done, entries)
    entries = json.loads(done.read_text())
    write_text(args.outdir / "table.md", tables(entries))
    draw(entries, args.outdir / "divergence_quality.png")
    print(tables({title: entries[title]}))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends with exit status 2 and one line that says what to change."""
    return run_command(parser(), write, argv)


if __name__ == "__main__":
    sys.exit(main())
