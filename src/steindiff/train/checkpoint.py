"""Training state on disk. A file is whole or not there, executes no code, and is refused if it is another run's."""

import os
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steindiff.errors import InputError
from steindiff.io.files import atomic

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


def save_checkpoint(path: Path, state: Checkpoint) -> None:
    """Write atomically, and to the disk before the old one goes: a power cut leaves one of the two."""
    with atomic(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save({"format": FORMAT, **state.__dict__}, file)
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
    return int(_read(path).identity["recipe"]["steps"]) if path.exists() else None


def _read(path: Path) -> Checkpoint:
    try:
        with warnings.catch_warnings():  # of pickles that are none of ours, and are refused anyway
            warnings.simplefilter("ignore", UserWarning)
            held = torch.load(path, map_location="cpu", weights_only=True)
        if held.pop("format") != FORMAT:
            raise InputError(f"{path} was written by another version: pass --overwrite to start anew, or another --outdir")
        held["identity"] |= {key: {**missing, **held["identity"].get(key, {})} for key, missing in _LATER.items()}
        return Checkpoint(**held)
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is not a readable checkpoint ({reason}): remove it to start anew, or put back a copy"
        ) from error


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} was {a!r}, is {b!r}")
    return found
