"""Group norms that torch can differentiate forward, and backward for several probes at once.

It has both for tensors that lie plainly, row by row, and neither where the channels of a pixel lie side by side
(`torch.channels_last`), as convolutions leave them whose kernels do.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class PlainNorms(TorchFunctionMode):
    """Within it every group norm is one of a tensor that lies plainly; the values stay the same."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function, of its arguments."""
        if function in (F.group_norm, torch.group_norm):
            args = (args[0].contiguous(), *args[1:])
        return function(*args, **(kwargs or {}))


def pushed(x: Tensor) -> bool:
    """Whether x carries a tangent: a forward derivative is being taken. Never while a graph is compiled."""
    return not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None
