"""The demo's runs: every model × solver × correction at one NFE, from the same seeds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from tqdm.auto import tqdm

from steindiff import corrections, grids, solvers
from steindiff.correction import Corrected
from steindiff.demo.testbed import SIGMA_MAX, SIGMA_MIN, Testbed, build
from steindiff.errors import NonFiniteError
from steindiff.files import manifest, writable_folder, write_json
from steindiff.metrics import Value, endpoint_rmse, energy_difference, energy_distance, frechet_distance
from steindiff.noise import generators
from steindiff.sampling import SampleResult, sample

__all__ = ["CORRECTIONS", "MODELS", "SOLVERS", "Cell", "Floor", "run_demo"]

MODELS = ("digits", "cifar10_mixture")
SOLVERS = ("dpmpp_2m", "heun", "ipndm_3")
CORRECTIONS = ("none", "literal", "clamped")


@dataclass(frozen=True)
class Cell:
    """One run and its distances; `change` is the energy distance less that of the plain solver, paired."""

    model: str
    solver: str
    correction: str
    result: SampleResult | None
    energy: Value
    frechet: Value
    endpoint: Value
    change: Value | None
    failure: str = ""

    @property
    def verdict(self) -> str:
        """Against the plain solver: better or worse beyond two standard errors of the paired difference, or within noise."""
        if self.result is None or not self.energy.value < float("inf"):
            return "diverged"
        if self.change is None:
            return ""
        if abs(self.change.value) <= 2 * self.change.se:
            return "within noise"
        return "better" if self.change.value < 0 else "worse"


@dataclass(frozen=True)
class Floor:
    """What a perfect sampler would score: the reference flow's end points against the target, same sizes."""

    energy: Value
    frechet: Value


def run_demo(outdir: str | Path, *, nfe: int, samples: int, first_seed: int, console: Console) -> Path:
    """Run everything, write report.md, results.json, run.json and the pictures to `outdir`, print the tables.

    Raises:
        InputError: `outdir` cannot be written to, or `nfe` is too small for a solver.
    """
    from steindiff.demo.report import write_report

    folder = writable_folder(outdir)
    start = time.perf_counter()
    beds: list[Testbed] = []
    cells: list[Cell] = []
    floors: dict[str, Floor] = {}
    total = len(MODELS) * (1 + len(SOLVERS) * len(CORRECTIONS))
    with tqdm(total=total, unit="run", desc="demo", mininterval=1.0) as bar:
        for name in MODELS:
            bar.set_postfix_str(f"{name}: reference flow")
            bed = build(name, samples, first_seed)
            beds.append(bed)
            floors[name] = _floor(bed)
            bar.update()
            for cell in _cells(bed, name, nfe, first_seed):
                cells.append(cell)
                bar.set_postfix_str(f"{name}: {cell.solver}, {cell.correction}")
                bar.update()
    seconds = time.perf_counter() - start
    config = {"nfe": nfe, "samples": samples, "first_seed": first_seed, "models": MODELS, "solvers": SOLVERS}
    write_json(folder / "results.json", [_summary(cell) for cell in cells])
    write_report(folder, beds, cells, floors, nfe, console)
    models = {bed.model.name: {"sha256": bed.model.sha256, "reference": bed.reference} for bed in beds}
    write_json(folder / "run.json", manifest(config=config, models=models, seconds=round(seconds, 1)))
    console.print(f"{seconds:.0f} s; everything is in [bold]{folder}[/bold]: report.md, pictures, results.json, run.json")
    return folder


def _cells(bed: Testbed, name: str, nfe: int, first_seed: int) -> Iterator[Cell]:
    for solver_name in SOLVERS:
        solver, steps = solvers.for_nfe(solvers.make(solver_name), nfe)
        sigmas = grids.karras(steps, SIGMA_MIN, SIGMA_MAX)
        base: Tensor | None = None
        for correction in CORRECTIONS:
            rule = corrections.make(correction)
            chosen = solver if rule is None else Corrected(solver, rule)
            streams = generators(range(first_seed, first_seed + len(bed.noise)))
            try:
                result = sample(chosen, bed.model.denoiser, bed.noise, sigmas, generator=streams)
            except NonFiniteError as error:
                nowhere = Value(float("inf"), float("nan"))
                yield Cell(name, solver_name, correction, None, nowhere, nowhere, nowhere, None, str(error))
                continue
            yield _measure(bed, name, solver_name, correction, result, base)
            base = result.x if base is None else base


def _measure(bed: Testbed, name: str, solver: str, correction: str, result: SampleResult, base: Tensor | None) -> Cell:
    x = result.x
    if not bool(torch.isfinite(x).all()):
        nowhere = Value(float("inf"), float("nan"))
        return Cell(name, solver, correction, result, nowhere, nowhere, nowhere, None, "the state overflowed")
    return Cell(
        name,
        solver,
        correction,
        result,
        energy_distance(x, bed.target),
        frechet_distance(bed.features(x), bed.features(bed.target)),
        endpoint_rmse(x, bed.endpoints),
        None if base is None else energy_difference(x, base, bed.target),
    )


def _floor(bed: Testbed) -> Floor:
    return Floor(
        energy_distance(bed.endpoints, bed.target), frechet_distance(bed.features(bed.endpoints), bed.features(bed.target))
    )


def _summary(cell: Cell) -> dict[str, object]:
    stats = asdict(cell.result.stats) if cell.result else None
    trace = [asdict(r) for r in cell.result.trace] if cell.result else []
    kept = {k: getattr(cell, k) for k in ("model", "solver", "correction", "verdict", "failure")}
    values = {k: v._asdict() if v else None for k in ("energy", "frechet", "endpoint", "change") for v in [getattr(cell, k)]}
    return {**kept, **values, "stats": stats, "trace": trace}
