"""The solvers that the paper names beside its own, as baselines: PNDM, Restart, EVODiff and DPM-Solver-v3.

    python -m research.named_peers --bed digits_mixture --out outputs/named_peers
    python -m research.named_peers --bed digits --images 256 --grids log_snr --nfe 5 8 10 15 25 --out outputs/named_peers

Every cell is one of `steindiff bench`, so that a stopped run goes on. DPM-Solver-v3 has statistics of other noises. A restarted
run draws noise of its own and has no endpoint error. A dash is a budget that a method cannot spend.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

from recipes.command import command
from recipes.pages import rewrite

from research.calibration_variants import flows
from steindiff.calibration.keeping import FIRST_SEED
from steindiff.calibration.peers import dpm_v3
from steindiff.errors import ModelFileError
from steindiff.report.blocks import Table
from steindiff.report.markdown import markdown
from steindiff.report.numbers import show
from steindiff.solvers import DPMSolverV3, Statistics
from steindiff.study.compare import Study
from steindiff.study.grid import PLAIN, Cell, Config
from steindiff.study.run import run_study
from steindiff.study.store import Result
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
RIVALS = {
    "pndm": "ipndm_4",
    "pndm(2)": "ipndm_4",
    "evodiff": "dpmpp_2m",
    "evodiff(last=False)": "dpmpp_2m",
    "restart(heun)": "heun",
    "restart(heun, cifar10_vp)": "heun",
    SOLVERS[-1]: "dpmpp_2m",
    V3: "ipndm_4",
}
"""What a peer is set against, pair by pair: the method that it changes, or the best plain solver."""
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
        law = flows(bed, range(FIRST_SEED, FIRST_SEED + o.noises))
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
    """The excess of energy distance over the exact flow's own end points, the endpoint error, and both less a rival's."""
    nfes, solvers = study.config.nfe, study.config.solvers
    for (metric, title), grid in product(METRICS.items(), study.config.grids):
        cells = {name: [Cell(study.config.beds[0], name, grid, nfe, PLAIN) for nfe in nfes] for name in solvers}
        runs = {name: [study.results.get(cell) for cell in row] for name, row in cells.items()}
        what = f"{title}{' over the flow' if metric == 'energy' else ''}, {grid}, NFE"
        yield _table(what, nfes, {name: [_shown(run, metric) for run in row] for name, row in runs.items()})
        rivals = {name: rival for name, rival in RIVALS.items() if {name, rival} <= set(solvers)}
        apart = {
            f"{name} − {rival}": [_paired(one, other, metric) for one, other in zip(runs[name], runs[rival], strict=True)]
            for name, rival in rivals.items()
        }
        yield _table(f"{title}, paired difference, {grid}, NFE", nfes, apart)


def _table(what: str, nfes: tuple[int, ...], lines: dict[str, list[str]]) -> Table:
    """The lines that say anything."""
    return Table((what, *map(str, nfes)), tuple((name, *line) for name, line in lines.items() if set(line) != {show(None)}))


def _shown(run: Result | None, metric: str) -> str:
    if run is None or run.failure:
        return "diverged" if run else show(None)
    return show((run.excess if metric == "energy" else run.values).get(metric))


def _paired(one: Result | None, other: Result | None, metric: str) -> str:
    both = one and other and metric in one.values and metric in other.values
    return show(one.minus(other, metric) if both else None, signed=True)


@command
def main(o: Options) -> None:
    """Run what is missing, and print or write."""
    o.out.mkdir(parents=True, exist_ok=True)
    bed = make(o.bed)
    body = "\n".join(markdown([table]) for table in tables(studied(o, bed)))
    print(body)
    if o.into is not None:
        rewrite(o.into, f"named peers {o.bed}", body)
