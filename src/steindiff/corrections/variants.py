"""Self-consistency (the paper's Algorithm 2), and the accelerated iteration of Boţ & Nguyen, which is not the paper's.

Both work in VE coordinates, whatever the frame. Details the paper does not give are ours and marked [rebuilt].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from steindiff.corrections.base import Correction, Outcome, Reason
from steindiff.corrections.proposal import Proposal
from steindiff.denoisers import expand
from steindiff.errors import require
from steindiff.solvers.coefficients import combine, ddim

LookAhead = Literal["state", "proposal"]


@dataclass(frozen=True)
class BotNguyen(Correction):
    """The fast Krasnosel'skiĭ–Mann iteration of Boţ & Nguyen (2023) with T the solver's step; not SteinDiff's fast KM.

    x_{k+1} = (1−c) x_k + ((1−s)k/(k+a)) (x_k − x_{k−1}) + c T(x_k) + (sk/(k+a)) (T(x_k) − T(x_{k−1})),   c = sa/(2(k+a)).

    A fixed point of one operator T stays fixed. **As a sampler it has a wrong limit**: here T changes with k and moves the
    noise level, and the first blend stops half way between σ₀ and σ₁ while the next step assumes σ₁. That surplus noise never
    goes away, however many steps there are. There is no Stein coefficient in it: its weights are fixed numbers. The paper's
    fast KM is the γ-blend with the analytical γ (our reading), `CleanTarget(mode="analytical")`.

    Its state is the pair (x_{k−1}, T(x_{k−1})).

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
    paper's algorithm is `Chain(CleanTarget(...), SelfConsistent())`. [rebuilt]: η, τ and where the jump starts are lost in the
    paper's text, and are options. **ω reads the length of the step and not agreement**: interpolation in log σ adds noise even
    where the denoiser is constant, x^tr − x = (((1−w) σ_k + w σ_{k−2})/σ_{k−1} − 1) σ_{k−1} ε, and that is most of δ.

    Args:
        eta: η in [0, 1], how much of an agreeing look-ahead is taken; 1 is the reading in which ω alone is the weight.
        scale: the scale of τ, > 0.
        look_ahead: where the jump starts: "state", x_k at σ_k, or "proposal", x^S at σ_{k−1}. They are the same for DDIM.
    """

    eta: float = 1.0
    scale: float = 1.0
    look_ahead: LookAhead = "state"

    def __post_init__(self) -> None:
        require(0 <= self.eta <= 1 and self.scale > 0, "need 0 ≤ eta ≤ 1 and scale > 0", eta=self.eta, scale=self.scale)
        require(self.look_ahead in get_args(LookAhead), "need state or proposal", look_ahead=self.look_ahead)

    def correct(self, proposal: Proposal, state: None) -> Outcome:
        """The proposal moved towards the look-ahead by ηω; ηω per image is recorded as "weight"."""
        interval, grid, x = proposal.interval, proposal.interval.grid, proposal.x
        if interval.last or (grid.to_zero and interval.index == grid.steps - 2):
            return Outcome(proposal.next, reason=Reason.PLAIN)
        levels = grid.levels[interval.index : interval.index + 3]
        start = 0 if self.look_ahead == "state" else 1
        jumped = ddim((x, proposal.next)[start], proposal.denoised, levels[start], levels[2])
        delta = interpolated(x, jumped, levels) - proposal.next
        weight = self.eta * compatibility(delta, self.scale * x[0].numel() ** 0.5 * interval.sigma_next)
        return Outcome(proposal.next + expand(weight.to(x), x) * delta, None, {"weight": weight})


def interpolated(x: Tensor, end: Tensor, sigmas: Sequence[float]) -> Tensor:
    """x^tr at sigmas[1] between x at sigmas[0] and `end` at sigmas[2], linear in log σ (Prop. D.4); sigmas > 0."""
    first, middle, last = sigmas
    return torch.lerp(x, end, math.log(first / middle) / math.log(first / last))


def compatibility(delta: Tensor, tau: Tensor) -> Tensor:
    """ω = exp(−‖δ‖²/(2τ²)) per sample, (B,), in (0, 1] (Prop. D.5)."""
    wide = torch.promote_types(delta.dtype, torch.float32)
    squares = delta.to(wide).square().flatten(1).sum(1)
    return torch.exp(-squares / (2 * tau**2))
