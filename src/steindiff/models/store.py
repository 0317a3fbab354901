"""Model files: safetensors with a JSON description in the header. Reading one never executes code.

A file holds tensors and, under the metadata key "steindiff", {"format": 1, "kind": …, "name": …, "event_shape": […], …}.
Large models lie in several files, NAME-00001-of-00003.safetensors and so on.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steindiff.errors import InputError, ModelFileError, brief, unknown_name
from steindiff.io.files import NoDescription, read_all, read_tensors, write_tensors
from steindiff.io.folders import refuse

FORMAT = 1
KINDS = ("factor_mixture", "edm_unet", "edm_network")
"""What a denoiser may be, by what its file says."""
PART_BYTES = 15 * 2**20
_PART = re.compile(r"-\d{5}-of-\d{5}$")
WEIGHTS = Path(__file__).parent / "weights"


def names() -> tuple[str, ...]:
    """The models shipped with the package."""
    return tuple(sorted({_PART.sub("", p.stem) for p in WEIGHTS.glob("*.safetensors")}))


def place(kind: str, name: str | Path, shipped: Mapping[str, Path]) -> Path:
    """Where a shipped file lies, or one given by its path. Raises InputError for an unknown name, or where no file is."""
    path = shipped.get(str(name), Path(name))
    if path.suffix == ".pkl":
        raise InputError(
            f"{path} is a pickle, which is a program: steindiff convert {path.name} {path.stem}.safetensors makes a {kind} file"
        )
    if path.suffix != ".safetensors":
        raise unknown_name(kind, name, [*shipped, "<path to a .safetensors file>"])
    if not files(path):
        raise InputError(f"no {kind} file at {path}: give an existing path, or one of {', '.join(shipped)}")
    return path


@contextmanager
def described(path: Path) -> Iterator[None]:
    """Turn what fails while a network is built from a file into a ModelFileError that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        said = brief(str(error))  # torch names every tensor that is missing
        raise ModelFileError(f"{path} does not hold what its description says: {said}; make or fetch it again") from error


def read(path: str | Path, kinds: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a model file of one of `kinds` (default: denoisers). Raises ModelFileError as `load`."""
    found = files(Path(path)) or [Path(path)]
    info, tensors = _read_one(found[0], kinds or KINDS)
    parts = info.pop("parts", 1)
    if parts != len(found):
        raise ModelFileError(f"{path}: {len(found)} of {parts} parts are there: copy the missing ones beside them")
    for file in found[1:]:
        more, others = _read_one(file, kinds or KINDS)
        if more.pop("parts", 1) != parts or more != info:
            raise ModelFileError(f"{file} and {found[0]} are parts of different models: copy all parts of one again")
        tensors |= others
    info.pop("tensors_sha256", None)
    return info, tensors


def is_ours(path: Path, kinds: Collection[str] = ()) -> bool:
    """Whether a file is a model of this package, of one of `kinds` (default: denoisers), by its header."""
    try:
        return read_tensors(path)[0].get("kind") in (kinds or KINDS)
    except ValueError:
        return False


def _read_one(path: Path, kinds: Collection[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        info, tensors = read_all(path)
    except NoDescription:
        raise ModelFileError(f"{path} has no 'steindiff' description in its header: it is no model of this package") from None
    except ValueError as error:
        said = f"{path} is not a readable safetensors file: {error}"
        raise ModelFileError(f"{said}; it may be truncated: fetch or make it again") from error
    form, kind = info.get("format"), info.get("kind")
    if form != FORMAT or not isinstance(kind, str) or kind not in kinds:
        need = f"this version reads format {FORMAT}, kinds {', '.join(kinds)}"
        raise ModelFileError(f"{path} is of format {form!r}, kind {kind!r}: {need}")
    return info, tensors


def save(
    path: str | Path,
    tensors: dict[str, Tensor],
    info: dict[str, Any],
    kinds: Collection[str] = (),
    part_bytes: int = PART_BYTES,
) -> list[Path]:
    """Write a model file of one of `kinds` (default: denoisers) atomically; `info` needs kind, name and event_shape.

    More than `part_bytes` of tensors go to files NAME-00001-of-0000n.safetensors, each whole by itself and of one digest, so
    that parts of different models do not mix. Returns the files; others of an earlier model of this name are removed.

    Raises:
        InputError: an entry is missing, a tensor is larger than a part, or the folder cannot be written to; a file has the name
            of a part, as other programs give it too, and is none of ours.
    """
    kinds = kinds or KINDS
    missing = {"kind", "name", "event_shape"} - set(info)
    if missing or info["kind"] not in kinds:
        raise InputError(f"model description lacks {sorted(missing)} or has an unknown kind; kinds: {', '.join(kinds)}")
    path = Path(path)
    tensors = {key: t.detach().cpu() for key, t in tensors.items()}
    parts = _parts(tensors, part_bytes)
    targets = [path]
    if len(parts) > 1:
        targets = [path.with_name(f"{path.stem}-{i:05d}-of-{len(parts):05d}.safetensors") for i in range(1, len(parts) + 1)]
        info = {**info, "parts": len(parts), "tensors_sha256": _digest(tensors)}
    stale = set(_siblings(path)) - set(targets)
    refuse(path.parent, [file.name for file in stale if not is_ours(file, kinds)], "give another name")
    for target, part in zip(targets, parts, strict=True):
        write_tensors(target, part, {"format": FORMAT, **info})
    for old in stale:
        old.unlink(missing_ok=True)
    return targets


def _parts(tensors: dict[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Tensors in their order, as many to a part as stay below the limit."""
    parts: list[dict[str, Tensor]] = [{}]
    for key, tensor in tensors.items():
        if tensor.nbytes > limit:
            raise InputError(f"{key} has {tensor.nbytes:,} bytes: more than the {limit:,} of a part; allow larger parts")
        if sum(t.nbytes for t in parts[-1].values()) + tensor.nbytes > limit:
            parts.append({})
        parts[-1][key] = tensor
    return parts


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in tensors.items():
        digest.update(key.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def files(path: Path) -> list[Path]:
    """The files of a model: itself, or all its parts in order; none where there is no such model."""
    if path.is_file() and not _PART.search(path.stem):
        return [path]
    return [p for p in _siblings(path) if _PART.search(p.stem)]


def _siblings(path: Path) -> list[Path]:
    """The files that bear a model's name, as one file or as parts."""
    stem = _PART.sub("", path.stem)
    return sorted(p for p in path.parent.glob("*.safetensors") if _PART.sub("", p.stem) == stem)
