"""Thm 4.10 and Cor. 4.12 with the law p̃_k that the states of a few-step run really have, instead of the marginal p_k.

With the residual field u of the step, as a function of the state (the history of a multistep run included), γ is a quotient:

    γ(q) = A(q)/B(q),   A(q) = E_q[(1 − 1/α)⟨u,x⟩ + (σ²/α) ∇·u],   B(q) = E_q‖u‖²;   γ* = γ(p_k),   γ̃ = γ(p̃_k).

Add and subtract:      γ̃ − γ* = (Ã − A)/B̃ − γ* (B̃ − B)/B̃.

Let g_f solve Stein's equation f − E_p f = ∇·g_f + ⟨g_f, ∇log p⟩. Its right side has mean 0 under p, by parts, so that

    E_p̃ f − E_p f = E_p̃⟨g_f, ∇log p − ∇log p̃⟩ ≤ ‖g_f‖ S,       ‖g‖² = E_p̃‖g‖²,   S² = E_p̃‖∇log p̃ − ∇log p‖².

Hence |γ̃ − γ*| ≤ C S with C = (‖g_A‖ + |γ*| ‖g_B‖)/B̃, and Cor. 4.12 gives J(γ̃) − J(γ*) = B (γ̃ − γ*)² ≤ B C² S².

Two laws have all of it in closed form: a Gaussian, whose p̃_k is the affine image of the initial noise, for every solver; and a
mixture on a line, whose p̃_k follows by change of variables along the run, with integrals by quadrature.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from research.theory.core import D64, DIM, SCHEDULES, Case, law
from steindiff import grids
from steindiff.diagnostics.pushforward import run_scores
from steindiff.metrics import Value
from steindiff.solvers import Grid, make


class Pair(NamedTuple):
    """A number for A's integrand and for B's."""

    A: float
    B: float


class Drift(NamedTuple):
    """One step of a run, σ → σ' in VE noise levels: how far the run's own law moves γ, and how far it may.

    Args:
        level: σ.
        alpha: α in the frame of the blend; σ times α is that frame's noise.
        score: S.
        there: A and B under p_k.
        real: the same under p̃_k.
        norms: ‖g_A‖ and ‖g_B‖.
        identity: E_p̃⟨g_A − γ* g_B, ∇log p − ∇log p̃⟩/B̃, which is γ̃ − γ*.
        residual: u as a function of the frame's state, (n, d).
    """

    level: float
    alpha: float
    score: float
    there: Pair
    real: Pair
    norms: Pair
    identity: float
    residual: Callable[[Tensor], Tensor]

    @property
    def star(self) -> float:
        """γ*."""
        return self.there.A / self.there.B

    @property
    def drifted(self) -> float:
        """γ̃."""
        return self.real.A / self.real.B

    @property
    def two_terms(self) -> float:
        """|Ã − A|/B̃ + |γ*| |B̃ − B|/B̃."""
        return (abs(self.real.A - self.there.A) + abs(self.star) * abs(self.real.B - self.there.B)) / self.real.B

    @property
    def constant(self) -> float:
        """C."""
        return (self.norms.A + abs(self.star) * self.norms.B) / self.real.B

    @property
    def bound(self) -> float:
        """C S."""
        return self.constant * self.score


def excess(drift: Drift, name: str, n: int, seed: int) -> Value:
    """J(γ̃) − J(γ*) over n draws of the coupling, with x* known."""
    model, g = law(name), torch.Generator().manual_seed(seed)
    clean = model.sample(n, g)
    x = drift.alpha * (clean + drift.level * torch.randn(clean.shape, generator=g, dtype=D64))
    u, e = drift.residual(x), x - clean
    there, real = ((e - gamma * u).square().sum(1) for gamma in (drift.star, drift.drifted))
    return Value.mean_of(real - there)


def states(name: str, solver: str, schedule: str, grid: Tensor, x: Tensor) -> list[Tensor]:
    """Those of a plain run from x, in VE coordinates; the graph is kept."""
    made, levels, found, denoiser = make(solver), Grid.of(grid), [x], Case(name, schedule).denoiser
    state = made.init(denoiser, x, levels)
    for i in range(levels.steps):
        step = made.step(denoiser, found[-1], levels.interval(i), state)
        found, state = [*found, step.x], step.state
    return found


def drifts(name: str, solver: str, schedule: str = "edm", steps: int = 5) -> Iterator[Drift]:
    """Every step of a run on EDM's grid from pure noise, with the blend in the model's frame."""
    grid = grids.karras(steps)
    alphas = SCHEDULES[schedule].alpha_of(grid).tolist()
    of = _gaussian if name == "gaussian" else _line
    yield from of(name, solver, schedule, grid, alphas)


class _Affine(NamedTuple):
    """x ↦ G x + h."""

    G: Tensor
    h: Tensor

    def inner(self, other: "_Affine", mean: Tensor, covariance: Tensor) -> float:
        """E⟨G x + h, G' x + h'⟩."""
        here, there = (f.G @ mean + f.h for f in (self, other))
        return float(here @ there + (self.G @ covariance @ other.G.mT).trace())


def _gaussian(name: str, solver: str, schedule: str, grid: Tensor, alphas: list[float]) -> Iterator[Drift]:
    """f = xᵀQx + ℓᵀx has g_f = −Σ(Q(x − m) + 2Qm + ℓ): all moments are those of quadratics."""
    model, eye = law(name), torch.eye(DIM, dtype=D64)
    starts = float(grid[0]) * torch.cat([torch.zeros(1, DIM, dtype=D64), eye])
    with torch.no_grad():
        run = states(name, solver, schedule, grid, starts)
    maps = [((y[1:] - y[0]).mT, y[0]) for y in run]  # of z ~ N(0, I)
    clean = (model.denoise(starts[1:], 1.0) - model.denoise(starts[:1], 1.0)).mT / float(grid[0])  # C(C + I)⁻¹
    C = torch.linalg.solve(eye - clean, clean)
    for k, level in enumerate(grid[:-1].tolist()):
        (M, c), (M_next, c_next), a, a_next = maps[k], maps[k + 1], alphas[k], alphas[k + 1]
        J = a_next / a * M_next @ torch.linalg.inv(M)
        u = _Affine(eye - J, J @ (a * c) - a_next * c_next)
        at = (a * model.mean, a * a * (C + level**2 * eye))
        really = (a * c, a * a * M @ M.mT)
        Q = ((1 - 1 / a) * (u.G + u.G.mT) / 2, u.G.mT @ u.G)
        ell = ((1 - 1 / a) * u.h, 2 * u.G.mT @ u.h)
        g_A, g_B = (_Affine(-at[1] @ q, -at[1] @ (q @ at[0] + v)) for q, v in zip(Q, ell, strict=True))
        inverse, own = (torch.linalg.inv(S) for S in (at[1], really[1]))
        shift = _Affine(own - inverse, inverse @ at[0] - own @ really[0])  # ∇log p − ∇log p̃
        x, divergence = _Affine(eye, torch.zeros(DIM, dtype=D64)), a * level**2 * float(u.G.trace())
        there, real = (Pair((1 - 1 / a) * u.inner(x, *q) + divergence, u.inner(u, *q)) for q in (at, really))
        star = there.A / there.B
        identity = (g_A.inner(shift, *really) - star * g_B.inner(shift, *really)) / real.B
        norms = Pair(*(math.sqrt(g.inner(g, *really)) for g in (g_A, g_B)))
        score, residual = math.sqrt(shift.inner(shift, *really)), lambda z, u=u: z @ u.G.mT + u.h
        yield Drift(level, a, score, there, real, norms, identity, residual)


def _line(name: str, solver: str, schedule: str, grid: Tensor, alphas: list[float], n: int = 6001) -> Iterator[Drift]:
    """x_k = F_k(z), z ~ N(0, 1): the run's own score is that of `run_scores`, and g_f p = ∫ (f − E_p f) p."""
    model, nodes, spacing = law(name), torch.linspace(-8, 8, n, dtype=D64), 16 / (n - 1)
    z = nodes.clone().requires_grad_(True)
    run = [y[:, 0] for y in states(name, solver, schedule, grid, float(grid[0]) * z[:, None])]
    slopes = [torch.autograd.grad(y.sum(), z, retain_graph=True)[0] for y in run]
    scores = run_scores(make(solver), Case(name, schedule).denoiser, float(grid[0]) * nodes[:, None], grid)
    weight = torch.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi) * spacing
    for k, (level, own) in enumerate(zip(grid[:-1].tolist(), scores, strict=False)):
        a, a_next, y, slope = alphas[k], alphas[k + 1], run[k].detach(), slopes[k]
        shift = (model.score(y[:, None], level) - own.score)[:, 0] / a  # ∇log p − ∇log p̃
        density = model.log_density(y[:, None], level).exp()
        mass = density * slope * spacing
        u = a * y - a_next * run[k + 1].detach()
        parts = ((1 - 1 / a) * u * a * y + a * level**2 * (1 - a_next * slopes[k + 1] / (a * slope)), u * u)
        there, real = (Pair(*(float(f @ q) for f in parts)) for q in (mass, weight))
        g_A, g_B = (a * _cumulative((f - there[i]) * mass) / density for i, f in enumerate(parts))
        identity = float((g_A - there.A / there.B * g_B) * shift @ weight) / real.B
        norms, score = (Pair(*(math.sqrt(float(g * g @ weight)) for g in (g_A, g_B))), math.sqrt(float(shift**2 @ weight)))
        yield Drift(level, a, score, there, real, norms, identity, _interpolated(a * y, u))


def _cumulative(parts: Tensor) -> Tensor:
    """∫ from the nearer end, by trapezoids: parts sum to 0, and each tail keeps its digits."""
    left = parts.cumsum(0) - parts / 2
    right = parts.flip(0).cumsum(0).flip(0) - parts / 2
    return torch.where(torch.arange(len(parts)) < len(parts) // 2, left, -right)


def _interpolated(x: Tensor, u: Tensor) -> Callable[[Tensor], Tensor]:
    """u between the nodes x (n,), linearly; x must increase."""
    if not bool((x[1:] > x[:-1]).all()):
        raise ValueError("the run folds the line: its states have no inverse")
    line = make_interp_spline(x.numpy(), u.numpy(), k=1)
    return lambda points: torch.from_numpy(line(points.numpy()))
