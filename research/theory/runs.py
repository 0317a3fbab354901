"""What docs/theory.md reports beyond the identities: frames, shifted scores, runs, and the noise meter."""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from research.theory.core import D64, DIM, Case, draw, flow, law
from steindiff import grids
from steindiff.analytic import ExactModel
from steindiff.corrections import CleanTarget, Corrected, FixedGamma
from steindiff.denoisers import Denoiser
from steindiff.diagnostics import noise_mismatch
from steindiff.divergence import Exact
from steindiff.errors import NonFiniteError
from steindiff.metrics import Value
from steindiff.sampling import sample
from steindiff.solvers import DDIM, DPMpp2M, Grid, Heun, Solver

LITERAL, CLAMPED = CleanTarget(), CleanTarget(gamma_max=1.0)
FROZEN, FREE = CleanTarget(history="frozen"), CleanTarget(mode="tweedie")
"""As printed with the history of a multistep solver held constant, and as printed without a derivative."""

# ---------------------------------------------------------------- frames


class Second(NamedTuple):
    """E‖y‖², E⟨y,D⟩ = E⟨y,x*⟩ and E‖D‖² of an exact model at VE noise s: M + s²d, M and M − V, V = s² E[∇·D]."""

    yy: float
    yD: float
    DD: float

    def norm(self, a: float, b: float) -> float:
        """E‖a y + b D‖²."""
        return a * a * self.yy + 2 * a * b * self.yD + b * b * self.DD


