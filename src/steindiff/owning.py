"""Calls of functions that are not pure, as if they were: what one is given stays as it is, what it returns is the caller's.

A network may write into its input. It may return the same buffer at every call (a captured CUDA graph, TensorRT), its input, or
a view of one of these, which the next call then overwrites. Both are noticed without a pass over the data:

- The first call of each shape gets copies, which are compared afterwards. One that has been written into means copies for every
  call. Otherwise later calls get the tensors themselves, and torch's counters of writes are compared.
- An output is copied unless the reference counts say that its memory is held by nobody else, and torch itself has allocated it.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from itertools import count
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from steindiff.errors import InputError

Given = tuple[Tensor, ...]
Writes = list[int] | None
Holders = tuple[int, ...]
_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers by their bytes, as which floats are compared bit by bit."""
_version = attrgetter("_version")
_unknown = count()
"""Reference counts where this version of torch tells none: no two are equal, so that outputs are always copied."""
_of_storage = getattr(torch._C, "_storage_Use_Count", lambda pointer: next(_unknown))
_of_tensor = getattr(Tensor, "_use_count", lambda tensor: next(_unknown))


class Lender:
    """Calls functions of tensors; it remembers for each shape of the first argument whether they write into what they get.

    A write is seen by torch's counter, which counts that of every operation of torch, also through a view. The first call is
    compared by value too, on the CPU: that sees a write through `.data`, NumPy or a kernel of one's own.

    Args:
        copies: whether to give copies always, and return one. It is for what no counter sees: a function that writes past them
            at some later call, or on an accelerator, and one whose outputs torch itself will reuse
            (`torch.compile(mode="reduce-overhead")`).
    """

    def __init__(self, copies: bool = False) -> None:
        self.copies = copies
        self._writes: dict[torch.Size, bool] = {}

    def __call__(self, function: Callable[..., Any], *given: Tensor) -> Any:
        """What the function returns for these arguments; a tensor is the caller's own.

        Raises:
            InputError: the function has written into an argument at a later call, and did not at the first of this shape.
        """
        if torch.compiler.is_compiling():  # a compiler drops the copies that nothing needs
            out, private = function(*_copied(given)), False
        else:
            lent = self.lend(given)
            before = writes(lent)
            out, holders = _called(function, lent)
            self.settle(given, lent, before)
            private = holders in _NOBODY and not self.copies
        return out if private or not isinstance(out, Tensor) else out.clone()

    def lend(self, given: Given) -> Given:
        """The arguments of the next call: the tensors themselves, or copies.

        They are copies wherever gradients are taken: autograd then adds the same terms in the same order, whatever is known.
        """
        copies = self.copies or given[0].requires_grad or self._writes.get(given[0].shape, True)
        return _copied(given) if copies else given

    def settle(self, given: Given, lent: Given, before: Writes) -> None:
        """Learn from a call what it does to its arguments, from the counters before it.

        Raises:
            InputError: it has changed the tensors themselves.
        """
        written = writes(lent) != before
        if lent is given:
            if written:
                raise InputError(
                    f"the denoiser wrote into what it was given, {tuple(given[0].shape)}, and did not at its first call: the "
                    "state is lost; give it copies, steindiff.denoisers.Pure(denoiser, copies=True)"
                )
        elif given[0].shape not in self._writes:
            unseen = before is None and not given[0].is_cpu  # neither counters nor values: copies for every call
            same = None if written or unseen else _same(given, lent)
            if same is not None or written:
                self._writes[given[0].shape] = not same


def _copied(given: Given) -> Given:
    return tuple(z.clone() for z in given)


def writes(given: Given) -> Writes:
    """Torch's counters of writes; None for tensors of inference mode, which have none."""
    try:
        return list(map(_version, given))
    except RuntimeError:
        return None


def _called(function: Callable[..., Any], given: Given) -> tuple[Any, Holders]:
    """What the function returns, and how many hold it, its memory, and the tensor that it is a view of.

    The counts are empty where they cannot be said, as of memory that torch itself has not allocated.
    """
    out = function(*given)
    if type(out) is not Tensor:
        return out, ()
    try:
        storage, base = out.untyped_storage(), out._base
    except NotImplementedError:  # a transformed, a sparse or another tensor without memory of its own
        return out, ()
    if not storage.resizable():
        return out, ()
    own = sys.getrefcount(out), _of_tensor(out), _of_storage(storage._cdata)
    return out, own if base is None else (*own, _of_tensor(base), sys.getrefcount(base))


_NOBODY = tuple(_called(function, ())[1] for function in (lambda: torch.empty(1), lambda: torch.empty(2)[:1]))
"""The holders of a new tensor, and of a view of a new one, of which nobody else knows."""


def _same(given: Given, lent: Given) -> bool | None:
    """Whether the values are still equal; None where this cannot be said without a derivative, or waiting for a device."""
    if torch._C._functorch.peek_interpreter_stack() is not None or any(map(_differentiated, given)):
        return None
    return all(not a.is_cpu or _equal(a, b) for a, b in zip(given, lent, strict=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two dense tensors of one shape on the CPU hold the same bits.

    C's comparison of memory is one pass over it, and a third of NumPy's time, which is a fraction of that of torch.equal.
    """
    if _memcmp is not None and a.is_contiguous() and b.is_contiguous():
        return _memcmp(a.data_ptr(), b.data_ptr(), a.nbytes) == 0
    whole = _WHOLE[a.element_size()]
    return bool((a.view(whole).numpy() == b.view(whole).numpy()).all())


def _memory_comparison() -> Callable[[int, int, int], int] | None:
    """The C library's memcmp; None where there is none to be found."""
    try:
        found = ctypes.CDLL(None if os.name == "posix" else "msvcrt").memcmp
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_int
    return found


_memcmp = _memory_comparison()


def _differentiated(z: Tensor) -> bool:
    return z.requires_grad or forward_ad.unpack_dual(z).tangent is not None
