"""What a second process brings: two against one, for a calibration, a run of images and a study.

    python -m benchmarks.parallel
    python -m benchmarks.parallel --page docs/benchmarks.md
    python -m benchmarks.parallel --commands sample --rounds 7

Each command is started as users start it, once alone and once as two processes that a launcher's environment joins, one thread
each, in turns and always in a new folder. All of a process counts: its start, its work and what it writes. `wall` is what a
clock says, and holds on a machine that does nothing else. `processor` is the processor time of the one process over that of the
busier of the two. A process that waits for the other one sleeps, so this ratio is what a clock would say without other programs
on the machine, but for the time in which both wait for each other. A machine whose cores share caches gives no two processes
twice the speed of one: its own limit is twice the processor time of the one over that of the busier of two that know nothing of
each other, each with all of the work. No process is spared its start, which is torch's import above all, and which counts for
less the longer the work is: `beyond the start` is the ratio without it, the start being that of a process that draws one image.
The command writes report.md and results.json, and a page.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from recipes.command import command
from tqdm import tqdm

from benchmarks.results import keep
from benchmarks.timing import Quartiles
from steindiff.errors import InputError
from steindiff.report.blocks import Block, Code, Table, Text

COMMANDS = {
    "calibrate": "calibrate --model cifar10 --nfe 4 --trajectories 64 --out {folder}/table.safetensors",
    "sample": "sample --model cifar10 --nfe 5 --seeds 0-2047 --batch 64 --outdir {folder}",
    "bench": "bench --preset quick --beds digits --solvers dpmpp_2m,ipndm_4 --samples 512 --outdir {folder}",
}
"""What is measured; {folder} is a new one each time."""
START = "sample --model cifar10 --nfe 1 --solver ddim --seeds 0 --outdir {folder}"
"""What has a start, and no work."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    outdir: Annotated[Path, "a folder for the results"] = Path("outputs/benchmarks/parallel")
    page: Annotated[Path | None, "a page between whose marks the table goes too"] = None
    commands: Annotated[tuple[str, ...], f"of {', '.join(COMMANDS)}"] = tuple(COMMANDS)
    rounds: Annotated[int, "turns of each", 1] = 3


@dataclass(frozen=True)
class Spent:
    """One turn of a command: seconds by the clock, and processor seconds of every process."""

    wall: float
    processor: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """All turns of a command: with one process, with two, with two that do not share, and a process that only starts.

    `load` is the machine's, of one minute, before each turn.
    """

    command: str
    turns: tuple[tuple[Spent, Spent, Spent, Spent], ...]
    load: tuple[float, ...]

    @property
    def wall(self) -> Quartiles:
        """One over two."""
        return Quartiles.of([one.wall / two.wall for one, two, *_ in self.turns])

    @property
    def processor(self) -> Quartiles:
        """One over the busier of two."""
        return Quartiles.of([sum(one.processor) / max(two.processor) for one, two, *_ in self.turns])

    @property
    def beyond(self) -> Quartiles:
        """One over the busier of two, each without the start of a process."""
        times = [(sum(one.processor), max(two.processor), sum(start.processor)) for one, two, _, start in self.turns]
        return Quartiles.of([(one - start) / (two - start) for one, two, start in times])

    @property
    def limit(self) -> Quartiles:
        """What the machine gives two processes that do not share."""
        return Quartiles.of([2 * sum(one.processor) / max(apart.processor) for one, _, apart, _ in self.turns])


def launched(words: str, world: int, share: bool = True) -> Spent:
    """One turn of a command in a new folder, or in one for each process. Raises InputError where it fails."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "said", "w+", encoding="utf-8") as said:
        joined = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())} if share else {}
        start, children = time.perf_counter(), list[subprocess.Popen[bytes]]()
        for rank in range(world):
            made = Path(folder) / f"made{0 if share else rank}"
            made.mkdir(exist_ok=True)
            arguments = [sys.executable, "-m", "steindiff", *words.format(folder=made).split()]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **joined, **(_place(rank) if share else {})}
            children.append(subprocess.Popen(arguments, stdout=said, stderr=said, env=environment))
        ends = [os.wait4(child.pid, 0) for child in children]
        wall = time.perf_counter() - start
        for child, (_, status, _) in zip(children, ends, strict=True):
            child.returncode = os.waitstatus_to_exitcode(status)
        if any(child.returncode for child in children):
            said.seek(0)
            raise InputError(f"{' '.join(arguments)} by {world}: {said.read()[-1000:]}")
    return Spent(wall, tuple(usage.ru_utime + usage.ru_stime for _, _, usage in ends))


def _place(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def measure(name: str, rounds: int) -> Row:
    """The turns of a command."""
    words, turns, load = COMMANDS[name], list[tuple[Spent, Spent, Spent, Spent]](), list[float]()
    for _ in tqdm(range(rounds), unit="turn", desc=name):
        load.append(os.getloadavg()[0])
        turns.append((launched(words, 1), launched(words, 2), launched(words, 2, share=False), launched(START, 1)))
    return Row(words, tuple(turns), tuple(load))


def table(rows: Sequence[Row]) -> list[Block]:
    """The page."""
    lines = []
    for row in rows:
        alone, both = ([turn[i] for turn in row.turns] for i in (0, 1))
        walls = (f"{Quartiles.of([spent.wall for spent in some]).median:.0f} s" for some in (alone, both))
        busy = (f"{Quartiles.of([max(spent.processor) for spent in some]).median:.0f} s" for some in (alone, both))
        ratios = (str(row.processor), str(row.beyond), str(row.limit))
        lines.append((row.command.split()[0], *walls, str(row.wall), *busy, *ratios, f"{max(row.load):.1f}"))
    columns = (
        "command", "wall, one", "wall, two", "one / two", "processor, one", "the busier of two", "one / busier",
        "beyond the start", "the machine's limit", "load before",
    )  # fmt: skip
    said = f"{os.cpu_count()} cores, one thread a process, {len(rows[0].turns)} turns: medians, and quartiles of the ratios."
    commands = Code("\n".join(f"steindiff {row.command.format(folder='FOLDER')}" for row in rows))
    return [Text(said), commands, Table(columns, tuple(lines))]


@command
def main(o: Options) -> None:
    """Measure, write, print the table."""
    rows = [measure(name, o.rounds) for name in o.commands]
    keep(o.outdir, "Two processes", table(rows), o, [asdict(row) for row in rows])
