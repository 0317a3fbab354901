"""The runs of `steindiff diagnose`: the worst direction, random ones and the actual error, solver by solver; γ and σ̂/σ."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steindiff import corrections, grids, models, solvers
from steindiff.diagnostics.jacobian import linearize, lipschitz, random_directions
from steindiff.diagnostics.meters import noise_mismatch, summarize
from steindiff.diagnostics.results import Diagnosis, Flow, Profile, StepRun, TraceRun
from steindiff.diagnostics.setup import Setup
from steindiff.diagnostics.toy import run_toy
from steindiff.diagnostics.trajectory import Reference, along_trajectory, reference_flow
from steindiff.divergence import Hutchinson, choose
from steindiff.errors import NonFiniteError, needs, require
from steindiff.io import processes
from steindiff.io.files import manifest, write_json
from steindiff.io.folders import locked
from steindiff.models import Model
from steindiff.noise import initial_noise
from steindiff.sampling import Event, sample
from steindiff.solvers import Setting, Solver, UniPC
from steindiff.trace import Record

with needs("cli", "a diagnosis"):
    from tqdm.auto import tqdm

RULES = ("none", "clamped", "literal")
_TRACED = ("dpmpp_2m", "heun")
_PROFILE_LEVELS = 24
_LONG = 10  # up to this many steps all are measured


def run_diagnose(setup: Setup, outdir: str | Path) -> Diagnosis:
    """Run everything; write results.json and run.json to `outdir`.

    Raises:
        InputError: an unknown model; `outdir` cannot be written to, or another process has it; a launcher started several.
        SteindiffError: a network without derivatives.
    """
    processes.single("a diagnosis")
    loaded = [models.load(name) for name in setup.models]  # a bad name fails before anything is written
    with locked(outdir) as folder:
        return _diagnose(setup, loaded, folder)


def _diagnose(setup: Setup, loaded: list[Model], folder: Path) -> Diagnosis:
    start = time.perf_counter()
    flows: list[Flow] = []
    cells: list[StepRun] = []
    traces: list[TraceRun] = []
    total = len(loaded) * (1 + len(setup.solvers) * len(setup.nfe))
    with tqdm(total=total, unit="run", desc="diagnose", mininterval=1.0) as bar:
        for model in loaded:
            bar.set_postfix_str(f"{model.name}: reference flow")
            flows.append(_flow(model, setup))
            for cell in _step_runs(flows[-1], setup):
                cells.append(cell)
                bar.set_postfix_str(f"{model.name}: {cell.solver}, NFE {cell.nfe}")
                bar.update()
            traces += _traces(model, setup)
            bar.update()
    found = Diagnosis(setup, tuple(flows), tuple(cells), tuple(traces), run_toy(), time.perf_counter() - start)
    write_json(folder / "results.json", found.as_json())
    shas = {m.name: m.sha256 for m in loaded}
    write_json(folder / "run.json", manifest(config=asdict(setup), models=shas, seconds=round(found.seconds, 1)))
    return found


def _runs(setup: Setup, model: Model) -> Iterator[tuple[str, int, Solver, Tensor]]:
    setting = Setting.of(model.denoiser, event=model.event_shape)
    for name, nfe in product(setup.solvers, setup.nfe):
        solver, sigmas = solvers.make(name).plan(nfe, setting)
        first, need = float(sigmas[0]), f"need a solver that starts at {setting.sigma_max:g}"
        require(abs(first / setting.sigma_max - 1) < 1e-9, need, solver=name, sigma=first)
        if isinstance(solver, UniPC):  # with a stored evaluation a step is hardly a function of its state
            solver = replace(solver, stored="refresh")
        yield name, nfe, solver, sigmas


def _noise(model: Model, setup: Setup, count: int) -> Tensor:
    seeds = range(setup.first_seed, setup.first_seed + count)
    return initial_noise(seeds, model.event_shape, Setting.of(model.denoiser).sigma_max)


def _flow(model: Model, setup: Setup) -> Flow:
    """L_D along a rough flow first, which says what long runs should measure; then the flow at all those levels."""
    noise = _noise(model, setup, setup.trajectories(math.prod(model.event_shape)))
    setting = Setting.of(model.denoiser)
    ends = setting.sigma_max, setting.sigma_min
    rough = reference_flow(model.denoiser, noise, grids.log_snr(_PROFILE_LEVELS - 1, *reversed(ends)), max_step=0.5)
    profile = _profile(model, rough, setup)
    levels = [s[_chosen(s, profile, setup)] for *_, s in _runs(setup, model)]
    wanted = torch.cat([torch.tensor(ends, dtype=torch.float64), *levels]).sort(descending=True).values
    distinct = torch.cat([wanted[:1], wanted[1:][wanted[1:] < wanted[:-1] * (1 - 1e-10)]])  # others differ by rounding
    return Flow(model, noise, reference_flow(model.denoiser, noise, distinct, max_step=0.3), profile)


def _profile(model: Model, flow: Reference, setup: Setup) -> Profile:
    tops, randoms = [], []
    for sigma, x in zip(flow.sigmas, flow.states, strict=True):
        J = linearize(lambda z, sigma=sigma: model.denoiser(z, sigma), x)  # type: ignore[misc]
        tops.append(lipschitz(J, x, tol=setup.tol))
        randoms.append(random_directions(J, x, setup.directions).flatten())
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


def _step_runs(flow: Flow, setup: Setup) -> Iterator[StepRun]:
    options: dict[str, Any] = {"reference": flow.reference, "tol": setup.tol, "directions": setup.directions}
    for i, (name, nfe, solver, sigmas) in enumerate(_runs(setup, flow.model)):
        only = _chosen(sigmas, flow.profile, setup)
        reports = along_trajectory(solver, flow.model.denoiser, flow.noise, sigmas, only=only, check=i == 0, **options)
        yield StepRun(flow.name, name, nfe, len(sigmas) - 1, tuple(reports))


def _traces(model: Model, setup: Setup) -> Iterator[TraceRun]:
    """Plain, clamped and literal runs of the solvers the correction is usually shown with."""
    noise = _noise(model, setup, max(2, setup.batch // (1 if math.prod(model.event_shape) <= 1000 else 4)))
    price = choose(model.denoiser, noise, noise.new_tensor(1.0), methods=("vjp",), repeats=1)
    for name, rule in product(_TRACED, RULES):
        solver, steps = solvers.make(name).for_nfe(setup.trace_nfe)
        corrected = corrections.apply(rule, solver, divergence=Hutchinson(choice=price))
        yield _trace(model, name, rule, corrected, noise, grids.karras(steps))


def _trace(model: Model, solver_name: str, rule: str, solver: Solver, noise: Tensor, sigmas: Tensor) -> TraceRun:
    meter: list[float] = []

    def observe(event: Event) -> None:
        meter.append(float(noise_mismatch(model.denoiser, event.x_before, event.interval.sigma, index=event.interval.index)))

    trace: Sequence[Record] = ()
    failure = ""
    try:
        trace = sample(solver, model.denoiser, noise, sigmas, on_step=observe).trace
    except NonFiniteError as error:
        failure = str(error)
    summary = summarize(trace) if trace else None
    return TraceRun(model.name, solver_name, rule, sigmas.tolist(), [r.gamma for r in trace], meter, summary, failure)
