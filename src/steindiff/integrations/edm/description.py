"""From the records of a pickle to a network's description: its classes, their arguments, its tensors by name.

Every class and every argument is looked up among those of EDM and EDM2. What is not there is refused, so that no setting is
dropped unseen. The description is that of a model file, and is checked as a model file's is.
"""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, Final

from torch import Tensor

from steindiff.errors import ModelFileError, unknown_name
from steindiff.integrations.edm.source import Source, shown
from steindiff.integrations.edm.values import Numbers, Record, Stored, numbers
from steindiff.models.networks import checkpoint

ONLY: Final = "only the networks of EDM and EDM2 are read"
_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,100}")
_SHAPE: Final = ("img_resolution", "img_channels", "label_dim")
_ENTRIES: Final = ("sigma_data", "sigma_min", "sigma_max")  # settings that have an entry of their own
_SETTINGS: Final = {
    "VPPrecond": ("use_fp16", "beta_d", "beta_min", "M", "epsilon_t"),
    "VEPrecond": ("use_fp16",),
    "iDDPMPrecond": ("use_fp16", "C_1", "C_2", "M"),
    "EDMPrecond": ("use_fp16",),
    "Precond": ("use_fp16", "logvar_channels"),
}
"""The other settings of each preconditioner; what else one is made with is its network's."""


@dataclass(frozen=True)
class Description:
    """A network of a file: what goes into the header of a model file, and its tensors, unread, by their names.

    Attributes:
        info: the header's entries.
        tensors: parameters and persistent buffers.
        buffers: which of them are buffers: noise levels, frequencies, filters.
    """

    info: dict[str, Any]
    tensors: dict[str, Stored | Tensor]
    buffers: frozenset[str]


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
    _known("preconditioner", net, _SETTINGS, source)
    place, classes = ("unet", ("UNet",)) if net.kind == "Precond" else ("model", ("SongUNet", "DhariwalUNet"))
    inside = _dictionary(net, "_modules", source).get(place)
    inner = source.one(inside, Record, f"the {net.kind} has no network {place!r} inside")
    _known("network", inner, classes, source)
    info = _info(net, inner, source)
    try:
        checkpoint.Description.of(info, tuple(info["event_shape"]))
    except (ValueError, TypeError) as error:
        source.refuse(f"the {net.kind} of {inner.kind} is none that can be built: {error}")
    return Description({**info, "encoder": _encoder(held.get("encoder"), source)}, *_tensors(net, source))


def _known(what: str, record: Record, known: Collection[str], source: Source) -> None:
    if record.kind not in known or not record.persistent:
        raise ModelFileError(f"{source.path}: {unknown_name(what, record.kind, known)}; {ONLY}")


def _info(net: Record, inner: Record, source: Source) -> dict[str, Any]:
    """The header's entries, as far as they say how the network is made."""
    names = {field.name for field in fields(checkpoint.NETWORKS[inner.kind][0])}
    settings = _SETTINGS[net.kind]
    theirs = _arguments(inner, names | {"img_channels"}, source)
    ours = _arguments(net, names | {*_SHAPE, *_ENTRIES, *settings, "model_type"}, source)
    ours |= {name: _plain(net, name, value, source) for name, value in net.attributes.items() if name in (*_SHAPE, *settings)}
    channels, resolution, classes = ours.get("img_channels"), ours.get("img_resolution"), ours.get("label_dim", 0)
    outputs = channels * 2 if net.kind == "iDDPMPrecond" and isinstance(channels, int) else channels
    shape = {"img_resolution": resolution, "img_channels": channels, "in_channels": channels, "out_channels": outputs,
             "label_dim": classes}  # fmt: skip
    for name, fits in shape.items():
        given = theirs.get(name, fits)
        source.need(given == fits, f"the {inner.kind} has {name}={given!r}, where {fits!r} fits the {net.kind}")
    return {
        "event_shape": [channels, resolution, resolution],
        "precond": net.kind,
        "precond_kwargs": {name: ours[name] for name in settings if name in ours},
        "network": inner.kind,
        "kwargs": {name: value for name, value in theirs.items() if name not in shape},
        "label_dim": classes,
        **{name: _level(net, name, source) for name in _ENTRIES},
    }


