"""Denoisers: D(y, σ) ≈ E[x* | y = x* + σ ε] in VE coordinates, whatever the network predicts.

`Denoiser` is any callable `D(x, sigma)`, x: (B, *event), sigma: (B,) or (). The adapters turn a network that predicts
ε, v, x0 or a flow velocity under some schedule into one; `Guided` makes a denoiser of two; `Counter` counts calls. A run makes
every denoiser `Pure`, so that a network may write into its input, and return one and the same buffer at every call.

A denoiser may say things about itself, and every wrapper here passes them on: `schedule`, whose α defines the model's own x,
and `forwards`, the network forwards behind one call, which `declare` says for any other callable; `sigma_data`, the deviation
of its data, `noise_range`, the lowest and the highest level that it was made for, `usual_range`, where its runs end and begin,
and `tables`, the folders where tables that were calibrated on it may lie.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from steindiff.arguments import check_callable, check_denoiser, check_dense
from steindiff.errors import InputError, ScheduleWarning, require, require_numbers, require_whole
from steindiff.owning import Lender
from steindiff.schedules import VE, DiscreteBetas, LogNoise, Schedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""D(x, sigma) -> x0-hat; x: (B, *event) in VE coordinates, sigma: (B,) or ()."""

Network = Callable[[Tensor, Tensor], Tensor]
"""F(x, t) -> prediction; x in the model's own coordinates, t: (B,) in the schedule's time."""


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    """σ of shape () or (B,) made broadcastable against x: (B, *event). Raises InputError on any other shape."""
    if sigma.ndim == 0:
        return sigma
    if sigma.shape != x.shape[:1]:
        raise InputError(f"sigma of shape {tuple(sigma.shape)} for a batch of {x.shape[0]}: need () or ({x.shape[0]},)")
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


def _wide(sigma: Tensor, x: Tensor) -> Tensor:
    """σ on x's device in float64: discrete schedules' times and small σ lose several digits in float32."""
    s = torch.as_tensor(sigma, device=x.device)
    return s if s.device.type == "mps" else s.to(torch.float64)


# Where a callable keeps the one that it wraps: our wrappers, partial, functools.wraps (and torch.compile), bound methods,
# k-diffusion's wrappers.
_LINKS = ("denoiser", "func", "__wrapped__", "__self__", "inner_model")


def _layers(denoiser: object) -> Iterator[object]:
    """The callable, what it wraps, what that wraps, and so on. The one place that looks for attributes by name."""
    for _ in range(100):  # a proxy that invents attributes would have no end
        yield denoiser
        inner = (getattr(denoiser, link, None) for link in _LINKS)
        denoiser = next((layer for layer in inner if layer is not None), None)
        if denoiser is None:
            return


def known_schedule(denoiser: Denoiser) -> Schedule | None:
    """The outermost schedule that a layer of the denoiser states; None where none does."""
    stated = (getattr(layer, "schedule", None) for layer in _layers(denoiser))
    return next((schedule for schedule in stated if isinstance(schedule, Schedule)), None)


def prediction_of(denoiser: Denoiser) -> str | None:
    """What the network predicts, by the name of the adapter around it, such as FromEps; None where no layer is an adapter."""
    return next((type(layer).__name__ for layer in _layers(denoiser) if isinstance(layer, _Adapter)), None)


def schedule_of(denoiser: Denoiser) -> Schedule:
    """The schedule whose α defines the model's own x; VE, with a ScheduleWarning, where no layer of the denoiser states one."""
    known = known_schedule(denoiser)
    if known is None:
        *_, inner = filter(callable, _layers(denoiser))
        warnings.warn(
            f"the schedule of {getattr(inner, '__qualname__', type(inner).__qualname__)} is unknown and taken as VE "
            "(alpha = 1), which decides the frame of the correction: state it with denoisers.declare(f, schedule=...), or "
            "choose frame='ve' if VE is meant",
            ScheduleWarning,
            stacklevel=2,
        )
    return known or VE()


def forwards_per_call(denoiser: Denoiser) -> int:
    """Network forwards behind one call: 2 for guidance (nested guidance adds up), 1 where no layer of the denoiser says."""
    stated = (getattr(layer, "forwards", None) for layer in _layers(denoiser))
    return next((forwards for forwards in stated if isinstance(forwards, int)), 1)


