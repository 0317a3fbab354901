"""One step as somebody else's loop states it: its parts, checked, and what of it a mode asks for."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steindiff.arguments import check_dense
from steindiff.corrections.proposal import Divergence, by_tweedie
from steindiff.corrections.stein import Mode
from steindiff.errors import InputError, NonFiniteError, require
from steindiff.io.processes import Gather
from steindiff.owning import Lender

Scalar = float | Tensor

StepFunction = Callable[[Tensor], Tensor]
"""x -> T(x), both (B, *event): somebody's solver step as a function of the state."""


@dataclass(eq=False)
class Given:
    """One step as its loop states it, checked; what was not given is None."""

    x: Tensor
    candidate: Tensor | None
    alpha: Scalar
    sigma: Scalar
    step: StepFunction | None
    denoised: Tensor | None
    linear: Scalar | None
    mode: Mode
    lend: Lender

    def __post_init__(self) -> None:
        x = self.x
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
            got = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"x is {got}: need a floating-point tensor (B, *event) with B ≥ 1")
        check_dense("x", x)
        self.alpha, self.sigma = a, s = _number("alpha", self.alpha), _number("sigma", self.sigma)
        need = "need α > 0 and σ > 0, of the state before the step: without noise there is nothing to correct"
        require(a > 0 and s > 0, need, alpha=a, sigma=s)
        self.level = s / a
        """σ/α, the noise level in VE coordinates."""
        self.wide = torch.promote_types(x.dtype, torch.float32)
        """What sums are taken in."""
        self.linear = None if self.linear is None else _number("linear", self.linear)
        require(self.step is None or callable(self.step), "need a function x -> T(x)", step=self.step)
        for name, z in (("x", x), ("candidate", self.candidate), ("denoised", self.denoised)):
            if z is not None:
                self.finite(name, self.like(name, z))

    def like(self, name: str, z: Any) -> Tensor:
        """z, if it is a tensor like x: another shape would broadcast, another dtype would round, in silence."""
        x = self.x
        if not isinstance(z, Tensor) or (z.shape, z.dtype, z.device) != (x.shape, x.dtype, x.device):
            got = f"{tuple(z.shape)} {z.dtype} on {z.device}" if isinstance(z, Tensor) else type(z).__name__
            own = f"{tuple(x.shape)} {x.dtype} on {x.device}"
            raise InputError(f"{name} is {got} where x is {own}: give one of the same shape, dtype and device")
        check_dense(name, z)
        return z

    def finite(self, name: str, z: Tensor) -> Tensor:
        """z, unless it holds a NaN or an infinity."""
        if not bool(torch.isfinite(z.detach()).all()):
            raise NonFiniteError(
                f"{name} holds NaN or infinite values at σ/α = {self.level:g}: check the network's dtype (float16 overflows), "
                "and whether an unbounded correction has driven the state away (gamma_max=1 bounds it)"
            )
        return z

    def evaluated(self) -> Tensor:
        """T(x), as it was given or as `step` makes it."""
        if self.candidate is not None:
            return self.candidate
        if self.step is None:
            raise self.lacks("candidate=T(x), or step=f, which makes it")
        return self.finite("step(x)", self.like("step(x)", self.lend(self.step, self.x)))

    def agreed(self, own: Tensor) -> Tensor:
        """T(x) as it was given, if it is also what `step` makes: a stateful solver that has moved on makes another step."""
        self.finite("step(x)", own)
        if self.candidate is None:
            return own
        x, given, own = (z.to(self.wide) for z in (self.x, self.candidate, own))
        gap, length, size = (z.norm() for z in (own - given, x - given, x))
        if bool(gap > 0.05 * length + 32 * torch.finfo(self.x.dtype).eps * size):
            raise InputError(
                f"step(x) is not the candidate: it is {float(gap / length):.2g} of the step's length away. Make the function "
                "from the solver's state before the step (a deep copy, where a step changes it), or give candidate=None"
            )
        return self.candidate

    def by_tweedie(self, candidate: Tensor, gather: Gather) -> Divergence:
        """E[∇·u] from the denoised value."""
        if self.denoised is None:
            raise self.lacks("denoised=D, the denoised value that the step starts from")
        x, t, denoised = (z.to(self.wide) for z in (self.x, candidate, self.denoised))
        return by_tweedie(x - t, x - self.alpha * denoised, x.new_full((), float(self.sigma) ** 2), gather)

    def of_linear_part(self) -> Divergence:
        """(1−a) d."""
        if self.linear is None:
            rows = "σ'/σ for Euler, DDIM, Heun, DPM-Solver++ and UniPC"
            raise self.lacks(f"linear=a, ∂T/∂x with the network's outputs held fixed ({rows})")
        div = torch.full((), (1 - float(self.linear)) * self.x[0].numel(), dtype=self.wide, device=self.x.device)
        return Divergence(div, torch.zeros_like(div))

    def lacks(self, what: str) -> InputError:
        """The error for a part that the mode needs."""
        return InputError(f"mode={self.mode!r} at σ/α = {self.level:g} needs what was not given: pass {what}")


def _number(name: str, value: Scalar) -> float:
    """One finite number, on the host."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise InputError(f"{name} of shape {tuple(value.shape)}: need one number, since the whole batch has one γ")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}={value!r}: need one number") from error
    require(math.isfinite(number), "need a finite number", **{name: number})
    return number
