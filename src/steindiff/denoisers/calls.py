"""What happens at a call: one wrapper counts the calls, and one keeps their arguments and outputs from being overwritten."""

from torch import Tensor

from steindiff.arguments import check_denoiser
from steindiff.denoisers.base import Denoiser
from steindiff.denoisers.stated import Wrapper
from steindiff.owning import Lender


class Counter(Wrapper):
    """A denoiser that counts its calls: one call is one NFE. It is the only mutable object of a run.

    Example:
        >>> import torch
        >>> counter = Counter(lambda x, sigma: x / (1 + sigma**2))
        >>> _ = counter(torch.zeros(2, 3), torch.tensor(1.0))
        >>> counter.calls
        1
    """

    def __init__(self, denoiser: Denoiser) -> None:
        check_denoiser(denoiser)
        self.denoiser, self.calls = denoiser, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma), counted."""
        self.calls += 1
        return self.denoiser(x, sigma)


class Pure(Wrapper):
    """A denoiser that leaves x and sigma as they are, and whose output nothing overwrites, whatever the network does.

    A run does this for every denoiser. It is for solvers and estimators that are called by hand; and with `copies=True` for a
    network whose writes cannot be noticed. That is one which writes past torch's counters (`.data`, NumPy, a kernel of its own)
    on an accelerator or at a later call than its first, and one of which torch itself reuses the outputs
    (`torch.compile(mode="reduce-overhead")`).

    Args:
        denoiser: D(x, sigma).
        copies: whether to copy x, sigma and the output at every call. False: only where `owning.Lender` notices a need.

    Example:
        >>> import torch
        >>> x = torch.ones(1, 2)
        >>> Pure(lambda x, sigma: x.mul_(0.5))(x, torch.tensor(1.0)), x
        (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))
    """

    def __init__(self, denoiser: Denoiser, copies: bool = False) -> None:
        check_denoiser(denoiser)
        self.denoiser, self._lend = denoiser, Lender(copies)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma). Raises InputError where x has been written into at a later call, and had not at the first."""
        return self._lend(self.denoiser, x, sigma)  # type: ignore[no-any-return]
