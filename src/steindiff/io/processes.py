"""One batch of images over several processes: per-image numbers are gathered, so a batch statistic is that of the whole batch.

Every process works on a block of the images, in order of rank. A batch mean E[·] that decides γ or η is taken over the
gathered per-image numbers, in the order a single process would have them; γ, η and the images then agree with a
single-process run up to the rounding of a network that meets another batch size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from steindiff.errors import InputError

__all__ = ["Gather", "active", "alone", "barrier", "gather", "joined", "local_device", "rank", "share", "world_size"]

# One process may work for long while others wait for it; one that ends is noticed at once, whatever this is.
_PATIENCE = timedelta(days=7)


@contextmanager
def joined(device: str = "cpu") -> Iterator[None]:
    """Join the processes that torchrun or accelerate started, where they have not been joined yet; part from them at the end.

    Numbers on the CPU travel by gloo, those on a CUDA device by NCCL. A process that another one's end leaves waiting fails,
    with an InputError that says so.

    Args:
        device: that the work is done on.
    """
    begun = int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_available() and not dist.is_initialized()
    if begun:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=_PATIENCE)
    try:
        yield
        if begun:
            dist.barrier()
    except RuntimeError as error:
        if begun and _lost(error):
            raise InputError(
                f"a process has ended ({str(error).splitlines()[0]}): what is finished is kept; run the same command again"
            ) from error
        raise
    finally:
        if begun:
            dist.destroy_process_group()


def _lost(error: RuntimeError) -> bool:
    """Whether it is of the connection and not of the work."""
    words = ("connection", "peer", "gloo", "nccl", "socket", "timed out")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def local_device(device: str) -> str:
    """This process's own: "cuda" becomes the device of its local rank where several work together.

    Raises:
        InputError: a device that is not there.
    """
    name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and active() else device
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}; use cpu") from error
    return name


def active() -> bool:
    """Whether this process is one of several that work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Which of them; 0 for a process by itself."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """How many there are; 1 for a process by itself."""
    return dist.get_world_size() if active() else 1


def barrier() -> None:
    """Wait until every process is here."""
    if active():
        dist.barrier()


def share(count: int) -> range:
    """This process's block of `count` images: sizes differ by one at most, the larger ones first."""
    whole, rest = divmod(count, world_size())
    start = rank() * whole + min(rank(), rest)
    return range(start, start + whole + (rank() < rest))


class Gather(Protocol):
    """Per-image numbers of this process in, those of the whole batch out; images along `dim`."""

    def __call__(self, x: Tensor, dim: int = 0) -> Tensor:
        """Joined along `dim`."""
        ...


def alone(x: Tensor, dim: int = 0) -> Tensor:
    """x itself: this process has the whole batch."""
    return x


def gather(x: Tensor, dim: int = 0) -> Tensor:
    """x of all processes, joined along `dim`, where sizes may differ; x itself for a process by itself.

    x: any shape with the same other dimensions everywhere; detached.
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