def noisy(name: str, sigma: float, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n clean samples x* of a law, and x* + σ ε."""
    g = torch.Generator().manual_seed(seed)
    clean = law(name).sample(n, g)
    return clean, clean + sigma * torch.randn(n, DIM, generator=g, dtype=D64)


@cache
def second(name: str, sigma: float, n: int = 40000) -> Second:
    """M in closed form; V over n draws of its own (constant for a Gaussian)."""
    model, (_, y) = law(name), noisy(name, sigma, n, 777)
    M, V = float(model.second_moment()), float(model.posterior_trace(y, sigma).mean())
    return Second(M + sigma**2 * DIM, M, M - V)


class Predicted(NamedTuple):
    """γ* of one exact DDIM step, and what its drift term alone contributes."""

    gamma: float
    drift: float


def exact_gamma(a: float, a_next: float, s: float, s_next: float, moments: Second) -> Predicted:
    """γ* = E⟨u, αy − x*⟩/E‖u‖² of u = (α − α'r) y − α'(1−r) D, from three second moments: no sample of the step."""
    r = s_next / s
    p, q = a - a_next * r, -a_next * (1 - r)
    uu = moments.norm(p, q)
    ue = p * (a * moments.yy - moments.yD) + q * (a * moments.yD - moments.DD)
    ux = a * (p * moments.yy + q * moments.yD)
    return Predicted(ue / uu, (1 - 1 / a) * ux / uu)


def ddim_gamma(case: Case, moments: Second) -> Predicted:
    """`exact_gamma` of a case, in the frame of its blend."""
    return exact_gamma(*map(float, (*case.alphas, *case.sigmas[1:])), moments)


def frame_gap(case: Case, moments: Second, n: int, seed: int, batches: int = 16) -> tuple[float, Value]:
    """RMS distance between the states that the two frames' γ* lead to, in VE coordinates: predicted, and by `Corrected`.

    Measured over independent batches, since a batch shares its γ.
    """
    model, ve = replace(case, frame="model"), replace(case, frame="ve")
    gamma, gamma_ve = ddim_gamma(model, moments).gamma, ddim_gamma(ve, moments).gamma
    rho = float(model.alphas[0] / model.alphas[1])
    r = float(case.sigmas[2] / case.sigmas[1])
    on_y = (1 - gamma_ve) - (1 - gamma) * rho + (gamma_ve - gamma) * r
    predicted = math.sqrt(moments.norm(on_y, (gamma_ve - gamma) * (1 - r)))
    values = []
    for i in range(batches):
        drawn = draw(model, n // batches, seed + i)
        p, q = (drawn._replace(case=case).corrected(LITERAL).x for case in (ve, model))
        values.append((p - q).square().sum(1).mean().sqrt())
    return predicted, Value.mean_of(torch.stack(values))


def vp_gamma(name: str, start: float, stop: float) -> tuple[float, float]:
    """γ* of an exact DDIM step between two half-log-SNRs, in the VP model's own frame and in VE coordinates."""
    s, s_next = math.exp(-start), math.exp(-stop)
    a, a_next = ((1 + z * z) ** -0.5 for z in (s, s_next))
    return exact_gamma(a, a_next, s, s_next, second(name, s)).gamma, 1 / (1 - s_next / s)


# ---------------------------------------------------------------- shifted scores


class Shift(NamedTuple):
    """A score shifted by δ: √E‖δ‖², what it did, and the bound on that."""

    size: float
    measured: float
    bound: float


def _inner(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(1).mean())


def field(name: str, y: Tensor, u: Tensor) -> Tensor:
    """A unit-size shift of the score: "constant", "wave" (smooth, not linear), or "aligned" with u: the worst case."""
    raw = {"aligned": u, "constant": torch.ones_like(y), "wave": torch.sin(2 * y.roll(1, 1))}[name]
    return raw / math.sqrt(_inner(raw, raw))


def shifted_estimate(case: Case, name: str, size: float, n: int, seed: int) -> tuple[Shift, Shift]:
    """Thm 4.10 for an estimate −(σ²/α)E⟨u, s+δ⟩ of b: |γ̂ − γ*| and the excess J(γ̂) − J(γ*), with their bounds."""
    d = draw(case, n, seed)
    (a, a_next), s = case.alphas, float(case.sigmas[1])
    x, u = a * d.y, a * d.y - a_next * d.step(d.y)
    score = law(case.law).score(d.y, s) / a  # of x = αy
    shift = size * field(name, x, u)
    c, factor = _inner(u, u), float(a) * s * s  # (ασ_VE)²/α
    star, hat = (float(1 - 1 / a) * _inner(u, x) / c - factor * _inner(u, z) / c for z in (score, score + shift))
    error = abs(hat - star)
    return Shift(size, error, factor * size / math.sqrt(c)), Shift(size, c * error**2, factor**2 * size**2)


def shifted_law(name: str, sigma: float, ratio: float, noise: float, n: int, seed: int) -> tuple[Shift, float]:
    """The state's own law is what shifts: noise κσ instead of σ. Eq. 11 against E⟨u, x − D⟩/c, and σ²|E⟨u,δ⟩|/c.

    δ = ∇log p_κσ − ∇log p_σ is exact; x − D is what the denoiser believes, and what x* drawn from its posterior would give.
    """
    model, (_, y) = law(name), noisy(name, noise * sigma, n, seed)
    w = y - model.denoise(y, sigma)
    u, divergence = (1 - ratio) * w, (1 - ratio) * (DIM - model.divergence(y, sigma))
    shift = model.score(y, noise * sigma) - model.score(y, sigma)
    c = _inner(u, u)
    error = sigma**2 * float(divergence.mean()) / c - _inner(u, w) / c
    size = math.sqrt(_inner(shift, shift))
    return Shift(size, abs(error), sigma**2 * size / math.sqrt(c)), -(sigma**2) * _inner(u, shift) / c - error


def shifted_network(name: str, sigma: float, ratio: float, shape: str, size: float, n: int, seed: int) -> Shift:
    """The network is what shifts, D̃ = D + σ²δ, and the step with it: √J at its own γ*, less √J of the exact one."""
    clean, y = noisy(name, sigma, n, seed)
    u = (1 - ratio) * (y - law(name).denoise(y, sigma))
    wrong = u - (1 - ratio) * sigma**2 * size * field(shape, y, u)
    e = y - clean
    star = _inner(u, e) / _inner(u, u)
    least = [math.sqrt(_inner(e, e) - _inner(v, e) ** 2 / _inner(v, v)) for v in (u, wrong)]
    return Shift(size, least[1] - least[0], abs(star) * (1 - ratio) * sigma**2 * size)


# ---------------------------------------------------------------- runs


class Run(NamedTuple):
    """A run against the exact flow from the same noise: RMS error per coordinate, largest γ*, steps with γ < 1."""

    error: float
    largest: float
    reduced: int


NAMED: dict[str, Solver] = {
    "ddim": DDIM(),
    "dpmpp_2m": DPMpp2M(),
    "dpmpp_2m, no lowering": DPMpp2M(lower_order_final=False),
    "heun": Heun(),
}


def variance(name: str) -> float:
    """E‖x* − Ex*‖²."""
    return float(law(name).second_moment()) - float(law(name).mean.square().sum())


def start(n: int, seed: int) -> Tensor:
    """σ_max ε."""
    return 80 * torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed), dtype=D64)


def run_against_flow(model: ExactModel, solver: Solver, rule: CleanTarget | None, steps: int, x: Tensor, exact: Tensor) -> Run:
    """`solver` on EDM's grid, corrected by `rule`; an overflow counts as an infinite error."""
    corrected = solver if rule is None else Corrected(solver, rule, divergence=Exact())
    try:
        run = sample(corrected, model, x, grids.karras(steps))
    except NonFiniteError:
        return Run(float("inf"), float("inf"), 0)
    error = float((run.x - exact).square().mean().sqrt())
    return Run(error, max(r.gamma_raw for r in run.trace), sum(r.gamma < 1 for r in run.trace))


# ---------------------------------------------------------------- the noise meter


class Meter(NamedTuple):
    """One DDIM step from a state with κ times its noise: the reading, Eq. 11, and σ̂/σ' after the step by rule."""

    noise: float
    ratio: float
    gamma: float
    after: dict[str, float]


