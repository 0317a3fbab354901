"""The runs of `steindiff diagnose`: the worst direction, random ones and the actual error, solver by solver; γ and σ̂/σ."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from tqdm.auto import tqdm

from steindiff import corrections, grids, models, solvers
from steindiff.corrections.base import Corrected
from steindiff.diagnostics import (
    Reference,
    StepReport,
    TraceSummary,
    along_trajectory,
    local_denoiser_lipschitz,
    noise_mismatch,
    random_directions,
    reference_flow,
    summarize,
)
from steindiff.diagnostics.setup import Setup
from steindiff.diagnostics.toy import Toy, run_toy
from steindiff.divergence import Hutchinson, choose
from steindiff.errors import NonFiniteError
from steindiff.io.files import manifest, writable_folder, write_json
from steindiff.models import Model
from steindiff.noise import initial_noise
from steindiff.sampling import Event, sample
from steindiff.solvers import Solver, UniPC

__all__ = ["RULES", "Bed", "Cell", "Profile", "TraceRun", "run_diagnose"]

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
RULES = ("none", "clamped", "literal")
_TRACED = ("dpmpp_2m", "heun")
_PROFILE_LEVELS = 24
_LONG = 10  # up to this many steps all are measured


@dataclass(frozen=True, eq=False)
class Profile:
    """L_D = ‖∂D/∂x‖₂ along the reference flow, (levels, B), and ‖Jv‖/‖v‖ of random directions, (levels, k·B)."""

    sigmas: Tensor
    lipschitz: Tensor
    random: Tensor
    converged: bool

    def bound(self, sigmas: Tensor) -> Tensor:
        """max over trajectories of r + (1−r) L_D for the steps of a grid, L_D at the nearest level: where to look."""
        nearest = (sigmas[:-1, None].log() - self.sigmas.log()).abs().argmin(1)
        r = sigmas[1:] / sigmas[:-1]
        return r + (1 - r) * self.lipschitz.amax(1).to(r)[nearest]


@dataclass(frozen=True, eq=False)
class Bed:
    """A model, noise, its flow from there, and L_D along it."""

    model: Model
    noise: Tensor
    reference: Reference
    profile: Profile


@dataclass(frozen=True)
class Cell:
    """One solver at one NFE on one model; `steps` of the run, `reports` of those measured."""

    model: str
    solver: str
    nfe: int
    steps: int
    reports: tuple[StepReport, ...]


@dataclass(frozen=True)
class TraceRun:
    """γ and σ̂/σ of one run, step by step; σ̂/σ asked of the denoiser at each state. `failure`: where it became infinite."""

    model: str
    solver: str
    rule: str
    sigmas: tuple[float, ...]
    gammas: tuple[float, ...]
    noise: tuple[float, ...]
    summary: TraceSummary | None
    failure: str = ""


def run_diagnose(outdir: str | Path, setup: Setup, console: Console) -> Path:
    """Run everything; write report.md, results.json, run.json and the pictures to `outdir`; print the tables.

    Raises:
        InputError: an unknown model, or `outdir` cannot be written to.
        SteindiffError: a network without derivatives.
    """
    from steindiff.report.diagnose import write_report

    loaded = [models.load(name) for name in setup.models]  # a bad name fails before anything is written
    folder = writable_folder(outdir)
    start = time.perf_counter()
    beds, cells, traces = [], [], []
    total = len(loaded) * (2 + len(setup.solvers) * len(setup.nfe)) + 1
    with tqdm(total=total, unit="run", desc="diagnose", mininterval=1.0) as bar:
        for model in loaded:
            bar.set_postfix_str(f"{model.name}: reference flow")
            bed = _bed(model, setup)
            beds.append(bed)
            bar.update()
            for cell in _cells(bed, setup):
                cells.append(cell)
                bar.set_postfix_str(f"{model.name}: {cell.solver}, NFE {cell.nfe}")
                bar.update()
            traces += list(_traces(model, setup))
            bar.update()
        toy = run_toy(setup.first_seed)
        bar.update()
    seconds = time.perf_counter() - start
    write_json(folder / "results.json", _results(beds, cells, traces, toy))
    write_report(folder, setup, beds, cells, traces, toy, console)
    shas = {m.name: m.sha256 for m in loaded}
    write_json(folder / "run.json", manifest(config=asdict(setup), models=shas, seconds=round(seconds, 1)))
    console.print(f"{seconds:.0f} s; everything is in [bold]{folder}[/bold]: report.md, pictures, results.json, run.json")
    return folder


def _runs(setup: Setup) -> Iterator[tuple[str, int, Solver, Tensor]]:
    for name in setup.solvers:
        for nfe in setup.nfe:
            solver, steps = solvers.make(name).for_nfe(nfe)
            if isinstance(solver, UniPC):  # with a stored evaluation a step is hardly a function of its state
                solver = replace(solver, stored="refresh")
            yield name, nfe, solver, grids.karras(steps, SIGMA_MIN, SIGMA_MAX)


def _bed(model: Model, setup: Setup) -> Bed:
    """L_D along a rough flow first, which says what long runs should measure; then the flow at all those levels."""
    count = setup.trajectories(_dim(model))
    noise = initial_noise(range(setup.first_seed, setup.first_seed + count), model.event_shape, SIGMA_MAX)
    at = grids.log_snr(_PROFILE_LEVELS - 1, SIGMA_MIN, SIGMA_MAX)
    first = reference_flow(model.denoiser, noise, at, max_step=0.5)
    profile = _profile(model, first, setup)
    levels = [s[_chosen(s, profile, setup)] for *_, s in _runs(setup)]
    wanted = torch.cat([torch.tensor([SIGMA_MAX, SIGMA_MIN], dtype=torch.float64), *levels])
    return Bed(model, noise, reference_flow(model.denoiser, noise, _distinct(wanted), max_step=0.3), profile)


def _dim(model: Model) -> int:
    return torch.Size(model.event_shape).numel()


def _distinct(levels: Tensor) -> Tensor:
    """Descending, without levels that differ by rounding."""
    ordered = levels.sort(descending=True).values
    return torch.cat([ordered[:1], ordered[1:][ordered[1:] < ordered[:-1] * (1 - 1e-10)]])


def _profile(model: Model, flow: Reference, setup: Setup) -> Profile:
    tops, randoms = [], []
    for sigma, x in zip(flow.sigmas, flow.states, strict=True):
        tops.append(local_denoiser_lipschitz(model.denoiser, x, sigma, tol=setup.tol))

        def denoise(z: Tensor, sigma: Tensor = sigma) -> Tensor:
            return model.denoiser(z, sigma)

        randoms.append(random_directions(denoise, x, setup.directions).flatten())
    converged = all(bool(t.converged.all()) for t in tops)
    return Profile(flow.sigmas, torch.stack([t.value for t in tops]), torch.stack(randoms), converged)


def _chosen(sigmas: Tensor, profile: Profile, setup: Setup) -> list[int]:
    """The steps to measure: half spread evenly, half where the certificate's bound is largest."""
    steps = len(sigmas) - 1
    if setup.measured is None or steps <= max(setup.measured, _LONG):
        return list(range(steps))
    even = torch.linspace(0, steps - 1, setup.measured - setup.measured // 2).round().long().tolist()
    worst = profile.bound(sigmas).argsort(descending=True).tolist()
    extra = [i for i in worst if i not in even][: setup.measured - len(set(even))]
    return sorted({*even, *extra})


def _cells(bed: Bed, setup: Setup) -> Iterator[Cell]:
    for i, (name, nfe, solver, sigmas) in enumerate(_runs(setup)):
        reports = along_trajectory(
            solver,
            bed.model.denoiser,
            bed.noise,
            sigmas,
            reference=bed.reference,
            only=_chosen(sigmas, bed.profile, setup),
            tol=setup.tol,
            directions=setup.directions,
            check=i == 0,
        )
        yield Cell(bed.model.name, name, nfe, len(sigmas) - 1, tuple(reports))


def _traces(model: Model, setup: Setup) -> Iterator[TraceRun]:
    """Plain, clamped and literal runs of the solvers the correction is usually shown with."""
    size = max(2, setup.batch // (1 if _dim(model) <= 1000 else 4))
    noise = initial_noise(range(setup.first_seed, setup.first_seed + size), model.event_shape, SIGMA_MAX)
    price = choose(model.denoiser, noise, noise.new_tensor(1.0), methods=("vjp",), repeats=1)
    for name in _TRACED:
        solver, steps = solvers.make(name).for_nfe(setup.trace_nfe)
        for rule_name in RULES:
            rule = corrections.make(rule_name)
            chosen = solver if rule is None else Corrected(solver, rule, divergence=Hutchinson(choice=price))
            yield _trace(model, name, rule_name, chosen, noise, grids.karras(steps, SIGMA_MIN, SIGMA_MAX))


def _trace(model: Model, solver_name: str, rule: str, solver: Solver, noise: Tensor, sigmas: Tensor) -> TraceRun:
    meter: list[float] = []

    def observe(event: Event) -> None:
        meter.append(float(noise_mismatch(model.denoiser, event.x_before, event.interval.sigma, index=event.interval.index)))

    levels = tuple(sigmas.tolist())
    try:
        trace = sample(solver, model.denoiser, noise, sigmas, on_step=observe).trace
    except NonFiniteError as error:
        return TraceRun(model.name, solver_name, rule, levels, (), tuple(meter), None, str(error))
    return TraceRun(model.name, solver_name, rule, levels, tuple(r.gamma for r in trace), tuple(meter), summarize(trace))


def _results(beds: list[Bed], cells: list[Cell], traces: list[TraceRun], toy: Toy) -> dict[str, object]:
    profiles = {
        bed.model.name: {
            "sigmas": bed.profile.sigmas.tolist(),
            "lipschitz": bed.profile.lipschitz.tolist(),
            "random": bed.profile.random.tolist(),
            "converged": bed.profile.converged,
            "reference_error": float(bed.reference.errors.max()),
        }
        for bed in beds
    }
    return {
        "denoiser": profiles,
        "cells": [asdict(cell) for cell in cells],
        "traces": [asdict(trace) for trace in traces],
        "toy": toy.numbers(),
    }