def check_schedule(schedule: object) -> None:
    """Raise InputError for what is no schedule."""
    known = isinstance(schedule, Schedule)
    require(known, "need an object of steindiff.schedules, such as VPLinear()", schedule=schedule)


def sigma_data_of(denoiser: Denoiser) -> float | None:
    """The standard deviation of the data that a layer of the denoiser states (`sigma_data`); None where none does."""
    stated = (getattr(layer, "sigma_data", None) for layer in _layers(denoiser))
    return next((float(sigma) for sigma in stated if isinstance(sigma, float) and sigma > 0), None)


def noise_range_of(denoiser: Denoiser) -> tuple[float, float]:
    """The lowest and the highest noise level that a layer of the denoiser states (`noise_range`); 0 and ∞ where none does."""
    stated = (getattr(layer, "noise_range", None) for layer in _layers(denoiser))
    low, high = next((ends for ends in stated if isinstance(ends, tuple)), (0.0, float("inf")))
    return float(low), float(high)


def usual_range_of(denoiser: Denoiser) -> tuple[float, float] | None:
    """The last and the first noise level of a run, as a layer of the denoiser states them (`usual_range`), or None."""
    stated = (getattr(layer, "usual_range", None) for layer in _layers(denoiser))
    return next(((float(ends[0]), float(ends[1])) for ends in stated if isinstance(ends, tuple)), None)


def tables_of(denoiser: Denoiser) -> tuple[str, ...]:
    """The folders of calibrated tables that a layer of the denoiser states (`tables`); none where none does."""
    stated = (getattr(layer, "tables", None) for layer in _layers(denoiser))
    return next((tuple(map(str, folders)) for folders in stated if isinstance(folders, tuple)), ())


def guidance_of(denoiser: Denoiser) -> float:
    """The scale of classifier-free guidance that a layer of the denoiser states (`guidance`); 1 where none does."""
    stated = (getattr(layer, "guidance", None) for layer in _layers(denoiser))
    return next((float(scale) for scale in stated if isinstance(scale, float | int)), 1.0)


def is_conditioned(denoiser: Denoiser) -> bool:
    """Whether labels or prompts are bound to it: a layer says so (`conditioned`), or is a `functools.partial` with a tensor."""
    return any(getattr(layer, "conditioned", None) is True or _binds_a_tensor(layer) for layer in _layers(denoiser))


def _binds_a_tensor(layer: object) -> bool:
    bound = (*layer.args, *layer.keywords.values()) if isinstance(layer, partial) else ()
    return any(isinstance(value, Tensor) for value in bound)


class _Wrapper:
    """A denoiser made of another, whose schedule (None where it is unknown) and cost it passes on."""

    denoiser: Denoiser

    @property
    def schedule(self) -> Schedule | None:
        return known_schedule(self.denoiser)

    @property
    def forwards(self) -> int:
        return forwards_per_call(self.denoiser)


@dataclass(frozen=True, eq=False)
class _Declared:
    denoiser: Denoiser
    schedule: Schedule
    forwards: int

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.denoiser(x, sigma)


def declare(denoiser: Denoiser, *, schedule: Schedule, forwards: int = 1) -> Denoiser:
    """The denoiser, for a callable that hides what it wraps, with its schedule and the network forwards of a call stated.

    Raises InputError for less than one forward.

    Example:
        >>> from steindiff.schedules import VPLinear
        >>> schedule_of(declare(lambda x, sigma: x / (1 + sigma**2), schedule=VPLinear()))
        VPLinear(beta_min=0.1, beta_max=20.0)
    """
    check_denoiser(denoiser)
    check_schedule(schedule)
    require_whole(1, forwards=forwards)
    return _Declared(denoiser, schedule, forwards)


