"""`steindiff sample`: images by the ten thousand, one seed each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from steindiff import corrections, grids, solvers
from steindiff.cli.options import Batch, Device, ModelName
from steindiff.corrections import CleanTarget
from steindiff.divergence import Hutchinson, Method
from steindiff.errors import InputError
from steindiff.io import processes
from steindiff.run import Frame, Job, generate, parse_seeds
from steindiff.specs import amend

__all__ = ["EXAMPLES", "sample_command"]

EXAMPLES = """

[bold]Examples[/bold]

  steindiff sample --model digits --nfe 5 --seeds 0-63 --outdir out/base

  steindiff sample --model digits --nfe 5 --seeds 0-63 --correction clamped --outdir out/clamped

  steindiff sample --model digits --nfe 5 --solver 'dpmpp_3m(exact=True)' --grid 'karras(rho=5)' --outdir out/exact

  steindiff sample --model cifar10 --nfe 5 --correction 'energy(bands=8, moment=m.json)' --outdir out/energy

  steindiff sample --model cifar10_mixture --solver heun --steps 18 --to-zero --seeds 1,2,5-10 --outdir out/heun

  steindiff sample --model digits --nfe 5 --seeds 0-49999 --batch 500 --subdirs --outdir out/50k

  torchrun --nproc_per_node=2 -m steindiff sample --model digits --nfe 5 --seeds 0-49999 --batch 500 --no-png --outdir out/npz

A spec with options, such as 'karras(rho=5)', needs quotes in a shell.
"""

_RHO = 7.0
ProbeKind = Literal["rademacher", "gaussian"]


def sample_command(
    model: ModelName,
    outdir: Annotated[Path, typer.Option(help="The images go into this folder; it is made if need be.")],
    seeds: Annotated[str, typer.Option(help="Every seed makes one image: 0-63 or 1,2,5-10.")] = "0-63",
    solver: Annotated[str, typer.Option(help=f"The solver is one of {', '.join(solvers.names())}, or a spec.")] = "dpmpp_2m",
    steps: Annotated[int | None, typer.Option(help="The number of solver steps (give this or --nfe).", min=1)] = None,
    nfe: Annotated[int | None, typer.Option(help="Network evaluations to spend (give this or --steps).", min=1)] = None,
    grid: Annotated[str, typer.Option(help=f"The noise grid is one of {', '.join(grids.names())}, or a spec.")] = "karras",
    sigma_min: Annotated[float, typer.Option("--sigma_min", "--sigma-min", help="The lowest noise level.")] = grids.SIGMA_MIN,
    sigma_max: Annotated[float, typer.Option("--sigma_max", "--sigma-max", help="The highest noise level.")] = grids.SIGMA_MAX,
    rho: Annotated[float, typer.Option(help="The exponent of the karras grid, as in --grid 'karras(rho=7)'.")] = _RHO,
    to_zero: Annotated[bool, typer.Option("--to-zero", help="Add one more step, to sigma = 0, as EDM's sampler does.")] = False,
    correction: Annotated[
        str, typer.Option(help=f"The correction is one of {', '.join(corrections.names())}, a spec, or a .json table of gamma.")
    ] = "none",
    gamma_min: Annotated[
        float | None, typer.Option("--gamma_min", "--gamma-min", help="The least gamma of the paper's rule.")
    ] = None,
    gamma_max: Annotated[
        float | None, typer.Option("--gamma_max", "--gamma-max", help="The largest gamma of the paper's rule.")
    ] = None,
    frame: Annotated[Frame, typer.Option(parser=str, help="The coordinates of the blend: model or ve.")] = "model",
    divergence: Annotated[Method, typer.Option(parser=str, help="How the derivative is taken: auto, vjp, jvp or fd.")] = "auto",
    probes: Annotated[int, typer.Option(help="The number of Hutchinson probes in a step.", min=1)] = 1,
    probe_kind: Annotated[ProbeKind, typer.Option(parser=str, help="The probes are rademacher or gaussian.")] = "rademacher",
    batch: Batch = 64,
    class_index: Annotated[int | None, typer.Option("--class", help="The class label, for a class-conditional model.")] = None,
    subdirs: Annotated[bool, typer.Option("--subdirs", help="Make one folder for every 1000 seeds.")] = False,
    png: Annotated[bool, typer.Option(help="Write one PNG for every seed.")] = True,
    npz: Annotated[bool, typer.Option(help="Write samples.npz (arr_0, uint8 NHWC).")] = True,
    dtype: Annotated[str, typer.Option(help="The state and embedded models are float32 or float64.")] = "float32",
    device: Device = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that --outdir holds, and start anew.")] = False,
) -> None:
    """Sample images: PNGs, grid.png, samples.npz, trace.jsonl (gamma and moments per step) and run.json.

    Killed at any moment, the same command goes on, and the result is that of an unbroken run. Several processes deal out whole
    batches: `torchrun --nproc_per_node=2 -m steindiff sample …` or `accelerate launch -m steindiff sample …`.
    """
    job = Job(
        model=model, seeds=parse_seeds(seeds), solver=solver, grid=grid if rho == _RHO else amend(grid, {"rho": rho}),
        steps=steps, nfe=nfe, sigma_min=sigma_min, sigma_max=sigma_max, to_zero=to_zero,
        correction=_bounded(correction, gamma_min, gamma_max), frame=frame,
        divergence=Hutchinson(probes=probes, kind=probe_kind, method=divergence), batch=batch, class_index=class_index,
        dtype=dtype, device=device,
    )  # fmt: skip
    with processes.joined():
        folder = generate(job, outdir, subdirs=subdirs, png=png, npz=npz, overwrite=overwrite, progress=True)
        if processes.rank() == 0:
            text = f"{len(job.seeds)} images in [bold]{folder}[/bold] (grid.png, trace.jsonl, run.json)"
            Console().print(text, highlight=False)


def _bounded(correction: str, low: float | None, high: float | None) -> str:
    """The correction's spec with the bounds of γ that the flags name."""
    bounds = {name: value for name, value in (("gamma_min", low), ("gamma_max", high)) if value is not None}
    if bounds and not isinstance(corrections.make(correction), CleanTarget):
        raise InputError(f"--gamma_min and --gamma_max with correction {correction!r}: only the paper's rule takes bounds")
    return amend(correction, bounds) if bounds else correction
