"""Not a test by itself: samples a share of one batch under torchrun, and writes end states and traces for test_distributed."""

import json
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from matplotlib.figure import Figure

import steindiff as sd
from steindiff import models
from steindiff.analytic import GaussianMixture
from steindiff.calibration import calibrate
from steindiff.corrections.bands import RandomBands
from steindiff.errors import InputError, NonFiniteError
from steindiff.io import processes
from steindiff.metrics import JudgeFiles
from steindiff.metrics.fid.extractors import Inception
from steindiff.models.datasets import ImageSet
from steindiff.noise import generators
from steindiff.report.study import write_report
from steindiff.study import demo
from steindiff.study.draw import draw
from steindiff.study.evaluate import evaluate
from steindiff.study.evaluation import Settings
from steindiff.study.grid import Config
from steindiff.study.judge import judge_images
from steindiff.study.judging import Job
from steindiff.study.measure import Ruler
from steindiff.study.run import run_study
from steindiff.study.testbed import Testbed

RULES = {
    "clamped": ("dpmpp_2m", sd.rules.CleanTarget(gamma_max=1.0)),
    "heun": ("heun", sd.rules.CleanTarget(gamma_max=1.5)),
    "energy": ("dpmpp_3m", sd.rules.Energy(bands=RandomBands(2), significance=1.0)),
}
BATCH = 13


def law():
    generator = torch.Generator().manual_seed(5)
    means = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    spreads = torch.stack([torch.diag(0.1 + torch.rand(4, generator=generator, dtype=torch.float64)) for _ in range(3)])
    return GaussianMixture(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), means, spreads)


def run(name, seeds, gather):
    solver, rule = RULES[name]
    x = sd.initial_noise(seeds, (4,), dtype=torch.float64)
    corrected = sd.Corrected(sd.solvers.make(solver), rule, gather=gather)
    return sd.sample(corrected, law(), x, sd.grids.karras(6), generator=generators(seeds))


def summary(result):
    return {"x": result.x.tolist(), "trace": [{"reason": r.reason, "numbers": r.numbers} for r in result.trace]}


def scored(folder, reference):
    """The numbers of a score, and how many images this process's network has seen."""
    seen = []
    features = Inception._features
    Inception._features = lambda self, images: seen.append(len(images)) or features(self, images)
    files = (JudgeFiles("inception", str(folder / "tiny.pt")),)
    places = {"images": str(folder / "images.npz"), "real": str(folder / "real.npz"), "write_reference": reference}
    job = Job(files, **places, groups=5, batch=8, few=True)
    try:
        lines = judge_images(job).judgements[0].lines
    finally:
        Inception._features = features
    return {"numbers": [tuple(value) for line in lines for value in (line.value, line.real)], "seen": sum(seen)}


def quality(folder, together):
    """The energy distances of an evaluation; none on the second process."""
    train, held = (ImageSet(pixels(seed, 24), None, (), f"set {seed}") for seed in (1, 2))
    settings = Settings(9, runs=("dpmpp_2m-2",), features="none", batch=4, chunk=5, groups=2)
    found = evaluate(models.load("digits"), train, held, settings, folder, progress=False, together=together)
    return [row.train.energy.value for row in found.rows]


def small_mixture(file):
    """A model file of two Gaussians in four dimensions."""
    tensors = {
        "weights": torch.ones(2) / 2, "means": torch.tensor([[-0.5] * 4, [0.5] * 4]),
        "loadings": torch.full((2, 4, 1), 0.1), "log_diagonal": torch.full((2, 4), -3.0),
    }  # fmt: skip
    models.save(file, tensors, {"kind": "factor_mixture", "name": "m", "event_shape": [4]})


def shown(file, folder):
    """The errors of the end points of a small demo of one model, which every process is told."""
    beds = {name: (str(file),) for name in ("MODELS", "LARGER", "PAPER_MODELS")}
    runs = {"STRONG": ("ddim",), "SOLVERS": ("ddim",), "GRIDS": ("karras",), "FEW": (3,)}
    with patch.multiple(demo, **beds, **runs):
        found = demo.run_demo(folder, nfe=2, samples=64, first_seed=0)
    return [result.values["endpoint"].value for study in (*found.few, found.paper) for result in study.results.values()]