@dataclass(frozen=True, eq=False)
class _Adapter(ABC):
    """D(y, s): x = α y, t = t(s), prediction F(x, t), then x0-hat by the parametrisation's formula.

    Args:
        network: F(x, t); bind text, class labels and the like with `functools.partial`.
        schedule: maps s = σ/α to the network's time and to α.
        dtype: what the network computes in; inputs are cast to it, and its output back to the state's dtype.
    """

    network: Network
    schedule: Schedule
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_callable(self.network, "network", "F(x, t)")
        check_schedule(self.schedule)
        real = self.dtype is None or (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point)
        require(real, "need a dtype of real floating-point numbers, or None for the state's", dtype=self.dtype)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = _wide(sigma, x)
        alpha = self.schedule.alpha_of(s)
        a, b = (expand(z, x).to(x.dtype) for z in (alpha, alpha * s))
        inner = self.dtype or x.dtype
        t = self.schedule.time(s).to(torch.float32 if inner.itemsize < 4 else inner).expand(x.shape[0])
        prediction = self.network((a * x).to(inner), t).to(x.dtype)
        return self._denoised(prediction, a * x, a, b)

    @abstractmethod
    def _denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x0-hat from the prediction at x = α x* + σ ε, all in the model's coordinates."""


class FromEps(_Adapter):
    """Noise prediction: x0-hat = (x − σ ε̂)/α (Ho et al. 2020)."""

    def _denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x - sigma * prediction) / alpha


class FromV(_Adapter):
    """Velocity prediction, v = α ε − σ x*: x0-hat = (α x − σ v̂)/(α² + σ²) (Salimans & Ho 2022)."""

    def _denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * x - sigma * prediction) / (alpha**2 + sigma**2)


class FromX0(_Adapter):
    """Data prediction: x0-hat is the prediction itself."""

    def _denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return prediction


class FromFlow(_Adapter):
    """Flow-matching velocity, u = ε − x*: x0-hat = (x − σ û)/(α + σ) (Lipman et al. 2023)."""

    def _denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x - sigma * prediction) / (alpha + sigma)


@dataclass(frozen=True, eq=False)
class FromEDM(_Adapter):
    """EDM's output F: x0-hat = c_skip y ± c_out F, c_skip = σ_d² α², c_out = σ_d σ, α = 1/√(s² + σ_d²) (Karras et al. 2022).

    Args:
        schedule: says σ_d.
        sign: 1, as published, or −1 for a network that was trained as one of v.
    """

    schedule: LogNoise
    dtype: torch.dtype | None = None
    sign: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.schedule, LogNoise), "need LogNoise, which says σ_d", schedule=self.schedule)
        require_numbers(sign=self.sign)
        require(abs(self.sign) == 1, "choose 1 or -1", sign=self.sign)

    def _denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        data = self.schedule.sigma_data
        return data**2 * alpha * x + self.sign * data * sigma * prediction


@dataclass(frozen=True, eq=False)
class Guided(_Wrapper):
    """Classifier-free guidance: D = D_∅ + w (D_c − D_∅), w the scale (Ho & Salimans 2022).

    One call costs two network evaluations; `stats.forward_equivalents` counts both.
    """

    conditional: Denoiser
    unconditional: Denoiser
    scale: float
    conditioned: ClassVar[bool] = True
    _lend: Lender = field(default_factory=Lender, init=False, repr=False)

    def __post_init__(self) -> None:
        check_denoiser(self.conditional)
        check_denoiser(self.unconditional)
        require_numbers(scale=self.scale)
        require(math.isfinite(self.scale), "need a finite scale of guidance (1 is none)", scale=self.scale)

    @property
    def denoiser(self) -> Denoiser:  # type: ignore[override]
        """The conditional one, whose schedule both share."""
        return self.conditional

    @property
    def guidance(self) -> float:
        """The scale."""
        return self.scale

    @property
    def forwards(self) -> int:
        """The forwards of D_c and D_∅ together."""
        return forwards_per_call(self.conditional) + forwards_per_call(self.unconditional)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D_∅ + w (D_c − D_∅)."""
        unconditional: Tensor = self._lend(self.unconditional, x, sigma)  # both may be one network with one buffer
        return unconditional + self.scale * (self.conditional(x, sigma) - unconditional)


def check_labels(labels: object) -> None:
    """Raise InputError for anything but a dense tensor of whole numbers, () or (B,)."""
    if not isinstance(labels, Tensor):
        raise InputError(f"labels are {type(labels).__name__}: need a tensor of whole numbers, such as torch.tensor(3)")
    check_dense("labels", labels)
    whole = labels.ndim <= 1 and not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    require(whole, "labels are whole numbers, () or (B,)", shape=tuple(labels.shape), dtype=labels.dtype)


@dataclass(frozen=True, eq=False)
class Labelled(_Wrapper):
    """A class-conditional denoiser D(x, sigma, labels) with its int64 labels bound: () for all images, or (B,)."""

    denoiser: Callable[..., Tensor]
    labels: Tensor
    conditioned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_callable(self.denoiser, "denoiser", "D(x, sigma, labels)")
        check_labels(self.labels)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma, labels). Raises InputError for another number of images than labels."""
        fit = self.labels.ndim == 0 or len(self.labels) == len(x)
        require(fit, "need one label for all images, or one for each", labels=tuple(self.labels.shape), images=len(x))
        return self.denoiser(x, sigma, self.labels.to(x.device).expand(len(x)))


