"""Two variants of the paper: the fast Krasnosel'skiĭ–Mann blend and self-consistency.

Both work in VE coordinates, whatever the frame. Details the paper does not give are ours and marked [rebuilt].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff.corrections.base import Correction, Outcome, Proposal, Reason
from steindiff.denoisers import expand
from steindiff.errors import require
from steindiff.solvers.coefficients import combine, ddim


@dataclass(frozen=True)
class FastKM(Correction):
    """The fast Krasnosel'skiĭ–Mann iteration (Boţ & Nguyen 2023) with T the solver's step.

    x_{k+1} = (1−c) x_k + ((1−s)k/(k+a)) (x_k − x_{k−1}) + c T(x_k) + (sk/(k+a)) (T(x_k) − T(x_{k−1})),   c = sa/(2(k+a)).

    A fixed point of T stays fixed. The iteration is made for one operator; here T changes with k and moves the noise level, and
    the first blend stops half way between σ₀ and σ₁ while the next step assumes σ₁. [rebuilt]: the paper's "fast KM variant"
    is named only; `Chain(CleanTarget(...), FastKM())` uses its γ inside T. Its state is the pair (x_{k−1}, T(x_{k−1})).

    Args:
        a: the inertia parameter, > 2.
        s: the step parameter in (0, 1].
    """

    a: float = 3.0
    s: float = 1.0

    def __post_init__(self) -> None:
        require(self.a > 2 and 0 < self.s <= 1, "need a > 2 and 0 < s ≤ 1", a=self.a, s=self.s)

    def correct(self, proposal: Proposal, state: tuple[Tensor, Tensor] | None) -> Outcome:
        """The blend with the last two states."""
        k, a, s = proposal.interval.index, self.a, self.s
        x, image = proposal.x, proposal.next
        x_before, image_before = state or (x, image)
        c, inertia, momentum = s * a / (2 * (k + a)), (1 - s) * k / (k + a), s * k / (k + a)
        blended = combine((1 - c, inertia, c, momentum), (x, x - x_before, image, image - image_before))
        return Outcome(blended, (x, image), reason=Reason.FIXED)


@dataclass(frozen=True)
class SelfConsistent(Correction):
    """Self-consistency (paper's Algorithm 2, Props. D.4–D.6): blend the one-step proposal with a look-ahead where they agree.

    x^S is the proposal at σ_{k−1}. A first-order jump to σ_{k−2} with the denoised value at hand gives x^la, and
    interpolation in log σ a second estimate at σ_{k−1}:

        w = (log σ_k − log σ_{k−1})/(log σ_k − log σ_{k−2}),   x^tr = (1−w) x_k + w x^la,   δ = x^tr − x^S,
        x = x^S + η ω δ,   ω = exp(−‖δ‖²/(2τ²)) per sample,   τ = scale·√d·σ_{k−1}.

    No evaluation is added. The last step has no look-ahead and stays as it is; so does one whose look-ahead is σ = 0. The
    paper's algorithm is `Chain(CleanTarget(...), SelfConsistent())`. [rebuilt]: the published η and τ are not recoverable;
    ours are options.

    Args:
        eta: η in [0, 1], how much of an agreeing look-ahead is taken.
        scale: the scale of τ, > 0.
    """

    eta: float = 0.5
    scale: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.eta <= 1 and self.scale > 0, "need 0 ≤ eta ≤ 1 and scale > 0", eta=self.eta, scale=self.scale)

    def correct(self, proposal: Proposal, state: None) -> Outcome:
        """The proposal moved towards the look-ahead by ηω; ηω per image is recorded as "weight"."""
        interval, grid, x = proposal.interval, proposal.interval.grid, proposal.x
        if interval.last or (grid.to_zero and interval.index == grid.steps - 2):
            return Outcome(proposal.next, reason=Reason.PLAIN)
        look_ahead = interpolated(x, proposal.denoised, grid.sigmas[interval.index : interval.index + 3])
        delta = look_ahead - proposal.next
        weight = self.eta * compatibility(delta, self.scale * x[0].numel() ** 0.5 * interval.sigma_next)
        return Outcome(proposal.next + expand(weight.to(x), x) * delta, None, {"weight": weight})


def interpolated(x: Tensor, denoised: Tensor, sigmas: Tensor) -> Tensor:
    """x^tr at sigmas[1] from a jump sigmas[0] → sigmas[2], linear in log σ (Prop. D.4); sigmas > 0."""
    start, middle, end = sigmas.unbind()
    w = (start / middle).log() / (start / end).log()
    return (1 - w) * x + w * ddim(x, denoised, start, end)


def compatibility(delta: Tensor, tau: Tensor) -> Tensor:
    """ω = exp(−‖δ‖²/(2τ²)) per sample, (B,), in (0, 1] (Prop. D.5)."""
    wide = torch.promote_types(delta.dtype, torch.float32)
    squares = delta.to(wide).square().flatten(1).sum(1)
    return torch.exp(-squares / (2 * tau**2))
