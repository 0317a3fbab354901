"""What the universal table loses where it is told something wrong: σ_data, the mean, noise levels; and half precision.

    python -m research.universal_robustness --bed digits --nfe 4
    python -m research.universal_robustness --bed digits_mixture --nfe 6 --samples 512

Each line has the RMSE to the exact flow's end points of the same noise, and its standard error over images. The last line is
the best of six published solvers on two grids, which are told nothing.
"""

from collections.abc import Iterator
from copy import deepcopy
from itertools import product
from typing import Annotated

import torch
from recipes.command import command, print_table
from torch import Tensor, nn

from steindiff import Table, grids, initial_noise, sample
from steindiff.denoisers import Denoiser
from steindiff.metrics import endpoint_rmse
from steindiff.study import testbed
from steindiff.study.testbed import Testbed

PLAIN = ("dpmpp_2m", "unipc_2", "unipc_3", "deis_3", "ipndm_3", "ipndm_4")
FINE = 100


def ends(denoiser: Denoiser, noise: Tensor, top: float) -> Tensor:
    """Where the exact flow takes noise from σ = top."""
    return sample("unipc_3", denoiser, noise, grids.karras(FINE, sigma_max=top)).x


def cases(bed: Testbed, nfe: int, mean: Tensor) -> Iterator[tuple[str, Table, float]]:
    """What is told, the table, and the first level of its run."""
    right, top = bed.setting.sigma_data, grids.SIGMA_MAX
    for factor in (1.0, 0.5, 0.7, 1.4, 2.0):
        yield f"sigma_data x {factor}", Table.universal(nfe, sigma_data=factor * right), top
    for name, m in {"the true mean": mean, "twice the mean": 2 * mean, "the mean with its sign changed": -mean}.items():
        yield name, Table.universal(nfe, sigma_data=right, mean=m), top
    for other in (0.7 * top, 2 * top, 1000.0):
        yield f"sigma_max {other:g}", Table.universal(nfe, sigma_max=other, sigma_data=right), other
    for low in (0.0, 0.01):
        yield f"sigma_min {low:g}", Table.universal(nfe, sigma_min=low, sigma_data=right), top


def halves(denoiser: Denoiser) -> Iterator[tuple[str, Denoiser]]:
    """The same network in half precision inside, with a state in float32; none where it is no network."""
    if not isinstance(denoiser, nn.Module):
        return
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        yield f"layers in {name}", _within(denoiser, dtype)
    yield "layers and weights in float16", _within(deepcopy(denoiser).to(torch.float16), torch.float16)


def _within(denoiser: Denoiser, dtype: torch.dtype) -> Denoiser:
    def inner(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=dtype):
            return denoiser(x, sigma).to(x.dtype)

    return inner


def lines(bed: Testbed, nfe: int, seeds: range) -> Iterator[tuple[object, object]]:
    """The rows of the table: what a run is told, and its error."""
    denoiser = bed.denoiser_for(seeds)
    noise, others = (initial_noise(some, bed.event_shape) for some in (seeds, [seed + 10**6 for seed in seeds]))
    exact, mean = ends(denoiser, noise, grids.SIGMA_MAX), ends(denoiser, others, grids.SIGMA_MAX).mean(0)
    for name, table, top in cases(bed, nfe, mean):
        start = noise * (top / grids.SIGMA_MAX)
        target = exact if top == grids.SIGMA_MAX else ends(denoiser, start, top)
        yield name, endpoint_rmse(sample(table.solver, denoiser, start, table.sigmas).x, target)
    table = Table.universal(nfe, sigma_data=bed.setting.sigma_data)
    for name, low in halves(denoiser):
        yield f"nothing wrong; {name}", endpoint_rmse(sample(table.solver, low, noise, table.sigmas).x, exact)
    runs = {f"{s}, {g}": sample(s, denoiser, noise, grids.make(g, nfe)).x for s, g in product(PLAIN, ("karras", "log_snr"))}
    best = min(runs, key=lambda name: float((runs[name] - exact).square().mean()))
    yield f"best published: {best}", endpoint_rmse(runs[best], exact)


@command
def main(
    bed: Annotated[str, "a testbed of steindiff bench"] = "digits",
    nfe: Annotated[int, "network evaluations", 1] = 4,
    samples: Annotated[int, "images", 2] = 256,
    seed: Annotated[int, "seed of the first image", 0] = 80_000,
) -> None:
    """Print the table."""
    print(f"{bed}, N = {nfe}, {samples} images from seed {seed}\n")
    print_table(("told", "RMSE"), lines(testbed.make(bed), nfe, range(seed, seed + samples)))
