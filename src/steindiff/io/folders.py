"""One run a folder at a time, which overwrites and removes what is its own, and nothing else.

`locked` keeps a second run out of a folder, `locked_file` out of a single file. `claimed` locks a folder and refuses to begin
where a file is in the way that the command has not written; a record in the folder says what it has.
"""

import errno
import json
import os
import re
import socket
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from steindiff.errors import AccessError, FolderWarning, InputError
from steindiff.io import processes
from steindiff.io.files import HALF, read_json, sha256, writable_folder, write_json
from steindiff.io.names import file_name, printable

LOCK, RECORD = ".steindiff.lock", ".steindiff.json"
"""A lock lies in its folder while a run has it; the record stays."""
_HALF = rf"-[0-9a-f]{{8}}{re.escape(HALF)}"  # what `files.atomic` adds to a name until the file is whole
_WAIT, _TRIES, _SHOWN = 0.3, 5, 5
_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


# --- locks -----------------------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: str | Path, rooms: Iterable[str] = ()) -> Iterator[Path]:
    """The folder, made if need be, which no other process can lock until the block ends.

    The lock is the operating system's and ends with its process, however that ends. Inside one process it may be taken again.
    Of several processes that work together, the first one locks for all. What earlier runs have left half-written in the folder
    and in its `rooms` (patterns of folders) is removed. In the end the lock's file goes, and a folder that was made here and is
    still empty.

    Raises:
        InputError: another process has the folder; it cannot be made or written to; another user has left a lock's file
            there that cannot be removed.
    """
    place = Path(folder)
    with _lock(place / LOCK, f"the folder {place}", "choose another folder") as since:
        if since is not None:
            sweep(place, rooms, since)
        yield place


@contextmanager
def locked_by_first(folder: str | Path) -> Iterator[Path]:
    """`locked`, also by processes of a launcher that will join later: the first of them has the folder for all."""
    with locked(folder) if processes.active() or processes.leads() else nullcontext(Path(folder)) as place:
        yield place


@contextmanager
def locked_file(path: str | Path) -> Iterator[Path]:
    """The same for a single file and its half-written successors. Raises InputError where another process makes this file."""
    target = Path(path)
    with _lock(target.with_name(f".{file_name(target.name)}.lock"), f"the file {target}", "name another file") as since:
        if since is not None:
            _sweep(target.parent, since, re.escape(f".{target.stem[:40]}"), re.escape(target.suffix))
        yield target


@contextmanager
def _lock(path: Path, what: str, other: str) -> Iterator[float | None]:
    """Hold a lock: since when, by the folder's own clock; None where another process holds it for this one."""
    made = [folder for folder in (path.parent, *path.parent.parents) if not os.path.exists(folder)]
    held = None
    try:
        held = processes.by_first(lambda: _acquired(path, what, other))
        yield None if held is None else _since(held)
    finally:
        if held is not None:
            _release(held)
        for folder in made:
            with suppress(OSError):  # it holds something, as it should
                folder.rmdir()


def _acquired(path: Path, what: str, other: str) -> FileLock | None:
    """The lock; None, with a warning, where the file system has none."""
    refused: OSError | None = None
    for _ in range(_TRIES):
        target = writable_folder(path.parent).resolve() / path.name
        holder = _holder(target)
        lock = FileLock(target, timeout=_WAIT, is_singleton=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # filelock would go on with a lock that outlives a killed process
                lock.acquire()
        except FileNotFoundError:
            continue  # who had the folder has just removed it, as it was empty
        except Timeout:
            if not target.exists():
                continue  # it was just given back
            who, remedy = holder or "another process", f"wait until that run ends, stop it, or {other}"
            if processes.apart():
                remedy = "this is one of several processes of a launcher, which share nothing here: start a single one"
            raise InputError(f"{what} is in use by {who}: {remedy}") from None
        except PermissionError as error:
            refused = error
            _take_away(target, what, holder or "a process of another user", other, error)
            continue
        except (NotImplementedError, UserWarning, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
                raise InputError(f"cannot lock {what} ({error.strerror}): remove {target}, or {other}") from error
            text = f"{what} lies on a file system without locks: nothing keeps a second run away from it, so start only one"
            warnings.warn(text, FolderWarning, stacklevel=2)
            return None
        if lock.lock_counter == 1:
            _sign(target)
        return lock
    if refused is not None:
        raise InputError(f"cannot lock {what} ({refused.strerror}): change its permissions, or {other}") from refused
    raise InputError(f"{what} is taken and given back all the time by other processes: {other}")


def _sign(path: Path) -> None:
    """Say in the lock's file who has it. What cannot be said is no harm.

    Where a group or all users may write to the folder, they may also lock it, whatever the umask is. The file is opened once
    and not through a link: they can put something else in its place at any moment.
    """
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    with suppress(OSError), open(os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)), "r+b") as file:
        file.truncate()
        file.write(json.dumps(who).encode())
        about = os.fstat(file.fileno())
        if path.parent.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH) and about.st_nlink == 1 and hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), 0o666)


