"""Orthogonal bands: a state's energy split into parts, ‖x‖² = Σ_b ‖P_b x‖², so that each can be set right on its own.

A set of bands is an orthonormal basis and a label for each coefficient. For images: the 2-D cosine transform, radial frequency
bands, luma and chroma apart; for latents: channels; for anything: one band, or random directions.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from steindiff.errors import InputError, require
from steindiff.specs import Registry

_LUMA_CHROMA = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]], dtype=torch.float64)
"""Rows, before they are normalised: the grey axis, then an orthogonal basis of the plane across it."""


class Bands(ABC):
    """P_b, b = 0…n−1: orthogonal projections that sum to the identity."""

    @abstractmethod
    def analyse(self, x: Tensor) -> Tensor:
        """Coefficients of x: (B, *event) in the orthonormal basis, (B, d)."""

    @abstractmethod
    def synthesise(self, coefficients: Tensor, event: torch.Size) -> Tensor:
        """The state with these coefficients, (B, *event)."""

    @abstractmethod
    def labels(self, event: torch.Size) -> Tensor:
        """The band of each coefficient, (d,) int64 from 0 to n−1, every band used."""

    def sizes(self, event: torch.Size) -> Tensor:
        """d_b, the dimension of each band, (n,)."""
        return torch.bincount(self.labels(event))

    def ready(self, x: Tensor) -> None:
        """Make what states like x need, once and for all runs: nothing is then moved to the device inside a loop."""
        self.scale(x[:1], torch.ones_like(self.inner(x[:1], x[:1])[0]))

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """⟨P_b x, P_b y⟩ per sample and band, (B, n), in float32 or better; a and b the states x and y."""
        return self.sums(self.analyse(a), self.analyse(b), a.shape[1:])

    def sums(self, a: Tensor, b: Tensor, event: torch.Size) -> Tensor:
        """The same of coefficients, (B, d) each, as `analyse` has them."""
        wide = torch.promote_types(a.dtype, torch.float32)
        return (a.to(wide) * b.to(wide)) @ _members(self, event, wide, a.device)

    def scale(self, x: Tensor, weights: Tensor) -> Tensor:
        """Σ_b w_b P_b x, weights (n,)."""
        return self.weighed(self.analyse(x), weights, x.shape[1:])

    def weighed(self, coefficients: Tensor, weights: Tensor, event: torch.Size) -> Tensor:
        """The same of coefficients, (B, d)."""
        each = _members(self, event, coefficients.dtype, coefficients.device) @ weights.to(coefficients)
        return self.synthesise(coefficients * each, event)


@dataclass(frozen=True)
class Whole(Bands):
    """One band: the identity."""

    def analyse(self, x: Tensor) -> Tensor:
        """The state, flattened."""
        return x.flatten(1)

    def synthesise(self, coefficients: Tensor, event: torch.Size) -> Tensor:
        """The state again."""
        return coefficients.reshape(-1, *event)

    def labels(self, event: torch.Size) -> Tensor:
        """All 0."""
        return torch.zeros(math.prod(event), dtype=torch.int64)

    def sums(self, a: Tensor, b: Tensor, event: torch.Size) -> Tensor:
        """Of all coefficients, or of each channel's."""
        wide = torch.promote_types(a.dtype, torch.float32)
        return (a.to(wide) * b.to(wide)).reshape(len(a), self._count(event), -1).sum(2)

    def weighed(self, coefficients: Tensor, weights: Tensor, event: torch.Size) -> Tensor:
        """Each part times its weight."""
        parts = coefficients.reshape(len(coefficients), self._count(event), -1) * weights.to(coefficients)[:, None]
        return self.synthesise(parts, event)

    def _count(self, event: torch.Size) -> int:
        return 1


@dataclass(frozen=True)
class Channels(Whole):
    """One band per channel, the first axis of the event: for latents."""

    def labels(self, event: torch.Size) -> Tensor:
        """The channel's index."""
        return torch.arange(event[0]).repeat_interleave(math.prod(event[1:]))

    def _count(self, event: torch.Size) -> int:
        return event[0]


