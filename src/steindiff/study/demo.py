"""The demo: two small studies on shipped models, from the same seeds.

The first has the universal table, and the network's own where there is one, beside strong plain solvers at few evaluations. The
second has the paper's correction at one number of evaluations: Eq. 11 as printed, with γ ≤ 1, and with its fair rival.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from steindiff import models, solvers
from steindiff.io import processes
from steindiff.io.clock import Clock
from steindiff.io.files import manifest, write_json
from steindiff.io.folders import locked
from steindiff.metrics import Value
from steindiff.study import store
from steindiff.study.compare import Study
from steindiff.study.grid import PLAIN, TWICE, Cell, Config
from steindiff.study.run import run_study
from steindiff.study.store import Result
from steindiff.study.testbed import make

MODELS = PAPER_MODELS = ("digits", "cifar10_mixture")
"""The models of the first study, and of the second."""
LARGER = ("cifar10",)
"""A model of the first study whose runs take longest: it has an eighth of the images, or as few as a study may have."""
FEW = (3, 5, 8)
STRONG, GRIDS = ("dpmpp_2m", "unipc_2", "deis_4", "ipndm_4"), ("karras", "log_snr")
"""The plain solvers of the first study, each on both grids: the strongest at few evaluations, and the most used."""
AUTO, UNIVERSAL, CALIBRATED = "auto", "universal", "calibrated"
SOLVERS = ("dpmpp_2m", "heun", "ipndm_3")
RUNS = {"plain": PLAIN, "literal": "literal", "clamped": "clamped", "plain_double": TWICE}
"""Each run of a solver and its correction; the last costs about what the corrected runs do."""
METRICS = ("energy", "frechet", "endpoint")
_VERDICTS = {"win": "better", "loss": "worse", "noise": "within noise", "diverged": "diverged", "missing": ""}
_INFINITE = Value(float("inf"), float("nan"))


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        few: our tables beside strong plain solvers, a study for each number of images.
        paper: the paper's correction.
        taken: what `auto` takes by model and number of evaluations, in words.
    """

    few: tuple[Study, ...]
    paper: Study
    taken: dict[tuple[str, int], str]


def run_demo(outdir: str | Path, *, nfe: int, samples: int, first_seed: int) -> Demo:
    """Run everything in one batch of images, and write results.json and run.json to `outdir`, which keeps the runs too.

    Under torchrun or accelerate every batch is shared out. The first process writes; the others get what it found.

    Args:
        outdir: where the runs are kept; a demo that was stopped goes on.
        nfe: the evaluations of a run of the second study.
        samples: the images of a run.
        first_seed: image i comes from this seed plus i.

    Raises:
        InputError: as `run_study`.
    """
    with processes.joined(), locked(outdir, store.ROOMS) as folder:
        return _run(folder, nfe, samples, first_seed)


def _run(folder: Path, nfe: int, samples: int, first_seed: int) -> Demo:
    start, clock, configs = time.perf_counter(), Clock(), _configs(nfe, samples, first_seed)
    *few, paper = studies = [run_study(config, folder, clock=clock) for config in configs]
    seconds = {"all": round(time.perf_counter() - start, 1), **clock.rounded()}
    if processes.rank() == 0:
        _write(folder, studies, nfe, samples, first_seed, seconds)
    made_for = {name: make(name).setting for config in configs for name in config.beds}
    taken = {(name, n): str(solvers.make(AUTO).plan(n, setting)[0]) for name, setting in made_for.items() for n in FEW}
    return Demo(tuple(few), paper, taken)


def _write(folder: Path, studies: Sequence[Study], nfe: int, samples: int, first_seed: int, seconds: dict[str, float]) -> None:
    summaries = [_summary(study, cell) for study in studies for cell in study.config.cells() if cell in study.results]
    write_json(folder / "results.json", summaries)
    summarised = {bed.name: bed for study in studies for bed in study.beds.values()}
    about = {name: {"sha256": models.load(name).sha256, "reference": bed.reference} for name, bed in summarised.items()}
    settings = {"nfe": nfe, "few": FEW, "samples": samples, "first_seed": first_seed, "models": list(about)}
    write_json(folder / "run.json", manifest(config=settings, models=about, seconds=seconds))


def _configs(nfe: int, samples: int, first_seed: int) -> tuple[Config, Config, Config]:
    """Our tables on the models, the same on the larger one, and the paper's correction."""
    paper = Config(
        beds=PAPER_MODELS,
        solvers=SOLVERS,
        grids=("karras",),
        nfe=(nfe,),
        corrections=tuple(RUNS.values()),
        n=samples,
        batch=samples,
        first_seed=first_seed,
        metrics=METRICS,
        axes=min(32, samples // 4),
        checked=min(64, samples),
    )
    few = replace(paper, beds=MODELS, solvers=(UNIVERSAL, CALIBRATED, *STRONG), grids=GRIDS, nfe=FEW, corrections=(PLAIN,))
    less = max(40, samples // 8)
    return few, replace(few, beds=LARGER, n=less, batch=less, metrics=("endpoint",), checked=0), paper


def best_plain(study: Study, bed: str, nfe: int, metric: Literal["endpoint", "excess"]) -> Result:
    """The plain run of a strong solver, on either grid, that is nearest the exact flow by its endpoints or by its excess."""

    def distance(result: Result) -> float:
        return worth(result, metric).value if metric == "endpoint" else abs(excess(result).value)

    return min(_few(study, bed, nfe, STRONG), key=distance)


def table_run(study: Study, bed: str, nfe: int, solver: str) -> Result | None:
    """The run of the universal table, or of the calibrated one; None where there is none."""
    return next(iter(_few(study, bed, nfe, (solver,))), None)


def _few(study: Study, bed: str, nfe: int, solvers: Sequence[str]) -> list[Result]:
    cells = (cell for cell in study.config.cells() if (cell.bed, cell.nfe) == (bed, nfe))
    return study.found(cell for cell in cells if cell.solver in solvers)


def verdict(study: Study, cell: Cell) -> str:
    """A run against the plain one by energy distance, in words; nothing for the plain run itself."""
    return "" if cell.correction == PLAIN else _VERDICTS[study.verdict(cell, "energy")]


def worth(result: Result, metric: str) -> Value:
    """A metric of a run; infinite where the run ended without numbers."""
    return result.values.get(metric, _INFINITE)


def excess(result: Result) -> Value:
    """The energy distance of a run less that of the exact flow's end points, paired over seeds."""
    return result.excess.get("energy", _INFINITE)


def _summary(study: Study, cell: Cell) -> dict[str, Any]:
    """One run, for results.json."""
    result, change = study.results[cell], study.results[cell].changes.get("energy")
    values = {metric: worth(result, metric) for metric in METRICS if metric in study.config.metrics}
    if "energy" in values:
        values["excess"] = excess(result)
    return {
        "model": cell.bed,
        "solver": cell.solver,
        "grid": cell.grid,
        "nfe": cell.evaluations,
        "run": next(run for run, correction in RUNS.items() if correction == cell.correction),
        "verdict": verdict(study, cell),
        "failure": result.failure,
        **{name: value._asdict() for name, value in values.items()},
        "change": change._asdict() if change else None,
        "stats": result.stats or None,
        "trace": result.trace,
    }
