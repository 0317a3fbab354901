"""The best known choice for a network, a number of evaluations and a scale of guidance."""

from dataclasses import dataclass

from steindiff.errors import InputError
from steindiff.solvers.base import USUAL, Setting, Solver
from steindiff.solvers.calibrated import found
from steindiff.solvers.deis import IPNDM
from steindiff.solvers.multistep import DDIM
from steindiff.solvers.universal import OnTables, Universal


def published(nfe: int, guidance: float) -> Solver:
    """The published method where there is no table: iPNDM-4, and under guidance of a scale w what breaks least there.

    That is DDIM for fewer than 3 evaluations, or fewer than w + 3 where w is above 2; and iPNDM-2 for more where w is above 2.
    """
    strong = guidance > 2
    if guidance > 1 and nfe < (guidance + 3 if strong else 3):
        return DDIM()
    return IPNDM(2 if strong else 4)


@dataclass(frozen=True)
class Auto(OnTables):
    """A table calibrated for this network, else the universal one, and a published method where there is none.

    A calibrated table is looked for as `calibrated.found` says, and under guidance the universal table is that of the nearest
    scale. Where there is no table for N, for the noise levels or for the scale of guidance, a run takes what `published` says
    (`docs/universal.md` has the test).
    """

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> tuple[Solver, int]:
        """The choice for this setting, and its steps."""
        return self.choose(nfe, setting)[:2]

    def choose(self, nfe: int, setting: Setting = USUAL) -> tuple[Solver, int, str]:
        """The choice for this setting, its steps, and why it is this one, in words."""
        super().for_nfe(nfe)
        own = found(nfe, setting)
        if own is not None:
            return own, len(own.rows), "a table was calibrated on this network"
        try:
            solver, steps = Universal(self.sigma_data).for_nfe(nfe, setting)
        except InputError as error:
            return published(nfe, setting.guidance), nfe, f"there is no table: {error}"
        return solver, steps, "no table was calibrated on this network, and there is a universal one"
