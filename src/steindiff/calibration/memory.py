"""How many images a network sees at once: fewer where memory runs out."""

from dataclasses import dataclass

import torch

from steindiff.errors import InputError

BATCH = 256
"""Images that a network sees at once, if memory allows."""
_SIGNS = ("out of memory", "not enough memory", "allocate memory", "alloc_failed")
"""What the messages of memory that runs out say: CUDA's and MPS's, the allocators' of a CPU, and those of CUDA's libraries."""


@dataclass
class Room:
    """How many images a network sees at once; all runs of a calibration share one, so that it fails once only.

    Attributes:
        most: so many; it halves where memory runs out.
        least: the fewest.
    """

    most: int = BATCH
    least: int = 1

    def halve(self, images: int, event: tuple[int, ...], device: torch.device) -> None:
        """After memory has run out with so many images. Raises InputError where there may be no fewer."""
        if images <= self.least:
            what = "one image" if images == 1 else f"{images} images, which cannot be divided,"
            raise InputError(
                f"the network runs out of memory on {device} with {what} of shape {event} at once: calibrate on a device "
                "with more memory, with the network in a narrower type (float16, bfloat16), or on smaller images"
            )
        self.most = max(self.least, images // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def runs_out(error: BaseException) -> bool:
    """Whether this error says that memory has run out."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in said for sign in _SIGNS))
