"""Training state on disk. A file is whole or not there, executes no code, and is refused if it is another run's."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steindiff.errors import AccessError, InputError
from steindiff.io import digests, packed
from steindiff.io.files import atomic
from steindiff.io.jsons import SEAL
from steindiff.io.refusals import reading

FORMAT = 1
_LATER: dict[str, dict[str, Any]] = {"recipe": {"label_dropout": 0.0}, "unet": {"null_class": False}}
"""Settings that an identity of an earlier version lacks, and what they were then."""


@dataclass(frozen=True)
class Checkpoint:
    """All that the next step depends on.

    Attributes:
        step, seconds: optimiser steps done, and their time over all sessions.
        identity: recipe, network and data hashes, which a resumed run must share.
        network, average, optimizer, scaler: state dicts; the scaler's is empty but for fp16.
    """

    step: int
    seconds: float
    identity: dict[str, Any]
    network: dict[str, Any]
    average: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]

    @property
    def steps(self) -> int:
        """The steps of the whole run."""
        steps: int = self.identity["recipe"]["steps"]
        return steps


def save_checkpoint(path: Path, state: Checkpoint) -> None:
    """Write atomically, and to the disk before the old one goes: a power cut leaves one of the two."""
    with atomic(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save({"format": FORMAT, SEAL: digests.of_value(state.__dict__), **state.__dict__}, file)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:  # torch's writer reports a full disk so
            raise OSError(None, str(error).splitlines()[0]) from error


def load_checkpoint(path: Path, identity: dict[str, Any]) -> Checkpoint:
    """The state to go on from. Raises InputError where it cannot be read, or is another run's; names what differs."""
    state = _read(path)
    if differing := _differences(state.identity, identity):
        raise InputError(
            f"{path} belongs to another run ({'; '.join(differing)}): use the same settings, another --outdir, or --overwrite"
        )
    return state


def steps_of(path: Path) -> int | None:
    """The steps of the whole run that a checkpoint belongs to; None where there is no checkpoint."""
    return _read(path).steps if path.exists() else None


def _read(path: Path) -> Checkpoint:
    try:
        held = _loaded(path)
        seal, found = held.pop(SEAL, None), digests.of_value({k: v for k, v in held.items() if k not in ("format", SEAL)})
        if held.pop("format") != FORMAT:
            raise _OtherVersion(f"{path} was written by another version: pass --overwrite to start anew, or another --outdir")
        if seal not in (None, found):
            raise ValueError("damaged: its digest differs from that of what it holds")
        held["identity"] |= {key: {**missing, **held["identity"].get(key, {})} for key, missing in _LATER.items()}
        return _checked(Checkpoint(**held))
    except (_OtherVersion, AccessError):
        raise
    except Exception as error:  # what torch raises for a file of any kind is not documented
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is not a readable checkpoint ({reason}): remove it to start anew, or put back a copy"
        ) from error


class _OtherVersion(InputError):
    """A checkpoint of another format."""


def _loaded(path: Path) -> dict[str, Any]:
    """What the file holds, by torch's weights-only reader. Raises ValueError for one that unpacks to more than it has."""
    size = digests.size_of(path, "file_bytes")
    with reading(path), packed.opened_zip(path) as archive:
        unpacked = sum(info.file_size for info in archive.filelist)
        if unpacked > size:
            raise ValueError(f"it unpacks to {unpacked:,} bytes of {size:,}, where torch packs nothing")
    with warnings.catch_warnings():  # of pickles that are none of ours, and are refused anyway
        warnings.simplefilter("ignore", UserWarning)
        held = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(held, dict):
        raise TypeError(f"it holds a {type(held).__name__}")
    return held


def _checked(state: Checkpoint) -> Checkpoint:
    """The same. Raises TypeError where an entry is of another kind."""
    parts = (state.identity, state.network, state.average, state.optimizer, state.scaler)
    numbers = state.step, state.steps
    good = all(type(n) is int and n >= 0 for n in numbers) and type(state.seconds) in (int, float)
    if not good or not all(isinstance(part, dict) for part in parts):
        raise TypeError(f"step and steps {str(numbers)[:80]}, seconds {str(state.seconds)[:40]}, or parts of another kind")
    return state


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} was {a!r}, is {b!r}")
    return found
