"""A stand-in of what ComfyUI documents for nodes and samplers, as far as our nodes use it; every run is in inference mode.

Each fact, and where it is written:
- a folder of custom_nodes is loaded as a module, and counts where it has NODE_CLASS_MAPPINGS
  (docs.comfy.org/custom-nodes/backend/lifecycle);
- a node's INPUT_TYPES, RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE (docs.comfy.org/custom-nodes/backend/server_overview); its
  function gets its inputs by name and returns a tuple;
- a SAMPLER is `comfy.samplers.KSAMPLER(function, extra_options)`, which calls function(model, x, sigmas, extra_args=,
  callback=, disable=, **extra_options); x is already scaled by `model_sampling.noise_scaling`, the callback is wrapped, and
  the mask is in extra_args["denoise_mask"] (comfy/samplers.py, comfy_extras/nodes_custom_sampler.py of Comfy-Org/ComfyUI);
- that model's `inner_model` is the guider, with `cfg` and `inner_model`, the network with `model_sampling`; `CONST` among its
  classes says that it is a flow (comfy/samplers.py, comfy/model_sampling.py);
- the list of KSampler is `comfy.samplers.KSampler.SAMPLERS`, and a name stands for `sample_NAME` of
  `comfy.k_diffusion.sampling` (comfy/samplers.py);
- `folder_paths` has models_dir, add_model_folder_path, get_folder_paths, get_filename_list, get_full_path (folder_paths.py);
- execution is inside `torch.inference_mode()` (execution.py).
"""

import os
import sys
from types import ModuleType, SimpleNamespace

import torch
from torch import nn


class EPS:
    """Levels are σ of x* + σ ε."""

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return noise * ((1 + sigma**2).sqrt() if max_denoise else sigma) + latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class CONST:
    """Levels are t of (1−t) x* + t ε."""

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * noise + (1 - sigma) * latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1 - sigma)


class Discrete(EPS, nn.Module):
    """A range of levels as Stable Diffusion's."""

    sigma_data = 1.0

    def __init__(self):
        super().__init__()
        self.register_buffer("sigmas", torch.tensor([0.03, 14.6]))

    sigma_min, sigma_max = (property(lambda self, i=i: self.sigmas[i]) for i in (0, 1))


class Flow(CONST, nn.Module):
    """A range of times."""

    def __init__(self):
        super().__init__()
        self.register_buffer("sigmas", torch.tensor([0.03, 1.0]))

    sigma_min, sigma_max = (property(lambda self, i=i: self.sigmas[i]) for i in (0, 1))


class Network(nn.Module):
    """The exact denoiser of a law, moved by a prompt's numbers; one weight, so that it has a digest."""

    def __init__(self, law, model_sampling):
        super().__init__()
        self.law, self.model_sampling, self.calls = law, model_sampling, 0
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x, sigma, prompt):
        self.calls += 1
        flat, s = x.flatten(1).double(), sigma.double()
        if isinstance(self.model_sampling, CONST):
            flat, s = flat / (1 - s[:, None]), s / (1 - s)
        prompt = prompt.reshape(-1, flat.shape[1])
        return (self.law(flat - prompt, s) + prompt).to(x.dtype).reshape(x.shape)


class CFGGuider:
    """D_∅ + cfg (D_c − D_∅), in one object with the network and the prompts."""

    def __init__(self, patcher, positive, negative, cfg):
        self.model_patcher, self.cfg, self.inner_model = patcher, cfg, patcher.model
        self.conds = {"positive": positive[0][0], "negative": negative[0][0]}

    def __call__(self, x, sigma, model_options=None, seed=None):
        none, some = (self.inner_model(x, sigma, self.conds[name]) for name in ("negative", "positive"))
        return none + self.cfg * (some - none)


