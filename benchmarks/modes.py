"""What each mode of the paper's correction costs a step, beside what a count of its derivatives predicts (Table 3, Prop. E.1).

    python -m benchmarks.modes --outdir outputs/modes
    python -m benchmarks.modes --model cifar10 --batch 16 --nfe 7 --rounds 9 --outdir outputs/modes-cifar10

Every mode runs whole trajectories of one network, in turns with the plain solver; its ratio is to the plain run of the same
round, in processor time on a CPU (which other programs disturb least) and in wall time on an accelerator. Our source has the
place of Prop. E.1 but not its words. The prediction is our reading of it: a step that takes k probes multiplies vᵀJ k times
through each of its evaluations, a product costs c forwards, and nothing else costs anything:

    time / plain = 1 + c · products / evaluations,     products = k · (evaluations of the steps that take probes)

A second prediction adds what the count leaves out, g forwards for each evaluation that is recorded to be differentiated. Both
constants are measured apart from the runs: c = (t₅ − t₁)/4 and g = t₁ − c − 1, where t_k is a forward with k products in units
of a plain forward. The command writes table.md and study.json (all numbers, and how they were made).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from recipes.command import command
from torch import Tensor

from benchmarks.timing import Quartiles, ratio, turns
from steindiff import Corrected, models, sample, solvers
from steindiff.denoisers import Denoiser
from steindiff.divergence import Choice, Hutchinson
from steindiff.io.files import manifest, write_json, write_text
from steindiff.noise import initial_noise
from steindiff.report.blocks import Block, Heading, Table, Text
from steindiff.report.markdown import markdown
from steindiff.rules import CleanTarget, Correction, Sparse
from steindiff.sampling import steps
from steindiff.solvers import Solver

PROBES = (1, 2, 5)
"""Probes of the mode "full"; the paper takes 5, and the modes between take as many."""
MOST = PROBES[-1]


@dataclass(frozen=True)
class Options:
    """The command line."""

    outdir: Annotated[Path, "where the two files go"] = Path("outputs/modes")
    model: Annotated[str, "a shipped network, or a model file"] = "digits"
    solvers: Annotated[tuple[str, ...], "which solvers are corrected"] = ("ddim", "heun")
    nfe: Annotated[int, "evaluations of a run", 3] = 9
    batch: Annotated[int, "images of a run", 1] = 16
    rounds: Annotated[int, "runs of every mode, in turns", 1] = 15
    threshold: Annotated[float, "adaptive takes probes at this noise level and below, sparse corrects above it"] = 1.0
    device: Annotated[str, "where the network computes"] = "cpu"


class Mode(NamedTuple):
    """One row: a rule, or None for the plain solver, and the probes that it takes of steps from above < σ ≤ upto."""

    name: str
    rule: Correction | None = None
    probes: int = 0
    above: float = 0.0
    upto: float = math.inf

    def probed(self, sigma: float) -> bool:
        """Whether a step from this noise level takes probes."""
        return self.probes > 0 and self.above < sigma <= self.upto

    def corrects(self, solver: Solver, choice: Choice) -> Solver:
        """The solver under this rule, at this price of a product."""
        estimator = Hutchinson(max(self.probes, 1), method="vjp", choice=choice)
        return solver if self.rule is None else Corrected(solver, self.rule, divergence=estimator)


class Price(NamedTuple):
    """Forwards that one product costs, c, and that recording an evaluation costs, g."""

    product: float
    recording: float


class Row(NamedTuple):
    """What one mode costs, over the plain run."""

    name: str
    products: int
    recorded: int
    evaluations: int
    counted: float
    """1 + c · products / evaluations."""
    with_recording: float
    """And g · recorded / evaluations."""
    billed: float
    """Forward-equivalents of the run over its evaluations, at the price c."""
    measured: Quartiles
    """Quartiles of the time ratio."""


def modes(threshold: float) -> tuple[Mode, ...]:
    """The modes of App. E.1, sparse activation, and ours without a derivative; γ ≤ 1 keeps every run finite."""
    bounded = partial(CleanTarget, gamma_max=1.0)
    sparse = Sparse(bounded(mode="full"), above=threshold)
    return (
        Mode("plain"),
        *(Mode(f"full, k = {k}", bounded(mode="full"), k) for k in PROBES),
        Mode(
            f"adaptive, k = {MOST}, probes at σ ≤ {threshold:g}",
            bounded(mode="adaptive", threshold=threshold),
            MOST,
            upto=threshold,
        ),
        Mode(f"sparse, k = {MOST}, active at σ > {threshold:g}", sparse, MOST, above=threshold),
        Mode("analytical", bounded(mode="analytical")),
        Mode("tweedie (ours)", bounded(mode="tweedie")),
    )


def evaluations(solver: Solver, denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> list[tuple[float, int]]:
    """What each step of a plain run evaluates, with the noise level that it starts from."""
    counts = [0, *(int(event.calls) for event in steps(solver, denoiser, x, sigmas))]
    return [(float(sigma), b - a) for sigma, a, b in zip(sigmas[:-1], counts[:-1], counts[1:], strict=True)]


def priced(denoiser: Denoiser, x: Tensor, rounds: int) -> Price:
    """c and g, medians over rounds of a forward with 5 products, one with 1 and a plain one, in turns."""
    sigma = x.new_tensor(1.0)

    def forward(k: int) -> Callable[[], object]:
        if not k:
            return lambda: _plain(denoiser, x, sigma)
        estimator = Hutchinson(k, method="vjp")
        return lambda: estimator(lambda z: (denoiser(z, sigma), None), x, 0)

    times = turns({str(k): forward(k) for k in (MOST, 1, 0)}, rounds, x.device)
    five, one = ratio(times, str(MOST), "0").median, ratio(times, "1", "0").median
    product = (five - one) / (MOST - 1)
    return Price(product, one - 1 - product)


def _plain(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """A forward that nothing will differentiate."""
    with torch.no_grad():
        return denoiser(x, sigma)


def measure(name: str, denoiser: Denoiser, x: Tensor, *, nfe: int, rounds: int, threshold: float, price: Price) -> list[Row]:
    """Every mode of one solver, in turns."""
    solver, sigmas = solvers.make(name).plan(nfe)
    sigmas, some, choice = sigmas.to(x.device), modes(threshold), Choice("vjp", {"vjp": price.product}, {})
    runs = [partial(sample, mode.corrects(solver, choice), denoiser, x, sigmas) for mode in some]
    stats = [run().stats for run in runs]
    names = [mode.name for mode in some]
    times = turns(dict(zip(names, runs, strict=True)), rounds, x.device)
    spent = evaluations(solver, denoiser, x, sigmas)
    ratios = [ratio(times, mode, names[0]) for mode in names]
    billed = [found.forward_equivalents / stats[0].nfe for found in stats]
    return [row_of(mode, spent, price, bill, found) for mode, bill, found in zip(some, billed, ratios, strict=True)]


def row_of(mode: Mode, spent: Sequence[tuple[float, int]], price: Price, billed: float, found: Quartiles) -> Row:
    """A row: what a plain run's evaluations, by noise level, predict of a mode, and what was found."""
    nfe, recorded = sum(count for _, count in spent), sum(count for sigma, count in spent if mode.probed(sigma))
    products = mode.probes * recorded
    counted = 1 + price.product * products / nfe
    with_recording = counted + price.recording * recorded / nfe
    return Row(mode.name, products, recorded, nfe, counted, with_recording, billed, found)


