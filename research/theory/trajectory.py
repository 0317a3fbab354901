"""The corrected method along a whole run, with Eq. 9's γ and with Eq. 11's: Thm 4.8, Eqs. 14 and 15, and Cor. 4.9.

A run starts at x_K = α_K x* + σ_K ε, whose x* is known, and keeps it. With the γ of Eq. 9 at every step,

    γ_k = E⟨u,e⟩/E‖u‖²,  e = x_k − x*,        E_{k−1} = (1 − ρ_k) E_k,        E_0 = Π_k (1 − ρ_k) E_K,

whatever law the state has. It ends in a function of x_K, so E_0 ≥ MMSE(σ_K), the least squared distance of any such function.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from research.theory.core import D64, DIM, SCHEDULES, Case, law
from research.theory.runs import variance
from steindiff import grids
from steindiff.corrections import CleanTarget, Corrected
from steindiff.corrections.base import Correction, Outcome, Run
from steindiff.corrections.proposal import Proposal
from steindiff.divergence import Exact
from steindiff.metrics import Value
from steindiff.sampling import sample
from steindiff.solvers import make


@dataclass(frozen=True, eq=False)
class Watched(Correction):
    """A correction with x* known: it records ρ, both sides of Cor. 4.9 and E_{k−1}, all as means over the batch.

    Args:
        clean: x*, (B, d).
        rule: what decides the next state; None is Eq. 9 with `clean`.
    """

    clean: Tensor
    rule: Correction | None = None

    def differentiates(self, run: Run) -> bool:
        """Whether the rule does."""
        return self.rule is not None and self.rule.differentiates(run)

    def correct(self, proposal: Proposal, state: None) -> Outcome:
        """Eq. 9's γ, or the rule's; b = E⟨u,e⟩ is the rule's own where it has one."""
        x, T = proposal.alpha * proposal.x, proposal.alpha_next * proposal.next
        u, e = x - T, x - self.clean
        b, c, error = ((p * q).sum(1).mean() for p, q in ((u, e), (u, u), (e, e)))
        made = Outcome(proposal.blend(b / c)) if self.rule is None else self.rule.correct(proposal, None)
        gamma = made.numbers.get("gamma_raw", b / c)
        after = proposal.alpha_next * made.x
        squares = (after - self.clean, after - T, T - self.clean)
        left, moved, plain = (z.square().sum(1).mean() for z in squares)
        rho = (gamma * c) ** 2 / (c * error)
        return Outcome(made.x, None, {"gamma": gamma, "rho": rho, "error": error, "left": left, "moved": moved, "plain": plain})


class Passed(NamedTuple):
    """One step of a run: γ, ρ = b²/(cE_k), E_k, E_{k−1}, and Cor. 4.9's E‖x^Stein − T‖² and E‖T − x*‖²."""

    sigma: float
    gamma: float
    rho: float
    error: float
    left: float
    moved: float
    plain: float


class Whole(NamedTuple):
    """A run and where it ends.

    Args:
        steps: from the first noise level to the last.
        product: (1−ρ_K)…(1−ρ_1) E_K, Eq. 15's side without E_0.
        mmse: E‖D(x_K) − x*‖², of the same draws.
        excess: E_0 less that, draw by draw.
        variance: E‖x* − Ex*‖² of the law.
        spread: E‖x_0 − αEx*‖² of the end.
    """

    steps: tuple[Passed, ...]
    product: float
    mmse: Value
    excess: Value
    variance: float
    spread: float

    @property
    def first_gammas(self) -> str:
        """The γ of the first three steps."""
        return ", ".join(f"{step.gamma:.3g}" for step in self.steps[:3])

    @property
    def end(self) -> float:
        """E_0."""
        return self.steps[-1].left


@dataclass(frozen=True)
class Setting:
    """A run over the true coupling at its start.

    Args:
        law: as in `core.law`.
        solver: any solver by name.
        schedule: a key of SCHEDULES.
        frame: coordinates of the blend.
        rule: "eq9", with x* known; "eq11", as printed, with the exact divergence; "tweedie", E⟨u, x − D⟩/E‖u‖², without one.
        steps: of EDM's grid in VE noise levels.
        first: its first level.
    """

    law: str = "mixture"
    solver: str = "ddim"
    schedule: str = "edm"
    frame: Literal["model", "ve"] = "model"
    rule: Literal["eq9", "eq11", "tweedie"] = "eq9"
    steps: int = 6
    first: float = 80.0


def whole_run(setting: Setting, n: int, seed: int) -> Whole:
    """The run of n draws, each with its x*."""
    model, g = law(setting.law), torch.Generator().manual_seed(seed)
    denoiser = Case(setting.law, setting.schedule).denoiser
    clean = model.sample(n, g)
    y = clean + setting.first * torch.randn(n, DIM, generator=g, dtype=D64)
    rule = {"eq9": None, "eq11": CleanTarget(mode="full"), "tweedie": CleanTarget(mode="tweedie")}[setting.rule]
    corrected = Corrected(make(setting.solver), Watched(clean, rule), divergence=Exact(), frame=setting.frame)
    grid = grids.karras(setting.steps, 0.002, setting.first)
    run = sample(corrected, denoiser, y, grid)
    passed = tuple(Passed(record.sigma, **{name: float(z) for name, z in record.numbers.items()}) for record in run.trace)
    product = math.prod([1 - step.rho for step in passed], start=passed[0].error)
    alpha = SCHEDULES[setting.schedule].alpha_of(grid[-1]) if setting.frame == "model" else 1.0
    of_mean, of_end = ((z - clean).square().sum(1) for z in (model.denoise(y, setting.first), alpha * run.x))
    spread = (alpha * (run.x - model.mean)).square().sum(1).mean()
    return Whole(passed, product, Value.mean_of(of_mean), Value.mean_of(of_end - of_mean), variance(setting.law), float(spread))
