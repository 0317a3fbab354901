"""Permissions hold for whoever runs the tests, also for root, who may otherwise read and write everything."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

NOBODY = 65534
"""Another user, to whom root can give files."""
_OVERRIDES = 0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER
_VERSION = 0x20080522


@contextmanager
def permissions_hold() -> Iterator[None]:
    """Within this, root is a user as any other: without the capabilities that override permissions. Others are it anyway."""
    if os.name != "posix" or os.geteuid():
        yield
        return
    if not sys.platform.startswith("linux"):
        pytest.skip("root can lay down its power on Linux only")
    before = _capabilities()
    _set([before[0] & ~_OVERRIDES, *before[1:]])
    try:
        yield
    finally:
        _set(before)


def _capabilities() -> list[int]:
    """Effective, permitted and inheritable capabilities of this thread, 32 of each, and then the next 32."""
    header, held = (ctypes.c_uint32 * 2)(_VERSION, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capget(header, held) == 0
    return list(held)


def _set(held: list[int]) -> None:
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)(*held)) == 0
