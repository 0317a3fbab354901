"""The command line: one module of this room a command."""

import re
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from steindiff.cli import bench, calibrate, convert, demo, diagnose, doctor, evaluate, models, sample, score, train
from steindiff.cli.options import Threads, use_threads
from steindiff.errors import SteindiffError
from steindiff.io.files import installed_version

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steindiff {installed_version() or 'from a folder that was never installed'}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")]


@app.callback()
def _root(threads: Threads = 0, version: Version = False) -> None:
    """Few-step diffusion sampling with step corrections by Stein's identity."""
    use_threads(threads)


for _module in (sample, calibrate, convert, demo, diagnose, doctor, train, bench, evaluate, score, models):
    _name = _module.__name__.rpartition(".")[2]
    # The examples are the docstring of the module, after its first line; a command is a paragraph, or rich may join two.
    _examples = re.sub(r"\n  (?=\S)", "\n\n  ", escape((_module.__doc__ or "").partition("\n")[2]))
    app.command(_name, epilog=_examples.replace("Examples:", "[bold]Examples[/bold]"))(getattr(_module, f"{_name}_command"))


def main() -> None:
    """Run the command line; a SteindiffError is one line on stderr and exit code 2."""
    try:
        app()
    except SteindiffError as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
