"""The distribution shift along a run: the empirical side of SteinDiff Thm 4.10.

The paper's rule assumes that the state of level k has the law p_k of the exact flow. A run of few steps has another law p̃_k,
and the theorem bounds what this does to the coefficient:

    |γ̃_k − γ*_k| ≤ C_k S(p̃_k, p_k),      S² = E_p̃ ‖∇log p̃_k − ∇log p_k‖².

With w = x − D = −σ² ∇log p_k, u = x − T(x), T the plain solver's step and d the dimension, measured at every level:

    γ           E⟨u, w⟩/E‖u‖², Eq. 9 with E[x* | x] = D, over the run's states (γ̃) and over the flow's (γ*)
    Stein gap   (σ² E[∇·w] − E‖w‖²)/(σ √(d E‖w‖²)), at most σ S/√d in size: E_p̃[∇·w] = −E_p̃⟨w, ∇log p̃⟩
    σ̂/σ         √(E‖w‖²/(σ² E[∇·w])): the noise that the batch has over what it is told
    distance    energy distance to other states of the flow, both over √(σ² + σ_data²)
    gap         RMS distance to the flow from the same noise, over the same
    σ S/√d      by the run's own score (`pushforward`), where the law is exact and small

The flow's states stand beside the run's: on an exact law their σ̂/σ is 1 and their Stein gap 0, but for sampling noise. On a
network these say how far its own field is from the score of its flow.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from steindiff import corrections, solvers
from steindiff.analytic import ExactModel
from steindiff.corrections import FixedGamma
from steindiff.corrections.blend import Blend
from steindiff.denoisers import Denoiser
from steindiff.diagnostics.pushforward import run_scores
from steindiff.diagnostics.setup import ShiftSetup
from steindiff.divergence import Hutchinson
from steindiff.errors import NonFiniteError, needs
from steindiff.io import processes
from steindiff.io.files import manifest, write_json
from steindiff.io.folders import locked
from steindiff.metrics import EnergyTarget, Shares, Value, endpoint_rmse
from steindiff.noise import initial_noise
from steindiff.sampling import Event, sample
from steindiff.solvers import Grid, Solver, UniPC
from steindiff.study.testbed import Testbed, make
from steindiff.trace import Record

with needs("cli", "a diagnosis"):
    from tqdm.auto import tqdm

FINE_STEPS = 48
"""The least number of UniPC-3 steps that stand for the exact flow."""
SCORED_DIM = 128
"""The largest dimension in which the run's own score is taken."""
_CHECKED = 16


@dataclass(frozen=True)
class Score:
    """σ S/√d of a run's states: its median over the images and its RMS, and the share of images with det J < 0."""

    median: float
    rms: Value
    folded: float


@dataclass(frozen=True)
class Level:
    """One noise level of a run beside the exact flow; γ is NaN at the last level, which starts no step.

    Entries with `_flow` are of the flow's own states from the same noise. Those with `_change` are the run's less the flow's,
    paired, and `excess` is the energy distance less that of the flow's states, paired.
    """

    sigma: float
    gamma: Value
    gamma_flow: Value
    gamma_change: Value
    stein: Value
    stein_flow: Value
    stein_change: Value
    noise: Value
    noise_flow: Value
    distance: Value
    excess: Value
    gap: Value
    score: Score | None = None


@dataclass(frozen=True)
class ShiftRun:
    """A run, level by level; `failure` says where it became infinite, and its levels end there."""

    bed: str
    solver: str
    rule: str
    nfe: int
    levels: tuple[Level, ...]
    failure: str = ""


@dataclass(frozen=True)
class Shift:
    """Everything that was found; `errors` are the flow's by testbed, RMS over √(σ² + σ_data²), and `seconds` it took."""

    setup: ShiftSetup
    runs: tuple[ShiftRun, ...]
    errors: Mapping[str, float]
    seconds: float


def run_shift(setup: ShiftSetup, outdir: str | Path) -> Shift:
    """Run everything; write results.json and run.json to `outdir`.

    Raises:
        InputError: an unknown testbed; `outdir` cannot be written to, or another process has it; a launcher started several.
        SteindiffError: a network without derivatives.
    """
    processes.single("a diagnosis")
    beds = [make(name) for name in setup.beds]  # a bad name fails before anything is written
    with locked(outdir) as folder:
        return _shifted(setup, beds, folder)


def _shifted(setup: ShiftSetup, beds: list[Testbed], folder: Path) -> Shift:
    start = time.perf_counter()
    runs, errors = list[ShiftRun](), dict[str, float]()
    total = len(beds) * len(setup.solvers) * len(setup.nfe) * len(setup.rules)
    with tqdm(total=total, unit="run", desc="shift", mininterval=1.0) as bar:
        for bed in beds:
            for flow in _flows(bed, setup):
                errors[bed.name] = max(flow.error, errors.get(bed.name, 0.0))
                for rule in setup.rules:
                    bar.set_postfix_str(f"{bed.name}: {flow.name}, NFE {flow.nfe}, {rule}")
                    runs.append(_run(flow, rule, setup))
                    bar.update()
    found = Shift(setup, tuple(runs), errors, time.perf_counter() - start)
    write_json(folder / "results.json", {"errors": errors, "runs": [asdict(run) for run in runs]})
    digests = {bed.name: bed.digest for bed in beds}
    write_json(folder / "run.json", manifest(config=asdict(setup), beds=digests, seconds=round(found.seconds, 1)))
    return found


