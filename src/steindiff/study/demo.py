"""The demo's runs: every model × solver × correction at one NFE, from the same seeds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from tqdm.auto import tqdm

from steindiff import corrections, grids, solvers
from steindiff.corrections.base import Corrected
from steindiff.divergence import Hutchinson, choose
from steindiff.errors import NonFiniteError
from steindiff.io.files import manifest, writable_folder, write_json
from steindiff.metrics import Shares, Value, endpoint_rmse, frechet_distance
from steindiff.noise import generators
from steindiff.sampling import SampleResult, sample
from steindiff.study.demo_testbed import SIGMA_MAX, SIGMA_MIN, Testbed, build

__all__ = ["MODELS", "RUNS", "SOLVERS", "Cell", "Floor", "run_demo"]

MODELS = ("digits", "cifar10_mixture")
SOLVERS = ("dpmpp_2m", "heun", "ipndm_3")
RUNS = {"plain": ("none", 1), "literal": ("literal", 1), "clamped": ("clamped", 1), "plain_double": ("none", 2)}
"""Each run of a solver: its correction, and how many times the NFE; the last costs about what the corrected runs do."""


@dataclass(frozen=True)
class Cell:
    """One run and its distances.

    Attributes:
        run: a key of RUNS.
        energy: energy distance to the target.
        excess: the same less that of the reference flow's end points, paired: what the solver loses.
        change: the same less that of the plain solver, paired; None for the plain solver itself.
    """

    model: str
    solver: str
    run: str
    result: SampleResult | None
    energy: Value
    excess: Value
    frechet: Value
    endpoint: Value
    change: Value | None
    verdict: str
    failure: str = ""


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
    from steindiff.report.demo import write_report

    folder = writable_folder(outdir)
    start = time.perf_counter()
    beds: list[Testbed] = []
    cells: list[Cell] = []
    floors: dict[str, Floor] = {}
    config = {"nfe": nfe, "samples": samples, "first_seed": first_seed, "models": MODELS, "solvers": SOLVERS}
    total = len(MODELS) * (1 + len(SOLVERS) * len(RUNS))
    with tqdm(total=total, unit="run", desc="demo", mininterval=1.0) as bar:
        for name in MODELS:
            bar.set_postfix_str(f"{name}: reference flow")
            bed = build(name, samples, first_seed)
            beds.append(bed)
            floors[name] = _floor(bed)
            bar.update()
            for cell in _cells(bed, name, nfe, first_seed):
                cells.append(cell)
                bar.set_postfix_str(f"{name}: {cell.solver}, {cell.run}")
                bar.update()
    seconds = time.perf_counter() - start
    write_json(folder / "results.json", [_summary(cell) for cell in cells])
    write_report(folder, beds, cells, floors, nfe, console)
    models = {bed.model.name: {"sha256": bed.model.sha256, "reference": bed.reference} for bed in beds}
    write_json(folder / "run.json", manifest(config=config, models=models, seconds=round(seconds, 1)))
    console.print(f"{seconds:.0f} s; everything is in [bold]{folder}[/bold]: report.md, pictures, results.json, run.json")
    return folder


def _cells(bed: Testbed, name: str, nfe: int, first_seed: int) -> Iterator[Cell]:
    """Plain first, then its corrections, solver by solver; derivatives are priced once per model, on the whole batch."""
    price = choose(bed.model.denoiser, bed.noise, bed.noise.new_tensor(1.0), methods=("vjp",), samples=len(bed.noise))
    for solver_name in SOLVERS:
        plain: tuple[Cell, Shares] | None = None
        for run, (correction, times) in RUNS.items():
            solver, steps = solvers.make(solver_name).for_nfe(times * nfe)
            sigmas = grids.karras(steps, SIGMA_MIN, SIGMA_MAX)
            rule = corrections.make(correction)
            chosen = solver if rule is None else Corrected(solver, rule, divergence=Hutchinson(choice=price))
            streams = generators(range(first_seed, first_seed + len(bed.noise)))
            cell = Cell(name, solver_name, run, None, *_NOWHERE)
            try:
                result = sample(chosen, bed.model.denoiser, bed.noise, sigmas, generator=streams)
                cell, shares = _measure(bed, cell, result, plain)
                plain = plain or (cell, shares)
            except NonFiniteError as error:
                cell = replace(cell, failure=str(error))
            yield cell


_INFINITE = Value(float("inf"), float("nan"))
_NOWHERE = (_INFINITE, _INFINITE, _INFINITE, _INFINITE, None, "diverged")


def _measure(bed: Testbed, cell: Cell, result: SampleResult, plain: tuple[Cell, Shares] | None) -> tuple[Cell, Shares]:
    shares = bed.energy.shares(result.x)
    endpoint = endpoint_rmse(result.x, bed.endpoints)
    change = shares.minus(plain[1]) if plain else None
    measured = replace(
        cell,
        result=result,
        energy=shares.value,
        excess=shares.minus(bed.perfect),
        frechet=frechet_distance(bed.features(result.x), bed.features(bed.target)),
        endpoint=endpoint,
        change=change,
        verdict=_verdict(change, endpoint, plain[0] if plain else None),
    )
    return measured, shares


def _verdict(change: Value | None, endpoint: Value, plain: Cell | None) -> str:
    """Against the plain solver: diverged where the endpoint error is over 10 times its; else by two standard errors."""
    if change is None or plain is None:
        return ""
    if endpoint.value > 10 * plain.endpoint.value:
        return "diverged"
    if abs(change.value) <= 2 * change.se:
        return "within noise"
    return "better" if change.value < 0 else "worse"


def _floor(bed: Testbed) -> Floor:
    return Floor(bed.perfect.value, frechet_distance(bed.features(bed.endpoints), bed.features(bed.target)))


def _summary(cell: Cell) -> dict[str, object]:
    stats = asdict(cell.result.stats) if cell.result else None
    trace = [asdict(r) for r in cell.result.trace] if cell.result else []
    kept = {k: getattr(cell, k) for k in ("model", "solver", "run", "verdict", "failure")}
    values = {
        k: v._asdict() if v else None for k in ("energy", "excess", "frechet", "endpoint", "change") for v in [getattr(cell, k)]
    }
    return {**kept, **values, "stats": stats, "trace": trace}
