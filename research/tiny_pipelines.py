"""Pipelines of diffusers of every class that we serve, tiny and with random weights: built here, nothing is downloaded.

`make(name)` gives a fresh pipeline around networks that are made once, so that a test may change the scheduler; `call(n)` of it
says what the pipeline wants to be called with for n images. A network's output is scaled to unit size, and depends on x, on the
time and on its condition (`tests/integrations/test_tiny_pipelines.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROMPTS = ("a red fox", "boats", "snow", "old map", "green", "birds", "a lake", "rain")
WORDS = 12
"""Tokens of a prompt, padded."""
WIDTH = 16
"""Of the text encoders."""


@dataclass(frozen=True)
class Tiny:
    """A pipeline, and what it wants to be called with.

    Attributes:
        latents: the shape of what the network denoises, for one image.
        prompted: whether images have prompts.
        classes: how many classes there are; 0 for none.
        extra: what every call needs.
        name: what `make` calls it.
    """

    pipe: diffusers.DiffusionPipeline
    latents: tuple[int, ...]
    prompted: bool = False
    classes: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def network(self) -> nn.Module:
        """The network that denoises."""
        return self.pipe.unet if "unet" in self.pipe.components else self.pipe.transformer

    def call(self, n: int = 2) -> dict[str, Any]:
        """Arguments of the pipeline for n images; add num_inference_steps, a generator, and so on."""
        extra = dict(self.extra)
        if "image" in extra:
            extra["image"] = extra["image"].expand(n, *extra["image"].shape)
        if self.prompted:
            return {"prompt": [PROMPTS[i % len(PROMPTS)] for i in range(n)], **extra}
        if self.classes:
            return {"class_labels": [i % self.classes for i in range(n)], **extra}
        return {"batch_size": n, **extra}

    def noise(self, n: int = 2, seed: int = 0) -> Tensor:
        """Standard normal latents, (n, *latents)."""
        return torch.randn(n, *self.latents, generator=torch.Generator().manual_seed(seed))


def names() -> tuple[str, ...]:
    """All of them."""
    return tuple(_MAKERS)


def make(name: str) -> Tiny:
    """A fresh pipeline with its own scheduler; the networks are shared and are not to be changed."""
    tiny = replace(_MAKERS[name](), name=name)
    tiny.pipe.set_progress_bar_config(disable=True)
    return tiny


def _seeded(build: Callable[..., nn.Module], *args: Any, **config: Any) -> nn.Module:
    """A module with weights of a fixed seed, for evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(*args, **config).eval().requires_grad_(False)


def _scaled(network: nn.Module, last: nn.Module, output: Callable[[], Tensor]) -> nn.Module:
    """The network with its conditions made louder, and its last layer scaled so that its output, as here, has unit size."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for layer, weight in network.named_parameters():
            weight *= next((gain for name, gain in LOUDER.items() if f"{name}.weight" in layer), 1.0)
        size = output().std()
        last.weight /= size
        last.bias /= size
    return network


LOUDER = {"attn2.to_out.0": 4.0, "attn2.to_v": 4.0, "time_emb_proj": 3.0, "add_embedding.linear_2": 3.0}
"""Layers through which a UNet hears of text, time and sizes: random ones hardly hear."""
TIMES = torch.tensor([5.0, 250.0, 600.0, 950.0])
"""At which outputs are scaled, of 1000."""


def _randn(*shape: int) -> Tensor:
    return torch.randn(*shape)


# The image models, which know no condition.


@cache
def _unet2d() -> nn.Module:
    unet = _seeded(
        diffusers.UNet2DModel, sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(12, 16),
        norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return _scaled(unet, unet.conv_out, lambda: unet(_randn(4, 3, 8, 8), TIMES).sample)


@cache
def _vqvae() -> nn.Module:
    return _seeded(
        diffusers.VQModel, in_channels=3, out_channels=3, latent_channels=3, sample_size=16, num_vq_embeddings=16,
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def _ldm() -> Tiny:
    betas = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
    scheduler = diffusers.DDIMScheduler(**betas, clip_sample=False)
    return Tiny(diffusers.LDMPipeline(_vqvae(), _unet2d(), scheduler), (3, 8, 8))


# Latent diffusion with conditions. The autoencoder halves images once, so that 8×8 latents are images of 16×16.


@cache
def _vae(shift: float | None = None) -> nn.Module:
    return _seeded(
        diffusers.AutoencoderKL, in_channels=3, out_channels=3, latent_channels=4, sample_size=16, layers_per_block=1,
        block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.6, shift_factor=shift,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=shift is None, use_post_quant_conv=shift is None,
    )  # fmt: skip


_TRANSFORMER = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "patch_size": 2, "in_channels": 4}


@cache
def _dit_network() -> nn.Module:
    config = {"sample_size": 8, "out_channels": 8, "norm_num_groups": 4, "num_embeds_ada_norm": 1000}
    net = _seeded(diffusers.DiTTransformer2DModel, **config, **_TRANSFORMER)
    labels = torch.tensor([0, 1, 2, 1000])
    return _scaled(net, net.proj_out_2, lambda: net(_randn(4, 4, 8, 8), TIMES, labels).sample[:, :4])


def _dit() -> Tiny:
    pipe = diffusers.DiTPipeline(_dit_network(), _vae(), diffusers.DDIMScheduler(clip_sample=False))
    return Tiny(pipe, (4, 8, 8), classes=3, extra={"guidance_scale": 3.0})


def _of_text(pipe: diffusers.DiffusionPipeline, **extra: Any) -> Tiny:
    """A pipeline that is guided by prompts."""
    return Tiny(pipe, (4, 8, 8), prompted=True, extra={"guidance_scale": 3.0, **extra})


_SIZE = {"height": 16, "width": 16}
_LENGTH = {**_SIZE, "max_sequence_length": WORDS}
"""What pipelines have to be told where images are as small, and prompts as short."""


def _tokens() -> transformers.CLIPTokenizer:
    """Letters, and letters at the end of a word."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=WORDS)


