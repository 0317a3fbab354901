"""Wrappers against exposure bias: the predicted ε is scaled, or the network is told another time than the state's own."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from steindiff.arguments import check_denoiser
from steindiff.denoisers.base import Denoiser, expand, wide
from steindiff.denoisers.stated import Wrapper, known_schedule, schedule_of
from steindiff.errors import require, require_numbers
from steindiff.owning import Lender
from steindiff.schedules import VE, DiscreteBetas, Schedule


@dataclass(frozen=True, eq=False)
class EpsilonScaled(Wrapper):
    """ε-scaling: ε̂ ← ε̂/b, hence D ← x + (D − x)/b, against exposure bias (Ning et al. 2024).

    The paper has b = 1.0048 for CIFAR-10 and 13 Euler steps; b > 0 is near 1 and depends on solver and NFE.
    """

    denoiser: Denoiser
    b: float = 1.0048
    _lend: Lender = field(default_factory=Lender, init=False, repr=False)

    def __post_init__(self) -> None:
        check_denoiser(self.denoiser)
        require_numbers(b=self.b)
        require(0 < self.b < float("inf"), "need a positive scale", b=self.b)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """X + (D − x)/b."""
        return torch.lerp(x, self._lend(self.denoiser, x, sigma), 1 / self.b)


@dataclass(frozen=True, eq=False)
class TimeShifted(Wrapper):
    """The network is told another noise level than the state has: D(x, (1+ξ) σ), ξ > −1 (time-shift, Li et al. 2023)."""

    denoiser: Denoiser
    shift: float

    def __post_init__(self) -> None:
        check_denoiser(self.denoiser)
        require_numbers(shift=self.shift)
        require(-1 < self.shift < float("inf"), "need a relative shift above -1", shift=self.shift)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, (1+ξ) σ)."""
        return self.denoiser(x, (1 + self.shift) * sigma)


@dataclass(frozen=True, eq=False)
class TimeSelected(Wrapper):
    """The network is told the time whose marginal variance is nearest the state's (time-shift sampler, Li et al. 2024).

        τ = argmin over t−w/2, …, t+w/2 of |var(x) − (α_τ² v0 + σ_τ²)| if t > t_c, else t;      D(x/α_τ, σ_τ/α_τ)

    x = α_t y is the state, t its nominal time, var the unbiased variance over one image's coordinates: every image has its
    own τ (Algorithm 3; per image in its code). Derivatives take τ as constant: it is a step function of x.

    Args:
        window: w, in indices; published for CIFAR-10: 40, 30, 8, 2 at 10, 20, 50, 100 DDIM steps (Fig. 7).
        cutoff: t_c, an index; published: 300 of 1000 (σ/α = 1.24). 0: select everywhere.
        data_variance: v0, the mean variance over the coordinates of one clean image. 0 is published and tells too much noise
            on the marginal itself; the true v0 does not, but in a variance-preserving x v0 = 1 leaves nothing to measure.
        frame: "model", x as the network sees it (published), or "ve", x = y; they select different times off the marginal.

    Rebuilt: v0 ≠ 0 and "ve"; indices are those of the denoiser's own schedule if discrete, else of DDPM's linear one at the
    same σ/α; the window lies about the state's own t; every call selects, where the published first step does not; only the
    network is told τ, where Algorithm 3 steps from τ too.
    """

    denoiser: Denoiser
    window: int = 40
    cutoff: float = 300.0
    data_variance: float = 0.0
    frame: Literal["model", "ve"] = "model"
    _clock: DiscreteBetas = field(init=False, repr=False)
    _schedule: Schedule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_denoiser(self.denoiser)
        require_numbers(window=self.window, cutoff=self.cutoff, data_variance=self.data_variance)
        whole, v0 = self.window >= 0 and self.window % 1 == 0, self.data_variance
        require(whole, "need a whole number of indices, ≥ 0 (40 is published for 10 steps)", window=self.window)
        published = "300 of 1000 is published; 0 selects everywhere"
        require(0 <= self.cutoff < float("inf"), f"need an index ≥ 0 ({published})", cutoff=self.cutoff)
        require(0 <= v0 < float("inf"), "need a variance ≥ 0 (0 is published)", data_variance=v0)
        require(self.frame in ("model", "ve"), "choose 'model' or 've'", frame=self.frame)
        own = known_schedule(self.denoiser)
        object.__setattr__(self, "_clock", own if isinstance(own, DiscreteBetas) else DiscreteBetas.linear())
        object.__setattr__(self, "_schedule", schedule_of(self.denoiser) if self.frame == "model" else VE())

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x/α_τ, σ_τ/α_τ) at x = α_t y; the argument is y."""
        told = self.told(x, sigma)
        nominal, alpha_of = wide(sigma, x).expand_as(told), self._schedule.alpha_of
        return self.denoiser(expand(alpha_of(nominal) / alpha_of(wide(told, x)), x).to(x.dtype) * x, told)

    def told(self, x: Tensor, sigma: Tensor) -> Tensor:
        """σ_τ/α_τ, (B,), in σ's dtype. Raises InputError for images of one coordinate, which has no variance."""
        require(x.shape[1:].numel() > 1, "one coordinate has no variance; need images of two or more", x=tuple(x.shape))
        s = expand(wide(sigma, x), x).reshape(-1, 1).expand(len(x), 1)
        t, half = self._clock.time(s), self.window // 2
        # Ratios, so that τ = t is the nominal level to the bit, and where σ lies beyond the clock's ends too.
        levels = s * (self._clock.ratio(t + torch.arange(-half, half + 1, device=x.device)) / self._clock.ratio(t))
        marginal = self._schedule.alpha_of(levels) ** 2 * (self.data_variance + levels**2)
        measured = self._schedule.alpha_of(s) ** 2 * x.detach().flatten(1).var(1, keepdim=True)
        nearest = (measured - marginal).abs().argmin(1, keepdim=True)
        # Rounded: the published times are whole, and t = t_c must not depend on the last digit of σ.
        selected = torch.where(t.round() > self.cutoff, levels.gather(1, nearest), s)
        return selected.squeeze(1).to(torch.as_tensor(sigma).dtype)
