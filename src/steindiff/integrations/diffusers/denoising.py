"""A denoiser of a pipeline, or of its network alone: D(x, σ) in VE coordinates, with all that the pipeline binds to it."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from steindiff.denoisers import Denoiser
from steindiff.errors import InputError, require
from steindiff.integrations.diffusers.asking import Asked, Call, joined, marked, rows_of
from steindiff.integrations.diffusers.beside import place_beside
from steindiff.integrations.diffusers.config import Convention, read
from steindiff.integrations.diffusers.decoding import Decoder
from steindiff.integrations.diffusers.guidance import Guidance
from steindiff.integrations.diffusers.recording import record
from steindiff.noise import initial_noise
from steindiff.schedules import DiscreteBetas, Schedule
from steindiff.solvers import Setting

AT_ONCE = 8
"""How many images one recorded step has."""
_PROMPTS = ("prompt", "class_labels", "prompt_embeds")
"""Arguments of a pipeline that say what its images are to be."""
_SCALED_TIMES = {"FluxTransformer2DModel": 1e-3}
"""Networks that multiply the time by a thousand themselves."""


@dataclass(frozen=True, eq=False)
class PipelineDenoiser:
    """D(x, σ) of a pipeline or a network, with its conditions bound; see `denoiser`.

    Attributes:
        asked: F(x, t), guidance included.
        convention: what the scheduler's config says of the network.
        event_shape: of one image as the network sees it: latents, or packed ones.
        dtype: what the network computes in.
        decoder: makes images of latents.
        device: where the network is.
        tables: folders in which its calibrated tables may lie.
        name: the class of the pipeline or the network.
    """

    asked: Asked
    convention: Convention
    event_shape: tuple[int, ...]
    dtype: torch.dtype
    decoder: Decoder = field(default_factory=Decoder)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tables: tuple[str, ...] = ()
    name: str = "network"
    denoiser: Denoiser = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "denoiser", self.convention.denoiser(self.asked, self.dtype))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, σ), x (B, *event), σ () or (B,). Raises InputError for another number of images than prompts."""
        return self.denoiser(x, sigma)

    @property
    def schedule(self) -> Schedule:
        """The network's, whose α defines its own x."""
        return self.convention.schedule

    @property
    def sigma_data(self) -> float:
        """The standard deviation of the data."""
        return self.convention.sigma_data

    @property
    def sigma_max(self) -> float:
        """The highest noise level that the network was trained for."""
        return self.convention.sigma_max

    @property
    def sigma_min(self) -> float:
        """The lowest one."""
        return self.convention.sigma_min

    @property
    def noise_range(self) -> tuple[float, float]:
        """The levels that it may be asked about."""
        return self.sigma_min, math.inf if self.convention.from_noise else self.sigma_max

    @property
    def usual_range(self) -> tuple[float, float]:
        """The levels at which a run ends and begins, unless others are named."""
        return self.sigma_min, self.sigma_max

    @property
    def guidance(self) -> float:
        """The scale of guidance, whether two predictions make it or the network is told it."""
        return self.asked.guidance.scale if self.asked.told is None else self.asked.told

    @property
    def forwards(self) -> int:
        """Network forwards behind a call: 2 where guidance takes two predictions."""
        return self.asked.guidance.branches

    @property
    def conditioned(self) -> bool:
        """Whether prompts, labels or anything else is bound."""
        return any(call.fixed for call in self.asked.calls)

    @property
    def images(self) -> int:
        """How many images there are conditions for; 1 serves any number."""
        return self.asked.images

    @property
    def setting(self) -> Setting:
        """What a solver plans for: these noise levels, σ_data and guidance, and where calibrated tables may lie."""
        return Setting.of(self, event=self.event_shape)

    def of(self, places: Tensor | Sequence[int]) -> "PipelineDenoiser":
        """The denoiser of some of the images, by their places: what `calibrate` takes as `conditioned`."""
        return replace(self, asked=self.asked.of(torch.as_tensor(places)))

    def noise(self, seeds: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """σ_max ε, an image a seed, (B, *event)."""
        return initial_noise(seeds, self.event_shape, self.sigma_max, dtype=dtype, device=self.device)

    def decode(self, x: Tensor, batch: int = AT_ONCE) -> Tensor:
        """Images in [−1, 1], (B, C, H, W), of denoised x: the pipeline's autoencoder, some at once."""
        return self.decoder.images(x, batch)


def denoiser(
    model: Any,
    scheduler: Any = None,
    *,
    sigma_data: float | None = None,
    bounded: bool = True,
    event_shape: Sequence[int] | None = None,
    time_factor: float | None = None,
    **call: Any,
) -> PipelineDenoiser:
    """D(x, σ) in VE coordinates of a pipeline of diffusers, called like this, or of a network alone with these conditions.

    A pipeline runs up to its first step, once, and what it asks its network there is asked again at any x and σ: its prompts,
    added conditions and guidance are bound as it binds them. Several prompts or labels are one an image.

    Args:
        model: a pipeline, or the network of one, such as a UNet2DModel.
        scheduler: the config of a scheduler, or a scheduler; None: the pipeline's own. A network needs one.
        sigma_data: the standard deviation of what the network denoises; None: 1 for latents, else what the config says.
        bounded: whether the config's `clip_sample` and `thresholding` bound D, as they do in diffusers.
        event_shape: the shape of an image for a network alone; None: as its config says.
        time_factor: for a network alone, what multiplies the scheduler's time; None: 1, and 1/1000 for Flux.
        call: what the pipeline is called with, such as prompt, negative_prompt, guidance_scale, class_labels, height; for a
            network, its conditions, such as encoder_hidden_states, with a row for each image or one for all.

    Raises:
        InputError: the pipeline does in its step what we do not know, an argument is not one of its own, or the scheduler's
            config is not understood; the error says what is served.
    """
    if isinstance(model, nn.Module):
        return _of_network(model, scheduler, sigma_data, bounded, event_shape, time_factor, call)
    if not (callable(model) and hasattr(model, "scheduler") and hasattr(model, "components")):
        raise InputError(f"{type(model).__name__} is neither a pipeline of diffusers nor a network (torch.nn.Module)")
    given = {"event_shape": event_shape, "time_factor": time_factor}
    if named := [name for name, value in given.items() if value is not None]:
        raise InputError(f"{' and '.join(named)}: a pipeline says this itself; leave it out, or pass the network alone")
    config, decoder = _config(model.scheduler if scheduler is None else scheduler), Decoder.of(model, call)
    latents = 1.0 if sigma_data is None and decoder.autoencoder is not None and not config.get("sigma_data") else sigma_data
    convention = read(config, bounded=bounded, sigma_data=latents)
    whole = isinstance(convention.schedule, DiscreteBetas)
    parts = [record(model, convention.schedule, whole, portion) for portion in _portions(call)]
    asked, (_, event, dtype) = joined([part[0] for part in parts]), parts[0]
    place, name = place_beside(model), type(model).__name__
    tables = () if place is None else (str(place.parent),)
    return PipelineDenoiser(asked, convention, event, dtype, decoder, asked.calls[0].device, tables, name)


def _config(scheduler: Any) -> Mapping[str, Any]:
    """The config of a scheduler, which may be given for it."""
    config = getattr(scheduler, "config", scheduler)
    if not isinstance(config, Mapping):
        raise InputError(
            f"scheduler is {type(scheduler).__name__}: give the config of a scheduler, or one: pipe.scheduler.config"
        )
    return config


def _portions(call: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The arguments for a few images at a time, where there are many prompts or labels."""
    several = (call.get(name) for name in _PROMPTS)
    n = next((len(value) for value in several if isinstance(value, list | Tensor)), 1)
    if n <= AT_ONCE:
        return [dict(call)]
    mine = {name for name, value in call.items() if isinstance(value, list | Tensor) and len(value) == n}
    starts = range(0, n, AT_ONCE)
    return [{name: value[i : i + AT_ONCE] if name in mine else value for name, value in call.items()} for i in starts]


def _of_network(
    network: nn.Module,
    scheduler: Any,
    sigma_data: float | None,
    bounded: bool,
    event_shape: Sequence[int] | None,
    time_factor: float | None,
    conditions: Mapping[str, Any],
) -> PipelineDenoiser:
    name = type(network).__name__
    require(scheduler is not None, f"{name} alone does not say its schedule: pass its scheduler's config", scheduler=scheduler)
    parameters = inspect.signature(network.forward).parameters
    if "timestep" not in parameters or "return_dict" not in parameters:
        raise InputError(
            f"{name}.forward takes {', '.join(parameters)}: we know networks of diffusers, forward(sample, timestep, …, "
            "return_dict); take steindiff.denoisers.FromEps, FromV, FromX0 or FromFlow for another"
        )
    if unknown := sorted(conditions.keys() - parameters.keys()):
        raise InputError(f"{name}.forward takes no {', '.join(unknown)}: it takes {', '.join(parameters)}")
    convention = read(_config(scheduler), bounded=bounded, sigma_data=sigma_data)
    images = rows_of(conditions)
    factor = time_factor or _SCALED_TIMES.get(name, 1.0)
    call = Call(network, marked(conditions, images), next(iter(parameters)), "timestep", time_factor=factor)
    event = tuple(event_shape) if event_shape is not None else _event(network)
    asked = Asked((call,), Guidance(), images)
    dtype = next(network.parameters()).dtype
    return PipelineDenoiser(asked, convention, event, dtype, device=call.device, name=name)


def _event(network: nn.Module) -> tuple[int, ...]:
    """The shape of an image by the network's config."""
    config = getattr(network, "config", None)
    channels, size = getattr(config, "in_channels", None), getattr(config, "sample_size", None)
    if not isinstance(channels, int) or not isinstance(size, int | tuple | list):
        raise InputError(
            f"the config of {type(network).__name__} does not say the shape of an image: pass event_shape=(C, H, W)"
        )
    return (channels, size, size) if isinstance(size, int) else (channels, *size)