def _arguments(record: Record, known: Collection[str], source: Source) -> dict[str, Any]:
    """The arguments that an object was made of, each known and plain."""
    source.need(not record.attributes.get("_init_args", ()), f"the {record.kind} is made of arguments without names")
    given = _dictionary(record, "_init_kwargs", source)
    for name in given:
        if name not in known:
            wrong = name if isinstance(name, str) and _NAME.fullmatch(name) else shown(name)
            raise ModelFileError(f"{source.path}: {unknown_name(f'argument of {record.kind}', wrong, known)}; {ONLY}")
    return {name: value if name in _ENTRIES else _plain(record, name, value, source) for name, value in given.items()}


def _plain(record: Record, name: str, value: Any, source: Source) -> Any:
    """The value, if JSON has it and it is short."""
    entries = value if isinstance(value, list) and len(value) <= 64 else [value]
    good = all(
        v is None or isinstance(v, bool) or _finite(v) or (isinstance(v, str) and bool(_NAME.fullmatch(v))) for v in entries
    )
    source.need(good, f"the {record.kind} has {name}={value if isinstance(value, float) else shown(value)}")
    return value


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**53


def _level(net: Record, name: str, source: Source) -> float | None:
    """A noise level of the preconditioner, as it has it itself; None where there is none, or where it is no limit."""
    value = net.attributes.get(name, _dictionary(net, "_init_kwargs", source).get(name))
    if value is None or value == math.inf or (name == "sigma_min" and value == 0):
        return None
    source.need(
        _finite(value) and value > 0, f"the {net.kind} has {name}={value if isinstance(value, int | float) else shown(value)}"
    )
    return float(value)


def _dictionary(record: Record, name: str, source: Source) -> dict[Any, Any]:
    """An attribute of a record that is a dictionary."""
    source.at = record.at
    return source.one(record.attributes.get(name), dict, f"the {record.kind} has no {name}")


def _encoder(encoder: object, source: Source) -> dict[str, Any] | None:
    """The class and the plain settings of what makes latents; None where the network makes pixels."""
    if not isinstance(encoder, Record) or encoder.kind == "StandardRGBEncoder":
        return None
    settings = {}
    for name, value in list(encoder.attributes.items())[:100]:
        found = numbers(source, value) if isinstance(value, Numbers) else value
        short = isinstance(found, str) and len(found) < 200
        many = isinstance(found, list) and len(found) <= 64 and all(map(_finite, found))
        if _NAME.fullmatch(str(name)) and str(name)[0] != "_" and (found is None or _finite(found) or short or many):
            settings[str(name)] = found
    return {"class": encoder.kind, "settings": settings}


def _tensors(net: Record, source: Source) -> tuple[dict[str, Stored | Tensor], frozenset[str]]:
    """Parameters and persistent buffers of a module tree by their names, in the file's order; and which are buffers."""
    limits = source.limits
    found: dict[str, Stored | Tensor] = {}
    buffers: set[str] = set()
    waiting: list[tuple[tuple[str, ...], Record]] = [((), net)]
    for _ in range(limits.modules):
        if not waiting:
            return found, frozenset(buffers)
        path, module = waiting.pop()
        source.need(len(path) <= limits.depth, f"modules lie within modules more than {limits.depth} deep")
        left_out = module.attributes.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            for name, value in _dictionary(module, kind, source).items():
                if value is not None and not (kind == "_buffers" and name in left_out):
                    full = _path(path, name, source)
                    source.need(isinstance(value, Stored | Tensor), f"{full} is no tensor")
                    found[full] = value
                    buffers |= {full} if kind == "_buffers" else set()
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
