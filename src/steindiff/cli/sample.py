"""`steindiff sample`: images by the ten thousand, one seed each.

Examples:
  steindiff sample --model digits --nfe 5 --seeds 0-63 --outdir out/base
  steindiff sample --model digits --nfe 5 --seeds 0-63 --solver ipndm_4 --correction clamped --outdir out/clamped
  steindiff sample --model digits --nfe 5 --solver 'dpmpp_3m(exact=True)' --grid 'karras(rho=5)' --outdir out/exact
  steindiff sample --model cifar10 --nfe 5 --correction 'energy(bands=8, moment=m.json)' --outdir out/energy
  steindiff sample --model digits --nfe 5 --table outputs/digits.safetensors --seeds 0-63 --outdir out/calibrated
  steindiff sample --model cifar10_mixture --solver heun --steps 18 --to-zero --seeds 1,2,5-10 --outdir out/heun
  steindiff sample --model digits --nfe 5 --seeds 0-49999 --batch 500 --subdirs --outdir out/50k
  torchrun --nproc_per_node=2 -m steindiff sample --model digits --nfe 5 --seeds 0-49999 --batch 500 --no-png --outdir out/npz

A spec with options, such as 'karras(rho=5)', needs quotes in a shell.
"""

from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from steindiff import corrections, grids, models, solvers
from steindiff.cli.derive import options_of
from steindiff.corrections import CleanTarget
from steindiff.divergence import Hutchinson, Method
from steindiff.errors import InputError, require
from steindiff.io import processes
from steindiff.io.files import read_json
from steindiff.io.streams import say
from steindiff.run import Job, generate, parse_seeds
from steindiff.specs import amend

ProbeKind = Literal["rademacher", "gaussian"]


@options_of(Job, model=models.names(), solver=solvers.plans(), grid=grids.names(), correction=corrections.names())
def sample_command(
    outdir: Annotated[Path, typer.Option(help="The images go into this folder; it is made if need be.")],
    seeds: Annotated[str, typer.Option(help="Every seed makes one image: 0-63 or 1,2,5-10.")] = "0-63",
    table: Annotated[Path | None, typer.Option(help="Calibrated tables, as --solver 'calibrated(FILE)'.")] = None,
    rho: Annotated[float | None, typer.Option(help="The exponent of the karras grid, as in --grid 'karras(rho=7)'.")] = None,
    gamma_min: Annotated[
        float | None, typer.Option("--gamma_min", "--gamma-min", help="The least gamma of the paper's rule.")
    ] = None,
    gamma_max: Annotated[
        float | None, typer.Option("--gamma_max", "--gamma-max", help="The largest gamma of the paper's rule.")
    ] = None,
    divergence: Annotated[Method, typer.Option(parser=str, help="How the derivative is taken: auto, vjp, jvp or fd.")] = "auto",
    probes: Annotated[int, typer.Option(help="The number of Hutchinson probes in a step.", min=1, max=10_000)] = 1,
    probe_kind: Annotated[ProbeKind, typer.Option(parser=str, help="The probes are rademacher or gaussian.")] = "rademacher",
    subdirs: Annotated[bool, typer.Option("--subdirs", help="Make one folder for every 1000 seeds.")] = False,
    png: Annotated[bool, typer.Option(help="Write one PNG for every seed.")] = True,
    npz: Annotated[bool, typer.Option(help="Write samples.npz (arr_0, uint8 NHWC).")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that --outdir holds, and start anew.")] = False,
    **given: Any,
) -> None:
    """Sample images: PNGs, grid.png, samples.npz, trace.jsonl (gamma and moments per step) and run.json.

    Killed at any moment, the same command goes on, and the result is that of an unbroken run. Several processes deal out whole
    batches: `torchrun --nproc_per_node=2 -m steindiff sample …` or `accelerate launch -m steindiff sample …`.
    """
    for flag, value in (("--rho", rho), ("--gamma_min", gamma_min), ("--gamma_max", gamma_max)):
        require(value is None or isfinite(value), "need a finite number, or leave it out", **{flag: value})
    estimator = Hutchinson(probes=probes, kind=probe_kind, method=divergence)
    job = Job(seeds=parse_seeds(seeds), divergence=estimator, **given)
    job = replace(
        job, solver=job.solver if table is None else f"calibrated({str(table)!r})",
        grid=job.grid if rho is None else amend(job.grid or "karras", {"rho": rho}),
        correction=_bounded(job.correction, gamma_min, gamma_max),
    )  # fmt: skip
    with processes.joined():
        folder = generate(job, outdir, subdirs=subdirs, png=png, npz=npz, overwrite=overwrite, progress=True)
        if processes.rank() == 0:
            ran = read_json(folder / "run.json")["solver"]
            say(f"{len(job.seeds)} images in {folder} (grid.png, trace.jsonl, run.json), by {ran}")


def _bounded(correction: str, low: float | None, high: float | None) -> str:
    """The correction's spec with the bounds of γ that the flags name."""
    bounds = {name: value for name, value in (("gamma_min", low), ("gamma_max", high)) if value is not None}
    if bounds and not isinstance(corrections.make(correction), CleanTarget):
        raise InputError(f"--gamma_min and --gamma_max with correction {correction!r}: only the paper's rule takes bounds")
    return amend(correction, bounds) if bounds else correction
