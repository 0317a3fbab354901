"""The solvers that the paper names beside its own, as baselines: PNDM, Restart, EVODiff and DPM-Solver-v3.

    python -m research.named_peers --bed digits_mixture --out outputs/named_peers
    python -m research.named_peers --bed digits --images 256 --grids log_snr --nfe 5 8 10 15 25 --out outputs/named_peers

Every cell is one of `steindiff bench`, so that a stopped run goes on. DPM-Solver-v3 has statistics of other noises. A restarted
run draws noise of its own and has no endpoint error. A dash is a budget that a method cannot spend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from recipes.command import command
from recipes.pages import block

from research import calibrated_peers
from steindiff.calibration.peers import dpm_v3
from steindiff.errors import ModelFileError
from steindiff.io.files import write_text
from steindiff.report.blocks import Table
from steindiff.report.markdown import markdown
from steindiff.report.numbers import show
from steindiff.solvers import DPMSolverV3, Statistics
from steindiff.study.compare import Study
from steindiff.study.grid import PLAIN, Cell, Config
from steindiff.study.run import run_study
from steindiff.study.testbed import Testbed, make

V3 = "dpm_v3"
SOLVERS = (
    "heun",
    "dpmpp_2m",
    "unipc_3",
    "ipndm_4",
    "pndm",
    "pndm(2)",
    "evodiff",
    "evodiff(last=False)",
    "restart(heun)",
    "restart(heun, cifar10_vp)",
    "restart(dpmpp_2m, low=0.06, high=0.3, times=1)",
)
"""Baselines, and then the named peers; the last is ours: one turn, as in Restart's rows of DPM-Solver-3."""
METRICS = {"energy": "energy distance", "endpoint": "endpoint RMSE"}


@dataclass(frozen=True)
class Options:
    """The command line."""

    bed: Annotated[str, "a testbed"] = "digits_mixture"
    nfe: Annotated[tuple[int, ...], "network evaluations of a run"] = (5, 8, 10, 15, 25, 43)
    grids: Annotated[tuple[str, ...], "noise grids"] = ("karras", "log_snr")
    images: Annotated[int, "images of a cell", 40] = 512
    noises: Annotated[int, "noises that the statistics of DPM-Solver-v3 are of; 0 leaves it out", 0] = 64
    out: Annotated[Path, "the folder of the cells and the statistics"] = Path("outputs/named_peers")
    into: Annotated[Path | None, "a page whose block `named peers BED` gets the tables"] = None


def statistics(o: Options, bed: Testbed) -> Statistics:
    """Those of the folder, or measured anew on noises that no cell has."""
    path = o.out / f"v3-{o.bed}-{o.noises}.safetensors"
    try:
        return Statistics.load(path)[0]
    except ModelFileError:
        law = calibrated_peers.fine_runs(calibrated_peers.Options(trajectories=o.noises, out=o.out), bed)
        found = dpm_v3.measured(law, dpm_v3.Measuring(intervals=60, probes=1))
        found.save(path)
        return found


def studied(o: Options, bed: Testbed) -> Study:
    """Every solver on every grid, plain."""
    mine = {V3: DPMSolverV3(statistics(o, bed))} if o.noises else {}
    config = Config(
        beds=(bed.name,), solvers=(*SOLVERS, *mine), grids=o.grids, nfe=o.nfe, corrections=(PLAIN,), n=o.images,
        metrics=tuple(METRICS), objects=mine,
    )  # fmt: skip
    return run_study(config, o.out / bed.name, beds=[bed])


def tables(study: Study) -> Iterator[Table]:
    """The excess of energy distance over the exact flow's own end points, and the endpoint error, on each grid."""
    (bed,), nfes = study.config.beds, study.config.nfe
    for metric, title in METRICS.items():
        for grid in study.config.grids:
            lines = {
                name: [_shown(study, Cell(bed, name, grid, nfe, PLAIN), metric) for nfe in nfes]
                for name in study.config.solvers
            }
            what = f"{title}{' over the flow' if metric == 'energy' else ''}, {grid}, NFE"
            kept = tuple((name, *line) for name, line in lines.items() if set(line) != {show(None)})
            yield Table((what, *map(str, nfes)), kept)


def _shown(study: Study, cell: Cell, metric: str) -> str:
    found = study.results.get(cell)
    if found is None:
        return show(None)
    if found.failure:
        return "diverged"
    return show(found.excess.get(metric) if metric == "energy" else found.values.get(metric))


@command
def main(o: Options) -> None:
    """Run what is missing, and print or write."""
    o.out.mkdir(parents=True, exist_ok=True)
    bed = make(o.bed)
    body = "\n".join(markdown([table]) for table in tables(studied(o, bed)))
    print(body)
    if o.into is not None:
        write_text(o.into, block(o.into.read_text(encoding="utf-8"), f"named peers {o.bed}", body))
