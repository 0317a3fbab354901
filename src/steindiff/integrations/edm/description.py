"""From the records of a pickle to a network's description: its classes, their arguments, its tensors by name.

Every class and every argument is looked up among those of EDM and EDM2. What is not there is refused, so that no setting is
dropped unseen.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from steindiff.errors import ModelFileError, unknown_name
from steindiff.integrations.edm.source import Source, shown
from steindiff.integrations.edm.values import Numbers, Record, Stored, numbers

ONLY: Final = "only the networks of EDM and EDM2 are read"
_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,100}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31


def _number(value: Any) -> bool:
    return _whole(value) or (isinstance(value, float) and not math.isnan(value))


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _list(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 64 and all(map(_number, value))


def _some(value: Any) -> bool:
    return value is None or _number(value)


_SHAPE: Final = {"img_resolution": _whole, "label_dim": _whole}
_UNET: Final = {"model_channels": _whole, "channel_mult": _list, "channel_mult_emb": _some, "num_blocks": _whole,
                "attn_resolutions": lambda v: v == [] or _list(v), "dropout": _number}  # fmt: skip
_EDM: Final = {
    **_SHAPE,
    "in_channels": _whole,
    "out_channels": _whole,
    **_UNET,
    "augment_dim": _whole,
    "label_dropout": _number,
}
_OUTER: Final = {**_SHAPE, "img_channels": _whole, "use_fp16": _flag, "model_type": _text}
_RANGE: Final = {"sigma_min": _number, "sigma_max": _number}
Kinds = Mapping[str, Callable[[Any], bool]]

NETWORKS: Final[dict[str, Kinds]] = {
    "SongUNet": {**_EDM, "embedding_type": _text, "channel_mult_noise": _number, "encoder_type": _text, "decoder_type": _text,
                 "resample_filter": _list},
    "DhariwalUNet": _EDM,
    "UNet": {**_SHAPE, "img_channels": _whole, **_UNET, "channel_mult_noise": _some, "label_balance": _number,
             "concat_balance": _number, "res_balance": _number, "attn_balance": _number, "clip_act": _some,
             "channels_per_head": _whole, "resample_filter": _list},
}  # fmt: skip
"""The arguments of each network's class and what each may be."""

PRECONDS: Final[dict[str, Kinds]] = {
    "VPPrecond": {**_OUTER, "beta_d": _number, "beta_min": _number, "M": _whole, "epsilon_t": _number},
    "VEPrecond": {**_OUTER, **_RANGE},
    "iDDPMPrecond": {**_OUTER, "C_1": _number, "C_2": _number, "M": _whole},
    "EDMPrecond": {**_OUTER, **_RANGE, "sigma_data": _number},
    "Precond": {**_OUTER, "sigma_data": _number, "logvar_channels": _whole},
}
"""The same of each preconditioner's class; other arguments of one are its network's."""

_INSIDE: Final = {"Precond": ("unet", ("UNet",))}  # where a preconditioner keeps its network, and of which classes it is
_OWN_ENTRY: Final = {"img_resolution", "img_channels", "in_channels", "out_channels", "label_dim", "model_type",
                     "sigma_min", "sigma_max", "sigma_data"}  # fmt: skip


@dataclass(frozen=True)
class Description:
    """A network of a file: what goes into the header of a model file, and its tensors, unread, by their names."""

    info: dict[str, Any]
    tensors: dict[str, Stored | Tensor]


def describe(root: object, source: Source) -> Description:
    """The network under `ema`, or the one that is all of the pickle.

    Raises:
        ModelFileError: no network is there, or a class, an argument or a value is none of EDM's and EDM2's.
    """
    held = root if isinstance(root, dict) else {"ema": root}
    net = held.get("ema")
    if not isinstance(net, Record):
        keys = ", ".join(shown(key) for key in list(held)[:10])
        raise ModelFileError(
            f"{source.path} has no network under 'ema', but {keys or 'nothing'}: give a snapshot of EDM or EDM2"
        )
    source.at, source.remedy = net.at, ONLY
    _known("preconditioner", net, PRECONDS, source)
    place, classes = _INSIDE.get(net.kind, ("model", ("SongUNet", "DhariwalUNet")))
    inside = _dictionary(net, "_modules", source).get(place)
    inner = source.one(inside, Record, f"the {net.kind} has no network {place!r} inside")
    _known("network", inner, {name: NETWORKS[name] for name in classes}, source)
    return Description(_info(net, inner, held.get("encoder"), source), _tensors(net, source))


def _known(what: str, record: Record, known: Mapping[str, object], source: Source) -> None:
    if record.kind not in known or not record.persistent:
        raise ModelFileError(f"{source.path}: {unknown_name(what, record.kind, known)}; {ONLY}")