@dataclass(frozen=True, eq=False)
class Seen:
    """What states (B, *event) of one level show: statistics with each image's share, and the states in units of their level."""

    gamma: Shares | None
    stein: Shares
    noise: Shares
    scaled: Tensor


@dataclass(frozen=True, eq=False)
class _Flow:
    """The exact flow at the levels of one solver's run, from the run's own noise and from another."""

    bed: Testbed
    denoiser: Denoiser
    name: str
    nfe: int
    solver: Solver
    sigmas: Tensor
    noise: Tensor
    seen: Sequence[Seen]
    targets: Sequence[EnergyTarget]
    error: float


def _flows(bed: Testbed, setup: ShiftSetup) -> Iterator[_Flow]:
    law = bed.law.to(torch.float64) if bed.law else None
    dtype = torch.float32 if law is None else torch.float64
    own, others = (range(setup.first_seed + i * setup.n, setup.first_seed + (i + 1) * setup.n) for i in (0, 1))
    for name in setup.solvers:
        for nfe in setup.nfe:
            solver, sigmas = solvers.make(name).plan(nfe, bed.setting)
            if isinstance(solver, UniPC):  # a stored evaluation is not that of the state
                solver = replace(solver, stored="refresh")
            units = [_unit(sigma, bed.setting.sigma_data) for sigma in sigmas]
            states = list[list[Tensor]]()
            for seeds in (own, others):
                x = initial_noise(seeds, bed.event_shape, float(sigmas[0]), dtype=dtype)
                states.append(exact_states(law or bed.denoiser_for(seeds), x, sigmas))
            denoiser, few = law or bed.denoiser_for(own), states[0][0][:_CHECKED]
            finer = exact_states(law or bed.denoiser_for(own[:_CHECKED]), few, sigmas, 2 * FINE_STEPS)
            gaps = zip(finer, states[0], units, strict=True)
            error = max(endpoint_rmse(a * c, b[:_CHECKED] * c).value for a, b, c in gaps)
            seen = [*look(solver, denoiser, states[0], sigmas, bed.setting.sigma_data)]
            targets = [EnergyTarget(y * c) for y, c in zip(states[1], units, strict=True)]
            yield _Flow(bed, denoiser, name, nfe, solver, sigmas, states[0][0], seen, targets, error)


