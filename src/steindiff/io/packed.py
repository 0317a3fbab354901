"""Zip and tar archives and .npz files of unknown origin: what is unpacked is counted, and nothing is written to disk.

An archive states sizes. They are compared with the limits before anything is read, and the bytes are counted while they are
read. A member has the name that the archive gives it; no file is opened or written by that name. Links and devices are skipped,
and sparse files are refused.
"""

import bz2
import gzip
import lzma
import math
import struct
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np

from steindiff.errors import InputError
from steindiff.io import limits
from steindiff.io.refusals import reading

DAMAGED: Final = (
    OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, struct.error, IndexError,
    UnicodeDecodeError, MemoryError, NotImplementedError,
)  # fmt: skip
"""What Python's readers raise for an archive that is damaged."""
_METHODS: Final = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""The ways to pack a member of a zip archive that are read here. Of the others, zipfile unpacks without a bound."""
_ENTRY, _MANY = 46, 0xFFFF
"""The least bytes of a member in the list of members, and the count that stands for "so many or more"."""
_END, _LOCATOR, _LARGE = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
"""How three records begin: the one at the end of a zip archive, and the two in front of it that a large archive has."""
_END_SIZE, _LOCATOR_SIZE, _LARGE_SIZE = 22, 20, 56
_OPEN: Final[dict[str, Callable[..., Any]]] = {
    ".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".tar": open,
}  # fmt: skip


def members(place: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the wanted files of an archive, in its order, one at a time.

    Raises:
        InputError: it is damaged, encrypted, packed in an unknown way, or unpacks to more than a limit.
        AccessError: it may not be read.
    """
    try:
        with reading(place):
            yield from (_zipped if place.suffix.lower() == ".zip" else _tarred)(place, wanted)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    except DAMAGED as error:
        raise InputError(f"{place} is not a readable archive ({error}): it may be truncated; copy it again") from error


