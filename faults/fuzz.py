"""Damage files of every kind that is read, at random, and read them.

    python -m faults.fuzz --attempts 40
    python -m faults.fuzz --seconds 3600 --seed 7 --outdir outputs/fuzz
    python -m faults.fuzz --kinds "EDM pickle" zip --attempts 5000

An attempt takes a small valid file and changes it by one to four mutations: bits, bytes, ranges, numbers in text, a shorter
or a longer file. Then the package reads it as it reads any file. It may refuse the file in one line, or read what the whole
file says. A file that carries no digest may also read as another file: one that others write, or one of ours whose digest has
lost its name, for files of earlier versions have none. Anything else breaks the promise of SECURITY.md: a traceback, more than
ten seconds, other numbers from a file with a digest. The command writes report.md and results.json, and ends with code 2 where
a promise was broken.
"""

from __future__ import annotations

import random
import re
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

from recipes.command import command

from faults.kinds import KINDS, Kind, seen
from faults.outcomes import Outcomes, page, told
from steindiff.errors import InputError, ModelFileError, SteindiffError, unknown_name
from steindiff.io.files import NoDescription
from steindiff.io.jsons import SEAL

REFUSED, SAME, BARE, OTHER, SLOW, TRACEBACK = (
    "refused", "read as it was", "its digest is gone", "read as another", "over ten seconds", "traceback",
)  # fmt: skip
OUTCOMES = (REFUSED, SAME, BARE, OTHER, SLOW, TRACEBACK)
LONGEST = 10.0
HUGE = (b"0", b"-1", b"1e999", b"99999999999999999999", b"4294967296", b"null", b'"x"', b"[]", b"NaN", b"true")


@dataclass(frozen=True)
class Options:
    """The command line."""

    outdir: Annotated[Path, "a folder for the results"] = Path("outputs/faults/fuzz")
    attempts: Annotated[int, "on each kind of file", 1] = 200
    seconds: Annotated[float | None, "go round until so many have passed; counts instead of --attempts", 0] = None
    seed: Annotated[int, "of the mutations"] = 0
    kinds: Annotated[tuple[str, ...], "kinds of files, by name"] = tuple(KINDS)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The data after one to four mutations."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        draw.choice(MUTATIONS)(changed, draw)
    return bytes(changed)


def _place(data: bytearray, draw: random.Random) -> int:
    """A place; every second one is near the beginning, where headers are."""
    return draw.randrange(min(len(data), 512) if draw.random() < 0.5 else len(data)) if data else 0


def _bit(data: bytearray, draw: random.Random) -> None:
    if data:
        data[_place(data, draw)] ^= 1 << draw.randrange(8)


def _byte(data: bytearray, draw: random.Random) -> None:
    if data:
        data[_place(data, draw)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))


def _cut(data: bytearray, draw: random.Random) -> None:
    del data[_place(data, draw) :]


def _removed(data: bytearray, draw: random.Random) -> None:
    start = _place(data, draw)
    del data[start : start + draw.randint(1, 64)]


def _repeated(data: bytearray, draw: random.Random) -> None:
    start = _place(data, draw)
    data[start:start] = data[start : start + draw.randint(1, 256)] * draw.randint(1, 8)


def _blanked(data: bytearray, draw: random.Random) -> None:
    start = _place(data, draw)
    stop = min(len(data), start + draw.randint(1, 64))
    data[start:stop] = bytes(stop - start)


def _longer(data: bytearray, draw: random.Random) -> None:
    data += draw.randbytes(draw.randint(1, 300))


def _number(data: bytearray, draw: random.Random) -> None:
    """A number in text becomes one that nobody expects."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", bytes(data[:20_000])))
    if found:
        one = draw.choice(found)
        data[one.start() : one.end()] = draw.choice(HUGE)


def _nested(data: bytearray, draw: random.Random) -> None:
    """Brackets within brackets."""
    start = _place(data, draw)
    data[start:start] = draw.choice((b"[", b'{"a":', b"(")) * draw.choice((10, 3000))


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _bit, _bit, _byte, _cut, _removed, _repeated, _blanked, _longer, _number, _number, _nested,
)  # fmt: skip


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in this thread after so many seconds."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind: Kind, path: Path, want: Any) -> str:
    """What reading the file comes to; a traceback with the error's name."""
    try:
        with alarm(LONGEST), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = seen(kind.read(path))
        if found == want:
            return SAME
        return BARE if kind.sealed and SEAL.encode() not in path.read_bytes() else OTHER
    except TimeoutError:
        return SLOW
    except (SteindiffError, ValueError) as error:
        own = isinstance(error, (InputError, ModelFileError, NoDescription)) or type(error) is ValueError
        return REFUSED if own and str(error) and "\n" not in str(error) else f"{TRACEBACK}: {error!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{TRACEBACK}: {error!r}"


def promised(kind: Kind) -> tuple[str, ...]:
    """The outcomes that SECURITY.md promises for a damaged file of this kind."""
    return (REFUSED, SAME, BARE) if kind.sealed else (REFUSED, SAME, OTHER)


@dataclass
class Target:
    """A kind under attack: its file, what the whole file says, and what attempts came to."""

    name: str
    kind: Kind
    path: Path
    whole: bytes
    want: Any
    draw: random.Random
    found: Outcomes

    @classmethod
    def of(cls, name: str, folder: Path, seed: int) -> Target:
        """The kind's file, made in a folder of its own."""
        kind, own = KINDS[name], folder / name.replace(" ", "_")
        own.mkdir()
        path = kind.make(own)
        return cls(name, kind, path, path.read_bytes(), seen(kind.read(path)), random.Random(f"{seed} {name}"), Outcomes())

    def attempt(self) -> None:
        """Damage, read, write down."""
        self.path.write_bytes(mutated(self.whole, self.draw))
        result = outcome(self.kind, self.path, self.want)
        label, _, said = result.partition(": ")
        allowed = promised(self.kind)
        if label not in allowed:
            said = f"{said[:160]} (attempt {self.found.counts.total()})"
        self.found.add(label, said, allowed)


def attacked(names: tuple[str, ...], folder: Path, *, attempts: int, seconds: float | None, seed: int) -> dict[str, Outcomes]:
    """So many attempts on every kind, or rounds until the time has passed. Raises InputError for an unknown kind."""
    for name in names:
        if name not in KINDS:
            raise unknown_name("kind of file", name, KINDS)
    targets = [Target.of(name, folder, seed) for name in names]
    until, done = None if seconds is None else time.monotonic() + seconds, 0
    while done < attempts if until is None else time.monotonic() < until:
        for target in targets:
            target.attempt()
        done += 1
    return {target.name: target.found for target in targets}


@command
def main(o: Options) -> None:
    """Attack, write, print the table."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        found = attacked(o.kinds, Path(folder), attempts=o.attempts, seconds=o.seconds, seed=o.seed)
    told(o.outdir, "Damaged files", page(found, OUTCOMES, "kind of file"), o, found)