@dataclass(frozen=True, eq=False)
class EpsilonScaled(_Wrapper):
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
class TimeShifted(_Wrapper):
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
class TimeSelected(_Wrapper):
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
        nominal, alpha_of = _wide(sigma, x).expand_as(told), self._schedule.alpha_of
        return self.denoiser(expand(alpha_of(nominal) / alpha_of(_wide(told, x)), x).to(x.dtype) * x, told)

    def told(self, x: Tensor, sigma: Tensor) -> Tensor:
        """σ_τ/α_τ, (B,), in σ's dtype. Raises InputError for images of one coordinate, which has no variance."""
        require(x.shape[1:].numel() > 1, "one coordinate has no variance; need images of two or more", x=tuple(x.shape))
        s = expand(_wide(sigma, x), x).reshape(-1, 1).expand(len(x), 1)
        t, half = self._clock.time(s), self.window // 2
        # Ratios, so that τ = t is the nominal level to the bit, and where σ lies beyond the clock's ends too.
        levels = s * (self._clock.ratio(t + torch.arange(-half, half + 1, device=x.device)) / self._clock.ratio(t))
        marginal = self._schedule.alpha_of(levels) ** 2 * (self.data_variance + levels**2)
        measured = self._schedule.alpha_of(s) ** 2 * x.detach().flatten(1).var(1, keepdim=True)
        nearest = (measured - marginal).abs().argmin(1, keepdim=True)
        # Rounded: the published times are whole, and t = t_c must not depend on the last digit of σ.
        selected = torch.where(t.round() > self.cutoff, levels.gather(1, nearest), s)
        return selected.squeeze(1).to(torch.as_tensor(sigma).dtype)


class Counter(_Wrapper):
    """A denoiser that counts its calls: one call is one NFE. It is the only mutable object of a run.

    Example:
        >>> counter = Counter(lambda x, sigma: x / (1 + sigma**2))
        >>> _ = counter(torch.zeros(2, 3), torch.tensor(1.0))
        >>> counter.calls
        1
    """

    def __init__(self, denoiser: Denoiser) -> None:
        check_denoiser(denoiser)
        self.denoiser, self.calls = denoiser, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma), counted."""
        self.calls += 1
        return self.denoiser(x, sigma)


class Pure(_Wrapper):
    """A denoiser that leaves x and sigma as they are, and whose output nothing overwrites, whatever the network does.

    A run does this for every denoiser. It is for solvers and estimators that are called by hand; and with `copies=True` for a
    network whose writes cannot be noticed. That is one which writes past torch's counters (`.data`, NumPy, a kernel of its own)
    on an accelerator or at a later call than its first, and one of which torch itself reuses the outputs
    (`torch.compile(mode="reduce-overhead")`).

    Args:
        denoiser: D(x, sigma).
        copies: whether to copy x, sigma and the output at every call. False: only where `owning.Lender` notices a need.

    Example:
        >>> x = torch.ones(1, 2)
        >>> Pure(lambda x, sigma: x.mul_(0.5))(x, torch.tensor(1.0)), x
        (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))
    """

    def __init__(self, denoiser: Denoiser, copies: bool = False) -> None:
        check_denoiser(denoiser)
        self.denoiser, self._lend = denoiser, Lender(copies)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma). Raises InputError where x has been written into at a later call, and had not at the first."""
        return self._lend(self.denoiser, x, sigma)  # type: ignore[no-any-return]
