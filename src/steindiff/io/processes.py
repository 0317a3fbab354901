"""Several processes that work together: shares of a batch, one decision for all, and batch statistics of the whole batch.

Every process works on a block of the images, in order of rank. A batch mean E[·] that decides γ or η is taken over the gathered
per-image numbers, in the order that a single process would have. γ, η and the images therefore agree with a single-process run
up to the rounding of a network that meets another batch size.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from steindiff.errors import InputError, SteindiffError, require

T = TypeVar("T")
# One process may work for long while others wait for it; one that ends is noticed at once, whatever this is.
_PATIENCE = timedelta(days=7)
# All are started at once, but may import for long from a slow disk.
_MEETING = timedelta(minutes=5)
_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def joined(device: str = "cpu") -> Iterator[None]:
    """Join the processes that torchrun or accelerate started, and part from them at the end; one that has joined stays so.

    Numbers on the CPU travel by gloo, those on a CUDA device by NCCL; `device` is where the work is done.

    Raises:
        InputError: the environment says something else than a launcher does; the others do not come; another process has
            ended, and left this one waiting.
    """
    begun = _started_together() and dist.is_available() and not dist.is_initialized()
    if begun:
        # Its functions have the group of the time of its import as a default argument. The first forward derivative imports it
        # (by way of torch._dynamo), and a group that it then holds is not destroyed: its threads run on into the interpreter's
        # end, where now and then one aborts the process ("terminate called without an active exception").
        import_module("torch.distributed.nn.functional")
        _meet("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
        if begun:
            dist.barrier()
    except RuntimeError as error:
        words = ("connection", "peer", "gloo", "nccl", "socket", "timed out")
        # The connection failed, and not the work.
        if begun and (isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)):
            raise InputError(
                f"a process has ended ({str(error).splitlines()[0]}): what is finished is kept; run the same command again"
            ) from error
        raise
    finally:
        if begun:
            dist.destroy_process_group()


def single(what: str) -> None:
    """Raise InputError where a launcher started several processes, for work that is not shared out."""
    several = active() or _started_together()
    count = os.environ.get("WORLD_SIZE", world_size())
    require(not several, f"{what} runs in one process: start it without torchrun or accelerate", processes=count)


def apart() -> bool:
    """Whether a launcher started several processes, which have not joined: each of them does all of the work."""
    return not active() and _started_together()


def _started_together() -> bool:
    """Whether a launcher started several processes. Raises InputError for an environment as no launcher makes it."""
    remedy = "start the processes by torchrun, or unset WORLD_SIZE for a single one"
    said = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_PORT", "MASTER_ADDR")}
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    for name, value in said.items():
        need = f"the environment says several processes, and lacks {name}: {remedy}"
        require(bool(value), need, WORLD_SIZE=said["WORLD_SIZE"])
        whole = name == "MASTER_ADDR" or re.fullmatch("[0-9]{1,9}", value)
        require(bool(whole), f"need a whole number: {remedy}", **{name: value})
    world, own, port, _ = (int(value) if value.isdecimal() else 0 for value in said.values())
    require(own < world, f"ranks are below WORLD_SIZE: {remedy}", RANK=own, WORLD_SIZE=world)
    require(0 < port < 65536, f"need a port, 1 to 65535: {remedy}", MASTER_PORT=port)
    return world > 1


def _meet(backend: str) -> None:
    """Join the group, once all processes are there. Raises InputError where they do not come."""
    try:
        store, rank, world = next(import_module("torch.distributed.rendezvous").rendezvous("env://", timeout=_MEETING))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(
            f"the {os.environ['WORLD_SIZE']} processes did not meet at {place} ({str(error).splitlines()[0]}): start all of "
            "them, by torchrun, or unset WORLD_SIZE for a single one"
        ) from error


def local_device(device: str) -> str:
    """The device of this process: where several work together, "cuda" becomes the one of the local rank."""
    name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and active() else device
    kind, _, number = name.partition(":")
    if kind not in _DEVICES or not re.fullmatch("([0-9]{1,4})?", number):
        raise InputError(
            f"device {name!r} cannot be used: choose one of {', '.join(_DEVICES)}, with a number as in cuda:1 or without"
        )
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).splitlines()[0][:200]}; use cpu") from error
    return name


def part() -> None:
    """Part from the others, whoever joined them: from here on this process works by itself. Every process should say so."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def active() -> bool:
    """Whether this process is one of several that work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process; 0 where it works alone."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """How many processes work together; 1 where this one works by itself."""
    return dist.get_world_size() if active() else 1


def barrier() -> None:
    """Wait until every process is here."""
    if active():
        dist.barrier()


def agreed(found: T | None) -> T | None:
    """One answer for all: the first, in order of rank, that is not None. Every process must ask.

    Example:
        price = agreed(measure() if rank() == 0 else None)      # the first process decides
        failure = agreed(my_failure)                            # one failure is everybody's
    """
    if not active():
        return found
    answers: list[T | None] = [None] * world_size()
    dist.all_gather_object(answers, found)
    return next((answer for answer in answers if answer is not None), None)


def told(found: T) -> T:
    """What the first process says, on every process. All must ask; what the others say is not heard."""
    said = [found]
    if active():
        dist.broadcast_object_list(said, src=0)
    return said[0]


def by_first(act: Callable[[], T]) -> T | None:
    """What the first process does for all, None on the others; a SteindiffError is everybody's. Every process must ask."""
    found, refusal = None, None
    if rank() == 0:
        try:
            found = act()
        except SteindiffError as error:
            refusal = error
    if (refusal := agreed(refusal)) is not None:
        raise refusal
    return found