def meter(name: str, sigma: float, ratio: float, noise: float, n: int, seed: int) -> Meter:
    """Inject excess noise, take one step; 1 after it is what the next step assumes."""
    model, (_, y) = law(name), noisy(name, noise * sigma, n, seed)
    grid = torch.tensor([sigma, ratio * sigma], dtype=D64)
    rules = {"clamped": CLAMPED, "literal": LITERAL}
    solvers = {"plain": DDIM(), **{key: Corrected(DDIM(), rule, divergence=Exact()) for key, rule in rules.items()}}
    runs = {key: sample(solver, model, y, grid) for key, solver in solvers.items()}
    record = runs["literal"].trace[0]
    after = {key: float(noise_mismatch(model, run.x, grid[1], estimator=Exact())) for key, run in runs.items()}
    return Meter(noise, record.noise_ratio, record.gamma_raw, after)


def gaussian_reading(sigma: float, noise: float) -> float:
    """σ̂/σ of the Gaussian law in closed form: σ̂² = Σ A²(L + κ²σ²)/Σ A, A = σ²/(L + σ²); κ only where σ² ≫ L."""
    L = 1 / torch.arange(1, DIM + 1, dtype=D64)
    A = sigma**2 / (L + sigma**2)
    return math.sqrt(float((A**2 * (L + noise**2 * sigma**2)).sum() / A.sum())) / sigma


# ---------------------------------------------------------------- equivalences


def time_shifted(model: Denoiser, x: Tensor, grid: Tensor, gamma: float) -> Tensor:
    """DDIM to σ' + (1−γ)(σ−σ'), after which the network is told σ' all the same."""
    for s, s_next in pairwise(grid):
        real = s_next + (1 - gamma) * (s - s_next)
        x = x + (real - s) * (x - model(x, s)) / s
    return x


def dcw(model: Denoiser, x: Tensor, grid: Tensor, weights: list[float]) -> Tensor:
    """DCW in pixels on DDIM: x' + λ (x' − D), D the step's own denoised value."""
    for s, s_next, weight in zip(grid[:-1], grid[1:], weights, strict=True):
        denoised = model(x, s)
        x = s_next / s * x + (1 - s_next / s) * denoised
        x = x + weight * (x - denoised)
    return x


def equivalences(seed: int = 0) -> dict[str, float]:
    """Largest difference over a run of five steps, relative to the state, of each pair that should be one map."""
    model, grid, x = law("mixture"), grids.karras(5, 0.05, 10.0), start(64, seed) / 8
    b, weights, r = 1.005, [0.02, 0.015, 0.01, 0.005, 0.002], (grid[1:] / grid[:-1]).tolist()

    def run(solver: Solver, *gammas: float) -> Tensor:
        """With γ, and without any under ε-scaling by 1/b."""
        if gammas:
            return sample(Corrected(solver, FixedGamma(gammas)), model, x, grid).x
        return sample(solver, lambda z, sigma: z - (z - model(z, sigma)) / b, x, grid).x

    dcw_gammas = (1 - w * q / (1 - q) for w, q in zip(weights, r, strict=True))
    pairs = {
        "epsilon-scaling by 1/b": (run(DDIM()), run(DDIM(), *[1 / b] * 5)),
        "shifted timestep": (time_shifted(model, x, grid, 0.93), run(DDIM(), *[0.93] * 5)),
        "DCW in pixels": (dcw(model, x, grid, weights), run(DDIM(), *dcw_gammas)),
        "epsilon-scaling, 2M": (run(DPMpp2M()), run(DPMpp2M(), *[1 / b] * 5)),
    }
    return {key: float((p - q).abs().max() / p.abs().max()) for key, (p, q) in pairs.items()}


# ---------------------------------------------------------------- per-step error against quality


class Candidate(NamedTuple):
    """Mean squares of one proposal T for the state at σ', less each of three targets; its energy, less M + σ'² d.

    The targets are x*, the noise-consistent r x + (1−r) x*, and the exact flow.
    """

    clean: Value
    consistent: Value
    flow: Value
    energy: Value


def candidates(case: Case, n: int, seed: int) -> dict[str, Candidate]:
    """DDIM, 2M with the flow's history, Heun, the exact flow and the literal rule from the same states (VE)."""
    model, sigmas, d = law(case.law), case.sigmas, draw(case, n, seed)
    s, s_next = sigmas[1], sigmas[2]
    exact = flow(model, d.y, s, s_next)
    proposals = {
        "DDIM": d.step(d.y),
        "2M": draw(replace(case, solver="dpmpp_2m", history="frozen"), n, seed).step(d.y),
        "Heun": Heun().step(model, d.y, Grid.of(sigmas).interval(1), None).x,
        "exact flow": exact,
        "Eq. 11 on DDIM": d.corrected(LITERAL).x,
    }
    target = s_next / s * d.y + (1 - s_next / s) * d.clean
    marginal = float(model.second_moment()) + float(s_next) ** 2 * DIM
    # The same draws' own exact end, whose expectation is the marginal's energy, takes the common noise out.
    level = exact.square().sum(1)
    found = {}
    for key, T in proposals.items():
        energy = level - marginal if key == "exact flow" else T.square().sum(1) - level
        found[key] = Candidate(*map(Value.mean_of, (*((T - z).square().sum(1) for z in (d.clean, target, exact)), energy)))
    return found
