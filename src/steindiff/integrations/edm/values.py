"""The names that the pickle of an EDM network needs, each with a value that holds what the file says and does nothing.

A persistence object, `torch_utils.persistence._reconstruct_persistent_obj(meta)`, becomes a `Record` of its class's name and
its state; the source text in `meta` is dropped unread. A torch module becomes a `Record` too. A tensor becomes a `Stored`,
which is read later and only where it belongs to the network.
"""

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from steindiff.integrations.edm.machine import Global, Stateful
from steindiff.integrations.edm.source import Source, Span, shown

_SCALARS: Final = {"f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q",
                   "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}  # fmt: skip
_MODULE: Final = re.compile(r"torch\.nn\.modules\.[a-z_]{1,40}")
_CLASS: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,80}")
_MOST_AXES: Final = 8
_MOST_VALUES: Final = 64

Arguments = tuple[Any, ...]


@dataclass(eq=False)
class Record(Stateful):
    """An object of the file: the name of its class and, in `state`, its attributes.

    Attributes:
        kind: the class's name, without its module.
        persistent: whether it is of one of the official code's own classes, and not of torch's.
        at: where in the file it is made.
    """

    kind: str
    persistent: bool
    at: int

    @property
    def attributes(self) -> dict[str, Any]:
        """The state, empty where there is none."""
        return self.state if isinstance(self.state, dict) else {}


@dataclass(frozen=True, eq=False)
class Storage:
    """What torch wrote of a tensor's elements, unread."""

    span: Span


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of the file, unread: which elements of a storage it has."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    at: int

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """One past the last element in the storage."""
        return self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True)) + 1


@dataclass(eq=False)
class Numbers(Stateful):
    """A number format of numpy, whose byte order is in `state`, or an array, which stays unread."""

    code: str


def numbers(source: Source, array: Numbers) -> list[float | int] | None:
    """The values of a short array of one axis; None for any other.

    Raises:
        ModelFileError: it has more or fewer bytes than values.
    """
    state = array.state
    if array.code != "array" or not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, form, _, span = state
    short = isinstance(shape, tuple) and len(shape) == 1 and type(shape[0]) is int and 0 < shape[0] <= _MOST_VALUES
    if not short or not isinstance(form, Numbers) or form.code not in _SCALARS or not isinstance(span, Span):
        return None
    return list(_unpacked(source, form, span, shape[0]))


def _unpacked(source: Source, form: Numbers, span: Span, count: int) -> Arguments:
    """So many numbers of a format of numpy from bytes of the file."""
    order = ">" if isinstance(form.state, tuple) and ">" in form.state[1:2] else "<"
    code = f"{order}{count}{_SCALARS[form.code]}"
    source.need(span.length == struct.calcsize(code), f"{count} numbers of numpy's type {form.code} in {span.length} bytes")
    return struct.unpack(code, source.bytes_of(span))


def find(source: Source, module: str, name: str) -> Global | None:
    """What stands for a name; None for one that a network has no need of."""
    full = f"{module}.{name}"
    if _MODULE.fullmatch(module) and _CLASS.fullmatch(name) and name[0].isupper():
        return Global(full, lambda args: _torch_module(source, name, args), is_class=True)
    make, is_class = _KNOWN.get(full, (None, False))
    return None if make is None else Global(full, lambda args: make(source, args), is_class)


def _torch_module(source: Source, name: str, args: Arguments) -> Record:
    source.need(not args, f"torch's module {name} is made of arguments, where a module has a state")
    return Record(name, False, source.at)


def _persistent(source: Source, args: Arguments) -> Record:
    meta = args[0] if len(args) == 1 and isinstance(args[0], dict) else {}
    kind, state, version = (meta.get(key) for key in ("class_name", "state", "version"))
    source.need(meta.get("type") == "class", "a persistence object that is no class")
    source.need(isinstance(kind, str) and bool(_CLASS.fullmatch(kind)), f"a persistence object of class {shown(kind)}")
    source.need(version in _VERSIONS, f"a {kind} of persistence version {_digits(version)}; 1 to 6 are read")
    source.need(isinstance(state, dict | None), f"a {kind} whose state is {shown(state)}, where it is a dictionary")
    record = Record(str(kind), True, source.at)
    record.state = state or {}
    return record


