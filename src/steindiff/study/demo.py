"""The demo: two small studies on shipped models, from the same seeds.

The first has the universal solver beside strong plain ones, at few evaluations. The second has the paper's correction at one
number of evaluations: Eq. 11 as printed, with γ ≤ 1, and with its fair rival.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from steindiff import models, solvers
from steindiff.io.files import manifest, writable_folder, write_json
from steindiff.metrics import Value
from steindiff.study.compare import Study
from steindiff.study.grid import PLAIN, TWICE, Cell, Config
from steindiff.study.run import run_study
from steindiff.study.store import Result

MODELS = ("digits", "cifar10_mixture")
LARGER = "cifar10"
"""A network whose runs take longest: it has an eighth of the images, and takes part in the first study only."""
FEW = (3, 5, 8)
STRONG = ("dpmpp_2m", "unipc_2", "deis_4", "ipndm_4")
"""The plain solvers of the first study, on both grids: the strongest at few evaluations, and the most used."""
UNIVERSAL = "universal"
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
        few: the universal solver beside strong plain ones, a study for each number of images.
        paper: the paper's correction.
        taken: what `auto` takes at the numbers of evaluations of the first study, in words.
    """

    few: tuple[Study, ...]
    paper: Study
    taken: tuple[str, ...]


def run_demo(outdir: str | Path, *, nfe: int, samples: int, first_seed: int) -> Demo:
    """Run everything in one batch of images, and write results.json and run.json to `outdir`, which keeps the runs too.

    Args:
        outdir: where the runs are kept; a demo that was stopped goes on.
        nfe: the evaluations of a run of the second study.
        samples: the images of a run.
        first_seed: image i comes from this seed plus i.
    """
    paper = Config(
        beds=MODELS,
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
    few = replace(paper, solvers=(UNIVERSAL, *STRONG), grids=("karras", "log_snr"), nfe=FEW, corrections=(PLAIN,))
    less = max(64, samples // 8)
    larger = replace(few, beds=(LARGER,), n=less, batch=less, metrics=("endpoint",), checked=0)
    start = time.perf_counter()
    folder = writable_folder(outdir)
    studies = [run_study(config, folder) for config in (few, larger, paper)]
    seconds = time.perf_counter() - start
    summaries = [_summary(study, cell) for study in studies for cell in study.config.cells()]
    write_json(folder / "results.json", summaries)
    settings = {"nfe": nfe, "few": FEW, "samples": samples, "first_seed": first_seed, "models": (*MODELS, LARGER)}
    about = {
        bed.name: {"sha256": models.load(bed.name).sha256, "reference": bed.reference}
        for study in studies
        for bed in study.beds.values()
    }
    write_json(folder / "run.json", manifest(config=settings, models=about, seconds=round(seconds, 1)))
    taken = tuple(str(solvers.make("auto").for_nfe(n)[0]) for n in FEW)
    return Demo((studies[0], studies[1]), studies[2], taken)


def best_plain(study: Study, bed: str, nfe: int, metric: Literal["endpoint", "excess"]) -> Result:
    """The plain run of a strong solver, on either grid, that is nearest the exact flow by its endpoints or by its excess."""

    def distance(result: Result) -> float:
        return worth(result, metric).value if metric == "endpoint" else abs(excess(result).value)

    return min(_few(study, bed, nfe, plain=True), key=distance)


def universal(study: Study, bed: str, nfe: int) -> Result:
    """The run of the universal solver."""
    (result,) = _few(study, bed, nfe, plain=False)
    return result


def _few(study: Study, bed: str, nfe: int, plain: bool) -> list[Result]:
    cells = (cell for cell in study.config.cells() if (cell.bed, cell.nfe) == (bed, nfe))
    return study.found(cell for cell in cells if (cell.solver != UNIVERSAL) == plain)


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
