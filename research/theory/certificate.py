"""The contraction certificate, Prop. 4.1 (C.1), and its form through the noise network, Eqs. 38–46, on states of the marginal.

With D as a function of the model's own x, a first-order step s → t has h = α_t/σ_t − α_s/σ_s and

    T(x) = (σ_t/σ_s) x + σ_t h D(x)                      L_T ≤ σ_t/σ_s + σ_t h L_D
    T(x) = (α_t/α_s) x − (α_t σ_s/α_s − σ_t) ε(x)        L_T ≤ α_t/α_s + (α_t σ_s/α_s − σ_t) L_ε

The second is what L_D ≤ (1 + σ_s L_ε)/α_s makes of the first. A multistep method adds c times the difference of two values of
D, one of which is history: L_D then counts 1 + c times in both.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.linalg import matrix_norm

from research.theory.core import D64, DIM, Case, draw, flow, law
from steindiff.diagnostics import certificate_threshold, step_bound


class Lipschitz(NamedTuple):
    """Over draws of the marginal, in the model's frame: the certificate's threshold and what exceeds it.

    Args:
        denoiser: the largest ‖J_D‖.
        threshold: where the certificate is lost, for a step with c = 0.
        lost: the share of states where the bound through ‖J_D‖ reaches 1.
        step: the largest ‖J_T‖.
        bound: the largest bound on it through ‖J_D‖.
        bound_gap: the largest of ‖J_T‖ − (σ_t/σ_s + (1 + c) σ_t h ‖J_D‖): not above rounding.
        random: the median amplification of random directions at the states that lost the certificate.
        flow: the largest ‖J‖ of the exact flow over the same interval.
        noise: the largest ‖J_ε‖.
        noise_gap: the largest of ‖J_T‖ less the bound through ‖J_ε‖; not above rounding either.
        noise_least: the least bound through ‖J_ε‖ at any state.
    """

    denoiser: float
    threshold: float
    lost: float
    step: float
    bound: float
    bound_gap: float
    random: float
    flow: float
    noise: float
    noise_gap: float
    noise_least: float


def noise_bound(lipschitz: float, sigma: float, sigma_next: float, alpha: float, alpha_next: float, c: float = 0.0) -> float:
    """r + (1 + c)(α_t/α_s − r) + (1 + c)(α_t σ_s/α_s − σ_t) L_ε, r = σ_t/σ_s, for the levels of the model's own x."""
    r, growth = sigma_next / sigma, alpha_next / alpha
    return r + (1 + c) * (growth - r + (growth * sigma - sigma_next) * lipschitz)


def extrapolation(case: Case) -> float:
    """c of the step: h/(2h₁) of 2M, with h and h₁ this step and the one before in log σ; 0 of DDIM."""
    before, s, t = case.sigmas.log()
    return float((s - t) / (2 * (before - s))) if case.solver == "dpmpp_2m" else 0.0


def lipschitz(case: Case, n: int, seed: int) -> Lipschitz:
    """Both forms on the states of `case` (the model's frame): s → t, pointwise, by singular values."""
    model, d, (a_s, a_t), (_, s, t) = law(case.law), draw(case, n, seed), case.alphas, case.sigmas
    maps: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda y: model.denoise(y, s) / a_s,
        lambda y: d.step(y) * a_t / a_s,
        lambda y: flow(model, y, s, t) * a_t / a_s,
        lambda y: (y - model.denoise(y, s)) / s / a_s,
    )
    JD, JT, exact, JE = (jacobian(lambda y, f=f: f(y).sum(0), d.y).movedim(1, 0) for f in maps)
    LD, LT, LE = (matrix_norm(J, 2) for J in (JD, JT, JE))
    step, c = tuple(map(float, (a_s * s, a_t * t, a_s, a_t))), extrapolation(case)
    bounds = torch.tensor([step_bound((1 + c) * bound, *step) for bound in LD.tolist()], dtype=D64)
    noisy = torch.tensor([noise_bound(bound, *step, c) for bound in LE.tolist()], dtype=D64)
    lost = bounds >= 1
    v = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed + 1), dtype=D64)
    amplified = (JT @ v[..., None])[..., 0].norm(dim=1) / v.norm(dim=1)
    random = amplified[lost].median() if lost.any() else float("nan")
    found = (LD.max(), certificate_threshold(*step), lost.double().mean(), LT.max(), bounds.max(), (LT - bounds).max(), random)
    return Lipschitz(*map(float, (*found, matrix_norm(exact, 2).max(), LE.max(), (LT - noisy).max(), noisy.min())))
