"""Every solver by name: `make("dpmpp_2m")`, `make("dpmpp_3m(exact=True)")`."""

from __future__ import annotations

from functools import partial

from steindiff.solvers.base import Solver
from steindiff.solvers.deis import DEIS
from steindiff.solvers.dpmpp import DPMpp2M, DPMpp3M
from steindiff.solvers.ipndm import IPNDM
from steindiff.solvers.multistep import DDIM
from steindiff.solvers.singlestep import DPMpp2S, DPMpp3S, Heun
from steindiff.solvers.unipc import UniPC
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


def names() -> tuple[str, ...]:
    """The solver names that `make` accepts."""
    return SOLVERS.names()


def make(spec: str | Solver) -> Solver:
    """The solver that a spec names, at its published best unless options say otherwise; a solver is returned as it is.

    Raises:
        InputError: an unknown name, with a suggestion; an option that the solver does not take, or its value.
    """
    return SOLVERS.make(spec)
