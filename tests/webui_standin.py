"""A stand-in of how A1111's web UI and Forge keep samplers, as far as `integrations.webui` uses it.

Each fact, and where it is written:
- an extension's files in `scripts/` are run at the start (AUTOMATIC1111/stable-diffusion-webui, wiki "Developing extensions");
- `modules.sd_samplers` has the list `all_samplers`, the dictionary `all_samplers_map` by name, and `set_samplers()`, which
  makes of them what the page shows; `create_sampler(name, model)` calls an entry's constructor (modules/sd_samplers.py);
- an entry is `modules.sd_samplers_common.SamplerData(name, constructor, aliases, options)`; options["scheduler"] is the
  schedule of the choice "Automatic" (modules/sd_samplers_common.py, modules/sd_samplers_kdiffusion.py of both);
- `KDiffusionSampler(function, model)` takes a function of k-diffusion's convention, gives it what its signature names, and
  calls func(model_wrap_cfg, x, extra_args=, disable=False, callback=, sigmas=) (modules/sd_samplers_kdiffusion.py of both);
- Forge says of a checkpoint `forge_objects.unet.model.predictor.prediction_type`, "const" for a flow (backend/modules/
  k_prediction.py); A1111 says `is_sd3` (modules/sd_models.py); Forge runs all of it in inference mode (modules/processing.py).
"""

import inspect
import sys
from collections import namedtuple
from types import ModuleType

import torch

SamplerData = namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])


class KDiffusionSampler:
    """Calls a function of k-diffusion's convention as the web UI does."""

    extra_params = ("s_churn", "s_tmin", "s_tmax", "s_noise", "eta", "sigma_min", "sigma_max", "n", "noise_sampler")

    def __init__(self, funcname, sd_model, options=None):
        self.func, self.model_wrap_cfg, self.steps = funcname, sd_model, []
        hash(funcname)  # it is looked up in a dictionary of what samplers take
        assert isinstance(funcname, str) or funcname.__name__.startswith("sample_")

    def sample(self, x, sigmas, cond, uncond, scale):
        named = inspect.signature(self.func).parameters
        given = {"sigmas": sigmas} if "sigmas" in named else {}
        given |= {name: 1.0 for name in self.extra_params if name in named}
        extra_args = {"cond": cond, "image_cond": None, "uncond": uncond, "cond_scale": scale, "s_min_uncond": 0.0}
        with torch.inference_mode():
            return self.func(
                self.model_wrap_cfg,
                x,
                extra_args=extra_args,
                disable=False,
                callback=lambda d: self.steps.append(d["i"]),
                **given,
            )


def install(monkeypatch):
    """Put the modules where `from modules import …` finds them, for one test; returns `sd_samplers`."""
    names = ("modules", "modules.sd_samplers", "modules.sd_samplers_common", "modules.sd_samplers_kdiffusion")
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            setattr(modules["modules"], name.partition(".")[2], module)
    samplers = modules["modules.sd_samplers"]
    euler = SamplerData("Euler", lambda model: KDiffusionSampler("sample_euler", model), ["k_euler"], {})
    samplers.all_samplers, samplers.all_samplers_map, samplers.shown = [euler], {"Euler": euler}, []

    def set_samplers():
        samplers.shown = [entry.name for entry in samplers.all_samplers]

    samplers.set_samplers = set_samplers
    samplers.create_sampler = lambda name, model: samplers.all_samplers_map[name].constructor(model)
    modules["modules.sd_samplers_common"].SamplerData = SamplerData
    modules["modules.sd_samplers_kdiffusion"].KDiffusionSampler = KDiffusionSampler
    return samplers
