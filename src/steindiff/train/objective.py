"""The denoising objective of EDM, and the same loss per noise level on images that were not trained on.

    L = E λ(σ) ‖D(x₀ + σε; σ) − x₀‖² / d,   λ = (σ² + σ_d²)/(σ σ_d)²,   ln σ ~ N(P_mean, P_std²),   ε ~ N(0, I)

Source: Karras et al. (2022), Table 1 and section 5. ln σ is drawn stratified: one value from each of `batch` equally
likely strata, which lowers the gradient's variance and leaves its mean.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SIGMAS = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 10.0)
_BATCH = 512


def weighted_errors(
    denoiser: Callable[..., Tensor], sigma_data: float, x0: Tensor, sigma: Tensor, noise: Tensor, labels: Tensor | None = None
) -> Tensor:
    """λ(σ) ‖D(x₀ + σε; σ) − x₀‖² / d of each image, (B,); x₀, ε: (B, C, H, W), σ: (B,)."""
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    denoised = denoiser(x0 + sigma[:, None, None, None] * noise, sigma, *(() if labels is None else (labels,)))
    return weight * (denoised - x0).square().mean(dim=(1, 2, 3))


def stratified_sigmas(batch: int, p_mean: float, p_std: float, generator: torch.Generator) -> Tensor:
    """σ = exp(P_mean + P_std z), one z from each of `batch` strata of the normal law; (batch,), on the generator's device."""
    device = generator.device
    u = (torch.arange(batch, device=device) + torch.rand(batch, generator=generator, device=device)) / batch
    z: Tensor = torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))
    return (p_mean + p_std * z).exp()


@torch.no_grad()
def loss_per_sigma(
    denoiser: Callable[..., Tensor], sigma_data: float, x0: Tensor, labels: Tensor | None = None
) -> list[tuple[float, float]]:
    """Mean weighted error and its standard error over images, at each of `SIGMAS`; the noise is fixed, so that runs compare."""
    values = []
    for level in SIGMAS:
        generator = torch.Generator().manual_seed(1)
        parts = []
        for index in torch.arange(len(x0), device=x0.device).split(_BATCH):
            sigma = torch.full((len(index),), level, device=x0.device)
            noise = torch.randn(len(index), *x0.shape[1:], generator=generator).to(x0.device)
            y = None if labels is None else labels[index]
            parts.append(weighted_errors(denoiser, sigma_data, x0[index], sigma, noise, y))
        errors = torch.cat(parts).double()
        spread = float(errors.std()) / len(errors) ** 0.5 if len(errors) > 1 else float("nan")
        values.append((float(errors.mean()), spread))
    return values
