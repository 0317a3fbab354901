"""A pickle of the official EDM code as data, and its tensors by torch's weights-only reader: nothing in the file is run."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from steindiff.errors import InputError, ModelFileError
from steindiff.integrations.edm.machine import Machine
from steindiff.integrations.edm.source import DAMAGED, LIMITS, Limits, Source, check_file
from steindiff.integrations.edm.values import Storage, Stored, find

_TORCH: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file of torch.save begins that is no zip archive; so does what is in a pickle of each tensor's elements."""

_DESCRIPTION_BYTES: Final = 4096
_DTYPES: Final = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)
_OTHERS: Final = {
    b"PK": "a zip archive, as torch.save writes it: the training state of a network, or no network of NVIDIA's",
    _TORCH: "a file of torch.save, and no network of NVIDIA's",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"<": "a page of the web: the download failed",
    b"version https://git-lfs": "a pointer of git-lfs: fetch the file itself",
}


_SAID: Final = re.compile(r"(?i)unsupported [^\n]{1,160}?(?= was not| whose|\n|$)|(?<=WeightsUnpickler error: )[^\n]{1,160}")


class _Payload(io.BytesIO):
    """The bytes of one storage. Its description, which torch reads by `read`, is short; the elements go by `readinto`."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Bytes of the description."""
        if self.tell() > _DESCRIPTION_BYTES:
            raise ValueError(f"a description of more than {_DESCRIPTION_BYTES:,} bytes")
        return super().read(_DESCRIPTION_BYTES if size is None or size < 0 else min(size, _DESCRIPTION_BYTES))


class Pickle:
    """An open pickle: `root` is what it holds, as data; `tensor` reads one tensor of it."""

    def __init__(self, source: Source) -> None:
        self.source, self._left = source, source.size
        self.root = Machine(source, lambda module, name: find(source, module, name)).run()

    def tensor(self, stored: Stored) -> Tensor:
        """The tensor, on the CPU and with memory of its own.

        Raises:
            ModelFileError: torch's reader refuses its bytes, or it has elements that the bytes do not hold.
        """
        self.source.at, self.source.remedy = stored.at, DAMAGED
        elements = self._elements(stored.storage)
        inside = stored.numel == 0 or (stored.end <= len(elements) and stored.numel <= len(elements))
        what = f"a tensor of shape {stored.shape}, strides {stored.stride} and offset {stored.offset}"
        self.source.need(inside, f"{what} is said to lie in {len(elements)} elements")
        return torch.as_strided(elements, stored.shape, stored.stride, stored.offset)

    def _elements(self, storage: Storage) -> Tensor:
        """All elements of a storage, (N,)."""
        self._left -= storage.span.length
        self.source.need(self._left >= 0, "its tensors together have more bytes than the file")
        data = self.source.bytes_of(storage.span)
        self.source.need(data.startswith(_TORCH), "the elements of a tensor are not as torch writes them into a pickle")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of the storages that it returns
                found = torch.load(_Payload(data), map_location="cpu", weights_only=True)
                untyped, dtype = found.untyped(), found.dtype
        except Exception as error:  # what torch raises for bytes of any kind is not documented
            self.source.refuse(f"torch's weights-only reader refuses the elements of a tensor: {_said(error)}")
        self.source.need(dtype in _DTYPES, f"a tensor of {dtype}; networks have {', '.join(str(d)[6:] for d in _DTYPES)}")
        return torch.empty(0, dtype=dtype).set_(untyped)


def _said(error: Exception) -> str:
    """What torch says of a file, without its advice to trust it."""
    found = _SAID.search(str(error))
    line = str(error).partition("\n")[0]
    return ascii(found[0] if found else f"{type(error).__name__} {'' if 'weights_only' in line else line}".strip()[:160])[1:-1]


@contextmanager
def opened(path: str | Path, limits: Limits = LIMITS) -> Iterator[Pickle]:
    """The pickle at a path, read as data.

    Raises:
        InputError: there is no such file, or it cannot be read.
        ModelFileError: it is no pickle, is truncated or too large, or asks for anything that a network has no need of.
    """
    path = check_file(Path(path))
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give the .pkl file of a network") from error
    with file:
        source = Source(file, path, limits)
        start = file.read(32)
        file.seek(0)
        for first, what in _OTHERS.items():
            if start.startswith(first):
                raise ModelFileError(f"{path} is {what}; convert reads the .pkl files of EDM and EDM2")
        if not start.startswith(b"\x80"):
            raise ModelFileError(f"{path} is no pickle, or an empty file: convert reads the .pkl files of EDM and EDM2")
        yield Pickle(source)
