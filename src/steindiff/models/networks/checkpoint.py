"""A converted EDM or EDM2 checkpoint becomes a denoiser: `docs/integrations/edm.md` says what its description holds.

Everything in the description is checked before anything is made: the network is first built without memory, counted, and then
given the file's own tensors, by name and shape.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from steindiff.errors import InputError, require
from steindiff.models.networks.adm import ADM, ADMConfig
from steindiff.models.networks.edm2 import EDM2Config, EDM2UNet
from steindiff.models.networks.layout import Shape, known, unfilled
from steindiff.models.networks.precond import EDMPrecond, IDDPMPrecond, Preconditioned, VEPrecond, VPPrecond
from steindiff.models.networks.song import SongConfig, SongUNet

NETWORKS: dict[str, tuple[type[Any], type[Any]]] = {
    "SongUNet": (SongConfig, SongUNet), "DhariwalUNet": (ADMConfig, ADM), "UNet": (EDM2Config, EDM2UNet),
}  # fmt: skip
"""A network's configuration and class, by the class that a checkpoint names."""
PRECONDITIONERS = ("VPPrecond", "VEPrecond", "iDDPMPrecond", "EDMPrecond", "Precond")
_UNUSED = ("logvar_channels", "model_type", "use_fp16", "C_1", "C_2", "epsilon_t", "sigma_min", "sigma_max", "sigma_data")
_SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Description:
    """What the header says of a converted network, checked.

    Args:
        precond: one of `PRECONDITIONERS`.
        precond_kwargs: its arguments.
        network: one of `NETWORKS`.
        config: the network's configuration.
        noise_range: the lowest and the highest noise level; 0 and ∞ where there is no limit.
        sigma_data: the deviation of the data; 0.5, EDM's, where the preconditioner has none.

    Raises:
        InputError: an entry is missing, of another type, unknown, or beyond its limit.
    """

    precond: str
    precond_kwargs: dict[str, Any]
    network: str
    config: Shape
    noise_range: tuple[float, float]
    sigma_data: float

    @classmethod
    def of(cls, info: Mapping[str, Any], event_shape: tuple[int, ...]) -> "Description":
        """From the header's entries."""
        missing = [name for name in ("precond", "network", "kwargs", "label_dim") if name not in info]
        require(not missing, "the description lacks entries", missing=missing)
        known("precond", info["precond"], PRECONDITIONERS)
        known("network", info["network"], tuple(NETWORKS))
        square = len(event_shape) == 3 and event_shape[1] == event_shape[2]
        require(square, "need images (C, R, R)", event_shape=event_shape)
        channels, resolution = event_shape[:2]
        doubled = info["precond"] == "iDDPMPrecond"
        own = {
            "img_resolution": resolution, "in_channels": channels, "out_channels": 2 * channels if doubled else channels,
            "label_dim": info["label_dim"],
        }  # fmt: skip
        config, kwargs = NETWORKS[info["network"]][0], _named("kwargs", info["kwargs"])
        unknown = kwargs.keys() - ({f.name for f in fields(config)} - own.keys())
        require(not unknown, f"{info['network']} has no such arguments here: convert again", kwargs=sorted(unknown))
        low, high = (info.get(name) for name in ("sigma_min", "sigma_max"))
        levels = _number("sigma_min", low, 0.0), _number("sigma_max", high, math.inf)
        precond_kwargs = _named("precond_kwargs", info.get("precond_kwargs", {}))
        precond_kwargs = {name: value for name, value in precond_kwargs.items() if name not in _UNUSED}
        data = _number("sigma_data", info.get("sigma_data"), _SIGMA_DATA)
        return cls(info["precond"], precond_kwargs, info["network"], config(**own, **kwargs), levels, data)

    @property
    def has_null_class(self) -> bool:
        """Whether labels were left out in training."""
        return self.config.label_dim > 0 and float(getattr(self.config, "label_dropout", 0.0)) > 0

    def empty(self) -> nn.Module:
        """The network without numbers. Raises InputError where it would have too many."""
        network: nn.Module = unfilled(lambda: NETWORKS[self.network][1](self.config))
        return network


def build(
    info: Mapping[str, Any], tensors: Mapping[str, Tensor], event_shape: tuple[int, ...], device: Any, dtype: torch.dtype
) -> tuple[Preconditioned, Description]:
    """The denoiser of a converted checkpoint, for evaluation, on a device and in float32 or float64.

    Raises:
        InputError: as `Description`.
        RuntimeError: tensors are missing, left over, or of other shapes than the description says.
    """
    found = Description.of(info, event_shape)
    network, own = found.empty(), dict[str, Tensor]()
    outer = {name: value for name, value in tensors.items() if name.split(".")[0] not in ("model", "unet")}
    for name in tensors.keys() - outer.keys():
        own[name.partition(".")[2]] = tensors[name].to(device, dtype)
    network.load_state_dict(own, assign=True)
    if isinstance(network, EDM2UNet) and _was_half(info, tensors):
        network.round_gains()
    return _preconditioned(found, network, outer, device).eval().requires_grad_(False), found


def _was_half(info: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether the published file holds float16, whatever this one does."""
    source = info.get("source")
    said = source.get("dtype") if isinstance(source, dict) else None
    return said == "float16" if said else tensors["unet.out_gain"].dtype == torch.float16


def _preconditioned(found: Description, network: nn.Module, outer: Mapping[str, Tensor], device: Any) -> Preconditioned:
    """D around the network; `outer` are the tensors that lie outside of it."""
    kwargs = dict(found.precond_kwargs)
    steps = kwargs.pop("M", 1000)
    if found.precond == "iDDPMPrecond":
        require(
            "u" in outer, "an iDDPM checkpoint holds its trained levels as the tensor u: convert it again", has=sorted(outer)
        )
        return IDDPMPrecond(network, found.sigma_data, outer["u"].to(device, torch.float64))
    if found.precond == "VPPrecond":
        return VPPrecond(network, found.sigma_data, found.noise_range, **kwargs, steps=steps)
    made = VEPrecond if found.precond == "VEPrecond" else EDMPrecond
    require(not kwargs, f"{found.precond} has no such arguments: convert again", precond_kwargs=sorted(kwargs))
    return made(network, found.sigma_data, found.noise_range)


def _named(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{name} = {value!r}: need an object of names and values")
    return value


def _number(name: str, value: Any, default: float) -> float:
    """A number of the description; None is the default."""
    if value is None:
        return default
    require(isinstance(value, int | float) and not isinstance(value, bool), "need a number, or null", **{name: value})
    return float(value)
