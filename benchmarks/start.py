"""How long Python takes to import steindiff and to show the help, beside an import of torch alone.

    python -m benchmarks.start --outdir outputs/start
    python -m benchmarks.start --rounds 11

Every line is a process of its own, and its processor time counts. The lines take turns; a ratio is of neighbouring turns. The
command writes report.md and results.json.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from recipes.command import command

from benchmarks.results import keep
from benchmarks.timing import Quartiles, ratio
from steindiff.report.blocks import Block, Table, Text

LINES = {
    "import torch": ("-c", "import torch"),
    "import steindiff": ("-c", "import steindiff"),
    "steindiff --help": ("-m", "steindiff", "--help"),
    "steindiff sample --help": ("-m", "steindiff", "sample", "--help"),
}
FIRST = next(iter(LINES))


@dataclass(frozen=True)
class Options:
    """The command line."""

    outdir: Annotated[Path, "a folder for the results"] = Path("outputs/benchmarks/start")
    page: Annotated[Path | None, "a page between whose marks the tables go too"] = None
    rounds: Annotated[int, "turns of every line", 1] = 7


def processor_seconds(arguments: tuple[str, ...]) -> float:
    """Processor time of one Python process, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(rounds: int) -> dict[str, list[float]]:
    """Processor seconds of every line in every round, after a round that reads the files into memory."""
    times = [{line: processor_seconds(arguments) for line, arguments in LINES.items()} for _ in range(rounds + 1)]
    return {line: [turn[line] for turn in times[1:]] for line in LINES}


def table(times: dict[str, list[float]]) -> list[Block]:
    """The page."""
    rows = []
    for line, found in times.items():
        beyond = Quartiles.of([ours - torch for ours, torch in zip(found, times[FIRST], strict=True)])
        rows.append((f"`{line}`", str(Quartiles.of(found)), str(ratio(times, line, FIRST)), str(beyond)))
    columns = ("process", "seconds", "over `import torch`", "seconds beyond it")
    return [Text("Processor time of a process: medians and quartiles."), Table(columns, tuple(rows))]


@command
def main(o: Options) -> None:
    """Measure, write, print the table."""
    times = measure(o.rounds)
    keep(o.outdir, "Start", table(times), o, times)
