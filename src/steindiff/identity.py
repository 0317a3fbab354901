"""Which network a denoiser is: a digest of its numbers, so that what was made for one network is not used with another.

A digest takes the names, shapes and some values of all parameters, in float32: it is the same on every device, and for a copy
of a network in a wider type. Labels, prompts and the scale of guidance are no part of it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

MOST = 4096
"""Values of a tensor that a digest takes, evenly spaced: networks of different training differ in nearly all of them."""
_DEPTH = 12
_KNOWN: "WeakKeyDictionary[Any, tuple[object, str]]" = WeakKeyDictionary()


def network_of(denoiser: object) -> str | None:
    """The digest of all networks and exact laws behind a denoiser, 16 hex digits; None where none is found.

    It looks into wrappers, `functools.partial`, bound methods, closures, and the globals that a function names.
    """
    digests = [_digest(part, numbers) for part, numbers in _parts(denoiser, set(), _DEPTH)]
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def _parts(thing: object, seen: set[int], depth: int) -> Iterator[tuple[object, Mapping[str, Any]]]:
    """Everything with numbers of its own that a callable uses, each once, in a fixed order."""
    if id(thing) in seen or depth == 0:
        return
    seen.add(id(thing))
    numbers = _numbers(thing)
    if numbers is not None:
        yield thing, numbers
        return
    for inner in _inside(thing):
        if callable(inner) or isinstance(inner, tuple | list):
            yield from _parts(inner, seen, depth - 1)


def _numbers(thing: object) -> Mapping[str, Any] | None:
    """The state of a module, or what tells an exact law from others (its `identity`); None for anything else."""
    if isinstance(thing, nn.Module):
        return thing.state_dict()
    own = getattr(type(thing), "identity", None)
    found = own(thing) if callable(own) else None
    return found if isinstance(found, Mapping) else None


def _inside(thing: object) -> Iterator[object]:
    """What a callable keeps: attributes, bound arguments, closure, and named globals."""
    if isinstance(thing, tuple | list):
        yield from thing
    elif isinstance(thing, type):
        return
    elif isinstance(thing, FunctionType):
        for cell in thing.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # a name that is not yet bound
                continue
        named = (thing.__globals__.get(name) for name in thing.__code__.co_names)
        yield from (value for value in named if _numbers(value) is not None)
    else:
        yield from (getattr(thing, name, None) for name in ("__self__", "func"))
        yield from (*getattr(thing, "args", ()), *getattr(thing, "keywords", {}).values()) if hasattr(thing, "func") else ()
        yield from getattr(thing, "__dict__", {}).values()


def _digest(part: object, numbers: Mapping[str, Any]) -> str:
    """The digest of one part; it is kept until a number of the part changes."""
    tensors = {name.replace("_orig_mod.", ""): value for name, value in numbers.items() if isinstance(value, Tensor)}
    version = tuple(map(_version, tensors.values()))
    keeps = isinstance(part, nn.Module)
    known = _KNOWN.get(part) if keeps else None
    if known is not None and known[0] == version:
        return known[1]
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(_some(value))
    found = digest.hexdigest()[:16]
    if keeps:
        _KNOWN[part] = version, found
    return found


def _version(value: Tensor) -> tuple[int, int]:
    """What changes where a tensor is replaced or written to."""
    try:
        return 0 if value.is_meta else value.data_ptr(), 0 if value.is_inference() else value._version
    except RuntimeError:  # a subclass without storage of its own
        return id(value), 0


def _some(value: Tensor) -> bytes:
    """Evenly spaced values in float32; none of one that is elsewhere (meta: offloaded) or cannot be read."""
    if value.is_meta:
        return b""
    try:
        flat = value.detach().reshape(-1)
        some = flat[:: max(1, -(-flat.numel() // MOST))]
        return some.to("cpu", torch.float32).contiguous().numpy().tobytes()
    except (RuntimeError, TypeError):  # quantised weights in a tensor class of their own
        return b""
