"""What a scheduler's config says of a network: its schedule, what it predicts, the times it is told, its range of noise.

`read(pipe.scheduler.config)` understands the configs of DDIM, DDPM, PNDM, DPM-Solver++, UniPC, DEIS, Euler, Heun, LMS, EDM and
flow matching. What a config says of a solver is no part of it, since the solver is ours.

The range in VE coordinates, s = σ/α, is that of the trained times: indices 0 to N−1 of β, and t = 1/N to 1 for a flow. At t = 1
a flow is pure noise, s = ∞, and so is the last index of β rescaled to a signal of zero. There a finite level is taken:
FIRST_OF_FLOW and `betas.LEAST_ALPHA_BAR`. Above it the denoised value is the data's mean, to about 1/s of their deviation.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser, FromEDM, FromEps, FromFlow, FromV, FromX0, Network
from steindiff.errors import InputError, require
from steindiff.integrations.diffusers import betas
from steindiff.integrations.diffusers.bounds import Bound, Bounded, Clip, Threshold
from steindiff.integrations.diffusers.fields import OWN, Fields, checked
from steindiff.schedules import DiscreteBetas, LogNoise, RectifiedFlow, Schedule

Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
LEARNED, FIXED = ("learned", "learned_range"), ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
FIRST_OF_FLOW = 1000.0
"""The first VE level of a flow, t = 1000/1001: the least from which the universal tables serve one."""
PIXELS, LATENTS = 0.5, 1.0
"""σ_data where a config does not say it: of images in [−1, 1], which a config that clips has, and of latents, scaled to one."""


@dataclass(frozen=True)
class Convention:
    """How a network is asked, and what its answers mean.

    Attributes:
        schedule: α and σ, and the network's time: an index of β, T t of a flow, log(s)/4 of EDM's networks.
        prediction: what the network's output is.
        sigma_max: the first VE level.
        sigma_min: the last VE level, above 0.
        from_noise: whether the trained range begins at pure noise, so that sigma_max is a finite level below it.
        bound: what is done to every denoised value; None is nothing.
        variance: whether the output has a second half of channels, a variance, which is not used; None: not said.
        sigma_data: the standard deviation of the data, as far as the config says it.
    """

    schedule: Schedule
    prediction: Prediction
    sigma_max: float
    sigma_min: float
    from_noise: bool = False
    bound: Bound | None = None
    variance: bool | None = None
    sigma_data: float = LATENTS

    def denoiser(self, network: Network, dtype: torch.dtype | None = None) -> Denoiser:
        """D(y, σ) in VE coordinates from F(x, t), guidance included: its prediction as x0-hat, then the bound.

        Args:
            network: F(x, t) with x = α y, t (B,) in the schedule's time; its output may have a variance in a second half of
                its channels.
            dtype: what the network computes in; None is the state's.
        """
        denoiser = self._adapter(partial(self._mean, network), self.schedule, dtype)
        return denoiser if self.bound is None else Bounded(denoiser, self.bound)

    @property
    def _adapter(self) -> Any:
        if isinstance(self.schedule, LogNoise):
            return partial(FromEDM, sign=-1.0 if self.prediction == "v_prediction" else 1.0)
        return {"epsilon": FromEps, "v_prediction": FromV, "sample": FromX0, "flow_prediction": FromFlow}[self.prediction]

    def _mean(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        """The prediction without the variance. Raises InputError for channels that are neither those of x nor twice as many."""
        output, channels = network(x, t), x.shape[1]
        if output.shape == x.shape:
            return output
        double = output.shape[1] == 2 * channels and output.shape[2:] == x.shape[2:]
        if not double or self.variance is False:
            need = "set variance_type='learned_range' in the scheduler's config" if double else "they must agree"
            raise InputError(f"the network returned {tuple(output.shape)} for {tuple(x.shape)}: {need}")
        return output[:, :channels]


def read(
    config: Mapping[str, Any], *, bounded: bool = True, sigma_data: float | None = None, ignore: Collection[str] = ()
) -> Convention:
    """What the config of a scheduler of diffusers says of the network.

    Args:
        config: `pipe.scheduler.config`, or the content of `scheduler_config.json`. That of our own scheduler says the rest too,
            where it is not given here.
        bounded: whether `clip_sample` and `thresholding` are honoured.
        sigma_data: the standard deviation of the data; None takes EDM's own, 0.5 for a config that clips or thresholds, and 1
            for any other.
        ignore: fields that mean nothing for the network.

    Raises:
        InputError: a field is unknown, has a value that it cannot have, or contradicts another; the error names it.
    """
    own = config.get(OWN) or {} if isinstance(config, Mapping) else {}
    bounded, sigma_data = bounded and own.get("bounded", True), own.get("sigma_data") if sigma_data is None else sigma_data
    fields = checked(config, frozenset((*ignore, *own.get("ignore", ()))))
    schedule, prediction, top, bottom, from_noise = _trained(fields)
    bound, said = _bound(fields), fields.values.get("variance_type")
    require(said is None or said in (*LEARNED, *FIXED), f"choose {' or '.join((*LEARNED, *FIXED))}", variance_type=said)
    data = fields.number("sigma_data", PIXELS if bound else LATENTS) if sigma_data is None else sigma_data
    require(0 < data < float("inf"), "need a positive standard deviation", sigma_data=data)
    require(0 < bottom < top < float("inf"), "need 0 < sigma_min < sigma_max < inf", sigma_min=bottom, sigma_max=top)
    variance = None if said is None else said in LEARNED
    return Convention(schedule, prediction, top, bottom, from_noise, bound if bounded else None, variance, data)


_Trained = tuple[Schedule, Prediction, float, float, bool]


def _trained(fields: Fields) -> _Trained:
    """The schedule, the prediction and the range, by the family that the fields belong to."""
    has_betas = any(name in fields for name in ("beta_schedule", "trained_betas"))
    has_shift = "shift" in fields
    if has_betas and has_shift and not fields.flag("use_flow_sigmas"):
        raise InputError(
            f"shift={fields.values['shift']!r} is of a flow and beta_schedule={fields.values.get('beta_schedule')!r} is not: "
            "set use_flow_sigmas=True with prediction_type='flow_prediction' for a flow, or leave shift out"
        )
    if fields.flag("use_flow_sigmas") or (has_shift and not has_betas):
        return _flow(fields, "epsilon" if has_betas else "flow_prediction")
    if has_betas:
        return _betas(fields)
    if "sigma_data" in fields:
        return _edm(fields)
    raise InputError(
        f"the config has fields {', '.join(sorted(fields.values)) or 'none'}: need beta_schedule or trained_betas (diffusion), "
        "shift (flow matching), or sigma_data (EDM) to know the noise schedule; pass the whole of pipe.scheduler.config"
    )


def _prediction(fields: Fields, default: Prediction, *others: str) -> Any:
    return fields.word("prediction_type", default, tuple(name for name in get_args(Prediction) if name not in others))


def _betas(fields: Fields) -> _Trained:
    if fields.values.get("prediction_type") == "flow_prediction":
        raise InputError("prediction_type='flow_prediction' without use_flow_sigmas: set use_flow_sigmas=True for a flow")
    prediction = _prediction(fields, "epsilon", "flow_prediction")
    n, zero_snr = _times(fields), fields.flag("rescale_betas_zero_snr")
    if "trained_betas" in fields:
        trained = torch.as_tensor(fields.values["trained_betas"], dtype=torch.float64)
        fits = trained.ndim == 1 and len(trained) == n
        require(fits, f"trained_betas has shape {tuple(trained.shape)}: need as many numbers", num_train_timesteps=n)
        discrete = betas.of(trained, zero_snr=zero_snr)
    else:
        start, end = fields.number("beta_start", 1e-4), fields.number("beta_end", 0.02)
        discrete = betas.discrete(str(fields.values["beta_schedule"]), n, start, end, zero_snr=zero_snr)
    bottom, top = discrete.ratio(torch.tensor([0.0, n - 1.0], dtype=torch.float64)).tolist()
    top, bottom = fields.number("sigma_max", top), fields.number("sigma_min", bottom)
    if fields.word("timestep_type", "discrete", ("discrete", "continuous")) == "continuous" and prediction == "v_prediction":
        return LogNoise(1.0), prediction, top, bottom, False
    _check_within(discrete, top, bottom)
    return discrete, prediction, top, bottom, zero_snr


def _check_within(discrete: DiscreteBetas, top: float, bottom: float) -> None:
    """Raise InputError for a range beyond the trained indices, where every level would be told as the last one."""
    low, high = discrete.ratio(torch.tensor([0.0, len(discrete.betas) - 1.0], dtype=torch.float64)).tolist()
    within = low * (1 - 1e-3) <= bottom and top <= high * (1 + 1e-3)
    require(within, f"need levels between {low:.4g} and {high:.4g}, those of the betas", sigma_min=bottom, sigma_max=top)


def _flow(fields: Fields, default: Prediction) -> _Trained:
    require(not fields.flag("invert_sigmas"), "a flow from data at 1 to noise at 0 is not served", invert_sigmas=True)
    n = _times(fields)
    last, first = fields.number("sigma_min", 1 / n), fields.number("sigma_max", 1.0)
    require(0 < last < first <= 1, "a flow's levels are times in (0, 1]", sigma_min=last, sigma_max=first)
    top = min(first / (1 - first), FIRST_OF_FLOW) if first < 1 else FIRST_OF_FLOW
    return RectifiedFlow(float(n)), _prediction(fields, default), top, last / (1 - last), first == 1


def _edm(fields: Fields) -> _Trained:
    if "solver_order" in fields and "algorithm_type" not in fields:
        raise InputError(
            f"solver_order={fields.values['solver_order']!r} without algorithm_type is of a CosineDPMSolverMultistepScheduler, "
            "whose times are others: we serve EDMEulerScheduler and EDMDPMSolverMultistepScheduler"
        )
    schedule = LogNoise(fields.number("sigma_data", 0.5))
    prediction = _prediction(fields, "epsilon", "flow_prediction", "sample")
    return schedule, prediction, fields.number("sigma_max", 80.0), fields.number("sigma_min", 0.002), False


def _times(fields: Fields) -> int:
    n = fields.number("num_train_timesteps", 1000)
    require(n == int(n) and n >= 2, "need a whole number of trained times, from 2", num_train_timesteps=n)
    return int(n)


def _bound(fields: Fields) -> Bound | None:
    """Dynamic thresholding before clipping, as diffusers has them."""
    if fields.flag("thresholding"):
        return Threshold(fields.number("dynamic_thresholding_ratio", 0.995), fields.number("sample_max_value", 1.0))
    return Clip(fields.number("clip_sample_range", 1.0)) if fields.flag("clip_sample") else None