def _zipped(place: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with opened_zip(place) as archive:
        total = 0
        for info in archive.infolist():
            if info.is_dir() or not wanted(info.filename):
                continue
            limits.within("image_bytes", info.file_size, f"{info.filename} unpacks to bytes:")
            total = limits.within("archive_bytes", total + info.file_size, "it unpacks to bytes:")
            with member(archive, info) as stream:
                yield info.filename, stream.read(info.file_size)  # read() would unpack all that comes, and then compare


def _tarred(place: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with _OPEN[place.suffix.lower()](place, "rb") as file:
        counted = cast(BinaryIO, _Counted(file))
        with tarfile.open(fileobj=counted, mode="r:") as archive:
            count = 0
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every member that it has seen
                count = limits.within("archive_members", count + 1, "its members are at least")
                if info.issparse():
                    raise InputError(f"{info.name} is a sparse file: pack it as a plain one")
                if not info.isfile() or not wanted(info.name):
                    continue
                limits.within("image_bytes", info.size, f"{info.name} has bytes:")
                stream = archive.extractfile(info)
                if stream is not None:
                    yield info.name, stream.read()


class _Counted:
    """A stream with a limit on what is read at once, and on all that is read.

    It is needed as tarfile believes the sizes that an archive states for long names and headers.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._furthest = file, 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        limits.within("image_bytes", size, "a part of it has bytes:")
        data = self._file.read(limits.most("image_bytes") if size < 0 else size)
        self._furthest = limits.within("archive_bytes", max(self._furthest, self._file.tell()), "it unpacks to bytes:")
        return data

    def seek(self, place: int, whence: int = 0) -> int:
        """Go to a place, which must be within the limit."""
        limits.within("archive_bytes", place, "it unpacks to bytes:")
        return self._file.seek(place, whence)

    def tell(self) -> int:
        """The place where the next bytes are read."""
        return self._file.tell()


@contextmanager
def opened_zip(place: str | Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive whose members are few enough. Raises InputError where they are not, and what `zipfile` raises."""
    with open(place, "rb") as file:
        room, stated = _directory(file)
        limits.within("archive_members", room // _ENTRY, "the room for its list of members is that for")
        with zipfile.ZipFile(file) as archive:
            found = limits.within("archive_members", len(archive.filelist), "its members are")
            if stated not in (found, _MANY):
                raise zipfile.BadZipFile(f"its list has {found} of {stated} members")
            yield archive


def _directory(file: BinaryIO) -> tuple[int, int]:
    """How many bytes the list of members has, and how many members, as the records at the end state before the list is read.

    The records are those that `zipfile` goes by: where a large archive has its own, it counts, whatever the last record says.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - (1 << 16) - _END_SIZE - _LOCATOR_SIZE - _LARGE_SIZE))
    tail = file.read()
    file.seek(0)
    bare = len(tail) - _END_SIZE
    without_comment = bare >= 0 and tail.startswith(_END, bare) and tail.endswith(bytes(2))
    end = bare if without_comment else tail.rfind(_END)
    if end < 0 or end > bare:
        return 0, _MANY  # zipfile says that this is no archive
    large = end - _LOCATOR_SIZE - _LARGE_SIZE
    if large >= 0 and tail.startswith(_LOCATOR, end - _LOCATOR_SIZE) and tail.startswith(_LARGE, large):
        entries, room = struct.unpack_from("<QQ", tail, large + 32)
    else:
        entries, room = struct.unpack_from("<HL", tail, end + 10)
    return int(room), int(entries)


@contextmanager
def member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[Any]:
    """An open member. Raises InputError for one that is encrypted, or packed in another way than the two that are read here."""
    if info.flag_bits & 1:
        raise InputError(f"{info.filename} is encrypted: unpack the archive with its password, and name the folder")
    if info.compress_type not in _METHODS:
        raise InputError(f"{info.filename} is packed by method {info.compress_type}: pack the archive anew, by zip or deflate")
    try:
        with archive.open(info) as stream:
            yield stream
    except (NotImplementedError, RuntimeError) as error:
        raise InputError(f"{info.filename} cannot be unpacked ({error}): pack the archive anew, by zip or deflate") from error


def read_npz(place: str | Path, names: Sequence[str], limit: str = "dataset_bytes") -> dict[str, np.ndarray]:
    """The arrays of an .npz file that have these names, as many as are there; objects are never unpickled.

    Raises:
        InputError: it is damaged, holds objects, or an array that has more bytes than the limit of this name.
        AccessError: it may not be read.
    """
    try:
        with reading(place), opened_zip(place) as archive:
            infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            return {name: _array(archive, infos[name], limit) for name in names if name in infos}
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    except (*DAMAGED, ValueError, TypeError) as error:
        raise InputError(f"{place} is not a readable .npz file of numbers ({error}): copy or make it again") from error


def names_of(place: str | Path) -> list[str]:
    """The names of the arrays of an .npz file. Raises as `read_npz`."""
    try:
        with reading(place), opened_zip(place) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    except DAMAGED as error:
        raise InputError(f"{place} is not a readable .npz file ({error}): copy or make it again") from error


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: str) -> np.ndarray:
    """One array, once its header agrees with the size that the archive states."""
    limits.within(limit, info.file_size, f"{info.filename} unpacks to bytes:")
    with member(archive, info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{info.filename} has format {version}, need 1.0 or 2.0")
        shape, fortran, dtype = _array_header(stream, version)
        need = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "biufcU" or not dtype.itemsize or min((0, *shape)) < 0 or need > info.file_size:
            raise ValueError(f"{info.filename} is said to hold {dtype} of shape {shape} in {info.file_size:,} bytes")
        data = np.empty(need, dtype=np.uint8)
        if _fill(stream, data.data) != need or stream.read(1):  # to the end, where the checksum is compared
            raise ValueError(f"{info.filename} has other bytes than the {need:,} of its shape")
    array: np.ndarray = data.view(dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _array_header(stream: Any, version: tuple[int, int]) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    """Shape, order and type of an array. Raises ValueError, whatever numpy's reader raises for a header of any text."""
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        return reader(stream)
    except (SyntaxError, tokenize.TokenError, RecursionError) as error:
        raise ValueError(f"its header is no description of an array: {error}") from error


def _fill(stream: Any, room: memoryview) -> int:
    """Read until the room is full or the stream ends, and return how many bytes came."""
    got = 0
    while got < len(room) and (count := stream.readinto(room[got : got + (1 << 20)])):
        got += count
    return got