def _info(net: Record, inner: Record, encoder: object, source: Source) -> dict[str, Any]:
    theirs = _arguments(inner, NETWORKS[inner.kind], source)
    outer = _arguments(net, {**PRECONDS[net.kind], **NETWORKS[inner.kind]}, source)
    kinds = PRECONDS[net.kind]
    settings = {name: value for name, value in {**outer, **net.attributes}.items() if name in kinds}
    settings = {"label_dim": 0, **settings}
    for name, value in settings.items():
        source.need(kinds[name](value), f"the {net.kind} has {name}={_brief(value)}")
    channels, resolution, classes = (settings.get(name, 0) for name in ("img_channels", "img_resolution", "label_dim"))
    sound = 0 < channels <= 64 and 0 < resolution <= 8192 and 0 <= classes <= 10**6
    source.need(sound, f"images of {channels} channels, {resolution} pixels a side and {classes} classes")
    want = {"img_resolution": resolution, "img_channels": channels, "in_channels": channels, "label_dim": classes,
            "out_channels": channels * (2 if net.kind == "iDDPMPrecond" else 1)}  # fmt: skip
    for name, fits in want.items():
        given = theirs.get(name, fits)
        source.need(given == fits, f"the {inner.kind} has {name}={given}, where {fits} fits the {net.kind}")
    return {
        "event_shape": [channels, resolution, resolution],
        "precond": net.kind,
        "precond_kwargs": {name: value for name, value in settings.items() if name not in _OWN_ENTRY},
        "network": inner.kind,
        "kwargs": {name: value for name, value in theirs.items() if name not in _OWN_ENTRY},
        "label_dim": classes,
        "sigma_data": settings.get("sigma_data"),
        "sigma_min": net.attributes.get("sigma_min") or None,
        "sigma_max": _finite(net.attributes.get("sigma_max")),
        "encoder": _encoder(encoder, source),
    }


def _finite(value: Any) -> float | None:
    return float(value) if _number(value) and math.isfinite(value) else None


def _arguments(record: Record, kinds: Kinds, source: Source) -> dict[str, Any]:
    """The arguments that an object was made of, each known and of its type."""
    source.at = record.at
    source.need(not record.attributes.get("_init_args", ()), f"the {record.kind} is made of arguments without names")
    given = _dictionary(record, "_init_kwargs", source)
    for name, value in given.items():
        if name not in kinds:
            raise ModelFileError(f"{source.path}: {unknown_name(f'argument of {record.kind}', shown(name), kinds)}; {ONLY}")
        source.need(kinds[name](value), f"the {record.kind} is made with {name}={_brief(value)}")
    return given


def _brief(value: object) -> str:
    return shown(value) if not isinstance(value, int | float) else f"{value:.6g}"


def _dictionary(record: Record, name: str, source: Source) -> dict[Any, Any]:
    """An attribute of a record that is a dictionary."""
    source.at = record.at
    return source.one(record.attributes.get(name), dict, f"the {record.kind} has no {name}")


def _encoder(encoder: object, source: Source) -> dict[str, Any] | None:
    """The class and the plain settings of what makes latents; None where the network makes pixels."""
    if not isinstance(encoder, Record) or encoder.kind == "StandardRGBEncoder":
        return None
    settings: dict[str, Any] = {}
    for name, value in list(encoder.attributes.items())[:100]:
        if isinstance(value, Numbers):
            settings[name] = numbers(source, value)
        elif value is None or _flag(value) or _number(value) or _list(value) or (isinstance(value, str) and len(value) < 200):
            settings[name] = value
    return {
        "class": encoder.kind,
        "settings": {name: v for name, v in settings.items() if _NAME.fullmatch(name) and name[0] != "_"},
    }


def _tensors(net: Record, source: Source) -> dict[str, Stored | Tensor]:
    """Parameters and persistent buffers of a module tree by their names, depth first and in the file's order."""
    limits = source.limits
    found: dict[str, Stored | Tensor] = {}
    waiting: list[tuple[tuple[str, ...], Record]] = [((), net)]
    for _ in range(limits.modules):
        if not waiting:
            return found
        path, module = waiting.pop()
        source.need(len(path) <= limits.depth, f"modules lie within modules more than {limits.depth} deep")
        left_out = module.attributes.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            for name, value in _dictionary(module, kind, source).items():
                if value is not None and not (kind == "_buffers" and name in left_out):
                    full = _path(path, name, source)
                    source.need(isinstance(value, Stored | Tensor), f"{full} is no tensor")
                    found[full] = value
        source.need(len(found) <= limits.tensors, f"the network has more than {limits.tensors:,} tensors")
        inside = [
            ((*path, name), child) for name, child in _dictionary(module, "_modules", source).items() if child is not None
        ]
        for child_path, child in inside:
            source.need(isinstance(child, Record), f"{_path(child_path[:-1], child_path[-1], source)} is no module")
        waiting += reversed(inside)
    source.refuse(f"the network has more than {limits.modules:,} modules")


def _path(path: tuple[str, ...], name: object, source: Source) -> str:
    source.need(isinstance(name, str) and bool(_NAME.fullmatch(name)), f"a tensor or module has the name {shown(name)}")
    return ".".join((*path, str(name)))
