"""The fields of diffusers' schedulers that we know, and what each is about; a field of any other name is refused."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steindiff.errors import InputError, require, unknown_name

OF_NETWORK = frozenset((
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "prediction_type", "variance_type", "clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio",
    "sample_max_value", "sigma_min", "sigma_max", "sigma_data", "timestep_type", "use_flow_sigmas", "invert_sigmas",
))  # fmt: skip
"""What the network was trained with, and what its outputs must satisfy."""
OF_STEPS = frozenset((
    "timestep_spacing", "steps_offset", "set_alpha_to_one", "final_sigmas_type", "interpolation_type", "use_karras_sigmas",
    "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "lambda_min_clipped", "sigma_schedule", "rho", "shift",
    "flow_shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
    "shift_terminal", "time_shift_type",
))  # fmt: skip
"""Which levels a scheduler of diffusers takes."""
OF_METHODS = frozenset((
    "skip_prk_steps", "solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final", "predict_x0",
    "disable_corrector", "solver_p", "stochastic_sampling", "noise_sampler_seed", "predictor_order", "corrector_order",
    "tau_func",
))  # fmt: skip
"""How a scheduler of diffusers steps."""
OWN = "_steindiff"
"""Where the config of our scheduler keeps our options; diffusers passes over names that begin so."""
KNOWN = OF_NETWORK | OF_STEPS | OF_METHODS

_SERVED = (
    "DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE",
    "UniPCMultistep", "DEISMultistep", "SASolver", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete",
    "KDPM2Discrete", "KDPM2AncestralDiscrete", "EDMEuler", "EDMDPMSolverMultistep", "FlowMatchEulerDiscrete",
    "FlowMatchHeunDiscrete", "Steindiff",
)  # fmt: skip
SERVED = frozenset(f"{name}Scheduler" for name in _SERVED)
"""Schedulers whose configs say how the network was trained in terms that we know."""


@dataclass(frozen=True)
class Fields:
    """A config's values, with an error that names the field where a value is not what it must be."""

    values: Mapping[str, Any]

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self.values[name] if name in self else default
        is_one = isinstance(value, int | float) and not isinstance(value, bool)
        require(is_one and math.isfinite(value), "need a finite number", **{name: value})
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or False."""
        value = self.values[name] if name in self else default
        require(isinstance(value, bool), "need true or false", **{name: value})
        return bool(value)

    def word(self, name: str, default: str, known: tuple[str, ...]) -> str:
        """One of some words."""
        value = self.values[name] if name in self else default
        if value not in known:
            raise unknown_name(name, value, known)
        return str(value)


def checked(config: Mapping[str, Any], ignore: frozenset[str] = frozenset()) -> Fields:
    """The values of a config. Raises InputError for a class of schedulers that we do not serve, or an unknown field."""
    if not isinstance(config, Mapping):
        raise InputError(f"the config is {type(config).__name__}: give pipe.scheduler.config, a mapping")
    name = config.get("_class_name", "SteindiffScheduler")
    if name not in SERVED:
        raise unknown_name("scheduler", name, SERVED)
    own = {key: value for key, value in config.items() if not key.startswith("_") and key not in ignore}
    strange = sorted(own.keys() - KNOWN)
    if strange:
        shown = ", ".join(f"{key}={own[key]!r}" for key in strange)
        raise InputError(
            f"the scheduler's config has {shown}, which we do not know: what it means for the network is not clear; if it "
            f"means nothing, pass ignore={tuple(strange)}"
        )
    return Fields(own)