def _pieces() -> transformers.T5Tokenizer:
    words = [(word, -float(i > 2)) for i, word in enumerate(["<pad>", "</s>", "<unk>", "▁", *LETTERS])]
    return transformers.T5Tokenizer(vocab=words, extra_ids=0, model_max_length=WORDS)


@cache
def _clip(projected: bool = False) -> nn.Module:
    config = transformers.CLIPTextConfig(
        vocab_size=54, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=WORDS, projection_dim=WIDTH, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    return _seeded(transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel, config)


@cache
def _t5(width: int = WIDTH) -> nn.Module:
    size = {"vocab_size": 30, "d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return _seeded(transformers.T5EncoderModel, transformers.T5Config(**size, feed_forward_proj="gated-gelu"))


@cache
def _unet_of_text(*, xl: bool = False) -> nn.Module:
    """Its text has WIDTH numbers a token; twice as many in XL, which knows sizes and a pooled text besides."""
    width = 2 * WIDTH if xl else WIDTH
    sizes = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": WIDTH + 6 * 8}
    more = {"addition_embed_type": "text_time", **sizes} if xl else {}
    unet = _seeded(
        diffusers.UNet2DConditionModel, sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(12, 16), norm_num_groups=4, attention_head_dim=8, cross_attention_dim=width,
        use_linear_projection=xl, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **more,
    )  # fmt: skip

    def output() -> Tensor:
        sizes = {"added_cond_kwargs": {"text_embeds": _randn(4, WIDTH), "time_ids": 16 * torch.ones(4, 6)}} if xl else {}
        return unet(_randn(4, 4, 8, 8), TIMES, _randn(4, WORDS, width), **sizes).sample

    return _scaled(unet, unet.conv_out, output)


_LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _sd_parts(scheduler: Any) -> dict[str, Any]:
    parts = {"vae": _vae(), "text_encoder": _clip(), "tokenizer": _tokens(), "unet": _unet_of_text(), "scheduler": scheduler}
    return {**parts, "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _sd(scheduler: Any) -> Tiny:
    return _of_text(diffusers.StableDiffusionPipeline(**_sd_parts(scheduler)))


def _img2img() -> Tiny:
    scheduler = diffusers.DPMSolverMultistepScheduler(**_LATENT, steps_offset=1)
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**_sd_parts(scheduler))
    return _of_text(pipe, strength=0.6, image=torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(2)))


def _sdxl() -> Tiny:
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_clip(), text_encoder_2=_clip(projected=True), tokenizer=_tokens(), tokenizer_2=_tokens(),
        unet=_unet_of_text(xl=True), scheduler=diffusers.EulerDiscreteScheduler(**_LATENT, steps_offset=1),
        add_watermarker=False,
    )  # fmt: skip
    return _of_text(pipe, **_SIZE)


