"""Solvers that become a method once the number of evaluations is known."""

from dataclasses import dataclass

from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import InputError
from steindiff.solvers.base import Interval, Solver, State, Step


@dataclass(frozen=True)
class Planned(Solver):
    """What has a method and a grid for each number of evaluations; it runs on no grid itself."""

    order = 1
    plans = True

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: State) -> Step:
        """Refused."""
        raise self._refusal()

    def nfe(self, sigmas: Tensor) -> int:
        """Refused, as a step is."""
        raise self._refusal()

    def _refusal(self) -> InputError:
        name = type(self).__name__.lower()
        return InputError(f"the solver {name!r} has a grid for each number of evaluations: give nfe=, and no grid of your own")
