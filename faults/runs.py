"""Commands that write: small runs of each, and what of their folder must be the same however often they were stopped."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from steindiff.io.files import read_json
from steindiff.io.folders import RECORD

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
PASSING = {
    "time", "seconds", "command", "git", "machine", "peak_memory", "images_per_second", "forward_equivalents", "choice",
    "costs", "sha256", "file_sha256",
}  # fmt: skip
"""Entries that may differ between two runs: when, where and how fast they ran, and the digests of files that say it."""
PAGES = {".md", ".html", ".svg"}
"""Files that show such entries."""


TIMED = ("log.jsonl", "forward_equivalents.png")
"""Files of times, and figures against a cost that was measured in the run."""


@dataclass(frozen=True)
class Case:
    """One command.

    Attributes:
        words: what follows `steindiff`; "{out}" stands for the folder.
        several: whether torchrun may run it as two processes, equal to the bit.
    """

    words: tuple[str, ...]
    several: bool = False

    def line(self, folder: Path, processes: int = 1) -> list[str]:
        """The command line."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
        words = [word.replace("{out}", str(folder)) for word in self.words]
        return [sys.executable, *launcher, "-m", "steindiff", "--threads", "1", *words]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CASES: dict[str, Case] = {
    "sample": Case(
        _words(
            "sample --model digits --solver dpmpp_2m --nfe 4 --correction clamped --divergence vjp --batch 2 --seeds 0-59 "
            "--outdir {out}"
        ),
        several=True,
    ),
    "train": Case(
        _words(
            "train --preset smoke --data digits --outdir {out} --name tiny --set channels=8 --set blocks=1 --set heads=1 "
            "--set groups=4 --set steps=60 --set batch=16 --set warmup=4 --set ema_length=5.0 --log-every 2 --report-every 0 "
            "--checkpoint-seconds 0 --evaluate 0 --cpu"
        )
    ),
    "bench": Case(
        _words(
            "bench --preset quick --beds digits_mixture --solvers dpmpp_2m,heun --nfe 5,6 --corrections none,energy "
            "--samples 48 --batch 24 --outdir {out}"
        )
    ),
    "calibrate": Case(_words("calibrate --model digits --nfe 1,2,3 --trajectories 16 --out {out}/tables.safetensors")),
}
"""Every command that goes on when it is given again, by name."""


def finished(case: Case, folder: Path, seconds: float = 300, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """The command, to its end; `before` are words in front of it."""
    line = [*before, *case.line(folder)]
    return subprocess.run(line, capture_output=True, text=True, timeout=seconds, env=ENVIRONMENT, check=False)


def outcome(folder: Path) -> Mapping[str, Any]:
    """What must be the same: every file's bytes or numbers, without what says when and how fast it was made."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in PAGES)
    return {str(path.relative_to(folder)): _held(path) for path in paths if not path.name.endswith(TIMED)}


def _held(path: Path) -> Any:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            about = {key: _lasting(_parsed(value)) for key, value in (file.metadata() or {}).items() if key not in PASSING}
            return about, {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
    if path.suffix == ".pt":
        return _lasting(torch.load(path, weights_only=True))
    if path.name == RECORD:  # names with digests of files, of which some say when they were made
        claims = read_json(path)
        return {command: (claim["open"], sorted(claim["files"])) for command, claim in claims.items()}
    if path.suffix == ".json":
        return _lasting(_parsed(path.read_text(encoding="utf-8")))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(entry) for key, entry in value.items() if key not in PASSING}
    if isinstance(value, Tensor):
        return str(value.dtype), value.numpy().tobytes()
    return [_lasting(entry) for entry in value] if isinstance(value, list | tuple) else value
