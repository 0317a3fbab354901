"""What a calibration costs: the images that the network evaluates."""

from dataclasses import dataclass, replace

from torch import Tensor

from steindiff.calibration.teacher import Trajectories
from steindiff.denoisers import Denoiser


@dataclass
class Bill:
    """How many images the network has evaluated, or the equivalent in derivatives."""

    images: int = 0

    def add(self, images: int) -> None:
        """Write down images, or what a derivative counts as: a VJP two evaluations, a JVP one beside its own."""
        self.images += images

    def of(self, denoiser: Denoiser) -> Denoiser:
        """The same denoiser, billed."""

        def billed(x: Tensor, sigma: Tensor) -> Tensor:
            self.add(len(x))
            return denoiser(x, sigma)

        return billed

    def law(self, law: Trajectories) -> Trajectories:
        """The same trajectories, with the denoiser billed."""
        given = law.conditioned
        conditioned = None if given is None else lambda places: self.of(given(places))
        return replace(law, denoiser=self.of(law.denoiser), conditioned=conditioned)
