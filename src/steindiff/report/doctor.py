"""What `steindiff doctor` prints, as blocks."""

import math
from collections.abc import Iterator

from steindiff.diagnostics.doctor import FAR, NEAR, Examination, Fact, Level, Taken
from steindiff.divergence import Choice
from steindiff.divergence.products import METHODS
from steindiff.report.blocks import Block, Entry, Heading, Table, Text


def machine_blocks(facts: tuple[Fact, ...]) -> Iterator[Block]:
    """The machine."""
    yield Heading("This machine")
    yield _facts(facts)


def examination_blocks(name: str, found: Examination) -> Iterator[Block]:
    """A denoiser: the verdict first, then what it stands on."""
    yield Heading(f"The denoiser {name}")
    yield Text(verdict(found))
    yield _facts(found.facts)
    if found.levels:
        yield Heading("The noise that it is told, and the noise that it takes off")
        yield Table(("told σ", "taken off/told", "RMS of the state", "RMS of D"), tuple(map(_level, found.levels)))
    if found.derivatives is not None:
        yield Heading("Derivatives, for corrections that need them")
        yield _derivatives(found.derivatives)
    yield Heading("What solver auto takes")
    yield Table(("NFE", "solver", "noise levels", "because"), tuple(map(_taken, found.taken)))


def verdict(found: Examination) -> str:
    """Whether the denoiser is understood rightly, in a sentence, with a remedy where it is not."""
    if found.complaint:
        return f"It does not run as it should: {found.complaint}"
    wrong = [level for level in found.levels if not level.consistent]
    if not wrong:
        return f"It takes off the noise that it is told: within {NEAR} and {FAR} times as much at every level tried."
    worst = max(wrong, key=_off)
    as_for = "what it takes off is no noise" if math.isnan(worst.ratio) else f"it acts as for {worst.ratio:.3g} times as much"
    return (
        f"It is not consistent: told σ = {worst.sigma:.4g} {as_for}. Check the schedule, the prediction type and the scale of "
        "its input; a network that is hardly trained, or strong guidance, does this too."
    )


def _off(level: Level) -> float:
    """How far the level that it acts for is from the one that it is told; most where it acts for none."""
    return math.inf if math.isnan(level.ratio) else abs(level.ratio - 1)


def _facts(facts: tuple[Fact, ...]) -> Table:
    return Table(("what", "value"), tuple((fact.what, fact.value) for fact in facts))


def _level(level: Level) -> tuple[str | Entry, ...]:
    ratio = f"{level.ratio:.3f}"
    seen = ratio if level.consistent else Entry(f"{ratio} ▼", mark="loss")
    return (f"{level.sigma:.4g}", seen, f"{level.state:.4g}", f"{level.denoised:.4g}")


def _taken(taken: Taken) -> tuple[str, ...]:
    levels = ", ".join(f"{sigma:.3g}" for sigma in taken.levels)
    return (str(taken.nfe), taken.solver, levels, taken.reason)


def _derivatives(choice: Choice) -> Table:
    """A row a method: what a product costs beyond the forward, and what was seen."""
    rows = []
    for method in METHODS:
        cost = choice.costs.get(method)
        rows.append((method, "unusable" if cost is None else f"{cost:.2f} forwards", choice.notes.get(method, "")))
    return Table(("method", "cost", "note"), tuple(rows))
