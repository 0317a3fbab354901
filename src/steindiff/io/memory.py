"""Memory that does not suffice: which errors say so."""

import torch

_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")


def memory_lacks(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice; torch has several such errors, one for each allocator."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
