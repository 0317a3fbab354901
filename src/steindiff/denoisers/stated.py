"""What a denoiser says about itself: schedule, cost, data and noise range, found through all that is wrapped around it.

A denoiser is any callable. It says a thing by an attribute of its own, or by one of a callable that it wraps: the outermost
layer that says it counts. `declare` says it for a callable that cannot, and a `Wrapper` passes it on.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from steindiff.arguments import check_denoiser
from steindiff.denoisers.base import Denoiser
from steindiff.errors import ScheduleWarning, require, require_whole
from steindiff.schedules import VE, Schedule

# Where a callable keeps the one that it wraps: our wrappers, partial, functools.wraps (and torch.compile), bound methods,
# k-diffusion's wrappers.
_LINKS = ("denoiser", "func", "__wrapped__", "__self__", "inner_model")


def layers(denoiser: object) -> Iterator[object]:
    """The callable, what it wraps, what that wraps, and so on. The one place that looks for attributes by name."""
    for _ in range(100):  # a proxy that invents attributes would have no end
        yield denoiser
        inner = (getattr(denoiser, link, None) for link in _LINKS)
        denoiser = next((layer for layer in inner if layer is not None), None)
        if denoiser is None:
            return


def known_schedule(denoiser: Denoiser) -> Schedule | None:
    """The outermost schedule that a layer of the denoiser states; None where none does."""
    stated = (getattr(layer, "schedule", None) for layer in layers(denoiser))
    return next((schedule for schedule in stated if isinstance(schedule, Schedule)), None)


def schedule_of(denoiser: Denoiser) -> Schedule:
    """The schedule whose α defines the model's own x; VE, with a ScheduleWarning, where no layer of the denoiser states one."""
    known = known_schedule(denoiser)
    if known is None:
        *_, inner = filter(callable, layers(denoiser))
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
    stated = (getattr(layer, "forwards", None) for layer in layers(denoiser))
    return next((forwards for forwards in stated if isinstance(forwards, int)), 1)


def check_schedule(schedule: object) -> None:
    """Raise InputError for what is no schedule."""
    known = isinstance(schedule, Schedule)
    require(known, "need an object of steindiff.schedules, such as VPLinear()", schedule=schedule)


def sigma_data_of(denoiser: Denoiser) -> float | None:
    """The standard deviation of the data that a layer of the denoiser states (`sigma_data`); None where none does."""
    stated = (getattr(layer, "sigma_data", None) for layer in layers(denoiser))
    return next((float(sigma) for sigma in stated if isinstance(sigma, float) and sigma > 0), None)


def noise_range_of(denoiser: Denoiser) -> tuple[float, float]:
    """The lowest and the highest noise level that a layer of the denoiser states (`noise_range`); 0 and ∞ where none does."""
    stated = (getattr(layer, "noise_range", None) for layer in layers(denoiser))
    low, high = next((ends for ends in stated if isinstance(ends, tuple)), (0.0, float("inf")))
    return float(low), float(high)


def usual_range_of(denoiser: Denoiser) -> tuple[float, float] | None:
    """The last and the first noise level of a run, as a layer of the denoiser states them (`usual_range`), or None."""
    stated = (getattr(layer, "usual_range", None) for layer in layers(denoiser))
    return next(((float(ends[0]), float(ends[1])) for ends in stated if isinstance(ends, tuple)), None)


def tables_of(denoiser: Denoiser) -> tuple[str, ...]:
    """The folders of calibrated tables that a layer of the denoiser states (`tables`); none where none does."""
    stated = (getattr(layer, "tables", None) for layer in layers(denoiser))
    return next((tuple(map(str, folders)) for folders in stated if isinstance(folders, tuple)), ())


def guidance_of(denoiser: Denoiser) -> float:
    """The scale of classifier-free guidance that a layer of the denoiser states (`guidance`); 1 where none does."""
    stated = (getattr(layer, "guidance", None) for layer in layers(denoiser))
    return next((float(scale) for scale in stated if isinstance(scale, float | int)), 1.0)


def is_conditioned(denoiser: Denoiser) -> bool:
    """Whether labels or prompts are bound to it: a layer says so (`conditioned`), or is a `functools.partial` with a tensor."""
    return any(getattr(layer, "conditioned", None) is True or _binds_a_tensor(layer) for layer in layers(denoiser))


def _binds_a_tensor(layer: object) -> bool:
    bound = (*layer.args, *layer.keywords.values()) if isinstance(layer, partial) else ()
    return any(isinstance(value, Tensor) for value in bound)


class Wrapper:
    """A denoiser made of another, whose schedule (None where it is unknown) and cost it passes on."""

    denoiser: Denoiser

    @property
    def schedule(self) -> Schedule | None:
        """That of the wrapped denoiser."""
        return known_schedule(self.denoiser)

    @property
    def forwards(self) -> int:
        """Those of the wrapped denoiser."""
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
