"""Which parts of a calibration earn their place: the fit, the refinement, β, the number of trajectories, frequency bands.

    python -m research.calibration_ablation --model digits --nfe 5
    python -m research.calibration_ablation --model cifar10 --nfe 3 --trajectories 32 --images 64

Each line has the RMSE to the exact flow's end points of new noise, with its standard error over images. Bands are a row of
weights for every ring of frequencies, by least squares around the refined row: in the last step alone, or in every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from recipes.command import command
from torch import Tensor

from steindiff import initial_noise, models
from steindiff.calibration import Settings, Trajectories, fit, refine, run, trajectories
from steindiff.calibration.calibrate import divided
from steindiff.corrections.bands import Bands, Cosine
from steindiff.solvers import Setting, Tabulated
from steindiff.solvers.universal import entry

RINGS, RIDGE = 8, 1e-2


@dataclass(frozen=True)
class Options:
    """The command line."""

    model: Annotated[str, "a shipped model of images, or a model file"] = "digits"
    nfe: Annotated[int, "network evaluations", 1] = 5
    trajectories: Annotated[int, "noises of the calibration", 16] = 128
    images: Annotated[int, "new noises that the scores are of", 2] = 256
    iterations: Annotated[int, "Gauss-Newton steps", 1] = 10
    steps: Annotated[int, "steps of the fine runs", 8] = 64
    seed: Annotated[int, "seed of the first new noise; the calibration's are a million higher", 0] = 90_000
    threads: Annotated[int, "CPU threads", 1] = 1


def shown(name: str, x: Tensor, law: Trajectories) -> None:
    """Print the root mean square over images, with its standard error by the delta method."""
    squares = (x - law.ends).double().square().flatten(1).mean(1)
    rmse = float(squares.mean().sqrt())
    print(f"{name:44} {rmse:.4f} ± {float(squares.std()) / len(squares) ** 0.5 / (2 * rmse):.4f}", flush=True)


def tables(options: Options, every: Trajectories, held: Trajectories) -> Iterator[tuple[str, Tabulated]]:
    """What is compared; the last one is what a calibration makes."""
    universal = entry(options.nfe, Setting(sigma_data=every.variance**0.5))[0]
    yield "universal", universal
    yield "closed-loop fit on its levels", fit([every], universal.levels)
    total = len(every.noise)
    for count, along in [*((n, 0.2) for n in (8, 16, 32) if n < total), (total, 0.0), (total, 0.2)]:
        few = every.part(torch.arange(total)[:: -(-total // count)])
        settings = Settings(iterations=options.iterations, patience=3, gain=2e-3, along=along)
        yield f"refined on {len(few.noise)} trajectories, beta = {along:g}", refine(universal, [few], [held], settings)


def banded(table: Tabulated, bands: Bands, fitted: Trajectories, new: Trajectories, last_only: bool) -> Tensor:
    """The end states of new noise by the table with rows of bands, each fitted in turn on the states that are reached."""
    event, laws = new.noise.shape[1:], (fitted, new)
    labels, runs = bands.labels(event), [[law.noise] for law in laws]  # the state, and the values, newest first
    for i, (sigma, q, row) in enumerate(zip(table.levels, table.told, table.rows, strict=False)):
        if row.values:
            runs = [[x, law.denoise(x, q * sigma), *known] for law, (x, *known) in zip(laws, runs, strict=True)]
        parts = [torch.stack([bands.analyse(z) for z in some[: 1 + len(row.values)]]) for some in runs]
        weights = torch.tensor([row.a, *row.values], dtype=torch.float64).expand(int(labels.max()) + 1, -1)
        last = i == len(table.rows) - 1
        if last or not last_only:
            target = bands.analyse(fitted.ends if last else fitted.at(table.levels[i + 1]))
            weights = weights + _moves(parts[0].double(), target.double(), weights[0], labels)
        sums = [torch.einsum("kbd,dk->bd", part, weights[labels].to(part)) for part in parts]
        runs = [[bands.synthesise(total, event), *known] for total, (_, *known) in zip(sums, runs, strict=True)]
    return runs[1][0]


def _moves(directions: Tensor, target: Tensor, row: Tensor, labels: Tensor) -> Tensor:
    """How each band's row differs from the common one: ridge least squares in x − D_0, D_0 and the changes of D."""
    k = len(directions)
    change = torch.eye(k, dtype=torch.float64)
    change[0, 1:2] = -1.0
    for j in range(2, k):
        change[j, j - 1], change[j, j] = 1.0, -1.0
    missed = target - torch.einsum("k,kbd->bd", row, directions)
    moves = []
    for band in range(int(labels.max()) + 1):
        z = change @ directions[:, :, labels == band].flatten(1)
        gram = z @ z.T
        loaded = gram + RIDGE * gram.diag().diag() + torch.finfo(torch.float64).tiny * torch.eye(k, dtype=torch.float64)
        moves.append(change.T @ torch.linalg.solve(loaded, z @ missed[:, labels == band].flatten()))
    return torch.stack(moves)


@command
def main(options: Options) -> None:
    """Calibrate in every way, and score on new noise."""
    model = models.load(options.model)
    seeds = (
        range(first, first + n) for first, n in ((options.seed, options.images), (options.seed + 10**6, options.trajectories))
    )
    new, law = (trajectories(model.denoiser, initial_noise(some, model.event_shape), count=options.steps) for some in seeds)
    some, choosing, _ = divided(law.noise)
    every, held = law.part(some), law.part(choosing)
    for name, table in tables(options, every, held):
        shown(name, run(table, new), new)
    for last_only, where in ((True, "the last step"), (False, "every step")):
        shown(f"the last of these, {RINGS} rings in {where}", banded(table, Cosine(RINGS), every, new, last_only), new)