def table(rows: Sequence[Row]) -> Table:
    """One solver's rows."""
    columns = (
        "mode", "products / evaluations", "predicted: count", "with recording", "forward-equivalents / NFE",
        "time / plain: median (quartiles)", "median less count",
    )  # fmt: skip
    lines = []
    for row in rows:
        gap = f"{row.measured.median - row.counted:+.2f}".replace("-", "−")
        counts = f"{row.products} / {row.evaluations}"
        lines.append(
            (row.name, counts, f"{row.counted:.2f}", f"{row.with_recording:.2f}", f"{row.billed:.2f}", str(row.measured), gap)
        )
    return Table(columns, tuple(lines))


@command
def main(o: Options) -> None:
    """Measure, write, print the tables."""
    model = models.load(o.model, device=o.device)
    x = initial_noise(range(o.batch), model.event_shape, device=o.device)
    price = priced(model.denoiser, x, 5 * o.rounds)
    asked: Any = {"nfe": o.nfe, "rounds": o.rounds, "threshold": o.threshold, "price": price}
    found = {name: measure(name, model.denoiser, x, **asked) for name in o.solvers}
    constants = f"c = {price.product:.2f} and g = {price.recording:.2f} forwards"
    said = f"{o.nfe} evaluations, {o.batch} images, {o.rounds} rounds; {constants}."
    blocks: list[Block] = []
    for name, rows in found.items():
        blocks += [Heading(f"{model.name}, {name}", 3), Text(said), table(rows)]
    text = markdown(blocks)
    write_text(o.outdir / "table.md", text)
    results = {name: [row._asdict() for row in rows] for name, rows in found.items()}
    write_json(o.outdir / "study.json", manifest(settings=asdict(o), price=price._asdict(), results=results))
    print(text)
