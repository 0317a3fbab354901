"""Kill commands, fill their disk, take the disk away; then give the same command again.

    python -m faults.interruptions --attempts 3
    python -m faults.interruptions --cases sample train --faults killed --attempts 50

Every attempt begins a command, and something happens to it: `killed` is kill −9 at a random moment; `worker killed` is the
same of one of two processes; `full disk` is a file system with room for some of the files; `read-only` is one that cannot be
written to; `file limit` is a bound on the size of a file, which some are beyond; `open files` is a bound on how many files are
open at once. Where the fault ends the command by itself, it must say so in one line. Then the same command is given again, with
nothing in its way. It must end well, in the state of a run that nothing happened to: every file the same, to the byte or
number, but for times. Half-written files must be gone. An attempt whose command ended before the fault came counts apart.

Full disks and read-only ones are mounts in a namespace of their own, for which Linux asks for root or user namespaces. Without
them these attempts are not made, and the table says so. The command writes report.md and results.json, and ends with code 2
where a promise was broken.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from recipes.command import command
from tqdm import tqdm

from faults.outcomes import Outcomes, page, told
from faults.runs import CASES, ENVIRONMENT, Case, finished, outcome
from steindiff.errors import InputError, unknown_name
from steindiff.io.folders import is_half

SAME, LATE, DIFFERENT, FAILED, LITTER, LOUD, IMPOSSIBLE = (
    "went on, same files", "ended before the fault", "other files", "did not go on", "left half-written files",
    "more than one line", "not possible here",
)  # fmt: skip
OUTCOMES = (SAME, LATE, IMPOSSIBLE, DIFFERENT, FAILED, LITTER, LOUD)
PROMISED = (SAME, LATE, IMPOSSIBLE)
FAULTS = ("killed", "worker killed", "full disk", "read-only", "file limit", "open files")


@dataclass(frozen=True)
class Options:
    """The command line."""

    outdir: Annotated[Path, "a folder for the results"] = Path("outputs/faults/interruptions")
    attempts: Annotated[int, "of each fault on each command", 1] = 5
    cases: Annotated[tuple[str, ...], "commands"] = tuple(CASES)
    faults: Annotated[tuple[str, ...], "what happens to them"] = FAULTS
    seed: Annotated[int, "of the moments"] = 0


@dataclass(frozen=True)
class Whole:
    """A run that nothing happened to: its files, its time, the bytes that it keeps, and those of the largest file."""

    files: Any
    seconds: float
    bytes: int
    largest: int = 0

    @classmethod
    def of(cls, case: Case, folder: Path) -> Whole:
        """Run the command once. Raises InputError where it fails by itself."""
        began = time.monotonic()
        done = finished(case, folder)
        if done.returncode:
            raise InputError(f"the command fails without a fault: {done.stderr[-300:]}")
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        return cls(outcome(folder), time.monotonic() - began, sum(sizes), max(sizes))


def killed(case: Case, folder: Path, whole: Whole, draw: random.Random) -> str | None:
    """Kill −9 of the only process."""
    with subprocess.Popen(case.line(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        time.sleep(whole.seconds * draw.uniform(0.3, 1.0))
        process.kill()
    return None if process.returncode < 0 else LATE


def worker_killed(case: Case, folder: Path, whole: Whole, draw: random.Random) -> str | None:
    """Kill −9 of one of two processes; the other must end."""
    if not case.several:
        return IMPOSSIBLE
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": ENVIRONMENT}
    with subprocess.Popen(case.line(folder, processes=2), **quiet) as launcher:
        time.sleep(whole.seconds * draw.uniform(0.6, 1.4))
        workers = _children(launcher.pid)
        if workers:
            os.kill(draw.choice(workers), signal.SIGKILL)
        try:
            launcher.wait(60)
        except subprocess.TimeoutExpired:
            for process in (launcher.pid, *workers):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            return FAILED
    return None if workers and launcher.returncode else LATE


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def full_disk(case: Case, folder: Path, whole: Whole, draw: random.Random) -> str | None:
    """A file system with room for a part of the files; what it held is there when there is room again."""
    pages = max(4, int(whole.bytes * draw.uniform(0.05, 0.9)) // 4096)
    return _mounted(case, folder, f"size={4096 * pages}", keep=True)


def read_only(case: Case, folder: Path, whole: Whole, draw: random.Random) -> str | None:
    """A file system that cannot be written to."""
    return _mounted(case, folder, "ro", keep=False)


_SCRIPT = """
mount -t tmpfs -o "$1" none "$2" || exit 77
keep="$3"; shift 3; "$@"; code=$?
if [ -n "$keep" ]; then cp -a "$MOUNT/." "$keep" || exit 78; fi
exit $code
"""


def _mounted(case: Case, folder: Path, options: str, *, keep: bool) -> str | None:
    """Run the command on a file system of its own, mounted at the folder; what it leaves there is copied back."""
    folder.mkdir(exist_ok=True)
    kept = folder.with_name(f"{folder.name}-kept")
    kept.mkdir()
    line = ["unshare", "--mount", "--map-root-user", "sh", "-c", _SCRIPT, "sh", options, str(folder), str(kept) if keep else ""]
    environment = {**ENVIRONMENT, "MOUNT": str(folder)}
    done = subprocess.run(
        [*line, *case.line(folder)], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    if done.returncode in (1, 77, 78) and "steindiff" not in done.stderr and "error:" not in done.stderr:
        return IMPOSSIBLE
    said = _said(done)
    if said != LOUD:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
    return said


def file_limit(case: Case, folder: Path, whole: Whole, draw: random.Random) -> str | None:
    """A bound on the size of a file, as some quotas and `ulimit -f` have it."""
    return _limited(case, folder, resource.RLIMIT_FSIZE, int(whole.largest * draw.uniform(0.05, 0.9)))


def open_files(case: Case, folder: Path, whole: Whole, draw: random.Random) -> str | None:
    """A bound on how many files are open at once, with which the libraries can still be imported."""
    return _limited(case, folder, resource.RLIMIT_NOFILE, draw.choice((5, 6)))


def _limited(case: Case, folder: Path, kind: int, most: int) -> str | None:
    """Run the command with so much of one thing."""
    line = [sys.executable, "-c", _LIMITS, str(kind), str(most), *case.line(folder)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False)
    return _said(done)


_LIMITS = """
import os, resource, sys
resource.setrlimit(int(sys.argv[1]), (int(sys.argv[2]),) * 2)
os.execv(sys.argv[3], sys.argv[3:])
"""


def _said(done: subprocess.CompletedProcess[str]) -> str | None:
    """What came of a command that the fault does not end: one line and a code, or its end."""
    errors = [text for text in done.stderr.replace("\r", "\n").splitlines() if text.startswith("error:")]
    if done.returncode and (len(errors) != 1 or "Traceback" in done.stderr):
        return LOUD
    return None if done.returncode else LATE


_ACTIONS = {
    "killed": killed, "worker killed": worker_killed, "full disk": full_disk, "read-only": read_only,
    "file limit": file_limit, "open files": open_files,
}  # fmt: skip


def attempt(case: Case, fault: str, folder: Path, whole: Whole, draw: random.Random) -> tuple[str, str]:
    """The outcome of one attempt, and what was said."""
    early = _ACTIONS[fault](case, folder, whole, draw)
    if early not in (None, LATE):
        return early, ""
    done = finished(case, folder)
    if done.returncode and "already" not in done.stderr:  # a run may have ended between its last file and the fault
        return FAILED, done.stderr[-300:]
    left = [str(path.relative_to(folder)) for path in folder.rglob("*") if is_half(path)]
    if left:
        return LITTER, ", ".join(left[:3])
    found = outcome(folder)
    differing = sorted(name for name in {*found, *whole.files} if found.get(name) != whole.files.get(name))
    return (DIFFERENT, ", ".join(differing[:5])) if differing else (early or SAME, "")


def interrupted(cases: tuple[str, ...], faults: tuple[str, ...], attempts: int, seed: int) -> dict[str, Outcomes]:
    """Every fault on every command, so often. Raises InputError for an unknown one."""
    for name in cases:
        if name not in CASES:
            raise unknown_name("command", name, CASES)
    for fault in faults:
        if fault not in _ACTIONS:
            raise unknown_name("fault", fault, _ACTIONS)
    found = {f"{name}, {fault}": Outcomes() for name in cases for fault in faults}
    with tempfile.TemporaryDirectory(prefix="faults-") as place, tqdm(total=len(found) * attempts, unit="attempt") as bar:
        for name in cases:
            whole = Whole.of(CASES[name], Path(place) / name)
            for fault in faults:
                draw = random.Random(f"{seed} {name} {fault}")
                for i in range(attempts):
                    folder = Path(place) / f"{name}-{fault.replace(' ', '_')}-{i}"
                    label, said = attempt(CASES[name], fault, folder, whole, draw)
                    found[f"{name}, {fault}"].add(label, f"attempt {i}: {said}", PROMISED)
                    bar.update()
    return found


@command
def main(o: Options) -> None:
    """Interrupt, write, print the table."""
    found = interrupted(o.cases, o.faults, o.attempts, o.seed)
    told(o.outdir, "Interrupted commands", page(found, OUTCOMES, "command and fault"), o, found)
