"""Every solver by name, at its published best unless options say otherwise: `make("dpmpp_3m(exact=True)")`."""

from functools import partial

from steindiff.solvers.auto import Auto
from steindiff.solvers.base import Solver
from steindiff.solvers.calibrated import Calibrated
from steindiff.solvers.deis import DEIS, IPNDM
from steindiff.solvers.dpm_v3 import of_file
from steindiff.solvers.dpmpp import DPMpp2M, DPMpp3M
from steindiff.solvers.evodiff import EVODiff
from steindiff.solvers.free import Free
from steindiff.solvers.multistep import DDIM
from steindiff.solvers.pndm import PNDM
from steindiff.solvers.restart import of_spec as restarted
from steindiff.solvers.singlestep import DPMpp2S, DPMpp3S, Heun
from steindiff.solvers.table import load
from steindiff.solvers.unipc import UniPC
from steindiff.solvers.universal import Universal
from steindiff.specs import Registry

SOLVERS: Registry[Solver] = Registry(
    "solver",
    Solver,  # type: ignore[type-abstract]  # the registry only asks whether an object is one
    {
        "ddim": DDIM,
        "heun": Heun,
        "dpmpp_2s": DPMpp2S,
        "dpmpp_3s": DPMpp3S,
        "dpmpp_2m": DPMpp2M,
        "dpmpp_3m": DPMpp3M,
        **{f"unipc_{k}": partial(UniPC, k) for k in (1, 2, 3)},
        **{f"deis_{k}": partial(DEIS, k) for k in (1, 2, 3, 4)},
        **{f"ipndm_{k}": partial(IPNDM, k) for k in (1, 2, 3, 4)},
    },
)


def _free(solver: Solver | str = "dpmpp_2m", sigma_data: float | None = None) -> Solver:
    return Free(sigma_data, SOLVERS.make(solver))


PLANS: Registry[Solver] = Registry(
    "solver",
    Solver,  # type: ignore[type-abstract]
    {
        **SOLVERS.entries,
        "auto": Auto,
        "universal": Universal,
        "calibrated": Calibrated,
        "table": load,
        "free": _free,
        "dpm_v3": of_file,
        "pndm": PNDM,
        "restart": partial(restarted, SOLVERS.make),
        "evodiff": EVODiff,
    },
)
"""The same, and those that need more than a grid, have one of their own, cannot spend every budget, or are no ODE solvers."""


def make(spec: Solver | str) -> Solver:
    """The solver that a spec names, such as "dpmpp_2m" or "dpmpp_3m(exact=True)"; a solver is returned as it is.

    Raises:
        InputError: an unknown name (with a suggestion), options that the solver does not take, or neither text nor a solver.
    """
    return PLANS.make(spec)


def names() -> tuple[str, ...]:
    """The names of the plain solvers, which need nothing but a grid."""
    return SOLVERS.names()


def plans() -> tuple[str, ...]:
    """All names that a spec can have."""
    return PLANS.names()
