"""What samples of a testbed are measured against: samples of its law, and the end points of its exact flow.

The references of an `ExactModel` are exact; those of another denoiser are its own fine runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from steindiff import grids, solvers
from steindiff.analytic import ExactModel
from steindiff.grids import SIGMA_MAX, SIGMA_MIN
from steindiff.metrics import endpoint_rmse
from steindiff.noise import initial_noise
from steindiff.study.draw import draw
from steindiff.study.store import kept
from steindiff.study.testbed import Testbed

FINE_STEPS = 50
_TARGET_SEED, _FLOOR_SEED = 1_000_000_000, 2_000_000_000


@dataclass(frozen=True, eq=False)
class References:
    """What samples of a testbed are measured against.

    Attributes:
        endpoints: where the exact flow takes the noise of the study's seeds, (n, *event).
        target: independent samples of the law at σ_min.
        floor: n others, which stand for a perfect sampler's.
        how: one sentence on how they were made.
        error: the estimated RMS error of a coordinate of the end points; None where nobody asked.
    """

    endpoints: Tensor
    target: Tensor
    floor: Tensor
    how: str
    error: float | None = None


def references(bed: Testbed, seeds: Sequence[int], folder: Path | None = None, checked: int = 0) -> References:
    """The references for consecutive seeds, made once in a study's folder.

    So many (`checked`) of a network's fine runs are repeated with twice the steps, for `References.error`.

    Raises:
        InputError: a file there is not what its name says.
        NonFiniteError: a fine run diverged.
    """

    def new() -> References:
        return _exact(bed, bed.law, seeds) if bed.law else _fine_runs(bed, seeds, checked)

    how = {"steps": FINE_STEPS, "sigmas": (SIGMA_MIN, SIGMA_MAX), "checked": 0 if bed.law else checked}
    parts = {"bed": bed.digest, "first": seeds[0], "n": len(seeds), **how}
    return kept(folder and folder / "references", bed.name, parts, References, "they are made again", new)


def _exact(bed: Testbed, law: ExactModel, seeds: Sequence[int]) -> References:
    noise = initial_noise(seeds, bed.event_shape, SIGMA_MAX, device=bed.device)
    flow = law.flow_with_error(noise, SIGMA_MAX, SIGMA_MIN, tol=2e-3)
    here, n, error = law.to(device="cpu"), len(seeds), float(flow.error)
    target, floor = _noisy(here, 4 * n, _TARGET_SEED), _noisy(here, n, _FLOOR_SEED)
    how = (
        f"{len(target)} exact samples; flow by up to {flow.steps} Runge–Kutta steps of order six, off by about {error:.1e} RMS"
    )
    return References(flow.x.cpu(), target, floor, how, error)


def _noisy(law: ExactModel, count: int, seed: int) -> Tensor:
    """Draw samples of the law at σ_min."""
    clean = law.sample(count, torch.Generator().manual_seed(seed % 2**31))
    return clean + SIGMA_MIN * torch.randn(
        clean.shape, generator=torch.Generator().manual_seed(seed % 2**31 + 1), dtype=clean.dtype
    )


def _fine_runs(bed: Testbed, seeds: Sequence[int], checked: int) -> References:
    n = len(seeds)
    endpoints, target, floor = (
        fine_run(bed, run) for run in (seeds, *(range(first, first + n) for first in (_TARGET_SEED, _FLOOR_SEED)))
    )
    how = f"{n} of the network's own {FINE_STEPS}-step UniPC-3 samples, other seeds; flow by the same solver"
    if not checked:
        return References(endpoints, target, floor, how)
    finer = fine_run(bed, seeds[:checked], 2 * FINE_STEPS)
    error = endpoint_rmse(finer, endpoints[:checked]).value
    return References(endpoints, target, floor, f"{how}, off by about {error:.1e} RMS", error)


def fine_run(bed: Testbed, seeds: Sequence[int], steps: int = FINE_STEPS) -> Tensor:
    """A network's own end points by UniPC-3, the most accurate solver per evaluation on smooth networks; on the CPU."""
    return draw(solvers.make("unipc_3"), bed, grids.karras(steps), seeds).samples