def dealt(works: Sequence[Callable[[], T]]) -> list[T]:
    """What each of the works gives, in their order. They are dealt out to the processes, and every process gets all of it.

    A work may not ask for the other processes. A SteindiffError of one is everybody's. Every process must ask.
    """
    if not active():
        return [work() for work in works]
    mine, refusal = dict[int, T](), None
    try:
        mine = {i: works[i]() for i in range(rank(), len(works), world_size())}
    except SteindiffError as error:
        refusal = error
    answers: list[tuple[dict[int, T], SteindiffError | None]] = [({}, None)] * world_size()
    dist.all_gather_object(answers, (mine, refusal))
    for _, failure in answers:
        if failure is not None:
            raise failure
    found = {i: one for own, _ in answers for i, one in own.items()}
    return [found[i] for i in range(len(works))]


def leads() -> bool:
    """Whether this process works alone, or is the first of those that a launcher started, also before they have joined."""
    return rank() == 0 if active() else os.environ.get("RANK", "0") == "0"


def share(count: int) -> range:
    """The block of `count` images that is this process's: sizes differ by one at most, and the larger ones come first."""
    whole, rest = divmod(count, world_size())
    start = rank() * whole + min(rank(), rest)
    return range(start, start + whole + (rank() < rest))


class Gather(Protocol):
    """Per-image numbers of this process go in, those of the whole batch come out; images lie along `dim`."""

    def __call__(self, x: Tensor, dim: int = 0) -> Tensor:
        """The numbers, joined along `dim`."""
        ...


def alone(x: Tensor, dim: int = 0) -> Tensor:
    """x itself, where this process has the whole batch."""
    return x


def gather(x: Tensor, dim: int = 0) -> Tensor:
    """x of all processes, detached and joined along `dim`; x itself where this process works by itself.

    x: any shape; only the size along `dim` may differ between processes.
    """
    if not active():
        return x
    local = x.detach().movedim(dim, 0).contiguous()
    sizes = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(local)], device=x.device))
    longest = int(max(sizes))
    padded = local.new_zeros(longest, *local.shape[1:])
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, sizes, strict=True)]).movedim(0, dim)
