"""What ComfyUI's KSAMPLER calls: k-diffusion's arguments, and what the model behind them says of itself.

The model of such a call has the guider as its `inner_model`, which has the scale `cfg` and the network; that has
`model_sampling`, whose class says whether levels are a flow's times.
"""

from collections.abc import Callable, Mapping
from typing import Any

import comfy.k_diffusion.sampling
import comfy.model_sampling
import comfy.samplers
from torch import Tensor

from steindiff.integrations import kdiffusion
from steindiff.noise import generators
from steindiff.sampling import Generators


def understood(model: Any) -> dict[str, Any]:
    """The scale of guidance, σ_data, and whether it is a flow: `guidance`, `sigma_data`, `flow` of `kdiffusion.denoiser`."""
    guider = model.inner_model
    levels = guider.inner_model.model_sampling
    return {
        "guidance": float(getattr(guider, "cfg", 1.0)),  # guiders without a scale do not guide by one
        "sigma_data": float(getattr(levels, "sigma_data", 1.0)),  # flows state none, and their latents have about 1
        "flow": isinstance(levels, comfy.model_sampling.CONST),
    }


def sample(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    **options: Any,
) -> Tensor:
    """`kdiffusion.sample_steindiff` with what the model says of itself; `options` are solver, correction and table.

    A correction's probes and a stochastic solver's noise come from the seed of the run. Errors are those of `sample_steindiff`.
    """
    seed = (extra_args or {}).get("seed")
    generator: Generators = generators([seed])[0] if isinstance(seed, int) else None
    about: dict[str, Any] = {**understood(model), "generator": generator, **options}
    return kdiffusion.sample_steindiff(model, x, sigmas, extra_args, callback, disable, **about)


def register() -> None:
    """Put the ready-made samplers into the list of KSampler and of every node that has it."""
    for name, options in kdiffusion.MENU.items():
        setattr(comfy.k_diffusion.sampling, f"sample_{name}", kdiffusion.named(f"sample_{name}", sample, **options))
        if name not in comfy.samplers.KSampler.SAMPLERS:
            comfy.samplers.KSampler.SAMPLERS.append(name)
