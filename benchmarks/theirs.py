"""The same methods by diffusers' schedulers, over the levels of the run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.by_hand import Loop
from steindiff.denoisers import Denoiser


def loops() -> dict[str, Loop]:
    """By the name of the solver of ours; none where diffusers is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from diffusers import schedulers
    except ImportError:
        return {}
    dpm, single, common = (
        schedulers.DPMSolverMultistepScheduler, schedulers.DPMSolverSinglestepScheduler, {"prediction_type": "sample"},
    )  # fmt: skip
    ends = {**common, "lower_order_final": False, "final_sigmas_type": "sigma_min"}
    makes: dict[str, Callable[[], Any]] = {
        "ddim": lambda: schedulers.DDIMScheduler(**common, clip_sample=False),
        "heun": lambda: schedulers.HeunDiscreteScheduler(**common),
        **{f"dpmpp_{k}m": lambda k=k: dpm(solver_order=k, **ends) for k in (2, 3)},
        "dpmpp_2s": lambda: single(solver_order=2, **common, lower_order_final=False, final_sigmas_type="sigma_min"),
        "dpmpp_3s": lambda: single(solver_order=3, **common, lower_order_final=False, final_sigmas_type="sigma_min"),
        **{f"unipc_{k}": lambda k=k: schedulers.UniPCMultistepScheduler(solver_order=k, **ends) for k in (1, 2, 3)},
        **{f"deis_{k}": lambda k=k: schedulers.DEISMultistepScheduler(solver_order=k, **common) for k in (1, 2, 3)},
        "ipndm_4": schedulers.IPNDMScheduler,
        "pndm": lambda: schedulers.PNDMScheduler(),
    }
    return {name: _loop(make()) for name, make in makes.items()}


def _loop(scheduler: Any) -> Loop:
    """A scheduler's steps, one for each evaluation of ours; what it is told of the levels does not change what it computes."""

    def loop(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
        count = len(sigmas) - 1
        scheduler.set_timesteps(count)
        for t in scheduler.timesteps:
            x = scheduler.step(denoiser(x, t), t, x).prev_sample
        return x

    return loop