class KSamplerX0Inpaint:
    """The model that a sampler function calls: the guider, and what is known where a mask says so."""

    def __init__(self, guider, sigmas):
        self.inner_model, self.sigmas = guider, sigmas

    def __call__(self, x, sigma, denoise_mask, model_options=None, seed=None):
        if denoise_mask is None:
            return self.inner_model(x, sigma, model_options, seed)
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        known = self.inner_model.inner_model.model_sampling.noise_scaling(s, self.noise, self.latent_image)
        out = self.inner_model(x * denoise_mask + known * (1 - denoise_mask), sigma, model_options, seed)
        return out * denoise_mask + self.latent_image * (1 - denoise_mask)


class KSAMPLER:
    """What a SAMPLER is."""

    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar):
        model, levels = KSamplerX0Inpaint(guider, sigmas), guider.inner_model.model_sampling
        model.latent_image, model.noise = latent_image, noise
        whole = float(sigmas[0]) >= float(levels.sigma_max) * (1 - 1e-5)
        x, n = levels.noise_scaling(sigmas[0], noise, latent_image, whole), len(sigmas) - 1
        k_callback = callback and (lambda d: callback(d["i"], d["denoised"], d["x"], n))
        extra_args = {**extra_args, "denoise_mask": denoise_mask}
        call = {"extra_args": extra_args, "callback": k_callback, "disable": disable_pbar, **self.extra_options}
        return levels.inverse_noise_scaling(sigmas[-1], self.sampler_function(model, x, sigmas, **call))


def sample_custom(
    model, noise, cfg, sampler, sigmas, positive, negative, latent_image, noise_mask=None, callback=None, disable_pbar=False,
    seed=None,
):  # fmt: skip
    """What SamplerCustom calls."""
    guider, extra_args = CFGGuider(model, positive, negative, cfg), {"model_options": {}, "seed": seed}
    with torch.inference_mode():
        return sampler.sample(guider, sigmas, extra_args, callback, noise, latent_image, noise_mask, disable_pbar)


def prepare_noise(latent_image, seed, noise_inds=None):
    """Noise of a seed, as large as the latents."""
    return torch.randn(latent_image.shape, generator=torch.Generator().manual_seed(seed), dtype=latent_image.dtype)


def patcher(law, flow=False):
    """A MODEL, whose weights were made in inference mode."""
    with torch.inference_mode():
        network = Network(law, Flow() if flow else Discrete())
    return SimpleNamespace(model=network, model_options={}, get_model_object=lambda name: getattr(network, name))


def conditioning(numbers):
    """A CONDITIONING: a list of a tensor and its options."""
    return [[torch.tensor(numbers, dtype=torch.float64), {}]]


def _folder_paths(models_dir):
    folders, module = {}, ModuleType("folder_paths")

    def names(key):
        return sorted(name for path in folders[key] if os.path.isdir(path) for name in os.listdir(path))

    def full(key, name):
        return next((p for path in folders[key] if os.path.isfile(p := os.path.join(path, name))), None)

    module.models_dir = str(models_dir)
    module.add_model_folder_path = lambda key, path, is_default=False: folders.setdefault(key, []).append(path)
    module.get_folder_paths, module.get_filename_list, module.get_full_path = (lambda key: folders[key][:]), names, full
    return module


def install(monkeypatch, models_dir):
    """Put the modules where `import comfy` finds them, for one test."""
    modules = {name: ModuleType(name) for name in ("comfy", "comfy.k_diffusion", "comfy.k_diffusion.sampling", "comfy.sample")}
    modules |= {name: ModuleType(name) for name in ("comfy.samplers", "comfy.model_sampling")}
    for name, module in modules.items():
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(modules[parent], own, module)
    samplers, sampling = modules["comfy.samplers"], modules["comfy.k_diffusion.sampling"]
    samplers.KSAMPLER, samplers.KSampler = KSAMPLER, SimpleNamespace(SAMPLERS=["euler"])
    samplers.sampler_object = lambda name: KSAMPLER(getattr(sampling, f"sample_{name}"))
    modules["comfy.model_sampling"].CONST = CONST
    modules["comfy.sample"].sample_custom, modules["comfy.sample"].prepare_noise = sample_custom, prepare_noise
    modules["comfy.sample"].fix_empty_latent_channels = lambda model, latent: latent
    for name, module in {**modules, "folder_paths": _folder_paths(models_dir)}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules["comfy"]