def reported(file, folder):
    """How many pictures of a small study's report this process has saved, and how many sets of images it has measured."""
    config = Config(
        beds=(str(file),),
        solvers=("ddim", "heun"),
        nfe=(4,),
        corrections=("none", "clamped"),
        n=48,
        batch=24,
        metrics=("energy", "endpoint"),
    )
    with (
        patch.object(Figure, "savefig", autospec=True, side_effect=Figure.savefig) as saved,
        patch.object(Ruler, "measure", autospec=True, side_effect=Ruler.measure) as measured,
    ):
        write_report(folder, run_study(config, folder, progress=False))
    return {"pictures": saved.call_count, "measured": measured.call_count}


BATCHES = {"dealt": (8, 4), "divided": (6, 8), "dealt, then divided": (14, 4), "an image left": (9, 4), "of one": (5, 1)}
"""Images, and images of a batch."""


class Counted:
    """A denoiser, and how many images it has seen."""

    def __init__(self, denoiser):
        self.denoiser, self.seen = denoiser, 0

    def __call__(self, x, sigma):
        self.seen += len(x)
        return self.denoiser(x, sigma)


def drawn(case, together):
    """A corrected run of a study, of the images of seeds 3, 4, …: the end states, γ of its first batch and what it cost."""
    count, batch = BATCHES[case]
    counted = Counted(law().to(torch.float32))
    bed = Testbed("law", counted, (4,), "digest")
    solver = sd.Corrected(sd.solvers.make("dpmpp_2m"), sd.rules.CleanTarget(gamma_max=1.5))
    found = draw(solver, bed, sd.grids.karras(6), range(3, 3 + count), batch=batch, together=together)
    return {
        "x": found.samples.tolist(),
        "gamma": [step["gamma"] for step in found.trace],
        "stats": found.stats,
        "seen": counted.seen,
    }


def fitted():
    """The error at the gate of a table that is calibrated together, and how many images this process has evaluated for it."""
    counted = Counted(law())
    table = calibrate(counted, sd.initial_noise(range(64), (4,), dtype=torch.float64), 3)
    return {"rmse": table.report["gate"]["rmse"], "seen": counted.seen}


def dealt():
    """What works gave, which process did each, and what is said where one fails."""

    def fails():
        raise InputError("the second of three")

    works = [lambda i=i: (i, processes.rank()) for i in range(5)]
    try:
        processes.dealt([works[0], fails, works[2]])
    except InputError as error:
        return {"found": processes.dealt(works), "none": processes.dealt([]), "failure": str(error)}


def pixels(seed, n):
    """(n, 1, 8, 8) uint8."""
    return torch.randint(256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def main(folder):
    with processes.joined():
        rank, mine = processes.rank(), processes.share(BATCH)
        found = {name: summary(run(name, mine, processes.gather)) for name in RULES}
        found["seeds"] = list(mine)
        found["failure"] = broken()
        found["score"] = scored(folder, folder / "reference.npz")
        found["quality"] = quality(folder / "quality", together=True)
        found["demo"] = shown(folder / "mixture.safetensors", folder / "demo")
        found["study"] = reported(folder / "mixture.safetensors", folder / "study")
        found["drawn"] = {case: drawn(case, together=True) for case in BATCHES}
        found["dealt"] = dealt()
        found["fitted"] = fitted()
        found["threads"] = threads()
    found["left"] = threads()
    (folder / f"{rank}.json").write_text(json.dumps(found))


def threads():
    """The names of this process's threads that are gloo's."""
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()] if tasks.exists() else []
    return [name for name in names if "gloo" in name]


def broken():
    """A network that fails on one process only: that one says so after the run, and nobody waits for it."""

    def denoiser(x, sigma):
        bad = processes.rank() == 1 and float(sigma) < 1
        return x * float("nan") if bad else x / (1 + sigma**2)

    x = sd.initial_noise(processes.share(4), (4,), dtype=torch.float64)
    rule = sd.rules.NoiseConsistent()
    try:
        sd.sample(sd.Corrected(sd.solvers.make("ddim"), rule, gather=processes.gather), denoiser, x, sd.grids.karras(6))
    except NonFiniteError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
