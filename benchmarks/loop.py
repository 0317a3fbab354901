"""Time a step of our solvers against loops written by hand, as in k-diffusion.

The denoiser is trivial (D = x/2), so that what differs is all that is timed. Ours and the hand-written loop take turns in one
process, run by run; the ratio is of neighbouring runs. "bare" is our solver's step in a plain loop, as the hand-written
one; "sample" is `steindiff.sample`, which also checks every network output and keeps a trace.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from steindiff import grids, sample, solvers
from steindiff.solvers import Grid

SIZES = {"1 kB": (1, 256), "64 kB": (1, 16_384), "1 MB": (4, 65_536), "16 MB": (16, 262_144)}
STEPS = 20


def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """D = x/2."""
    return x * 0.5


def euler(x: Tensor, sigmas: Tensor) -> Tensor:
    """k-diffusion's Euler method, which in VE coordinates is DDIM."""
    for i in range(len(sigmas) - 1):
        denoised = denoiser(x, sigmas[i])
        d = (x - denoised) / sigmas[i]
        x = x + d * (sigmas[i + 1] - sigmas[i])
    return x


def ddim(x: Tensor, sigmas: Tensor) -> Tensor:
    """DDIM as its formula reads."""
    for i in range(len(sigmas) - 1):
        r = sigmas[i + 1] / sigmas[i]
        x = r * x + (1 - r) * denoiser(x, sigmas[i])
    return x


def dpmpp_2m(x: Tensor, sigmas: Tensor) -> Tensor:
    """k-diffusion's DPM-Solver++(2M)."""
    t, old = -sigmas.log(), None
    for i in range(len(sigmas) - 1):
        denoised = denoiser(x, sigmas[i])
        h = t[i + 1] - t[i]
        extrapolated = denoised
        if old is not None:
            r = (t[i] - t[i - 1]) / h
            extrapolated = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * old
        x = (sigmas[i + 1] / sigmas[i]) * x - torch.expm1(-h) * extrapolated
        old = denoised
    return x


def bare(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Our solver in a plain loop."""
    solver = solvers.make(name)

    def run(x: Tensor, sigmas: Tensor) -> Tensor:
        grid = Grid.of(sigmas)
        state = solver.init(denoiser, x, grid)
        for i in range(grid.steps):
            x, _, state = solver.step(denoiser, x, grid.interval(i), state)
        return x

    return run


def whole(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """`steindiff.sample`."""
    return lambda x, sigmas: sample(name, denoiser, x, sigmas).x


PAIRS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "ddim, bare / Euler by hand": (bare("ddim"), euler),
    "ddim, bare / DDIM by hand": (bare("ddim"), ddim),
    "ddim, sample / Euler by hand": (whole("ddim"), euler),
    "dpmpp_2m, bare / 2M by hand": (bare("dpmpp_2m"), dpmpp_2m),
    "dpmpp_2m, sample / 2M by hand": (whole("dpmpp_2m"), dpmpp_2m),
}


def measure(ours: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Tensor, Tensor], Tensor], x: Tensor, runs: int) -> str:
    """A table row's numbers: both times a step, and the quartiles of their ratio."""
    sigmas = grids.karras(STEPS).to(x.device)
    torch.testing.assert_close(ours(x, sigmas), theirs(x, sigmas), rtol=1e-3, atol=1e-3)
    times = [(_seconds(ours, x, sigmas), _seconds(theirs, x, sigmas)) for _ in range(runs)]
    low, middle, high = statistics.quantiles([a / b for a, b in times], n=4)
    here, there = (1e6 * statistics.median(t) / STEPS for t in zip(*times, strict=True))
    return f"{here:.1f} | {there:.1f} | {middle:.2f} ({low:.2f}–{high:.2f})"


def _seconds(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(x, sigmas)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:  python -m benchmarks.loop --sizes '1 MB' '16 MB' --runs 41",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="sizes of the state, float32")
    parser.add_argument("--runs", type=int, default=41, help="runs of each loop, taken in turn (default: 41)")
    parser.add_argument("--device", default="cpu", help="where the state lives (default: cpu)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {args.device}, one thread, {STEPS} steps, {args.runs} runs of each\n")
    print("| loops | state | ours, µs a step | by hand, µs a step | ratio, median (quartiles) |\n|---|---|---|---|---|")
    with torch.no_grad():
        for label, (ours, theirs) in PAIRS.items():
            for size in args.sizes:
                x = 80.0 * torch.randn(SIZES[size], generator=torch.Generator().manual_seed(0)).to(args.device)
                assert math.prod(x.shape) * 4 >= 1024
                print(f"| {label} | {size} | {measure(ours, theirs, x, args.runs)} |", flush=True)


if __name__ == "__main__":
    main()
