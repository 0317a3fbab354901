"""From a pickle to a model file: nothing in the pickle is run, and the file is loaded before it has its name."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from steindiff.errors import InputError, ModelFileError, require
from steindiff.integrations.edm.description import describe
from steindiff.integrations.edm.source import LIMITS, Limits
from steindiff.integrations.edm.trusted import run
from steindiff.integrations.edm.unpickle import opened
from steindiff.io.files import atomic, sha256
from steindiff.io.folders import locked_file, refuse
from steindiff.models import Model, loading, store

KIND: Final = "edm_network"
DTYPES: Final = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Converted:
    """A model file that was written and loaded.

    Attributes:
        model: the model, from the file.
        numbers: how many numbers its tensors have, parameters and buffers.
    """

    model: Model
    numbers: int


def convert(
    pickle: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    trust: bool = False,
    limits: Limits = LIMITS,
) -> Converted:
    """Read the network of an EDM or EDM2 pickle, write it as a model file, and load that.

    The model file appears whole or not at all, and only after it was loaded. While it is written, the tensors are in memory
    once.

    Args:
        pickle: the .pkl file, a snapshot with the network under `ema`, or a network alone.
        out: the model file, NAME.safetensors.
        name: the model's name; by default the stem of the pickle.
        dtype: float16 or float32, to store parameters so; by default they stay as they are. Buffers always do.
        overwrite: replace the model at `out`; a file that is none of ours is never replaced.
        trust: run the pickle by the official code, which must be importable, where reading it as data is not enough.
        limits: what a file may need.

    Raises:
        InputError: no such file; `out` exists, has another suffix, or cannot be written; another process makes it.
        ModelFileError: the pickle is refused, makes no network, or has numbers that are not finite.
    """
    pickle, out = Path(pickle), Path(out)
    require(out.suffix == ".safetensors", "model files end in .safetensors", out=str(out))
    require(dtype is None or dtype in DTYPES, f"choose one of {', '.join(DTYPES)}", dtype=dtype)
    with locked_file(out):
        old = store.files(out)
        if old and not overwrite:
            raise InputError(f"{out} exists: give another name, or --overwrite to replace it")
        refuse(out.parent, [path.name for path in old if not store.is_ours(path)], "give another name")
        return _converted(pickle, out, old, name, dtype, trust, limits)


def _converted(
    pickle: Path, out: Path, old: list[Path], name: str | None, dtype: str | None, trust: bool, limits: Limits
) -> Converted:
    if trust:
        description, tensors = run(pickle)
    else:
        with opened(pickle, limits) as file:
            description = describe(file.root, file.source)
            tensors = {key: t if isinstance(t, Tensor) else file.tensor(t) for key, t in description.tensors.items()}
    info = {"kind": KIND, "name": name or pickle.stem, **description.info, "source": _source(pickle, tensors)}
    _store_as(tensors, DTYPES.get(dtype or ""), description.buffers, pickle)
    return _written(pickle, out, old, info, tensors)


def _source(pickle: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    formats = sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()})
    return {"file": pickle.name, "bytes": pickle.stat().st_size, "sha256": sha256(pickle), "dtype": " ".join(formats)}


def _store_as(tensors: dict[str, Tensor], dtype: torch.dtype | None, buffers: Collection[str], pickle: Path) -> None:
    """Give parameters a format, in place and one by one, so that each is in memory once; all must be finite."""
    for name in list(tensors):
        tensor = tensors[name]
        if tensor.is_floating_point():
            cast = tensor if dtype is None or name in buffers else tensor.to(dtype)
            bad = int((~cast.isfinite()).sum())
            if bad:
                where = f"as {dtype}, whose range they leave: choose float32" if tensor.isfinite().all() else "in the file"
                raise ModelFileError(f"{pickle}: {bad:,} of {cast.numel():,} values of {name} are not finite {where}")
            tensors[name] = cast


def _written(pickle: Path, out: Path, old: list[Path], info: dict[str, Any], tensors: dict[str, Tensor]) -> Converted:
    """Write the file under another name, load it, and let it take its place."""
    size, count = sum(t.nbytes for t in tensors.values()), sum(t.numel() for t in tensors.values())
    with atomic(out) as new:
        store.save(new, tensors, info, part_bytes=size + 1)
        tensors.clear()
        try:
            model = loading.load(new)
        except ModelFileError as error:
            said = " ".join(str(error.__cause__ or error).split())[:400]
            raise ModelFileError(f"{pickle} does not hold the network that it describes: {said}") from error
    for part in set(old) - {out}:
        part.unlink(missing_ok=True)
    return Converted(replace(model, path=out), count)