@dataclass(frozen=True)
class Cosine(Bands):
    """2-D cosine transform of (C, H, W) images: `radial` rings of equal width in frequency, times luma and chroma if C = 3.

    Luma is the mean of the three channels (up to a factor), chroma the plane orthogonal to it; C is 1 or 3. Rings that hold no
    coefficient of a small image are left out.
    """

    radial: int = 8

    def __post_init__(self) -> None:
        require(1 <= self.radial <= 10**6, "need at least one ring, and at most a million", radial=self.radial)

    def analyse(self, x: Tensor) -> Tensor:
        """Rotate the channels, transform rows and columns."""
        rotation, rows, columns = _bases(self._check(x.shape[1:]), x.dtype, x.device)
        return _rotated(rotation, rows @ x @ columns.mT).flatten(1)

    def synthesise(self, coefficients: Tensor, event: torch.Size) -> Tensor:
        """The transposed maps."""
        rotation, rows, columns = _bases(self._check(event), coefficients.dtype, coefficients.device)
        return _rotated(rotation.mT, rows.mT @ coefficients.reshape(-1, *event) @ columns)

    def labels(self, event: torch.Size) -> Tensor:
        """Ring, and luma before chroma, numbered without gaps."""
        channels, height, width = self._check(event)
        fy, fx = (torch.arange(n, dtype=torch.float64) / n for n in (height, width))
        radius = (fy[:, None] ** 2 + fx[None, :] ** 2).sqrt() / math.sqrt(2)
        ring = (radius * self.radial).floor().long().clamp(max=self.radial - 1)
        kind = torch.arange(channels).clamp(max=1)
        labels: Tensor = torch.unique(kind[:, None, None] * self.radial + ring, return_inverse=True)[1]
        return labels.flatten()

    def _check(self, event: torch.Size) -> tuple[int, int, int]:
        if len(event) != 3 or event[0] not in (1, 3):
            raise InputError(f"states of shape {tuple(event)}: Cosine bands need (1 or 3, H, W); use Channels or RandomBands")
        return event[0], event[1], event[2]


@dataclass(frozen=True)
class RandomBands(Bands):
    """`count` random orthogonal subspaces of equal size (up to rounding), fixed by a seed: for states without structure.

    It needs a d × d matrix, hence d up to a few thousand, and count ≤ d.
    """

    count: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.count >= 1, "need at least one band", count=self.count)

    def analyse(self, x: Tensor) -> Tensor:
        """Qᵀ x."""
        return x.flatten(1) @ _haar(x[0].numel(), self.seed).to(x)

    def synthesise(self, coefficients: Tensor, event: torch.Size) -> Tensor:
        """Q c."""
        return (coefficients @ _haar(math.prod(event), self.seed).T.to(coefficients)).reshape(-1, *event)

    def labels(self, event: torch.Size) -> Tensor:
        """Equal runs of coefficients."""
        d = math.prod(event)
        require(self.count <= d, f"states of dimension {d} have at most {d} random bands", count=self.count)
        return torch.arange(d) * self.count // d


_REGISTRY: Registry[Bands] = Registry(
    "set of bands",
    Bands,  # type: ignore[type-abstract]
    {"whole": Whole, "channels": Channels, "cosine": Cosine, "random": RandomBands},
)


def make(bands: Bands | int | str) -> Bands:
    """Bands by name or spec, `cosine(8)`; a number is that many rings of `Cosine`."""
    return Cosine(bands) if isinstance(bands, int) else _REGISTRY.make(bands)


@lru_cache(maxsize=32)
def _members(bands: Bands, event: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 where a coefficient belongs to a band, (d, n): sums over bands are then one product."""
    with torch.inference_mode(False):  # what is kept serves other runs too
        return torch.nn.functional.one_hot(bands.labels(event), len(bands.sizes(event))).to(device, dtype)


@lru_cache(maxsize=32)
def _bases(event: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The rotation of the channels, and the cosine bases of rows and columns."""
    channels, height, width = event
    with torch.inference_mode(False):
        rotation = torch.eye(1) if channels == 1 else _LUMA_CHROMA / _LUMA_CHROMA.square().sum(1, keepdim=True).sqrt()
        return rotation.to(device, dtype), _cosine_basis(height).to(device, dtype), _cosine_basis(width).to(device, dtype)


def _rotated(rotation: Tensor, x: Tensor) -> Tensor:
    """The channels of x, (B, C, H, W), under an orthogonal map, (C, C)."""
    return x if len(rotation) == 1 else (rotation @ x.flatten(2)).view_as(x)


@cache
def _haar(d: int, seed: int) -> Tensor:
    """A Haar-distributed orthogonal matrix; kept, since every call wants the same one."""
    q, r = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return torch.as_tensor(q * r.diagonal().sign())


def _cosine_basis(n: int) -> Tensor:
    """Rows k: √(2/n) cos(π(2i+1)k/(2n)), the first divided by √2; orthonormal (DCT-II)."""
    i = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * (2 * i + 1) * i[:, None] / (2 * n)) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis
