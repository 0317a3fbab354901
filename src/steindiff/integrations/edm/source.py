"""A file read as data: bytes of known number, numbers, spans, and errors that say where they are."""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn, TypeVar

from steindiff.errors import InputError, ModelFileError
from steindiff.io import limits
from steindiff.io.digests import size_of

TRUST = "nothing in the file was run; if you trust its source, --trust-pickle runs it with the official code on the path"
DAMAGED = "the file is damaged: fetch it again"
_T = TypeVar("_T")


def check_file(path: Path) -> Path:
    """The path. Raises InputError unless there is a file on a disk: a pipe would be waited for without end."""
    try:
        size_of(path, "file_bytes")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}; give the .pkl file of a network") from error
    return path


@dataclass(frozen=True)
class Limits:
    """What a file may need; each is far above what the published networks do.

    Attributes:
        file_bytes: the size of the file.
        operations: opcodes of the pickle.
        text_bytes: all text together, the source text in the file included.
        tensors: tensors of the network.
        modules: modules of the network.
        depth: modules within modules, and lists within lists among the arguments.
    """

    file_bytes: int = limits.LIMITS["file_bytes"]
    operations: int = 1_000_000
    text_bytes: int = 64 * 2**20
    tensors: int = 50_000
    modules: int = 50_000
    depth: int = 40


LIMITS: Final = Limits()


@dataclass(frozen=True)
class Span:
    """Bytes that a pickle holds, left where they are in the file."""

    start: int
    length: int


class Source:
    """An open file of known size: reads never ask for more than it holds, and errors say where they are."""

    def __init__(self, file: BinaryIO, path: Path, limits: Limits = LIMITS) -> None:
        self.file, self.path, self.limits = file, path, limits
        self.size = os.fstat(file.fileno()).st_size
        self.at = 0  # where the current operation starts
        self.remedy = TRUST  # what helps where nothing else is said
        if self.size > limits.file_bytes:
            raise ModelFileError(f"{path} has {self.size:,} bytes: more than the {limits.file_bytes:,} that a network may have")

    def refuse(self, what: str, remedy: str | None = None) -> NoReturn:
        """Raise ModelFileError, which names the file, the place and the remedy."""
        raise ModelFileError(f"{self.path}, byte {self.at}: {what}; {remedy or self.remedy}")

    def need(self, holds: bool, what: str) -> None:
        """Refuse the file, unless it holds."""
        if not holds:
            self.refuse(what)

    def one(self, value: object, kind: type[_T], what: str) -> _T:
        """The value, if it is of this type."""
        if isinstance(value, kind):
            return value
        self.refuse(what)

    def key(self, value: object) -> str | int:
        """A key of a dictionary or member of a set; others than text and small numbers could be made to collide."""
        if isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**31):
            return value
        self.refuse(f"a key is {shown(value)}, where keys are text")

    def left(self, count: int) -> int:
        """The count, if the file still has as many bytes."""
        if count > self.size - self.file.tell():
            self.refuse(
                f"needs {count:,} more bytes, where the file ends at byte {self.size:,}",
                "the file is truncated: fetch it again",
            )
        return count

    def read(self, count: int) -> bytes:
        """The next bytes."""
        data = self.file.read(self.left(count))
        if len(data) != count:
            self.refuse("the file became shorter while it was read", "fetch it again")
        return data

    def number(self, form: str) -> Any:
        """The next number, in a format of `struct`."""
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def span(self, count: int) -> Span:
        """The next bytes, skipped."""
        start = self.file.tell()
        self.file.seek(self.left(count), os.SEEK_CUR)
        return Span(start, count)

    def bytes_of(self, span: Span) -> bytes:
        """The bytes of a span; the place in the file stays."""
        place = self.file.tell()
        self.file.seek(span.start)
        data = self.read(span.length)
        self.file.seek(place)
        return data


def shown(text: object) -> str:
    """A text of a file for an error: quoted, escaped and short; a type's name for anything else."""
    if not isinstance(text, str):
        return f"<{type(text).__name__}>"
    return ascii(text if len(text) <= 80 else text[:77] + "...")
