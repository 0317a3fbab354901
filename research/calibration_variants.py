"""A calibration in parts, and ways to make a table that it does not take: what its ablation compares it with."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from steindiff import initial_noise
from steindiff.calibration import Settings, Trajectories, refine, search, trajectories
from steindiff.calibration.calibrate import USUAL, divided
from steindiff.calibration.fit import Run, fitted_row, free_row
from steindiff.calibration.teacher import STEPS
from steindiff.corrections.bands import Bands
from steindiff.denoisers import Denoiser
from steindiff.solvers import Setting, Tabulated
from steindiff.study.testbed import Testbed

Pair = tuple[Trajectories, Trajectories]
"""What is fitted, and what chooses."""


def flows(bed: Testbed, seeds: Sequence[int], steps: int = STEPS) -> Trajectories:
    """The exact flow of a testbed from the noise of these seeds."""
    noise = initial_noise(seeds, bed.event_shape, device=bed.device)

    def conditioned(places: Tensor) -> Denoiser:
        return bed.denoiser_for([seeds[i] for i in places.tolist()])

    return trajectories(bed.denoiser, noise, count=steps, conditioned=conditioned if bed.conditioned else None)


def parted(law: Trajectories) -> Pair:
    """As `calibrate` divides noise; the gate's is left aside."""
    fitted, choosing, _ = divided(law.noise)
    return law.part(fitted), law.part(choosing)


def setting(bed: Testbed, law: Trajectories) -> Setting:
    """What `calibrate` would plan for."""
    return replace(bed.setting, sigma_data=law.variance**0.5)


def calibrated(bed: Testbed, laws: Pair, nfe: int, settings: Settings = USUAL.settings) -> Tabulated:
    """What `calibrate` makes of these, without its gate."""
    law, choosing = laws
    start = search.start([law], [choosing], nfe, setting(bed, law))
    return refine(start, [law], [choosing], settings)


def forced(law: Trajectories, levels: Sequence[float], ridge: float) -> Tabulated:
    """Rows as `calibration.fit` makes them, but on the exact flow's own states: teacher forcing, no closed loop.

    The first step is free. The told levels are the nominal ones.
    """
    run = Run(law, law.noise)
    rows = [free_row([run], levels[1])]
    for sigma, target in pairwise(levels[1:]):
        run = replace(run, x=law.at(sigma)).evaluated(sigma)
        rows.append(fitted_row([run], target / sigma, target, ridge))
    return Tabulated(tuple(levels), tuple(rows), (1.0,) * len(rows))


def restricted(table: Tabulated, laws: Pair, told: bool, weights: bool, most: int) -> Tabulated:
    """Gauss–Newton with β = 0, in `most` steps, over the told levels alone, the weights alone, or both.

    `laws` are those that are fitted, and those that choose among the tables on the way.
    """
    free = [moves for row in table.rows for moves in (*([told] if row.values else []), *[weights] * (1 + len(row.values)))]
    settings = Settings(iterations=most, patience=3, gain=2e-3)
    return refine(table, [laws[0]], [laws[1]], settings, free=free)


def banded(
    table: Tabulated, bands: Bands, fitted: Trajectories, new: Trajectories, last_only: bool, ridge: float = 1e-2
) -> Tensor:
    """The end states of new noise by the table with rows of bands, each fitted in turn on the states that are reached."""
    event, laws = new.noise.shape[1:], (fitted, new)
    labels, runs = bands.labels(event), [Run(law, law.noise) for law in laws]
    for i, (sigma, q, row) in enumerate(zip(table.levels, table.told, table.rows, strict=False)):
        if row.values:
            runs = [one.evaluated(q * sigma) for one in runs]
        parts = [torch.stack([bands.analyse(z) for z in (one.x, *one.values[: len(row.values)])]) for one in runs]
        weights = torch.tensor([row.a, *row.values], dtype=torch.float64).expand(int(labels.max()) + 1, -1)
        last = i == len(table.rows) - 1
        if last or not last_only:
            target = bands.analyse(fitted.ends if last else fitted.at(table.levels[i + 1]))
            weights = weights + _moves(parts[0].double(), target.double(), weights[0], labels, ridge)
        sums = [torch.einsum("kbd,dk->bd", part, weights[labels].to(part)) for part in parts]
        runs = [replace(one, x=bands.synthesise(total, event)) for one, total in zip(runs, sums, strict=True)]
    return runs[1].x


def _moves(directions: Tensor, target: Tensor, row: Tensor, labels: Tensor, ridge: float) -> Tensor:
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
        loaded = gram + ridge * gram.diag().diag() + torch.finfo(torch.float64).tiny * torch.eye(k, dtype=torch.float64)
        moves.append(change.T @ torch.linalg.solve(loaded, z @ missed[:, labels == band].flatten()))
    return torch.stack(moves)
