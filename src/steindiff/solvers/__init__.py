"""Every solver, by name: `make("dpmpp_2m")`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from steindiff.errors import unknown_name
from steindiff.solvers.base import Grid, History, Interval, Solver, State, Step
from steindiff.solvers.budget import for_nfe
from steindiff.solvers.ddim import DDIM
from steindiff.solvers.deis import DEIS
from steindiff.solvers.dpmpp import DPMpp2M, DPMpp2S, DPMpp3M, DPMpp3S
from steindiff.solvers.heun import Heun
from steindiff.solvers.ipndm import IPNDM
from steindiff.solvers.unipc import UniPC

__all__ = [
    "DDIM",
    "DEIS",
    "IPNDM",
    "DPMpp2M",
    "DPMpp2S",
    "DPMpp3M",
    "DPMpp3S",
    "Grid",
    "Heun",
    "History",
    "Interval",
    "Solver",
    "State",
    "Step",
    "UniPC",
    "for_nfe",
    "make",
    "names",
]

_REGISTRY: dict[str, Callable[[], Solver]] = {
    "ddim": DDIM,
    "heun": Heun,
    "dpmpp_2s": DPMpp2S,
    "dpmpp_3s": DPMpp3S,
    "dpmpp_2m": DPMpp2M,
    "dpmpp_3m": DPMpp3M,
    **{f"unipc_{k}": partial(UniPC, order=k) for k in (1, 2, 3)},
    **{f"deis_{k}": partial(DEIS, order=k) for k in (1, 2, 3, 4)},
    **{f"ipndm_{k}": partial(IPNDM, order=k) for k in (1, 2, 3, 4)},
}


def names() -> tuple[str, ...]:
    """The solver names `make` accepts."""
    return tuple(_REGISTRY)


def make(name: str) -> Solver:
    """The named solver at its published best. Raises InputError for an unknown name, with a suggestion."""
    if name not in _REGISTRY:
        raise unknown_name("solver", name, _REGISTRY)
    return _REGISTRY[name]()
