"""What `steindiff diagnose` runs: presets, and checked options."""

from __future__ import annotations

from dataclasses import dataclass, replace

from steindiff import models, solvers, specs
from steindiff.errors import InputError, require, unknown_name

FAMILIES = ("ddim", "heun", "dpmpp_2m", "unipc_3", "ipndm_3")
"""The best-known solver of each family that the quick preset runs."""


@dataclass(frozen=True)
class Setup:
    """Everything that determines the numbers of one run; the grid is EDM's, σ 80 → 0.002.

    Args:
        models: embedded names or model files.
        solvers: names or specs.
        nfe: network evaluations of the runs.
        samples: how many trajectories a model gets; None stands for `few`, or half of it (at least 2) beyond 1000 dimensions.
        measured: how many steps are measured in runs of more than 10; the rest are only passed through. None measures all.
        directions: how many random directions each step is tried in.
        tol: the relative residual of the Lipschitz constants.
        batch: how many images the runs behind γ and σ̂/σ have; these take `trace_nfe` evaluations.

    Raises:
        InputError: a name is unknown or repeated, or a number is out of range.
    """

    models: tuple[str, ...]
    solvers: tuple[str, ...]
    nfe: tuple[int, ...]
    samples: int | None = None
    few: int = 3
    measured: int | None = 6
    directions: int = 3
    tol: float = 0.01
    batch: int = 32
    trace_nfe: int = 6
    first_seed: int = 0

    def __post_init__(self) -> None:
        for name in self.solvers:
            solvers.make(name)
        for what, values in (("models", self.models), ("solvers", self.solvers), ("nfe", self.nfe)):
            require(bool(values) and len(set(values)) == len(values), "need at least one, and none twice", **{what: values})
        holds = min(self.nfe) >= 2 and (self.samples is None or self.samples >= 1) and 0 < self.tol < 1
        require(holds, "need nfe ≥ 2, samples ≥ 1, 0 < tol < 1", nfe=min(self.nfe), samples=self.samples, tol=self.tol)

    def trajectories(self, dim: int) -> int:
        """How many trajectories of a model of this dimension."""
        return self.samples or (self.few if dim <= 1000 else max(2, self.few // 2))


_FULL = Setup(models.names(), solvers.names(), (5, 6, 8, 10, 15, 20, 50, 100), few=16, measured=None, directions=8, batch=256)
PRESETS = {"quick": Setup(("digits", "cifar10_mixture"), FAMILIES, (5, 6, 8, 10, 20, 100)), "full": _FULL}
"""By name; "full" has every solver at every step, and takes hours."""


def configure(
    preset: str,
    *,
    model: str = "",
    solver: str = "",
    all_solvers: bool = False,
    nfe: str = "",
    samples: int | None = None,
    first_seed: int = 0,
) -> Setup:
    """A preset with what the command line changes of it; lists are comma-separated, empty ones leave the preset's.

    Raises:
        InputError: an unknown preset or solver, NFE that are not whole numbers ≥ 2, or both a solver and all of them.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    if solver and all_solvers:
        raise InputError(f"--solver {solver} and --all: give one of them")
    words = nfe.replace(",", " ").split()
    if nfe and not (words and all(w.isdecimal() for w in words)):
        raise InputError(f"nfe {nfe!r}: give whole numbers separated by commas, such as 5,6,8,10,20,100")
    base = PRESETS[preset]
    return replace(
        base,
        models=tuple(model.replace(",", " ").split()) or base.models,
        solvers=solvers.names() if all_solvers else tuple(specs.split(solver)) if solver else base.solvers,
        nfe=tuple(sorted(map(int, words))) or base.nfe,
        samples=samples,
        first_seed=first_seed,
    )
