"""What a metric is given: samples as vectors in float64, or an error that says what is wrong with them."""

import torch
from torch import Tensor

from steindiff.arguments import check_samples
from steindiff.errors import InputError


def vectors(samples: Tensor, least: int = 2, finite: bool = True) -> Tensor:
    """Samples (n, …), n ≥ `least`, as (n, d) float64.

    Raises InputError for anything but a dense tensor of real numbers of that shape, and for NaN or infinity where they must be
    `finite`.
    """
    wide = check_samples(samples, least).flatten(1).to(torch.float64)
    if finite and not bool(wide.isfinite().all()):
        bad = int((~wide.isfinite()).any(1).sum())
        raise InputError(f"{bad} of {len(wide)} samples hold NaN or infinity: leave out a run that diverged")
    return wide
