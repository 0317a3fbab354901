"""The best known choice for a network, a number of evaluations and a scale of guidance."""

from dataclasses import dataclass

from steindiff.errors import InputError
from steindiff.solvers.base import USUAL, Setting, Solver
from steindiff.solvers.calibrated import found
from steindiff.solvers.deis import IPNDM
from steindiff.solvers.multistep import DDIM
from steindiff.solvers.universal import OnTables, Universal


def needed(guidance: float) -> float:
    """The fewest evaluations with which a table holds under guidance: none without it, 3 up to w = 2, and w + 3 above."""
    if guidance <= 1:
        return 0
    return 3 if guidance <= 2 else guidance + 3


@dataclass(frozen=True)
class Auto(OnTables):
    """A table calibrated for this network, else the universal one where its test says that it wins, else a published method.

    A calibrated table is looked for as `calibrated.found` says. The universal table is taken without guidance, and under
    guidance of a scale w where N ≥ `needed(w)`. With fewer evaluations it can break, and a run takes DDIM, which seldom does.
    Where there is no table for N or for the noise levels, a run takes iPNDM-4, or iPNDM-2 under guidance of a scale above 2
    (`docs/universal.md` has the test).
    """

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> tuple[Solver, int]:
        """The choice for this setting, and its steps."""
        super().for_nfe(nfe)
        own = found(nfe, setting)
        if own is not None:
            return own, len(own.rows)
        if nfe < needed(setting.guidance):
            return DDIM(), nfe
        try:
            return Universal(self.sigma_data).for_nfe(nfe, setting)
        except InputError:
            return IPNDM(4 if setting.guidance <= 2 else 2), nfe
