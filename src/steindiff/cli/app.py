"""The command line: `steindiff sample`, `train`, `bench`, `evaluate`, `score`, `demo`, `diagnose`, `models`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape

from steindiff import corrections, grids, models, solvers
from steindiff.cli.bench import EXAMPLES as BENCH_EXAMPLES
from steindiff.cli.bench import bench_command
from steindiff.cli.evaluate import EXAMPLES as EVALUATE_EXAMPLES
from steindiff.cli.evaluate import evaluate_command
from steindiff.cli.score import EXAMPLES as SCORE_EXAMPLES
from steindiff.cli.score import score_command
from steindiff.cli.train import EXAMPLES as TRAIN_EXAMPLES
from steindiff.cli.train import train_command
from steindiff.errors import SteindiffError

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

_EXAMPLES = """

[bold]Examples[/bold]

  steindiff sample --model digits --nfe 5 --seeds 0-63 --outdir out/base

  steindiff sample --model digits --nfe 5 --seeds 0-63 --correction clamped --outdir out/clamped

  steindiff sample --model cifar10_mixture --solver heun --steps 18 --to-zero --seeds 1,2,5-10 --outdir out/heun

  steindiff sample --model digits --nfe 5 --seeds 0-49999 --batch 500 --subdirs --outdir out/50k

  torchrun --nproc_per_node=2 -m steindiff sample --model digits --nfe 5 --seeds 0-49999 --batch 500 --no-png --outdir out/npz
"""


@app.callback()
def _root(
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's default.", min=0)] = 0,
) -> None:
    """Few-step diffusion sampling with step corrections by Stein's identity."""
    if threads:
        torch.set_num_threads(threads)


@app.command("sample", epilog=_EXAMPLES)
def sample_command(
    model: Annotated[str, typer.Option(help=f"One of {', '.join(models.names())}, or a .safetensors file.")],
    outdir: Annotated[Path, typer.Option(help="Where the images go; made if need be.")],
    seeds: Annotated[str, typer.Option(help="One image per seed: 0-63 or 1,2,5-10.")] = "0-63",
    solver: Annotated[str, typer.Option(help=f"One of {', '.join(solvers.names())}.")] = "dpmpp_2m",
    steps: Annotated[int | None, typer.Option(help="Solver steps (this or --nfe).", min=1)] = None,
    nfe: Annotated[int | None, typer.Option(help="Network evaluations to spend (this or --steps).", min=1)] = None,
    grid: Annotated[str, typer.Option(help=f"One of {', '.join(grids.names())}.")] = "karras",
    sigma_min: Annotated[float, typer.Option("--sigma_min", "--sigma-min", help="Lowest noise level.")] = 0.002,
    sigma_max: Annotated[float, typer.Option("--sigma_max", "--sigma-max", help="Highest noise level.")] = 80.0,
    rho: Annotated[float, typer.Option(help="Exponent of the karras grid.")] = 7.0,
    to_zero: Annotated[bool, typer.Option("--to-zero", help="One more step, to sigma = 0, as EDM's sampler.")] = False,
    correction: Annotated[
        str, typer.Option(help=f"One of {', '.join(corrections.names())}, or a .json table of gamma.")
    ] = "none",
    gamma_min: Annotated[float | None, typer.Option("--gamma_min", "--gamma-min", help="Lower bound of gamma.")] = None,
    gamma_max: Annotated[float | None, typer.Option("--gamma_max", "--gamma-max", help="Upper bound of gamma.")] = None,
    frame: Annotated[str, typer.Option(help="Coordinates of the blend: model or ve.")] = "model",
    divergence: Annotated[str, typer.Option(help="Derivative: auto, vjp, jvp or fd.")] = "auto",
    probes: Annotated[int, typer.Option(help="Hutchinson probes a step.", min=1)] = 1,
    probe_kind: Annotated[str, typer.Option("--probe-kind", help="rademacher or gaussian.")] = "rademacher",
    batch: Annotated[int, typer.Option(help="Images a batch; a correction's statistics are per batch.", min=1)] = 64,
    class_index: Annotated[int | None, typer.Option("--class", help="Class label of a class-conditional model.")] = None,
    subdirs: Annotated[bool, typer.Option("--subdirs", help="One folder per 1000 seeds.")] = False,
    png: Annotated[bool, typer.Option(help="Write one PNG per seed.")] = True,
    npz: Annotated[bool, typer.Option(help="Write samples.npz (arr_0, uint8 NHWC).")] = True,
    dtype: Annotated[str, typer.Option(help="State and embedded models: float32 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run in --outdir, and start anew.")] = False,
) -> None:
    """Sample images: PNGs, grid.png, samples.npz, trace.jsonl (gamma and moments per step) and run.json.

    Killed at any moment, the same command goes on, and the result is that of an unbroken run. Several processes deal out whole
    batches: `torchrun --nproc_per_node=2 -m steindiff sample …` or `accelerate launch -m steindiff sample …`.
    """
    from steindiff.io import processes
    from steindiff.run import Job, generate, parse_seeds

    job = Job(
        model, parse_seeds(seeds), solver, grid, steps, nfe, sigma_min, sigma_max, rho, to_zero, correction, gamma_min,
        gamma_max, frame, divergence, probes, probe_kind, batch, class_index, dtype, device,
    )  # fmt: skip
    with processes.joined():
        folder = generate(job, outdir, subdirs=subdirs, png=png, npz=npz, overwrite=overwrite, progress=True)
        if processes.rank() == 0:
            text = f"{len(job.seeds)} images in [bold]{folder}[/bold] (grid.png, trace.jsonl, run.json)"
            Console().print(text, highlight=False)


