"""The command line: `steindiff sample`, `train`, `bench`, `evaluate`, `score`, `demo`, `diagnose`, `models`."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape

from steindiff.cli import bench, demo, diagnose, evaluate, models, sample, score, train
from steindiff.cli.options import Threads, use_threads
from steindiff.errors import SteindiffError

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.callback()
def _root(threads: Threads = 0) -> None:
    """Few-step diffusion sampling with step corrections by Stein's identity."""
    use_threads(threads)


app.command("sample", epilog=sample.EXAMPLES)(sample.sample_command)
app.command("demo", epilog=demo.EXAMPLES)(demo.demo_command)
app.command("diagnose", epilog=diagnose.EXAMPLES)(diagnose.diagnose_command)
app.command("train", epilog=train.EXAMPLES)(train.train_command)
app.command("bench", epilog=bench.EXAMPLES)(bench.bench_command)
app.command("evaluate", epilog=evaluate.EXAMPLES)(evaluate.evaluate_command)
app.command("score", epilog=score.EXAMPLES)(score.score_command)
app.command("models")(models.models_command)


def main() -> None:
    """Run the command line; a SteindiffError is one line on stderr and exit code 2."""
    try:
        app()
    except SteindiffError as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
