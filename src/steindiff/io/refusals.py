"""What the operating system refuses a process, and what helps: permissions, open files, processes, room on a disk."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steindiff.errors import AccessError

_OWNER, _OPEN = "change its permissions, or ask its owner to", "let this process open more files (ulimit -n)"
_ROOM, _MORE = "free space or choose another folder", "let this user have more processes (ulimit -u), or take fewer --threads"
_REMEDIES = {
    errno.EACCES: _OWNER, errno.EPERM: _OWNER, errno.EMFILE: _OPEN, errno.ENFILE: _OPEN, errno.EAGAIN: _MORE,
    errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EFBIG: f"let this process write larger files (ulimit -f), {_ROOM}",
}  # fmt: skip
_WORDS = {os.strerror(errno.EMFILE): _OPEN, "can't start new thread": _MORE}
"""What libraries say of the same in errors without a number."""


def remedy(error: BaseException) -> str | None:
    """What helps where the system has refused something; None for any other error."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return _REMEDIES[error.errno]
    found = (helps for words, helps in _WORDS.items() if words in str(error))
    return next(found, None) if isinstance(error, Exception) else None


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Within this a file is read. Raises AccessError where the system refuses it; the file need not be damaged."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        helps = remedy(error)
        if helps is None:
            raise
        reason = getattr(error, "strerror", None) or error
        raise AccessError(f"{path} cannot be read: {reason}; {helps}") from error