def _digits(value: object) -> str:
    return str(value) if isinstance(value, int) else shown(value)


def _dictionary(source: Source, args: Arguments) -> dict[Any, Any]:
    pairs = args[0] if args else []
    good = len(args) < 2 and isinstance(pairs, list) and all(isinstance(p, tuple | list) and len(p) == 2 for p in pairs)
    source.need(good, "a dictionary of something else than pairs")
    return {source.key(key): value for key, value in pairs}


def _set(source: Source, args: Arguments) -> set[Any]:
    source.need(not args or (len(args) == 1 and isinstance(args[0], list)), "a set of something else than a list")
    return {source.key(item) for item in (args[0] if args else ())}


def _size(source: Source, args: Arguments) -> Arguments:
    source.need(len(args) == 1 and isinstance(args[0], tuple | list), "a shape of something else than numbers")
    return tuple(args[0])


def _stored(source: Source, args: Arguments) -> Stored:
    source.need(6 <= len(args) <= 7 and isinstance(args[0], Storage), "a tensor of something else than a storage")
    storage, offset, shape, stride = args[:4]
    source.need(not any(args[5:]), "a tensor with hooks or metadata")
    numbers = (offset, *shape, *stride) if isinstance(shape, tuple) and isinstance(stride, tuple) else (None,)
    whole = all(type(n) is int and n >= 0 for n in numbers)
    source.need(whole and len(shape) == len(stride) <= _MOST_AXES, "a tensor whose shape, strides and offset do not fit")
    return Stored(storage, offset, shape, stride, source.at)


def _parameter(source: Source, args: Arguments) -> Stored:
    source.need(len(args) == 3 and not args[2], "a parameter that has hooks")
    return source.one(args[0], Stored, "a parameter that is no tensor")


def _storage(source: Source, args: Arguments) -> Storage:
    return Storage(source.one(args[0] if len(args) == 1 else None, Span, "a storage of something else than bytes"))


def _number_format(source: Source, args: Arguments) -> Numbers:
    code = args[0] if args and isinstance(args[0], str) else None
    source.need(code in _SCALARS, f"numbers of numpy's type {shown(code)}")
    return Numbers(str(code))


def _scalar(source: Source, args: Arguments) -> float | int | bool:
    good = len(args) == 2 and isinstance(args[0], Numbers) and args[0].code in _SCALARS and isinstance(args[1], Span)
    source.need(good, "a number of numpy without its format or its bytes")
    value: float | int | bool = _unpacked(source, args[0], args[1], 1)[0]
    return value


def _array(source: Source, args: Arguments) -> Numbers:
    source.need(
        len(args) == 3 and isinstance(args[0], Global) and args[0].name == "numpy.ndarray", "an array of numpy of another class"
    )
    return Numbers("array")


def _no_call(source: Source, args: Arguments) -> None:
    source.refuse("an array of numpy made by its class")


_VERSIONS: Final = tuple(range(1, 7))
_KNOWN: Final[dict[str, tuple[Callable[[Source, Arguments], object], bool]]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": (_persistent, False),
    "dnnlib.util.EasyDict": (_dictionary, True),
    "collections.OrderedDict": (_dictionary, True),
    "builtins.set": (_set, True),
    "torch.Size": (_size, True),
    "torch._utils._rebuild_tensor_v2": (_stored, False),
    "torch._utils._rebuild_parameter": (_parameter, False),
    "torch.storage._load_from_bytes": (_storage, False),
    "numpy.dtype": (_number_format, True),
    "numpy.ndarray": (_no_call, True),
    "numpy.core.multiarray.scalar": (_scalar, False),
    "numpy._core.multiarray.scalar": (_scalar, False),
    "numpy.core.multiarray._reconstruct": (_array, False),
    "numpy._core.multiarray._reconstruct": (_array, False),
}