def exact_states(denoiser: Denoiser, x: Tensor, sigmas: Tensor, steps: int = FINE_STEPS) -> list[Tensor]:
    """The exact flow from x (B, *event) at every level of `sigmas`, (n+1,), by UniPC-3 with at least so many steps.

    Every interval is divided evenly in σ^(1/7), so that EDM's grid becomes a finer one of the same kind.
    """
    parts = -(-steps // (len(sigmas) - 1))
    roots, weights = sigmas.double() ** (1 / 7), torch.arange(parts, dtype=torch.float64) / parts
    inner = (roots[:-1, None] + weights * (roots[1:] - roots[:-1])[:, None]) ** 7
    inner[:, 0] = sigmas[:-1]
    states = [x]

    def observe(event: Event) -> None:
        if (event.interval.index + 1) % parts == 0:
            states.append(event.step.x)

    sample("unipc_3", denoiser, x, torch.cat([inner.flatten(), sigmas[-1:].double()]), on_step=observe)
    return states


def look(solver: Solver, denoiser: Denoiser, states: Sequence[Tensor], sigmas: Tensor, data: float) -> Iterator[Seen]:
    """What the states of each level show; γ is that of the plain solver's step there, with these states as its history.

    Args:
        solver: the plain solver.
        denoiser: D.
        states: the states (B, *event) of each level, as far as there are any.
        sigmas: the levels, (n+1,).
        data: σ_data, for the unit √(σ² + σ_data²) of each level.
    """
    grid = Grid.of(sigmas)
    with torch.no_grad():
        memory = solver.init(denoiser, states[0], grid)
    for i, x in enumerate(states):
        sigma = grid.nodes[i]
        w, div = _residual(denoiser, x, sigma, i)
        gamma = None
        if i < grid.steps:
            with torch.no_grad():
                step = solver.step(_known(denoiser, x, sigma, w), x, grid.interval(i), memory)
            memory, u = step.state, _rows(x - step.x)
            gamma = _smooth(torch.div, (u * w).sum(1), u.square().sum(1))
        told, size = float(sigma) ** 2 * div, w.square().sum(1)
        unit = float(sigma) * math.sqrt(w.shape[1])
        yield Seen(
            gamma, _smooth(partial(_gap, unit), told, size), _smooth(_ratio, size, told), x.double() * _unit(sigma, data)
        )


def _run(flow: _Flow, rule: str, setup: ShiftSetup) -> ShiftRun:
    solver = corrections.apply(rule, flow.solver, divergence=Hutchinson(method="vjp"))
    states, failure, trace = [flow.noise], "", tuple[Record, ...]()
    try:
        trace = sample(solver, flow.denoiser, flow.noise, flow.sigmas, on_step=lambda e: states.append(e.step.x)).trace
    except NonFiniteError as error:
        failure = str(error)
        states = [x for x in states if bool(torch.isfinite(x).all())]
    seen = look(flow.solver, flow.denoiser, states, flow.sigmas, flow.bed.setting.sigma_data)
    blends = isinstance(corrections.make(rule), Blend | None)
    scores = _scores(flow, [record.gamma for record in trace], setup) if trace and blends else [None] * len(states)
    rows = zip(seen, flow.seen, flow.targets, flow.sigmas.tolist(), scores, strict=False)
    return ShiftRun(flow.bed.name, flow.name, rule, flow.nfe, tuple(_level(*row) for row in rows), failure)


def _level(run: Seen, flow: Seen, target: EnergyTarget, sigma: float, score: Score | None) -> Level:
    nothing = Value(math.nan, math.nan)
    gammas = (nothing,) * 3
    if run.gamma is not None and flow.gamma is not None:
        gammas = (run.gamma.value, flow.gamma.value, run.gamma.minus(flow.gamma))
    pairs = (run.stein.value, flow.stein.value, run.stein.minus(flow.stein), run.noise.value, flow.noise.value)
    distance, own = (target.shares(x.scaled) for x in (run, flow))
    return Level(sigma, *gammas, *pairs, distance.value, distance.minus(own), endpoint_rmse(run.scaled, flow.scaled), score)


def _scores(flow: _Flow, gammas: Sequence[float], setup: ShiftSetup) -> list[Score | None]:
    """σ S/√d at every level, where the law is exact and small; γ of a corrected run is held at what it was, and 1 is plain."""
    law, count = flow.denoiser, len(flow.sigmas)
    if not isinstance(law, ExactModel) or law.dim > SCORED_DIM or not setup.scored:
        return [None] * count
    solver = corrections.Corrected(flow.solver, FixedGamma.from_gammas(gammas))
    found = list[Score | None]()
    for at in run_scores(solver, law, flow.noise[: setup.scored], flow.sigmas):
        excess = _rows(at.score - law.score(at.x, at.sigma)) * (float(at.sigma) / math.sqrt(law.dim))
        squares, folded = excess.square().sum(1), float((at.sign < 0).double().mean())
        found.append(Score(float(squares.sqrt().quantile(0.5)), _smooth(torch.sqrt, squares).value, folded))
    return found


def _residual(denoiser: Denoiser, x: Tensor, sigma: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """w = x − D as rows (B, d), and ∇·w, (B,): exact for an exact law, else by one Rademacher probe; both float64."""
    if isinstance(denoiser, ExactModel):
        return _rows(x - denoiser(x, sigma)), (denoiser.dim - denoiser.divergence(x, sigma)).double()

    def residual(z: Tensor) -> tuple[Tensor, Tensor]:
        w = z - denoiser(z, sigma)
        return w, w

    estimate, w = Hutchinson(method="vjp")(residual, x, index)
    return _rows(w), estimate.values.mean(0).double()


def _known(denoiser: Denoiser, x: Tensor, sigma: Tensor, w: Tensor) -> Denoiser:
    """The denoiser, which need not be asked again for what is known at x."""
    denoised = x - w.reshape(x.shape).to(x)
    return lambda z, s: denoised if z is x and torch.equal(s.to(sigma), sigma) else denoiser(z, s)


def _rows(x: Tensor) -> Tensor:
    return x.detach().flatten(1).double()


def _smooth(f: Callable[..., Tensor], *columns: Tensor) -> Shares:
    """f of the means of columns (B,), with each image's share in it to first order (the delta method)."""
    means = [column.double().mean().requires_grad_(True) for column in columns]
    with torch.enable_grad():
        value = f(*means)
    slopes = torch.autograd.grad(value, means)
    shares = sum(slope * column.double() for slope, column in zip(slopes, columns, strict=True))
    assert isinstance(shares, Tensor)  # there is at least one column
    return Shares(float(value.detach()), shares, torch.zeros(2, dtype=torch.float64))


def _gap(unit: float, told: Tensor, size: Tensor) -> Tensor:
    """(σ² E[∇·w] − E‖w‖²)/(σ √(d E‖w‖²)), with `unit` σ √d."""
    return (told - size) / (unit * size.sqrt())


def _ratio(size: Tensor, told: Tensor) -> Tensor:
    """σ̂/σ."""
    return (size / told).sqrt()


def _unit(sigma: float | Tensor, data: float) -> float:
    """1/√(σ² + σ_data²)."""
    return 1 / math.hypot(float(sigma), data)
