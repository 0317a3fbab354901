"""Files that are either whole or not there, tensors with what is known about them, and manifests."""

import hashlib
import json
import os
import platform
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steindiff.errors import InputError
from steindiff.io import digests, jsons
from steindiff.io.digests import sha256 as sha256
from steindiff.io.refusals import reading, remedy

HALF: Final = ".steindiff-half"
"""What the name of a file has until it is whole: `folders.sweep` knows by it what a kill has left."""


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; it is renamed to `path` when the block ends well, and removed when it does not.

    A path that is such a temporary one already is written as it is. Who may read the file is what the user's umask says.

    Raises:
        InputError: as `writable_file`, or the disk is full.
    """
    target = Path(path)
    if HALF in target.suffixes:
        yield target
        return
    writable_file(target)
    temporary: Path | None = None
    try:
        free = target.with_name(f".{target.stem[:40]}-{secrets.token_hex(4)}{HALF}{target.suffix}")
        number = os.open(free, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = stat.S_IMODE(os.fstat(number).st_mode)
        os.close(number)
        temporary = free
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:  # safetensors makes a file of its own, which others may not read
            with suppress(OSError):
                os.chmod(temporary, mode)
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        reason = getattr(error, "strerror", None) or error
        helps = "name another file" if os.path.isdir(target) else remedy(error) or "free space or choose another folder"
        raise InputError(f"cannot write {target}: {reason}; {helps}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically; what UTF-8 cannot say, half a surrogate pair, is escaped."""
    with atomic(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        OSError, ValueError: there is none on a disk and of a JSON's size.
        AccessError: it may not be read.
    """
    with reading(path):
        digests.size_of(path, "json_bytes")
        return Path(path).read_text(encoding="utf-8")


def write_json(path: str | Path, value: Any, seal: bool = False) -> None:
    """Write readable JSON atomically; NaN and infinities become null. What is read again gets a seal (`jsons.sealed`)."""
    found = plain(value)
    write_text(path, json.dumps(jsons.sealed(found) if seal else found, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The value that a JSON file holds, without its seal.

    Raises:
        ValueError: there is no such file, it is not JSON, its seal is not that of its entries, or it is beyond a limit.
        AccessError: it may not be read.
    """
    try:
        with reading(path):
            digests.size_of(path, "json_bytes")
            return jsons.unsealed(jsons.parse(Path(path).read_bytes()))
    except OSError as error:
        raise ValueError(str(error)) from error


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Any) -> None:
    """Write a safetensors file atomically, with `about` as JSON in its header; NaN and infinities there become null.

    The header ends in a seal, which covers all of the file (`digests`).
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    description = {**plain(about), jsons.SEAL: digests.BLANK}
    with atomic(path) as temporary:
        save_file(contiguous, temporary, {"steindiff": json.dumps(description, allow_nan=False)})
        digests.seal(temporary)


def read_tensors(path: str | Path, *names: str) -> tuple[dict[str, Any], list[Tensor]]:
    """What `write_tensors` wrote: `about`, and the tensors of these names. The whole file is checked, whatever is read of it.

    Raises:
        ValueError: there is no such file, it is damaged, too large or another program's, or it lacks a name.
        AccessError: it may not be read.
    """
    about, found = _read(path, names)
    return about, [found[name] for name in names]


def read_all(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_tensors` wrote: `about`, and all tensors by name. Raises as `read_tensors`."""
    return _read(path, None)


class NoDescription(ValueError):
    """A file of tensors of another program, or of none: its header has no description in JSON."""


def _read(path: str | Path, names: Sequence[str] | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with reading(path):
            digests.check_size(path)
            with safe_open(path, framework="pt") as file:
                seal, about = jsons.apart(_described(file.metadata() or {}))
                digests.check_seal(path, seal)
                return about, {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _described(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The description in a header. Raises NoDescription where there is none."""
    try:
        about = jsons.parse(metadata["steindiff"])
    except KeyError as error:
        raise NoDescription(f"KeyError: {error}") from None
    except json.JSONDecodeError as error:
        raise NoDescription(str(error)) from error
    if not isinstance(about, dict):
        raise NoDescription(f"its header says {str(about)[:80]}")
    return about


def writable_folder(path: str | Path) -> Path:
    """The folder, made if need be. Raises InputError where it cannot be made or written to."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a path with a zero in it is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot make the folder {folder}: {reason}; choose another folder") from error
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise InputError(f"the folder {folder} is not writable: change its permissions or choose another folder")
    return folder


def writable_file(path: str | Path) -> Path:
    """A file that can be made, or replaced by a rename. Long work asks before it begins.

    Raises:
        InputError: as `writable_folder`; or another user's file is there, in a folder where only owners replace theirs.
    """
    file = Path(path)
    folder = writable_folder(file.parent)
    if _is_anothers(file, folder):
        raise InputError(
            f"{file} is another user's, and in {folder} only its owner can replace it: name another file, or ask its owner"
        )
    return file


def _is_anothers(file: Path, folder: Path) -> bool:
    """Whether a file is there that this user cannot replace, though the folder may be written to: that of /tmp."""
    try:
        there, place = os.lstat(file), os.stat(folder)
    except (OSError, ValueError):
        return False
    return bool(place.st_mode & stat.S_ISVTX) and getattr(os, "geteuid", int)() not in (0, there.st_uid, place.st_uid)


def digest(**parts: Any) -> str:
    """A hash of a description's JSON, 16 hex digits; `plain` makes the JSON."""
    return hashlib.sha256(json.dumps(plain(parts), sort_keys=True).encode()).hexdigest()[:16]


def manifest(**config: Any) -> dict[str, Any]:
    """The versions, machine, time and command of this process, with the caller's entries beside them."""
    return {
        "steindiff": installed_version(),
        "git": _git_revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        **config,
    }


def installed_version() -> str | None:
    """The installed version; None where the code runs from a folder that was never installed."""
    try:
        return version("steindiff")
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The checkout this code runs from, with "+" where it has uncommitted changes; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def plain(value: Any) -> Any:
    """The same tree for JSON: NaN and infinities, which JSON lacks, become None; unknown objects become their text."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
