"""The demo's report: tables, image grids, γ per step, and a plain account of what they show."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from steindiff.io.files import atomic, write_text
from steindiff.io.images import save_labelled_rows, to_uint8
from steindiff.study.demo import Cell, Floor
from steindiff.study.demo_testbed import Testbed

__all__ = ["write_report"]

_LABELS = {
    "plain": "plain",
    "literal": "Eq. 11 as printed",
    "clamped": "Eq. 11, γ ≤ 1",
    "plain_double": "plain, twice the NFE",
}
# Okabe–Ito colours: told apart by the colour-blind, readable on white and on black.
_COLOURS = {"dpmpp_2m": "#0072B2", "heun": "#D55E00", "ipndm_3": "#009E73"}
_COLUMNS = ("solver", "correction", "NFE", "fwd-eq.", "energy distance", "excess", "Fréchet", "endpoint RMSE", "verdict")


def write_report(
    folder: Path, beds: list[Testbed], cells: list[Cell], floors: dict[str, Floor], nfe: int, console: Console
) -> None:
    """Write report.md and its pictures; print the same tables."""
    parts = [f"# steindiff demo: {nfe} network evaluations, {len(beds[0].noise)} images per run, same seeds\n"]
    for bed in beds:
        mine = [cell for cell in cells if cell.model == bed.model.name]
        floor = floors[bed.model.name]
        _draw_images(folder / f"{bed.model.name}.png", bed, mine)
        _print_table(console, bed, mine, floor)
        parts.append(_section(bed, mine, floor))
    _draw_gammas(folder / "gamma.png", [bed.model.name for bed in beds], cells)
    findings = _findings(cells)
    console.print("\n".join(findings), highlight=False)
    parts += ["## γ per step\n\n![γ per step](gamma.png)\n", "## What this shows\n\n" + "\n".join(findings) + "\n", _NOTES]
    write_text(folder / "report.md", "\n".join(parts))


_NOTES = """## How to read the numbers

- *Energy distance* to independent samples of the model's law (2E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖, unbiased); ± one standard error.
- *Excess*: that distance less the reference flow's own, paired over seeds: what the few steps lose.
- *Fréchet distance* on the 32 leading principal axes of the target, with a jackknife standard error; biased upwards at this n.
- *Endpoint RMSE* per coordinate to where a fine solver takes the same noise.
- *Floor*: what a perfect sampler would score at this sample size.
- *Fwd-eq.*, forward-equivalents: network evaluations plus the derivative Eq. 11 needs, at the cost measured on this machine.
- *Plain, twice the NFE* costs about what a corrected run does: the fair rival.
- *Verdict*: energy distance against the plain solver, paired over seeds; "within noise" below two standard
  errors, "diverged" where the endpoint error is over ten times the plain solver's.
"""


def _row(cell: Cell) -> list[str]:
    stats = cell.result.stats if cell.result else None
    cost = [str(stats.nfe), f"{stats.forward_equivalents:.1f}"] if stats else ["–", "–"]
    numbers = [str(v) for v in (cell.energy, cell.excess, cell.frechet, cell.endpoint)]
    return [cell.solver, _LABELS[cell.run], *cost, *numbers, cell.verdict]


def _floor_row(bed: Testbed, floor: Floor) -> list[str]:
    numbers = [str(floor.energy), "0", str(floor.frechet), f"{bed.endpoint_error:.1e} (est.)"]
    return ["reference flow", "", "", "", *numbers, "floor"]


def _print_table(console: Console, bed: Testbed, cells: list[Cell], floor: Floor) -> None:
    table = Table(title=f"{bed.model.name} ({bed.reference})", title_justify="left")
    for name in _COLUMNS:
        table.add_column(name, overflow="fold")
    for cell in cells:
        table.add_row(*_row(cell), end_section=cell.run == "plain_double")
    table.add_row(*_floor_row(bed, floor))
    console.print(table)


def _section(bed: Testbed, cells: list[Cell], floor: Floor) -> str:
    rows = [list(_COLUMNS), ["---"] * len(_COLUMNS), *[_row(cell) for cell in cells], _floor_row(bed, floor)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"## {bed.model.name}\n\nReference: {bed.reference}.\n\n![samples]({bed.model.name}.png)\n\n{table}\n"


def _findings(cells: list[Cell]) -> list[str]:
    """Sentences made from the numbers, whatever they are."""
    base = {(c.model, c.solver): c for c in cells if c.run == "plain"}
    lines = []
    for cell in cells:
        plain = base[cell.model, cell.solver].endpoint.value
        if cell.verdict == "diverged":
            largest = max((r.gamma for r in cell.result.trace), default=float("nan")) if cell.result else float("inf")
            lines.append(
                f"- {_LABELS[cell.run]} **diverges** on {cell.model} with {cell.solver}: endpoint error "
                f"{cell.endpoint.value:.3g} against {plain:.3g} plain; largest γ {largest:.3g}."
            )
    for name in ("literal", "clamped", "plain_double"):
        verdicts = [c.verdict for c in cells if c.run == name]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("better", "within noise", "worse", "diverged") if v in verdicts)
        lines.append(f"- {_LABELS[name]}, energy distance against the plain solver, {len(verdicts)} cells: {counts}.")
    return lines


def _draw_images(path: Path, bed: Testbed, cells: list[Cell], columns: int = 12) -> None:
    """One row per run and the reference flow below, one column per seed."""
    labels = [f"{c.solver}\n{_LABELS[c.run]}" for c in cells] + ["reference\nflow"]
    shown = [c.result.x[:columns] if c.result else bed.noise[:columns] * float("nan") for c in cells] + [
        bed.endpoints[:columns]
    ]
    save_labelled_rows(path, [(label, to_uint8(x)) for label, x in zip(labels, shown, strict=True)])


def _draw_gammas(path: Path, models: list[str], cells: list[Cell]) -> None:
    """γ per step, literal dashed and clamped solid, on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(models), 3.6), layout="constrained")
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for axis, model in zip(axes, models, strict=True):
        for cell in cells:
            if cell.model == model and not cell.run.startswith("plain") and cell.result:
                style = ("--", "o") if cell.run == "literal" else ("-", "s")
                gammas = [r.gamma for r in cell.result.trace]
                label = f"{cell.solver}, {_LABELS[cell.run]}"
                axis.semilogy(gammas, style[0], marker=style[1], ms=4, color=_COLOURS[cell.solver], label=label)
        axis.axhline(1.0, color="0.5", lw=0.8)
        axis.set(title=model, xlabel="step", ylabel="γ (1 = plain solver)")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(fontsize=7)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", bbox_inches="tight")