@app.command(epilog="\n[bold]Example[/bold]\n\n  steindiff demo --outdir outputs/demo\n")
def demo(
    outdir: Annotated[Path, typer.Option(help="Where report.md and the pictures go.")] = Path("outputs/demo"),
    nfe: Annotated[int, typer.Option(help="Network evaluations of every run.", min=2)] = 5,
    samples: Annotated[int, typer.Option(help="Images per run; more give smaller standard errors.", min=64)] = 512,
    seed: Annotated[int, typer.Option(help="First of the image seeds.", min=0)] = 0,
) -> None:
    """Base and corrected solvers side by side on both embedded models, same seeds: pictures, gammas and a table."""
    from steindiff.study.demo import run_demo

    run_demo(outdir, nfe=nfe, samples=samples, first_seed=seed, console=_console())


_DIAGNOSE_EXAMPLES = """

[bold]Examples[/bold]

  steindiff diagnose --outdir outputs/diagnose

  steindiff diagnose --model digits --solver dpmpp_2m,heun --nfe 5,6,8,10 --outdir outputs/diagnose-digits
"""


@app.command(epilog=_DIAGNOSE_EXAMPLES)
def diagnose(
    outdir: Annotated[Path, typer.Option(help="Where report.md and the pictures go.")] = Path("outputs/diagnose"),
    preset: Annotated[
        str, typer.Option(help="quick (minutes; long runs at some steps only) or full (every solver, every step; hours).")
    ] = "quick",
    model: Annotated[str, typer.Option(help="Embedded models or .safetensors files, comma-separated; default: all.")] = "",
    solver: Annotated[str, typer.Option(help="Solvers, comma-separated; default: the preset's.")] = "",
    all_solvers: Annotated[bool, typer.Option("--all", help="Every solver.")] = False,
    nfe: Annotated[str, typer.Option(help="Network evaluations, comma-separated; default: the preset's.")] = "",
    samples: Annotated[int | None, typer.Option(help="Trajectories per model; default: the preset's.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="First of the image seeds.", min=0)] = 0,
) -> None:
    """Local Lipschitz constants of solver steps against the actual error's growth; gamma and noise-level traces; a toy."""
    from steindiff.diagnostics.setup import configure
    from steindiff.diagnostics.study import run_diagnose

    setup = configure(preset, model=model, solver=solver, all_solvers=all_solvers, nfe=nfe, samples=samples, first_seed=seed)
    run_diagnose(outdir, setup, _console())


app.command("train", epilog=TRAIN_EXAMPLES)(train_command)
app.command("bench", epilog=BENCH_EXAMPLES)(bench_command)
app.command("evaluate", epilog=EVALUATE_EXAMPLES)(evaluate_command)
app.command("score", epilog=SCORE_EXAMPLES)(score_command)


@app.command("models")
def models_command() -> None:
    """List the embedded models."""
    console = Console()
    for name in models.names():
        model = models.load(name)
        size = model.path.stat().st_size / 2**20
        console.print(
            f"{name}: {model.info['kind']}, {tuple(model.event_shape)}, {size:.1f} MiB, {model.path}", highlight=False
        )


def _console() -> Console:
    """The terminal's width, or room for the tables where there is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=150)


def main() -> None:
    """Run the command line; a SteindiffError is one line on stderr and exit code 2."""
    try:
        app()
    except SteindiffError as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
