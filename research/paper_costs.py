"""What sampling costs with the networks of the paper's tables: parameters, arithmetic, and hours of one GPU.

    python -m research.paper_costs
    python -m research.paper_costs --evaluations 353 --only "EDM CIFAR-10, DDPM++"

Networks are made without memory, and nothing is computed: the count of arithmetic operations is that of matrix products and
convolutions, two for each multiplication with its addition. Hours assume that the GPU sustains `tflops` on them. LSUN-Bedroom's
latents are decoded once an image, which the last column counts.
"""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from recipes.command import command, print_table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from steindiff.errors import unknown_name
from steindiff.models.networks.checkpoint import Description

DDPMPP = {"model_channels": 128, "channel_mult": [2, 2, 2], "augment_dim": 9}
NCSNPP = {
    **DDPMPP, "embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1],
}  # fmt: skip
NETWORKS: dict[str, tuple[str, str, int, int, dict[str, Any]]] = {
    "EDM CIFAR-10, DDPM++": ("EDMPrecond", "SongUNet", 32, 0, DDPMPP),
    "EDM CIFAR-10, NCSN++": ("EDMPrecond", "SongUNet", 32, 0, NCSNPP),
    "EDM FFHQ and AFHQv2 64, DDPM++": ("EDMPrecond", "SongUNet", 64, 0, {**DDPMPP, "channel_mult": [1, 2, 2, 2]}),
    "EDM ImageNet-64, ADM": ("EDMPrecond", "DhariwalUNet", 64, 1000, {"model_channels": 192, "channel_mult": [1, 2, 3, 4]}),
    "EDM2 ImageNet-64, S": ("Precond", "UNet", 64, 1000, {"model_channels": 192}),
}
"""Preconditioner, network, resolution, classes and arguments."""
BEDROOM = "LSUN-Bedroom, LDM-4"
"""Latents of 3×64×64, and pictures of 256×256."""


def network(name: str) -> nn.Module:
    """One of `NETWORKS`, without memory."""
    precond, kind, size, classes, kwargs = NETWORKS[name]
    about = {"precond": precond, "network": kind, "label_dim": classes, "kwargs": kwargs}
    return Description.of(about, (3, size, size)).empty()


def parameters(module: nn.Module) -> int:
    """How many numbers were learned."""
    return sum(p.numel() for p in module.parameters())


def operations(call: Callable[..., object], size: int, *more: Tensor) -> int:
    """In one call for one image of that size."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        call(torch.empty(1, 3, size, size), *more)
    return counter.get_total_flops()


def bedroom() -> tuple[int, int, int]:
    """Parameters and operations of the latent network, and operations of the decoder (Rombach et al. 2022)."""
    from diffusers import UNet2DModel, VQModel

    with torch.device("meta"):
        unet = UNet2DModel(
            sample_size=64, in_channels=3, out_channels=3, block_out_channels=(224, 448, 672, 896), attention_head_dim=32,
            down_block_types=("DownBlock2D", *3 * ("AttnDownBlock2D",)), up_block_types=(*3 * ("AttnUpBlock2D",), "UpBlock2D"),
        )  # fmt: skip
        images = VQModel(
            block_out_channels=(128, 256, 512), layers_per_block=2, latent_channels=3, num_vq_embeddings=8192,
            down_block_types=3 * ("DownEncoderBlock2D",), up_block_types=3 * ("UpDecoderBlock2D",),
        )  # fmt: skip
        one = torch.empty(1)
    return parameters(unet), operations(unet, 64, one), operations(lambda z: images.decoder(images.post_quant_conv(z)), 64)


def costs(name: str) -> tuple[int, int, int]:
    """Parameters, operations of a forward, and operations once an image."""
    if name == BEDROOM:
        return bedroom()
    module = network(name)
    return parameters(module), operations(module, NETWORKS[name][2], torch.empty(1, device="meta")), 0


@command
def main(
    images: Annotated[int, "images of a sample", 1] = 50_000,
    evaluations: Annotated[int, "evaluations an image", 1] = 5,
    tflops: Annotated[float, "what the GPU is assumed to sustain, in 10¹² operations a second"] = 50.0,
    only: Annotated[str, "the network; all of them where it is empty"] = "",
) -> None:
    """Print the table."""
    names, rows = (*NETWORKS, BEDROOM), []
    if only and only not in names:
        raise unknown_name("network", only, names)
    for name in (only,) if only else names:
        count, forward, once = costs(name)
        seconds = images * (evaluations * forward + once) / (tflops * 1e12)
        rows.append((name, f"{count:,}", f"{forward / 1e9:.1f}", f"{once / 1e9:.0f}", f"{seconds / 3600:.2g}"))
    sample = f"{images:,} images of {evaluations} evaluations"
    print_table(("network", "parameters", "10⁹ operations a forward", "and once an image", f"hours, {sample}"), rows)
