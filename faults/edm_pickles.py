"""Pickles in the form of NVIDIA's, made without their code by a stand-in of its persistence; opcodes by hand."""

import pickle
import struct
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from torch import Tensor, nn

SOURCE = "raise SystemExit('the source text of a pickle was run')\n"
BUFFERS = ("resample_filter", "freqs", "phases", "u")


def _reconstruct_persistent_obj(meta: object) -> NoReturn:
    raise SystemExit("a persistence object was made")


class EasyDict(dict):
    """A dictionary by another name."""


def _stand_in(module: str, **members: Any) -> ModuleType:
    made = ModuleType(module)
    for name, member in members.items():
        member.__module__, member.__qualname__ = module, name
        setattr(made, name, member)
    return made


MODULES = {
    "torch_utils": ModuleType("torch_utils"),
    "torch_utils.persistence": _stand_in("torch_utils.persistence", _reconstruct_persistent_obj=_reconstruct_persistent_obj),
    "dnnlib": ModuleType("dnnlib"),
    "dnnlib.util": _stand_in("dnnlib.util", EasyDict=EasyDict),
}


class Persistent(nn.Module):
    """A module that is pickled as a persistence object of class `kind`."""

    def __init__(self, kind: str, kwargs: Mapping[str, Any] | None = None, source: str = SOURCE, **attributes: Any) -> None:
        super().__init__()
        self.__dict__.update(attributes, _init_args=(), _init_kwargs=dict(kwargs or {}))
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": kind}

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != "meta"}
        return _reconstruct_persistent_obj, ({**self.meta, "state": state},)


def grown(root: Persistent, tensors: Mapping[str, Tensor]) -> Persistent:
    """The module with these tensors in a tree below it; `enc` and `dec` are torch's own dictionaries of modules."""
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        place: nn.Module = root
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.ModuleDict() if part in ("enc", "dec") else Persistent("Linear"))
            place = place._modules[part]
        if last in BUFFERS:
            place.register_buffer(last, tensor)
        else:
            place.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
    return root


def network(
    tensors: Mapping[str, Tensor],
    precond: str = "EDMPrecond",
    inner: str = "SongUNet",
    *,
    resolution: int = 8,
    channels: int = 3,
    classes: int = 0,
    source: str = SOURCE,
    settings: Mapping[str, Any] | None = None,
    outer: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Persistent:
    """A network as the official code has it: a preconditioner with its network inside, for which `kwargs` are.

    `settings` are attributes of the preconditioner, and `outer` arguments for it alone.
    """
    shape = {"img_resolution": resolution, "img_channels": channels, "label_dim": classes}
    outputs = channels * (2 if precond == "iDDPMPrecond" else 1)
    inner_shape = {"img_resolution": resolution, "in_channels": channels, "out_channels": outputs, "label_dim": classes}
    edm2 = precond == "Precond"
    given = {**shape, **({} if edm2 else {"model_type": inner}), "use_fp16": edm2, **kwargs, **(outer or {})}
    ends = {"EDMPrecond": {"sigma_min": 0, "sigma_max": float("inf"), "sigma_data": 0.5}, "Precond": {"sigma_data": 0.5}}
    net = Persistent(precond, given, source, **{**shape, "use_fp16": edm2, **ends.get(precond, {}), **(settings or {})})
    net.add_module("unet" if edm2 else "model", Persistent(inner, {**(shape if edm2 else inner_shape), **kwargs}, source))
    return grown(net, tensors)


def small(**options: Any) -> Persistent:
    """A network of a few tensors, which are no network's: for what only reads them."""
    make = torch.Generator().manual_seed(0)
    names = {"model.map_layer0.weight": (4, 3), "model.map_layer0.bias": (4,), "model.enc.8x8_conv.weight": (2, 3, 3, 3),
             "model.enc.8x8_down.resample_filter": (1, 1, 2, 2), "model.dec.8x8_aux_conv.bias": (3,)}  # fmt: skip
    return network({name: torch.randn(shape, generator=make) for name, shape in names.items()}, **options)


def dumped(root: Any, protocol: int = 4) -> bytes:
    """The pickle of anything, where the official modules seem to be there."""
    with patch.dict(sys.modules, MODULES):
        return pickle.dumps(root, protocol)


def snapshot(net: Any, protocol: int = 4, **others: Any) -> bytes:
    """A file with a network under `ema`."""
    return dumped({"ema": net, **others}, protocol)


def text(value: str) -> bytes:
    """The opcode that pushes a text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, member: str) -> bytes:
    """The opcodes that push what a module has by a name."""
    return text(module) + text(member) + b"\x93"


def called(module: str, member: str, *arguments: bytes) -> bytes:
    """The opcodes of a call."""
    return name(module, member) + b"(" + b"".join(arguments) + b"tR"


def whole(body: bytes, protocol: int = 4) -> bytes:
    """A pickle of these opcodes."""
    return b"\x80" + bytes([protocol]) + body + b"."
