"""What a metric is given: samples as vectors in float64, or an error that says what is wrong with them."""

import torch
from torch import Tensor

from steindiff.errors import InputError, require
from steindiff.grids import check_dense


def checked(samples: Tensor, least: int = 2) -> Tensor:
    """The samples: a dense tensor (n, …) of real numbers, n ≥ `least`. Raises InputError for anything else."""
    if not isinstance(samples, Tensor):
        raise InputError(f"samples are {type(samples).__name__}: need a tensor (n, …); torch.as_tensor makes one of an array")
    check_dense("samples", samples)
    if samples.is_complex():
        raise InputError(f"samples are {samples.dtype}: need real numbers (torch.view_as_real makes them of complex ones)")
    shape = tuple(samples.shape)
    require(len(shape) > 1 and 0 not in shape[1:], "need samples (n, …), of at least one number each", shape=shape)
    require(shape[0] >= least, f"need at least {least} sample{'s'[: least - 1]}", shape=shape)
    return samples.detach()


def vectors(samples: Tensor, least: int = 2, finite: bool = True) -> Tensor:
    """Samples (n, …) as (n, d) float64. Raises InputError as `checked`, and where they must be `finite` for what is not."""
    wide = checked(samples, least).flatten(1).to(torch.float64)
    if finite and not bool(wide.isfinite().all()):
        bad = int((~wide.isfinite()).any(1).sum())
        raise InputError(f"{bad} of {len(wide)} samples hold NaN or infinity: leave out a run that diverged")
    return wide