def _take_away(path: Path, what: str, holder: str, other: str, error: PermissionError) -> None:
    """Remove the lock's file of another user whose run was killed. Raises InputError where a run has it, or where it stays."""
    try:
        with _locked_for_reading(path):
            path.unlink()
    except BlockingIOError:
        raise InputError(f"{what} is in use by {holder}: wait until that run ends, or {other}") from error
    except FileNotFoundError:
        return  # it was just given back
    except (OSError, NotImplementedError):
        remedy = f"ask its owner to remove it once no run is there, or {other}"
        raise InputError(f"cannot lock {what}: the user {_owner(path)} has left {path}; {remedy}") from error


@contextmanager
def _locked_for_reading(path: Path) -> Iterator[None]:
    """Hold a lock whose file may be read and not written.

    Raises BlockingIOError where another process has it, FileNotFoundError where its file is not there, and another OSError or
    NotImplementedError where the system does not lock such a file.
    """
    try:
        fcntl: Any = import_module("fcntl")
    except ImportError as error:
        raise NotImplementedError from error
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(number).st_nlink:  # somebody has just removed it, and the name is free, or another file's
            raise FileNotFoundError(path)
        yield
    finally:
        os.close(number)


def _owner(path: Path) -> str:
    """The name of the user whom a file belongs to, or the number."""
    with suppress(OSError, KeyError, NotImplementedError, ImportError):
        return path.owner()
    return "unknown"


def _holder(path: Path) -> str:
    """Who has the lock, as far as its file says."""
    with suppress(ValueError, KeyError, TypeError, AccessError):
        who = read_json(path)
        return printable(f"process {who['pid']} on {who['host']} since {who['since']}")
    return ""


def _since(lock: FileLock) -> float | None:
    with suppress(OSError):
        return Path(lock.lock_file).stat().st_mtime
    return None


def _release(lock: FileLock) -> None:
    """Give a lock back. Its file goes while it is still held; who has opened that file meanwhile sees that it has no name."""
    if lock.lock_counter == 1 and hasattr(lock, "preserve_lock_file"):  # earlier versions remove it themselves
        with suppress(OSError):
            Path(lock.lock_file).unlink()
    lock.release()


# --- what is swept, overwritten and removed --------------------------------------------------------------------------


def sweep(folder: Path, rooms: Iterable[str], since: float) -> None:
    """Remove half-written files older than a lock from a folder and its rooms; nothing through a link.

    What may be a half of a file that has a lock of its own stays: its writer may be at work.
    """
    _sweep(folder, since)
    for pattern in rooms:
        for room in folder.glob(pattern):
            if room.is_dir() and not behind_link(folder, room):
                _sweep(room, since)


def _sweep(folder: Path, since: float, *ends: str) -> None:
    others = () if ends else tuple(path.name[1:] for path in folder.glob(".*.lock") if path.name != LOCK)
    for path in folder.iterdir():
        if is_half(path, *ends) and path.lstat().st_mtime <= since:
            start = file_name(re.split(_HALF, path.name[1:])[0])
            if not any(name.startswith(start) for name in others):
                with suppress(PermissionError):  # another user's, in a folder where each removes his own
                    path.unlink(missing_ok=True)


def is_half(path: Path, start: str = r"\..*", end: str = r"(\.[^.]+)?") -> bool:
    """Whether a kill has left it half-written: a file, by the name that `files.atomic` gives, with such a start and end."""
    return re.fullmatch(start + _HALF + end, path.name) is not None and is_file(path)


def is_file(path: Path) -> bool:
    """Whether it is a file and no link to one."""
    return path.is_file() and not path.is_symlink()


def behind_link(folder: Path, path: Path) -> Path | None:
    """The first link on the way from a folder to a path in it, the path included; None where there is none."""
    steps = path.relative_to(folder).parts
    return next((p for p in (folder.joinpath(*steps[: i + 1]) for i in range(len(steps))) if p.is_symlink()), None)


def refuse_link(folder: Path, path: Path) -> None:
    """Raise InputError where a link is on the way from a folder to a path in it, which is about to be written."""
    link = behind_link(folder, path)
    refuse(folder, [] if link is None else [link.relative_to(folder).as_posix()])


def refuse(folder: Path, foreign: Iterable[str], remedy: str = "choose another --outdir") -> None:
    """Raise InputError that lists files in the way, if there are any."""
    names = sorted(foreign)
    if names:
        some = ", ".join(map(printable, names[:_SHOWN])) + ("" if len(names) <= _SHOWN else ", …")
        what = f"{len(names)} file{'s' * (len(names) > 1)} in the way that this run has not written, or not so"
        raise InputError(f"{folder} has {what}: {some}; move or remove them, or {remedy}")


