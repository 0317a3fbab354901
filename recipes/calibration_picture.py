"""Draws the picture of docs/calibration.md: errors against evaluations, and the same seeds at three evaluations.

    python -m recipes.calibration_picture

The errors are those of the contests in docs/results, so that no solver runs again for them; the images are drawn anew, by the
plain solver that is nearest there. The dashed line is the best plain solver with twice the evaluations.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from recipes.command import command
from recipes.pages import ROOT
from steindiff import grids, solvers
from steindiff.errors import require
from steindiff.io.files import writable_folder
from steindiff.io.images import Image, to_uint8
from steindiff.report.figures import drawing, figure, plain_ticks, style
from steindiff.report.palette import INK, look
from steindiff.study import testbed
from steindiff.study.draw import draw
from steindiff.study.testbed import Testbed

RESULTS = ROOT / "docs" / "results"
PAGES = ("calibrated/contest", "universal/contest", "universal/digits", "universal/cifar10")
CONTESTS = tuple(RESULTS / f"study_{page}.md" for page in PAGES)
PLAIN, TWICE = "best on a grid", "best on a grid with twice the evaluations"
LINES = {"best plain solver": PLAIN, "universal table": "universal", "calibrated table": "calibrated"}
LOOKS: Mapping[str, Mapping[str, Any]] = {name: {**look(i), "ls": "-"} for i, name in enumerate(LINES)}
BEDS = {"digits": "digits, 8×8", "cifar10": "CIFAR-10, 16×16"}
FINE = 64


@dataclass(frozen=True)
class Entry:
    """What a cell of a contest says: an error, and whose it is where it is one of several."""

    value: float
    name: str = ""


def entries(text: str, bed: str) -> Iterator[tuple[int, str, Entry]]:
    """The number of evaluations, the column and the entry of each cell of a testbed's first table of endpoint RMSE."""
    _, found, rest = text.partition(f"\n{bed}: endpoint RMSE.\n\n")
    lines = takewhile(lambda line: line.startswith("|"), rest.splitlines()) if found else iter(())
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    for row in rows[2:]:
        for head, cell in zip(rows[0], row, strict=True):
            if match := re.fullmatch(r"(?:(?P<name>.+): )?(?P<value>[\d.]+) ± [\d.]+", cell):
                yield int(row[0]), head, Entry(float(match["value"]), match["name"] or "")


def curves(bed: str) -> dict[str, dict[int, Entry]]:
    """Each column's errors by evaluations: where two contests have one, the smaller, since they differ in who takes part.

    Raises:
        InputError: the contests have no such testbed.
    """
    found = defaultdict[str, dict[int, Entry]](dict)

    def note(head: str, nfe: int, entry: Entry) -> None:
        found[head][nfe] = min(found[head].get(nfe, entry), entry, key=lambda each: each.value)

    for path in CONTESTS:
        for nfe, head, entry in entries(path.read_text(encoding="utf-8"), bed):
            note(head, nfe, entry)
    missing = [head for head in LINES.values() if head not in found]
    require(not missing, f"the contests in {RESULTS} say nothing of {bed}: put a study of it there", missing=missing)
    for nfe in [n for n in found[PLAIN] if n % 2 == 0]:
        note(TWICE, nfe // 2, found[PLAIN][nfe])
    return found


def strips(bed: Testbed, best: str, nfe: int, seeds: range) -> dict[str, Image]:
    """The same seeds by the plain solver, by the two tables and by the exact flow; each row is one image."""
    name, _, grid = best.partition(", ")
    runs = {}
    for label, solver in zip(LINES, (name, "universal", "calibrated"), strict=True):
        made, sigmas = solvers.make(solver).plan(nfe, bed.setting)
        sigmas = grids.make(grid, len(sigmas) - 1) if made.own_grid is None else sigmas
        runs[label] = draw(made, bed, sigmas, seeds).samples
    runs["exact flow"] = draw(solvers.make("unipc_3"), bed, grids.karras(FINE), seeds).samples
    apart = {label: np.pad(to_uint8(x), ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255) for label, x in runs.items()}
    return {label: np.concatenate(list(images), axis=1)[:, :-1] for label, images in apart.items()}


def plotted(axis: Any, title: str, found: Mapping[str, Mapping[int, Entry]]) -> None:
    """The error against evaluations."""
    for label, head in LINES.items():
        known = sorted((n, each.value) for n, each in found[head].items() if n <= 10)
        axis.plot(*zip(*known, strict=True), **LOOKS[label], label=label)
    twice = sorted((n, each.value) for n, each in found[TWICE].items() if n <= 10)
    axis.plot(*zip(*twice, strict=True), color=INK, ls=(0, (4, 2)), lw=1.2, label="best plain solver, 2N evaluations")
    axis.set(title=title, yscale="log", xlabel="network evaluations N", xticks=range(1, 11))
    plain_ticks(axis)


def shown(plot: Any, cells: Any, rows: Mapping[str, Image], about: str, labelled: bool) -> None:
    """Rows of images one below the other."""
    for i, (label, row) in enumerate(rows.items()):
        axis = plot.add_subplot(cells[i])
        axis.imshow(row.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set(xticks=[], yticks=[], title=about if i == 0 else "")
        axis.spines[:].set_visible(False)
        if labelled:
            axis.set_ylabel(label, rotation=0, ha="right", va="center")


def picture(nfe: int, seeds: range) -> bytes:
    """The figure as a PNG."""
    about = f"N = {nfe}, seeds {seeds[0]} to {seeds[-1]}"
    with style():
        plot = figure(9.0, 5.8)
        cells = plot.add_gridspec(5, len(BEDS), height_ratios=(7, 1, 1, 1, 1))
        for column, (name, title) in enumerate(BEDS.items()):
            found, first = curves(name), column == 0
            upper = plot.add_subplot(cells[0, column])
            plotted(upper, title, found)
            if first:
                upper.set_ylabel("RMSE to the exact flow's end point")
                upper.legend(frameon=False)
            rows = strips(testbed.make(name), found[PLAIN][nfe].name, nfe, seeds)
            shown(plot, [cells[1 + i, column] for i in range(len(rows))], rows, about, first)
        return drawing("calibration", "errors and images", plot).png


@command
def main(
    out: Annotated[Path, "the folder of calibration.png"] = ROOT / "docs" / "images",
    nfe: Annotated[int, "network evaluations of the images", 1] = 3,
    images: Annotated[int, "how many images a row has", 1] = 8,
    seed: Annotated[int, "seed of the first", 0] = 70_000,
) -> None:
    """Draw it."""
    path = writable_folder(out) / "calibration.png"
    path.write_bytes(picture(nfe, range(seed, seed + images)))
    print(path)
