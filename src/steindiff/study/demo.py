"""The demo: a study of both small embedded models at one NFE, with Eq. 11 as printed, with γ ≤ 1, and with its fair rival."""

import time
from pathlib import Path
from typing import Any

from steindiff import models
from steindiff.io.files import manifest, writable_folder, write_json
from steindiff.metrics import Value
from steindiff.study.compare import Study
from steindiff.study.grid import PLAIN, TWICE, Cell, Config
from steindiff.study.run import run_study
from steindiff.study.store import Result

MODELS = ("digits", "cifar10_mixture")
SOLVERS = ("dpmpp_2m", "heun", "ipndm_3")
RUNS = {"plain": PLAIN, "literal": "literal", "clamped": "clamped", "plain_double": TWICE}
"""Each run of a solver and its correction; the last costs about what the corrected runs do."""
METRICS = ("energy", "frechet", "endpoint")
_VERDICTS = {"win": "better", "loss": "worse", "noise": "within noise", "diverged": "diverged", "missing": ""}
_INFINITE = Value(float("inf"), float("nan"))


def run_demo(outdir: str | Path, *, nfe: int, samples: int, first_seed: int) -> Study:
    """Run everything in one batch of images, and write results.json and run.json to `outdir`, which keeps the runs too."""
    config = Config(
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
    start = time.perf_counter()
    study = run_study(config, writable_folder(outdir))
    seconds = time.perf_counter() - start
    write_json(Path(outdir) / "results.json", [_summary(study, cell) for cell in config.cells()])
    settings = {"nfe": nfe, "samples": samples, "first_seed": first_seed, "models": MODELS, "solvers": SOLVERS}
    about = {bed.name: {"sha256": models.load(bed.name).sha256, "reference": bed.reference} for bed in study.beds.values()}
    write_json(Path(outdir) / "run.json", manifest(config=settings, models=about, seconds=round(seconds, 1)))
    return study


def verdict(study: Study, cell: Cell) -> str:
    """A run against the plain one by energy distance, in words; nothing for the plain run itself."""
    return "" if cell.correction == PLAIN else _VERDICTS[study.verdict(cell, "energy")]


def worth(result: Result, metric: str) -> Value:
    """A metric of a run; infinite where the run ended without numbers."""
    return result.values.get(metric, _INFINITE)


def _summary(study: Study, cell: Cell) -> dict[str, Any]:
    """One run, for results.json."""
    result, change = study.results[cell], study.results[cell].changes.get("energy")
    values = {metric: worth(result, metric) for metric in METRICS}
    values["excess"] = result.excess.get("energy", _INFINITE)
    return {
        "model": cell.bed,
        "solver": cell.solver,
        "run": next(run for run, correction in RUNS.items() if correction == cell.correction),
        "verdict": verdict(study, cell),
        "failure": result.failure,
        **{name: value._asdict() for name, value in values.items()},
        "change": change._asdict() if change else None,
        "stats": result.stats or None,
        "trace": result.trace,
    }
