"""Published FIDs, to be read beside a study and never to be compared with it: other models, other features, 50,000 samples.

Each number was copied from the source named beside it, none was measured here. A method that is calibrated, trained or
distilled for its number of evaluations says so: it does not compete with what needs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from steindiff.report.blocks import Block, Details, Table, Text

__all__ = ["PUBLISHED", "SOURCES", "Published", "Setting", "published_blocks"]

SOURCES = {
    "paper": "SteinDiff, arXiv 2606.07835",
    "a": "the tables of DPM-Solver-v3, arXiv 2310.13268",
    "b": "the tables of GITS, arXiv 2405.11326",
    "c": "the tables of EPD, arXiv 2507.14797",
    "d": "the tables of GAS, arXiv 2510.17699",
    "e": "notes on the methods' papers at papernotes.org, second-hand",
    "f": "the README of PFDiff's repository",
    "g": "notes on DyWeight, arXiv 2603.11607, second-hand",
}


@dataclass(frozen=True)
class Published:
    """One method in one setting.

    Attributes:
        method: as its source calls it.
        needs: what it must be given first; "–" for nothing.
        source: a key of SOURCES; two where a row is of two.
        fid: by network evaluations, with the digits of the source.
    """

    method: str
    needs: str
    source: str
    fid: Mapping[int, str]


@dataclass(frozen=True)
class Setting:
    """Numbers that may be compared with one another.

    Attributes:
        name: data and model.
        rows: the methods.
        note: what to know when reading them.
    """

    name: str
    rows: tuple[Published, ...] = field(repr=False)
    note: str = ""

    @property
    def table(self) -> Table:
        """Rows of methods, columns of network evaluations; “–” where the source has no number."""
        nfe = sorted({n for row in self.rows for n in row.fid})
        columns = ("method, as published, not ours", "needs", "source", *(f"NFE {n}" for n in nfe))
        rows = [(r.method, r.needs, r.source, *(r.fid.get(n, "–") for n in nfe)) for r in self.rows]
        return Table(columns, tuple(rows))


def published_blocks() -> tuple[Block, ...]:
    """The section of a report."""
    blocks: list[Block] = [
        Text(
            "As published, not ours: FID (lower is better) of 50,000 samples of large trained networks, copied from the "
            "sources below. Nothing in this report can be compared with them: the models, the features and the numbers of "
            "samples are others. They say which solvers are strong, and what needs calibration. “–”: not found in the "
            "source."
        )
    ]
    for setting in PUBLISHED:
        inner: tuple[Block, ...] = (setting.table, *((Text(setting.note),) if setting.note else ()))
        blocks.append(Details(f"{setting.name}: {len(setting.rows)} methods, as published, not ours", inner))
    return (*blocks, Text("Sources: " + "; ".join(f"{key}: {text}" for key, text in SOURCES.items()) + "."))


def _row(method: str, needs: str, source: str, nfe: str, fids: str) -> Published:
    """From "5 6 8" and "1.50 1.30 1.20"."""
    pairs = zip(nfe.split(), fids.split(), strict=True)
    return Published(method, needs, source, {int(n): fid for n, fid in pairs})


_LONG, _SHORT, _LSUN = "5 6 8 10 12 15 20", "5 6 8 10", "5 6 7 8 10 12 15 20"

PUBLISHED = (
    Setting(
        "CIFAR-10, EDM unconditional",
        (
            _row("DDIM", "–", "b", _SHORT, "49.66 35.62 22.32 15.69"),
            _row("Heun", "–", "a", _LONG, "320.8 103.9 39.66 16.57 7.59 4.76 2.51"),
            _row("DPM-Solver++ 3M", "–", "a", _LONG, "24.54 11.85 4.36 2.91 2.45 2.17 2.05"),
            _row("UniPC-3", "–", "a", _LONG, "23.52 11.10 3.86 2.85 2.38 2.08 2.01"),
            _row("DEIS-tAB3", "–", "b", _SHORT, "14.39 9.40 5.55 4.09"),
            _row("iPNDM-4", "–", "b", _SHORT, "13.59 7.05 3.69 2.77"),
            _row("EVODiff", "–", "e", "5 8 10 12", "17.84 3.98 2.78 2.30"),
            _row("DPM-Solver-v3", "statistics: 3.5 h on 8 A40", "a", _LONG, "12.21 8.56 3.50 2.51 2.24 2.10 2.02"),
            _row("iPNDM + GITS", "256 warm-up samples", "b", _SHORT, "8.38 4.88 3.24 2.49"),
            _row("AMED-Plugin", "a small network, trained", "b, c", _SHORT, "6.61 6.67 3.34 2.48"),
            _row("DDIM + PAS", "under a minute, about 10 parameters", "e", "10", "4.37"),
            _row("DDIM + PAS + teleportation", "under a minute, about 10 parameters", "e", "10", "3.16"),
            _row("iPNDM + PAS", "under a minute, about 10 parameters", "e", "10", "2.84"),
            _row("LD3", "minutes of training", "d", "6 8 10", "3.35 2.81 2.38"),
            _row("S4S-Alt", "under an hour of training", "d", _SHORT, "3.73 2.67 2.39 2.18"),
            _row("GS", "under an hour of training", "d", "6 8 10", "2.55 2.25 2.18"),
            _row("GAS", "2 h of training", "d", "6 8 10", "2.49 2.24 2.17"),
            _row("EPD", "distillation; parallel evaluations count once", "c", "5", "4.33"),
            _row("DyWeight", "light training", "g", "5", "3.02"),
        ),
        "Without calibration iPNDM-4 is the strongest up to 10 evaluations, UniPC-3 beyond.",
    ),
    Setting(
        "CIFAR-10, ScoreSDE",
        (
            _row("DDIM", "–", "a", _LONG, "54.56 41.92 27.51 20.11 15.64 12.05 9.00"),
            _row("DPM-Solver++", "–", "a", _LONG, "28.53 13.48 5.34 4.01 4.04 3.32 2.90"),
            _row("UniPC", "–", "a", _LONG, "23.71 10.41 5.16 3.93 3.88 3.05 2.73"),
            _row("DEIS", "–", "a", "5 10 15 20", "15.37 4.17 3.37 2.86"),
            _row("DPM-Solver-v3", "statistics of the model", "a", _LONG, "12.76 7.40 3.94 3.40 3.24 2.91 2.71"),
        ),
    ),
    Setting(
        "ImageNet-64, EDM's class-conditional ADM",
        (
            _row("DDIM", "–", "b", _SHORT, "43.81 34.03 22.59 16.72"),
            _row("DPM-Solver++ 3M", "–", "b", _SHORT, "25.49 15.06 7.84 5.67"),
            _row("UniPC", "–", "b", _SHORT, "24.36 14.30 7.52 5.53"),
            _row("iPNDM", "–", "b", _SHORT, "18.99 12.92 7.20 5.11"),
            _row("DEIS-tAB3", "–", "b", _SHORT, "14.75 12.57 6.84 5.34"),
            _row("DDIM + PFDiff", "–", "f", "4", "16.46"),
            _row("iPNDM + GITS", "256 warm-up samples", "b", _SHORT, "10.79 8.43 5.82 4.48"),
            _row("AMED-Solver", "a small network, trained", "b, c", _SHORT, "10.74 10.63 7.71 6.06"),
            _row("EPD", "distillation; parallel evaluations count once", "c", "5", "6.35"),
            _row("DDIM + PAS", "under a minute, about 10 parameters", "e", "10", "9.13"),
        ),
        "Without calibration DEIS and iPNDM are the strongest.",
    ),
    Setting(
        "ImageNet-64, the SteinDiff paper's model",
        (
            _row("DPM-Solver++, EDM grid", "–", "paper", _SHORT, "17.95 11.00 5.48 3.66"),
            _row("DPM-Solver++, EDM grid, + Stein", "–", "paper", _SHORT, "14.84 9.45 4.86 3.33"),
        ),
        "Another model than in the table above: the two cannot be compared. NFE are the solver's alone: the paper's five "
        "probes a step are not counted in it.",
    ),
    Setting(
        "LSUN-Bedroom 256, latent diffusion",
        (
            _row("DPM-Solver++ 3M", "–", "a, d", _LSUN, "18.59 8.50 5.16 4.19 3.63 3.43 3.29 3.16"),
            _row("UniPC", "–", "a, d", _LSUN, "12.24 6.19 4.56 4.00 3.56 3.34 3.18 3.07"),
            _row("iPNDM-3", "–", "d", "5 6 7", "6.38 5.08 4.39"),
            _row("SteinDiff, self-consistent", "–", "paper", _LONG, "7.64 4.71 3.72 3.38 3.01 2.86 2.77"),
            _row("DPM-Solver-v3", "statistics: 12 min on 8 A40", "a", _LONG, "7.54 4.79 3.53 3.16 3.06 3.05 3.05"),
            _row("UniPC, DMN grid", "an optimised grid", "d", "5 6 7", "8.21 4.40 4.55"),
            _row("iPNDM, DMN grid", "an optimised grid", "d", "5 6 7", "6.15 4.71 5.16"),
            _row("LD3", "training", "d", "5 6 7", "5.93 4.52 4.16"),
            _row("GS", "training", "d", "5 6 7", "5.32 3.77 3.34"),
            _row("GAS", "training", "d", "5 6 7", "4.60 3.77 3.36"),
        ),
        "In the rows of two sources, the number at 7 evaluations is the second's. Of the plain solvers iPNDM is the strongest "
        "at 5 to 7 evaluations.",
    ),
)
