"""What `steindiff diagnose` runs: presets, and checked options."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from steindiff import corrections, models, solvers
from steindiff.errors import InputError, at_least, require, unknown_name
from steindiff.grids import MOST_STEPS

FAMILIES = ("ddim", "heun", "dpmpp_2m", "unipc_3", "ipndm_3")
"""The best-known solver of each family that the quick preset runs."""


@dataclass(frozen=True)
class Setup:
    """Everything that determines the numbers of one run; the grid is EDM's or the solver's own, σ 80 → 0.002.

    Args:
        models: embedded models or .safetensors files.
        solvers: names or specs of solvers.
        nfe: network evaluations of the runs.
        samples: trajectories of each model; by default as `few` says.
        few: trajectories of a model of 1000 dimensions at most; one of more gets half of them, at least 2.
        measured: how many steps are measured in runs of more than 10; the rest are only passed through. None measures all.
        directions: how many random directions each step is tried in.
        tol: the relative residual of the Lipschitz constants.
        batch: how many images the runs behind γ and σ̂/σ have.
        trace_nfe: network evaluations of these runs.
        first_seed: image i comes from this seed plus i.

    Raises:
        InputError: a name is unknown or repeated, or a number is out of range.
    """

    LEAST: ClassVar[Any] = {"samples": 1, "few": 1, "measured": 1, "directions": 1, "batch": 1, "trace_nfe": 2, "first_seed": 0}

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
        _check_lists(self, "models", "solvers", "nfe")
        require(min(self.nfe) >= 2 and 0 < self.tol < 1, "need nfe ≥ 2, 0 < tol < 1", nfe=min(self.nfe), tol=self.tol)
        at_least(self, self.LEAST)

    def trajectories(self, dim: int) -> int:
        """How many trajectories of a model of this dimension."""
        return self.samples or (self.few if dim <= 1000 else max(2, self.few // 2))


@dataclass(frozen=True)
class ShiftSetup:
    """Everything that determines the numbers of `steindiff diagnose --shift`; the grid is EDM's or the solver's own.

    Args:
        beds: testbeds, by name.
        solvers: names or specs of solvers.
        nfe: network evaluations of the runs.
        rules: corrections by name or spec; "none" is the plain solver.
        n: images of a run; as many others, of other seeds, are carried along the exact flow.
        scored: the most images on which the run's own score is taken, where the law is exact and small; 0 for none.
        first_seed: image i comes from this seed plus i.

    Raises:
        InputError: a name is unknown or repeated, or a number is out of range.
    """

    LEAST: ClassVar[Any] = {"n": 16, "scored": 0, "first_seed": 0}

    beds: tuple[str, ...] = ("digits", "digits_mixture")
    solvers: tuple[str, ...] = ("dpmpp_2m", "heun")
    nfe: tuple[int, ...] = (6,)
    rules: tuple[str, ...] = ("none", "clamped", "literal")
    n: int = 128
    scored: int = 16
    first_seed: int = 0

    def __post_init__(self) -> None:
        for name in self.rules:
            corrections.make(name)
        _check_lists(self, "beds", "solvers", "nfe", "rules")
        at_least(self, self.LEAST)


def _check_lists(setup: Setup | ShiftSetup, *names: str) -> None:
    """Refuse an unknown solver, a list that is empty or has something twice, and an NFE that is no whole number."""
    for solver in setup.solvers:
        solvers.make(solver)
    for what in names:
        values = getattr(setup, what)
        require(bool(values) and len(set(values)) == len(values), "need at least one, and none twice", **{what: values})
    require(all(type(v) is int for v in setup.nfe), "give whole numbers separated by commas, such as 5,6,8", nfe=setup.nfe)
    require(max(setup.nfe) <= MOST_STEPS, f"need nfe ≤ {MOST_STEPS:,}", nfe=max(setup.nfe))


_FULL = Setup(models.names(), solvers.names(), (5, 6, 8, 10, 15, 20, 50, 100), few=16, measured=None, directions=8, batch=256)
PRESETS = {"quick": Setup(("digits", "cifar10_mixture"), FAMILIES, (5, 6, 8, 10, 20, 100)), "full": _FULL}
"""By name; "full" has every solver at every step, and takes hours."""


def configure(preset: str, all_solvers: bool = False, **changes: Any) -> Setup:
    """A preset with some fields changed. Raises InputError for an unknown preset, or for both some solvers and all of them."""
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    if all_solvers and "solvers" in changes:
        raise InputError(f"--solver {','.join(changes['solvers'])} and --all: give one of them")
    if all_solvers:
        changes["solvers"] = solvers.names()
    setup = replace(PRESETS[preset], **changes)
    return replace(setup, nfe=tuple(sorted(setup.nfe)))


_OF_SHIFT = {"models": "beds", "solvers": "solvers", "nfe": "nfe", "samples": "n", "first_seed": "first_seed"}


def configure_shift(preset: str = "quick", all_solvers: bool = False, **changes: Any) -> ShiftSetup:
    """The run of `--shift` with some fields changed, by their names in `Setup`. Raises InputError for what it does not have."""
    others = [name for name in changes if name not in _OF_SHIFT]
    if others or all_solvers or preset != "quick":
        wrong = others[0].replace("_", "-") if others else "all" if all_solvers else f"preset {preset}"
        raise InputError(f"--shift with --{wrong}: it takes --model, --solver, --nfe, --samples and --seed")
    setup = ShiftSetup(**{_OF_SHIFT[name]: value for name, value in changes.items()})
    return replace(setup, nfe=tuple(sorted(setup.nfe)))