@dataclass(frozen=True)
class Claim:
    """What a command writes anew whenever it runs, as patterns of `Path.glob` below its folder.

    Attributes:
        command: the command, under whose name the record says what is its own.
        files: the files.
        rooms: folders that are its own, where half-written files are swept.
        earlier: whether a folder without a record holds a run of an earlier version, which kept none.
        exact: whether a file that was changed since is somebody's own; not where users put back copies.
    """

    command: str
    files: tuple[str, ...]
    rooms: tuple[str, ...] = ()
    earlier: Callable[[Path], bool] = lambda folder: False
    exact: bool = True

    def present(self, folder: Path) -> list[str]:
        """The files that are there, by name; for one behind a link, the link, and so for a room."""
        found = {path for pattern in self.files for path in folder.glob(pattern)}
        ways = {way for pattern in (*self.files, *self.rooms) for way in (Path(pattern), *Path(pattern).parents)} - {Path()}
        found |= {folder / way for way in ways if (folder / way).is_symlink()}  # it may lead nowhere, or to an empty folder
        return sorted({str((behind_link(folder, path) or path).relative_to(folder)) for path in found})


def begins(name: str, text: str) -> Callable[[Path], bool]:
    """Whether a folder has a file of this name that has this text within its first lines."""

    def known(folder: Path) -> bool:
        with suppress(OSError), open(folder / name, "rb") as file:
            return text.encode() in file.read(200)
        return False

    return known


def made(folder: Path, claim: Claim, *patterns: str) -> set[Path]:
    """Of the files in a claimed folder that fit these patterns, those that the command has made.

    The record lists a file with its digest, or does not list it as the run that made it was killed. A file that is listed and
    was changed since is somebody's own.

    Raises:
        InputError: there is such a changed file.
        AccessError: the record may not be read.
    """
    known = _record(folder).get(claim.command, {}).get("files", {})
    names = Claim(claim.command, patterns).present(folder)
    refuse(folder, [name for name in names if known.get(name, "") not in ("", fingerprint(folder / name))])
    return {folder / name for name in names}


@contextmanager
def claimed(folder: str | Path, claim: Claim) -> Iterator[Path]:
    """A locked folder in which no file is in the command's way but what it has written itself.

    The record says before the work that whatever of these files appears is the command's, and afterwards what there is, with
    digests: after a kill the same command goes on, and a file that came from elsewhere is never overwritten.

    Raises:
        InputError: as `locked`; files are in the way, which are listed.
        AccessError: the record may not be read.
    """
    with locked(folder, claim.rooms) as place:
        changed = processes.by_first(lambda: _admit(place, claim))
        try:
            yield place
        finally:
            if processes.rank() == 0:
                _close(place, claim, changed or {})


def _admit(folder: Path, claim: Claim) -> dict[str, str]:
    """Refuse foreign files, and note that the command has begun. Returns the listed files that were changed, with digests."""
    record, present = _record(folder), claim.present(folder)
    mine = record.get(claim.command)
    if mine is None:
        earlier = bool(present) and claim.earlier(folder)
        foreign = [name for name in present if not (earlier and is_file(folder / name))]
    else:
        foreign = [name for name in present if not _own(folder, name, mine, claim.exact)]
    refuse(folder, foreign)
    known = mine["files"] if mine else {}
    listed = [name for name in present if name in known and not claim.exact]
    changed = {name: digest for name in listed if (digest := fingerprint(folder / name)) != known[name]}
    if mine and mine["open"]:  # the killed run may have written them anew: their digests are no evidence
        known, changed = {name: digest for name, digest in known.items() if name not in present}, {}
    write_json(folder / RECORD, {**record, claim.command: {"open": True, "files": known}}, seal=True)
    return changed


def _own(folder: Path, name: str, mine: Mapping[str, Any], exact: bool) -> bool:
    """Whether a file is the command's: whatever a killed run has left, else what the record lists."""
    if not is_file(folder / name):
        return False
    listed = name in mine["files"] and (not exact or mine["files"][name] == fingerprint(folder / name))
    return bool(mine["open"]) or listed


def _close(folder: Path, claim: Claim, changed: Mapping[str, str]) -> None:
    """Note what there is; of a file that somebody had changed, and that is as it was, what the record said.

    An entry without files goes, and a record without entries.
    """
    record = _record(folder)
    before: dict[str, str] = record.pop(claim.command, {}).get("files", {})  # perhaps under another name
    files = {name: digest for name, digest in before.items() if is_file(folder / name)}
    files |= {name: fingerprint(folder / name) for name in claim.present(folder) if is_file(folder / name)}
    files |= {name: before[name] for name, digest in changed.items() if files.get(name) == digest}
    if files:
        record[claim.command] = {"open": False, "files": files}
    with suppress(InputError):  # on a full disk the entry stays open, and what there is stays the command's
        if record:
            write_json(folder / RECORD, record, seal=True)
        else:
            (folder / RECORD).unlink(missing_ok=True)


def _record(folder: Path) -> dict[str, Any]:
    """What commands have written here; nothing where the record is not there, or none of ours.

    Raises AccessError where it may not be read: what another user's commands have written would be forgotten.
    """
    path = folder / RECORD
    if not is_file(path):
        return {}
    try:
        found = {str(k): {"open": bool(v["open"]), "files": dict(v["files"])} for k, v in read_json(path).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return found


def fingerprint(path: Path) -> str:
    """The first 16 digits of the SHA-256 of a file."""
    return sha256(path)[:16]
