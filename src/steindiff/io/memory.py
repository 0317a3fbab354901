"""Memory that does not suffice: which errors say so, and how many images a network then sees at once."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from steindiff.errors import InputError

BATCH = 256
"""Images that a network sees at once, where nobody says how many."""
_WORDS = ("out of memory", "not enough memory", "allocate memory", "alloc_failed", "bad_alloc")
"""What the messages say: CUDA's and MPS's, the allocators' of a CPU, those of CUDA's libraries, and C++'s."""
T = TypeVar("T")


def memory_lacks(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice; torch has several such errors, one for each allocator."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
    )


@dataclass
class Room:
    """How many images a network sees at once: half as many after each lack of memory. Who shares one, shares what it learns.

    Attributes:
        most: so many.
        least: the fewest; more than one where images must be seen together.
        remedy: what helps where there may be no fewer.
    """

    most: int = BATCH
    least: int = 1
    remedy: str = "take a smaller batch or network"

    def tried(self, call: Callable[[], T], images: int, device: torch.device) -> T | None:
        """What a call gives that shows the network at most so many images; None where memory lacked, and then `most` is less.

        Raises:
            InputError: memory lacks, and there may be no fewer images. Any other error of the call is its own.
        """
        try:
            return call()
        except Exception as error:
            if not memory_lacks(error):
                raise
            if images <= self.least:
                what = "one image" if images == 1 else f"{images} images, which cannot be divided,"
                said = f"the network has no memory on {device} for {what} at once ({str(error).partition(chr(10))[0]})"
                raise InputError(f"{said}: {self.remedy}") from error
        self.most = max(self.least, -(-images // 2))
        gc.collect()  # outside the handler: the error held what the network had computed
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return None
