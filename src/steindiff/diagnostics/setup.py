"""What `steindiff diagnose` runs: presets, and checked options."""

from __future__ import annotations

from dataclasses import dataclass, replace

from steindiff import models, solvers, specs
from steindiff.errors import InputError, unknown_name

FAMILIES = ("ddim", "heun", "dpmpp_2m", "unipc_3", "ipndm_3")
"""The best-known solver of each family that the quick preset runs."""


@dataclass(frozen=True)
class Setup:
    """Everything that determines the numbers of one run.

    Args:
        models: embedded names or model files.
        solvers: names or specs.
        nfe: network evaluations of the runs; the grid is EDM's, σ 80 → 0.002.
        samples: how many trajectories a model gets; None stands for `few`, or half of it (at least 2) beyond 1000 dimensions.
        few: how many they are by default.
        measured: how many steps are measured in runs of more than 10; the rest are only passed through. None measures all.
        directions: how many random directions each step is tried in.
        tol: the relative residual of the Lipschitz constants.
        batch: how many images the runs behind γ and σ̂/σ have.
        trace_nfe: network evaluations of these runs.
        first_seed: the seed of the first image.

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
            if not values or len(set(values)) != len(values):
                raise InputError(f"{what} {list(values)}: need at least one, and none twice")
        if min(self.nfe) < 2 or (self.samples is not None and self.samples < 1) or not 0 < self.tol < 1:
            raise InputError(
                f"nfe={min(self.nfe)}, samples={self.samples}, tol={self.tol}: need nfe ≥ 2, samples ≥ 1, 0 < tol < 1"
            )

    def trajectories(self, dim: int) -> int:
        """How many trajectories of a model of this dimension."""
        return self.samples or (self.few if dim <= 1000 else max(2, self.few // 2))


PRESETS = {
    "quick": Setup(("digits", "cifar10_mixture"), FAMILIES, (5, 6, 8, 10, 20, 100)),
    "full": Setup(
        models.names(), solvers.names(), (5, 6, 8, 10, 15, 20, 50, 100), few=16, measured=None, directions=8, batch=256
    ),
}
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
    base = PRESETS[preset]
    return replace(
        base,
        models=_words(model) or base.models,
        solvers=solvers.names() if all_solvers else tuple(specs.split(solver)) if solver else base.solvers,
        nfe=_whole_numbers(nfe) if nfe else base.nfe,
        samples=samples,
        first_seed=first_seed,
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _whole_numbers(text: str) -> tuple[int, ...]:
    words = _words(text)
    if not words or not all(w.isdecimal() for w in words):
        raise InputError(f"nfe {text!r}: give whole numbers separated by commas, such as 5,6,8,10,20,100")
    return tuple(sorted(int(w) for w in words))
