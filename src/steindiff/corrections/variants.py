"""Two variants of the paper that wrap any solver, corrected or not: the fast Krasnosel'skiĭ–Mann blend and self-consistency.

Both work in VE coordinates. Details the paper does not give are ours and marked [rebuilt].
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from steindiff.corrections.base import WrappedState
from steindiff.denoisers import Denoiser
from steindiff.errors import InputError
from steindiff.solvers.base import Grid, Interval, Solver, Step
from steindiff.solvers.coefficients import combine, ddim

__all__ = ["FastKM", "FastKMState", "SelfConsistent", "SelfConsistentState"]


@dataclass(frozen=True)
class FastKMState(WrappedState):
    """The wrapped solver's state with the previous state and its image; None before the first step."""

    x_before: Tensor | None = None
    image_before: Tensor | None = None


@dataclass(frozen=True)
class _Wrapper(Solver):
    """A solver around another: its order, its evaluations, its linear part and its probes are the inner one's."""

    solver: Solver
    order: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", self.solver.order)

    def nfe(self, sigmas: Tensor) -> int:
        """The wrapped solver's."""
        return self.solver.nfe(sigmas)

    def for_nfe(self, nfe: int) -> tuple[Solver, int]:
        """The wrapped solver's, wrapped as this one."""
        solver, steps = self.solver.for_nfe(nfe)
        return replace(self, solver=solver), steps

    def first_order(self, x: Tensor, denoised: Tensor, interval: Interval) -> Tensor:
        """The wrapped solver's."""
        return self.solver.first_order(x, denoised, interval)

    def linear(self, interval: Interval, state: WrappedState) -> Tensor:
        """The wrapped solver's, which is not this map's own where it blends."""
        return self.solver.linear(interval, state.inner)

    def seeded(self, seed: int | tuple[int, ...]) -> _Wrapper:
        """The same, with the wrapped solver's probes from `seed`."""
        return replace(self, solver=self.solver.seeded(seed))


@dataclass(frozen=True)
class FastKM(_Wrapper):
    """The fast Krasnosel'skiĭ–Mann iteration (Boţ & Nguyen 2023) with T a step of `solver`.

    x_{k+1} = (1−c) x_k + ((1−s)k/(k+a)) (x_k − x_{k−1}) + c T(x_k) + (sk/(k+a)) (T(x_k) − T(x_{k−1})),   c = sa/(2(k+a)).

    A fixed point of T stays fixed. The iteration is made for one operator; here T changes with k and moves the noise level, and
    the first blend stops half way between σ₀ and σ₁ while the next step assumes σ₁. [rebuilt]: the paper's "fast KM variant"
    is named only; wrap `Corrected(...)` to use its γ inside T.

    Args:
        solver: any solver.
        a: inertia parameter, > 2.
        s: step parameter in (0, 1].

    Raises:
        InputError: a or s outside these.
    """

    a: float = 3.0
    s: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.a > 2 or not 0 < self.s <= 1:
            raise InputError(f"a={self.a}, s={self.s}: need a > 2 and 0 < s ≤ 1")

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> FastKMState:
        """No past."""
        return FastKMState(self.solver.init(denoiser, x, grid))

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: FastKMState) -> Step:
        """One step of the wrapped solver, then the blend with the last two states."""
        k, a, s = interval.index, self.a, self.s
        proposal = self.solver.step(denoiser, x, interval, state.inner)
        image = proposal.x
        x_before = x if state.x_before is None else state.x_before
        image_before = image if state.image_before is None else state.image_before
        c, inertia, momentum = s * a / (2 * (k + a)), (1 - s) * k / (k + a), s * k / (k + a)
        blended = combine((1 - c, inertia, c, momentum), (x, x - x_before, image, image - image_before))
        return Step(blended, proposal.denoised, FastKMState(proposal.state, x, image))


@dataclass(frozen=True)
class SelfConsistentState(WrappedState):
    """The wrapped solver's state, and how much of the look-ahead the last step took, (B,)."""

    weight: Tensor | None = None


@dataclass(frozen=True)
class SelfConsistent(_Wrapper):
    """Self-consistency (paper's Algorithm 2, Props. D.4–D.6): blend the one-step proposal with a look-ahead where they agree.

    x^S is the wrapped solver's state at σ_{k−1}. A first-order jump to σ_{k−2} with the denoised value at hand gives x^la, and
    interpolation in log σ a second estimate at σ_{k−1}:

        w = (log σ_k − log σ_{k−1})/(log σ_k − log σ_{k−2}),   x^tr = (1−w) x_k + w x^la,   δ = x^tr − x^S,
        x = x^S + η ω δ,   ω = exp(−‖δ‖²/(2τ²)) per sample,   τ = scale·√d·σ_{k−1}.

    No evaluation is added. The last step has no look-ahead, nor has one whose look-ahead is σ = 0: they stay as they are.
    [rebuilt]: the published η and τ are not recoverable; ours are options.

    Args:
        solver: any solver; `Corrected(...)` for the paper's algorithm.
        eta: η, how much of an agreeing look-ahead is taken, in [0, 1].
        scale: of τ, > 0.

    Raises:
        InputError: eta or scale outside these.
    """

    eta: float = 0.5
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1 or not self.scale > 0:
            raise InputError(f"eta={self.eta}, scale={self.scale}: need 0 ≤ eta ≤ 1 and scale > 0")

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> SelfConsistentState:
        """No look-ahead yet."""
        return SelfConsistentState(self.solver.init(denoiser, x, grid))

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: SelfConsistentState) -> Step:
        """The wrapped solver's step, moved towards the look-ahead by ηω."""
        proposal, grid = self.solver.step(denoiser, x, interval, state.inner), interval.grid
        done = SelfConsistentState(proposal.state)
        if interval.last or (grid.to_zero and interval.index == grid.steps - 2):
            return proposal._replace(state=done)
        look_ahead = interpolated(x, proposal.denoised, grid.sigmas[interval.index : interval.index + 3])
        delta = look_ahead - proposal.x
        weight = self.eta * compatibility(delta, self.scale * x[0].numel() ** 0.5 * interval.sigma_next)
        moved = proposal.x + weight.to(x).reshape(-1, *[1] * (x.ndim - 1)) * delta
        return Step(moved, proposal.denoised, SelfConsistentState(proposal.state, weight))


def interpolated(x: Tensor, denoised: Tensor, sigmas: Tensor) -> Tensor:
    """x^tr at sigmas[1] from a jump sigmas[0] → sigmas[2], linear in log σ (Prop. D.4); sigmas > 0."""
    start, middle, end = sigmas[0], sigmas[1], sigmas[2]
    w = (start / middle).log() / (start / end).log()
    return (1 - w) * x + w * ddim(x, denoised, start, end)


def compatibility(delta: Tensor, tau: Tensor) -> Tensor:
    """ω = exp(−‖δ‖²/(2τ²)) per sample, (B,), in (0, 1] (Prop. D.5)."""
    wide = torch.promote_types(delta.dtype, torch.float32)
    squares = delta.to(wide).square().flatten(1).sum(1)
    return torch.exp(-squares / (2 * tau**2))
