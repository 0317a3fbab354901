"""Error of the power spectrum by frequency band: does a sampler lose detail, or make too much of it?

    r_b = log( E‖P_b x‖² / E‖P_b y‖² ),      rms = √( Σ_b r_b² / n ),

P_b orthogonal bands, for images rings of the 2-D cosine transform. r_b < 0 is a band too weak; 0.1 is about ten per cent of
power. By the delta method a sample's share in r_b is ‖P_b x_i‖²/E‖P_b x‖², and in the rms Σ_b (r_b/(n rms)) of those. The rms
of two sets of one law is not 0: the noise floor says how far above.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff.arguments import check_samples
from steindiff.corrections.bands import Bands, Cosine
from steindiff.errors import require
from steindiff.metrics.values import Shares, Value

ROWS = 1024
"""How many samples are float64 at a time."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Log ratios r_b of power by band, (bands,), with the shares of every sample of x and of y in them, (samples, bands)."""

    ratios: Tensor
    of_x: Tensor
    of_y: Tensor

    def __len__(self) -> int:
        """The number of bands."""
        return len(self.ratios)

    @property
    def values(self) -> tuple[Value, ...]:
        """r_b with its standard error, band by band."""
        return tuple(self.band(b).value for b in range(len(self)))

    def band(self, b: int) -> Shares:
        """r_b."""
        return Shares(float(self.ratios[b]), self.of_x[:, b], self.of_y[:, b])

    def error(self, b: int) -> Shares:
        """|r_b|: what a correction should make smaller, `error(b).minus(base.error(b))` < 0."""
        sign = self.ratios[b].sign()
        return Shares(float(self.ratios[b].abs()), sign * self.of_x[:, b], sign * self.of_y[:, b])

    @property
    def rms(self) -> Shares:
        """√(Σ_b r_b²/n)."""
        rms = self.ratios.square().mean().sqrt()
        slopes = self.ratios / (len(self) * rms) if rms > 0 else torch.zeros_like(self.ratios)
        return Shares(float(rms), self.of_x @ slopes, self.of_y @ slopes)


class SpectrumTarget:
    """Spectrum errors against one set of two samples or more, (m, *event), whose power is computed once.

    Unless others are given, bands are rings of equal width in frequency of images, luma before chroma, each from low to high.
    """

    def __init__(self, y: Tensor, bands: Bands | None = None) -> None:
        check_samples(y, 2)
        self._event, self._bands = y.shape[1:], Cosine(8) if bands is None else bands
        self._power = torch.cat([self._bands.inner(part, part) for part in map(Tensor.double, y.split(ROWS))])
        self._mean = self._power.mean(0)

    def spectrum(self, x: "Tensor | SpectrumTarget") -> Spectrum:
        """The spectrum of x against the target. Where x is itself a target, its power is not computed again.

        Raises InputError for samples of another shape, a target of other bands, and a band in which the target has no power.
        """
        other = x if isinstance(x, SpectrumTarget) else SpectrumTarget(x, self._bands)
        ours, theirs = ((tuple(target._event), target._bands) for target in (self, other))
        require(ours == theirs, "need the same events and bands", ours=ours, theirs=theirs)
        empty = (self._mean == 0).nonzero()[:, 0].tolist()
        require(not empty, "the reference has no power there: ratios to it do not exist; use fewer bands", bands=empty)
        return Spectrum((other._mean / self._mean).log(), other._power / other._mean, -self._power / self._mean)


def spectrum_error(x: Tensor, y: Tensor, bands: Bands | None = None) -> Value:
    """√(Σ_b r_b²/n): `SpectrumTarget(y, bands).spectrum(x).rms.value`."""
    return SpectrumTarget(y, bands).spectrum(x).rms.value
