"""k-diffusion's convention: `sample_steindiff(model, x, sigmas, extra_args, callback, disable)`.

A model is `model(x, sigma, **extra_args) -> denoised`, x: (B, *event), sigma: (B,). A run goes from the state x at `sigmas[0]`
to `sigmas[-1]`, which is mostly 0, in len(sigmas) − 1 steps. For a rectified flow (`flow=True`) levels are its times t, and

    x = (1−t) x* + t ε,      y = x/(1−t) = x* + s ε,      s = t/(1−t),

so that solvers, tables and corrections work in y as everywhere else. At t = 1, pure noise, the run starts at s = `PURE` σ_data.

Nothing here imports k-diffusion: its callables are taken as they are.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steindiff import calibration, corrections, grids, solvers
from steindiff.corrections import Correction
from steindiff.denoisers import FromX0, sigma_data_of
from steindiff.divergence import Choice, Hutchinson
from steindiff.errors import InputError, require
from steindiff.identity import network_of
from steindiff.sampling import Event, Generators, steps
from steindiff.schedules import VE, RectifiedFlow, Schedule
from steindiff.solvers import Setting, Solver, Table, Tabulated
from steindiff.solvers.calibrated import Calibrated

Model = Callable[..., Tensor]
"""model(x, sigma, **extra_args) -> denoised; x: (B, *event), sigma: (B,) in the dtype of x."""
Callback = Callable[[dict[str, Any]], object]

PURE = 1000.0
"""Where a flow's run starts that is given pure noise, in units of σ_data: universal tables start there or above."""
NEAR = 1e-3
"""How far, relatively, a table's first level may be from that of a run."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Called:
    """F(x, σ) = model(x, σ, **extra_args), with σ in the dtype of x, as k-diffusion's own loops give it.

    Args:
        model: the model.
        extra_args: its keyword arguments.
        batch: the number of images that `extra_args` are for; the first few of them, which an estimator may ask for, are filled
            up. None asks for what is given.
    """

    model: Model
    extra_args: Mapping[str, Any]
    batch: int | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The denoised images."""
        n, sigma, missing = len(x), sigma.to(x.dtype).contiguous(), (self.batch or len(x)) - len(x)
        if missing <= 0:
            return self.model(x, sigma, **self.extra_args)
        more, level = x[:1].expand(missing, *x.shape[1:]), sigma[:1].expand(missing)
        return self.model(torch.cat([x, more]), torch.cat([sigma, level]), **self.extra_args)[:n]


@dataclass(frozen=True, eq=False)
class KDenoiser(FromX0):
    """The denoiser that a model of k-diffusion is, with what a table must know of it.

    Args:
        sigma_data: the standard deviation of the data's coordinates.
        guidance: the scale of classifier-free guidance inside the model; 1 is none.
        conditioned: whether it is called with arguments of its own: labels, prompts.
    """

    sigma_data: float = 1.0
    guidance: float = 1.0
    conditioned: bool = False


def denoiser(
    model: Model,
    extra_args: Mapping[str, Any] | None = None,
    *,
    guidance: float | None = None,
    sigma_data: float | None = None,
    flow: bool = False,
    dtype: torch.dtype | None = None,
    batch: int | None = None,
) -> KDenoiser:
    """A `Denoiser` of a model of k-diffusion's convention: D(y, s) = model(α y, α s or s, **extra_args).

    Args:
        model: model(x, sigma, **extra_args) -> denoised.
        extra_args: what every call gets.
        guidance: the scale of classifier-free guidance that is a part of the model. None: `cond_scale` of the extra arguments,
            or 1.
        sigma_data: the standard deviation of the data's coordinates. None: what the model or an `inner_model` of it states, or
            1, which fits latents.
        flow: whether x = (1−t) x* + t ε and levels are t, as for SD3 and Flux.
        dtype: what the model takes; None is the state's.
        batch: as for `Called`.

    Raises:
        InputError: guidance or sigma_data is no positive number.
    """
    given = dict(extra_args or {})
    scale = given.get("cond_scale", 1.0) if guidance is None else guidance
    w = float(scale) if isinstance(scale, int | float) else 1.0  # some models take one for each image
    data = sigma_data if sigma_data is not None else sigma_data_of(model) or 1.0
    require(0 < data < float("inf"), "need a positive standard deviation", sigma_data=data)
    require(guidance is None or 0 <= w < float("inf"), "need a scale from 0", guidance=guidance)
    schedule: Schedule = RectifiedFlow() if flow else VE()
    return KDenoiser(Called(model, given, batch), schedule, dtype, data, w, bool(given))


def sample_steindiff(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    solver: Solver | str = "auto",
    correction: Correction | str | None = None,
    table: Table | Tabulated | str | Path | None = None,
    guidance: float | None = None,
    sigma_data: float | None = None,
    flow: bool = False,
    generator: Generators = None,
) -> Tensor:
    """Sample from sigmas[0] to sigmas[-1], (B, *event) in the dtype of x, with k-diffusion's arguments.

    A run costs len(sigmas) − 1 evaluations: one at each given level but the last, or as many at levels of the solver's own.
    "auto", "universal", "calibrated" and a table have levels of their own: they take from `sigmas` the two ends and the count.
    Where "auto" has no table, as for a run that starts at a low level, it runs a published solver on the given levels. Solvers
    of several evaluations a step, such as "heun", run on the given levels too and cost more, as in k-diffusion.

    Args:
        model: model(x, sigma, **extra_args) -> denoised, sigma: (B,).
        x: the noisy state at sigmas[0], (B, *event), of any floating-point dtype; the state is kept in float32 or better.
        sigmas: decreasing noise levels, (n+1,); the last may be 0. Times t ≤ 1 for a flow.
        extra_args: keyword arguments of the model.
        callback: called after each of the len(sigmas) − 1 steps with a dictionary: its index `i`, the state `x` before it, the
            level `sigma` of that, `sigma_hat`, the level that the model was told, and `denoised`, what it answered.
        disable: tqdm's: True hides the bar, None hides it where there is no terminal.
        solver: a solver, or its name or spec.
        correction: a correction, or its name or spec; None and "none" are the plain solver.
        table: a calibrated table, or a file of them, in place of `solver`.
        guidance: as for `denoiser`; it chooses among tables.
        sigma_data: as for `denoiser`; universal tables scale with it.
        flow: as for `denoiser`.
        generator: as for `steindiff.sample`.

    Raises:
        InputError: x or sigmas is malformed, the solver is unknown, or the table is for another number of evaluations, first
            level, network, shape or scale of guidance.
        NonFiniteError: the model's output or the last state is not finite.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        got = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"x is {got}: need a floating-point tensor (B, *event)")
    D = denoiser(model, extra_args, guidance=guidance, sigma_data=sigma_data, flow=flow, dtype=x.dtype, batch=len(x))
    axis = _Axis.of(sigmas, D)
    method, levels = _planned(D, tuple(x.shape[1:]), axis, solver, table)
    run = method if correction is None else corrections.apply(correction, method, divergence=_divergence())
    _LOG.info("%s, from level %g to %g", run, float(levels[0]), float(levels[-1]))
    y, n = axis.to_ve(x), len(sigmas) - 1
    free = len(levels) - 1 - n  # the first steps of a table, which evaluate nothing
    with _bar(n, disable) as tick:
        for event in steps(run, D, y, levels, generator=generator):
            y = event.step.x
            if event.interval.index >= free:
                tick()
                if callback is not None:
                    callback(_told(event, method, axis, event.interval.index - free, x.dtype))
    return axis.to_own(y, levels[-1]).to(x.dtype)


def calibrate(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    *,
    nfe: int | None = None,
    guidance: float | None = None,
    sigma_data: float | None = None,
    flow: bool = False,
    **how: Any,
) -> Table:
    """A table for this model, for runs that start as these states do: `sample_steindiff(..., table=table)`.

    Args:
        model: as for `sample_steindiff`, with the scale of guidance that runs will have.
        x: noisy states at sigmas[0], (n, *event), n ≥ 8: 16 do.
        sigmas: its first and its last positive level are the table's range.
        extra_args: keyword arguments of the model, the same for all states; `conditioned=` gives each its own
            (`steindiff.calibration.calibrations`).
        nfe: the evaluations of a run; None is len(sigmas) − 1.
        guidance: as for `denoiser`.
        sigma_data: as for `denoiser`.
        flow: as for `denoiser`.
        **how: what `steindiff.calibration.calibrations` takes.

    Raises:
        InputError: as `sample_steindiff` and `calibrations`.
    """
    D = denoiser(model, extra_args, guidance=guidance, sigma_data=sigma_data, flow=flow, dtype=x.dtype)
    axis = _Axis.of(sigmas, D)
    levels = [level for level in axis.levels.tolist() if level > 0]
    nfe = len(sigmas) - 1 if nfe is None else nfe
    return calibration.calibrate(D, axis.to_ve(x), nfe, sigma_max=levels[0], sigma_min=levels[-1], **how)


def named(name: str, function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    """The function with some options set, under a name of its own, which some programs look at."""

    @wraps(function)
    def called(*args: Any, **more: Any) -> Tensor:
        return function(*args, **{**options, **more})

    called.__name__ = name
    return called


MENU: Mapping[str, Mapping[str, Any]] = {
    "steindiff": {},
    **{f"steindiff_{solver}": {"solver": solver} for solver in ("universal", "ipndm_4", "unipc_3", "deis_3")},
}
"""What a list of samplers offers: names, and their options of `sample_steindiff`."""
SAMPLERS = {name: named(f"sample_{name}", sample_steindiff, **options) for name, options in MENU.items()}
"""The functions of the menu."""


@dataclass(frozen=True, eq=False)
class _Axis:
    """The levels of a run in VE coordinates, and the way there and back.

    Args:
        levels: σ_0 > … > σ_n ≥ 0 of y, float64.
        flow: whether the caller's x is (1−t) x* + t ε.
        pure: whether the caller's first state is nothing but noise, t = 1.
    """

    levels: Tensor
    flow: bool = False
    pure: bool = False

    @classmethod
    def of(cls, sigmas: Tensor, D: KDenoiser) -> "_Axis":
        """The levels of the caller's sigmas. Raises InputError where they are malformed, or a flow's are above 1."""
        levels = grids.validate(sigmas)
        if not isinstance(D.schedule, RectifiedFlow):
            return cls(levels)
        first, second = levels[:2].tolist()
        require(first <= 1, "the levels of a flow are times t ≤ 1; leave flow=False for any other model", sigma=first)
        pure = first == 1
        ratios = levels / (1 - levels)
        if pure:
            start, after = PURE * D.sigma_data, second / (1 - second)
            ratios[0] = start if after < start / 2 else 10 * after
        return cls(grids.validate(ratios), True, pure)

    def to_ve(self, x: Tensor) -> Tensor:
        """The first state in VE coordinates, in float32 or better."""
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        first = float(self.levels[0])
        return y if not self.flow else first * y if self.pure else (1 + first) * y

    def to_own(self, y: Tensor, level: Tensor) -> Tensor:
        """A state at a level in the caller's coordinates."""
        return y / (1 + level.to(y)) if self.flow else y

    def own_level(self, level: Tensor) -> Tensor:
        """A level as the caller counts it."""
        return level / (1 + level) if self.flow else level


def _planned(
    D: KDenoiser, event: tuple[int, ...], axis: _Axis, solver: Solver | str, table: Table | Tabulated | str | Path | None
) -> tuple[Solver, Tensor]:
    """The method and its levels. Raises InputError where a table does not fit the run."""
    method, levels = solvers.make(solver), axis.levels
    if table is not None:
        require(solver == "auto", "give a solver or a table, and not both", solver=str(method))
        kept = table.solver if isinstance(table, Table) else table
        method = kept if isinstance(kept, Tabulated) else Calibrated(str(kept))
    if not method.plans:
        return method, levels
    top, bottom = float(levels[0]), float(levels[-1])
    setting = Setting(top, bottom, D.sigma_data, D.guidance, network_of(D), event, conditioned=D.conditioned)
    chosen, _ = method.for_nfe(len(levels) - 1, setting)
    own = chosen.own_grid
    if own is None:
        return chosen, levels
    first, last = float(own[0]), float(own[-1])
    need = f"the table starts at {first:g}: start there, or take solver='auto', or calibrate a table for this level"
    require(abs(first - top) <= NEAR * top, need, first_level=top)
    if isinstance(chosen, Tabulated) and abs(last - bottom) > NEAR * bottom:
        chosen = chosen.ended(bottom)
        return chosen, chosen.own_grid
    return chosen, own


def _divergence() -> Hutchinson | None:
    """Finite differences in inference mode, where nothing else works and no probe of the network needs to find it out."""
    known = Choice("fd", {"fd": 0.0}, {"fd": "the only one in inference mode"})
    return Hutchinson(method="fd", choice=known) if torch.is_inference_mode_enabled() else None


def _told(event: Event, method: Solver, axis: _Axis, i: int, dtype: torch.dtype) -> dict[str, Any]:
    """What a callback gets of a step: copies in the caller's coordinates and dtype."""
    interval = event.interval
    q = method.told[interval.index] if isinstance(method, Tabulated) else 1.0
    return {
        "x": axis.to_own(event.x_before, interval.sigma).to(dtype, copy=True),
        "i": i,
        "sigma": axis.own_level(interval.sigma),
        "sigma_hat": axis.own_level(q * interval.sigma),
        "denoised": event.step.denoised.to(dtype, copy=True),
    }


@contextmanager
def _bar(total: int, disable: bool | None) -> Iterator[Callable[[], object]]:
    """tqdm's bar, where there is tqdm; each call is one evaluation."""
    try:
        from tqdm.auto import tqdm
    except ImportError:  # a bar is no reason to fail
        yield lambda: None
        return
    with tqdm(total=total, disable=disable) as bar:
        yield bar.update