@cache
def _pixart_network() -> nn.Module:
    """The pipeline tells sizes to networks whose sample size is 128, and to no others."""
    net = _seeded(
        diffusers.PixArtTransformer2DModel, sample_size=128, out_channels=8, cross_attention_dim=24, caption_channels=WIDTH,
        norm_num_groups=4, use_additional_conditions=True, interpolation_scale=1, **_TRANSFORMER,
    )  # fmt: skip

    def output() -> Tensor:
        sizes, text = {"resolution": 16 * torch.ones(4, 2), "aspect_ratio": torch.ones(4, 1)}, _randn(4, WORDS, WIDTH)
        return net(_randn(4, 4, 8, 8), text, TIMES, sizes).sample[:, :4]

    return _scaled(net, net.proj_out, output)


def _pixart() -> Tiny:
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    pipe = diffusers.PixArtAlphaPipeline(_pieces(), _t5(), _vae(), _pixart_network(), scheduler)
    return _of_text(pipe, **_LENGTH, clean_caption=False, use_resolution_binning=False)


@cache
def _sd3_network() -> nn.Module:
    net = _seeded(
        diffusers.SD3Transformer2DModel, sample_size=8, out_channels=4, joint_attention_dim=2 * WIDTH,
        caption_projection_dim=24, pooled_projection_dim=2 * WIDTH, pos_embed_max_size=8, **_TRANSFORMER,
    )  # fmt: skip
    text = (2 * WORDS, 2 * WIDTH)
    return _scaled(net, net.proj_out, lambda: net(_randn(4, 4, 8, 8), _randn(4, *text), _randn(4, text[1]), TIMES).sample)


def _sd3() -> Tiny:
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=_sd3_network(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_vae(0.1),
        text_encoder=_clip(projected=True), tokenizer=_tokens(), text_encoder_2=_clip(projected=True), tokenizer_2=_tokens(),
        text_encoder_3=_t5(2 * WIDTH), tokenizer_3=_pieces(),
    )  # fmt: skip
    return _of_text(pipe, **_LENGTH)


@cache
def _flux_network(guided: bool) -> nn.Module:
    net = _seeded(
        diffusers.FluxTransformer2DModel, patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=12, num_attention_heads=2, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH,
        guidance_embeds=guided, axes_dims_rope=(4, 4, 4),
    )  # fmt: skip

    def output() -> Tensor:
        x, text, pooled = _randn(4, 16, 16), _randn(4, WORDS, WIDTH), _randn(4, WIDTH)
        guidance = torch.tensor([1.0, 2.0, 3.5, 5.0]) if guided else None
        return net(x, text, pooled, TIMES / 1000, torch.zeros(16, 3), torch.zeros(WORDS, 3), guidance).sample

    return _scaled(net, net.proj_out, output)


def _flux(guided: bool, **extra: Any) -> Tiny:
    """Latents of 4×8×8 are packed: 16 tokens of 16 numbers."""
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guided), vae=_vae(0.1),
        text_encoder=_clip(), tokenizer=_tokens(), text_encoder_2=_t5(), tokenizer_2=_pieces(),
        transformer=_flux_network(guided),
    )  # fmt: skip
    return Tiny(pipe, (16, 16), prompted=True, extra={**_LENGTH, **extra})


_MAKERS: dict[str, Callable[[], Tiny]] = {
    "ddpm": lambda: Tiny(diffusers.DDPMPipeline(_unet2d(), diffusers.DDPMScheduler()), (3, 8, 8)),
    "ddim": lambda: Tiny(diffusers.DDIMPipeline(_unet2d(), diffusers.DDIMScheduler()), (3, 8, 8)),
    "ldm": _ldm,
    "dit": _dit,
    "sd1": lambda: _sd(diffusers.PNDMScheduler(**_LATENT, skip_prk_steps=True, steps_offset=1)),
    # Version 2.1.
    "sd2": lambda: _sd(diffusers.DDIMScheduler(**_LATENT, prediction_type="v_prediction", clip_sample=False, steps_offset=1)),
    "img2img": _img2img,
    "sdxl": _sdxl,
    "pixart": _pixart,
    "sd3": _sd3,
    # Guidance is a number that the network is told, or takes two calls of the network in a step.
    "flux": lambda: _flux(True, guidance_scale=3.5),
    "flux_two_passes": lambda: _flux(False, true_cfg_scale=3.0, negative_prompt="fog"),
}
