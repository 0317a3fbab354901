"""Tiny networks of EDM and EDM2 as converted files hold them, with weights by a rule: nobody's checkpoint is needed."""

import math

import torch

from edm_rule import weights
from steindiff.models.networks.checkpoint import Description
from steindiff.models.store import save

SMALL = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
NCSN = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]}
SKIP = {"encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]}
KINDS = {
    "ddpmpp": ("EDMPrecond", "SongUNet", 10, SMALL | {"augment_dim": 9}),
    "ncsnpp": ("VEPrecond", "SongUNet", 0, SMALL | NCSN),
    "skip": ("VPPrecond", "SongUNet", 0, SMALL | SKIP),
    "adm": ("iDDPMPrecond", "DhariwalUNet", 10, SMALL | {"model_channels": 32}),
    "edm2": ("Precond", "UNet", 10, SMALL | {"channels_per_head": 8}),
}
"""Preconditioner, network, number of classes and arguments of one network of every kind."""
_RANGES = {"VEPrecond": (0.02, 100.0), "VPPrecond": (0.0009765625, 152.16697692871094), "iDDPMPrecond": (0.006422337, 20291.17)}


def description(kind, size=8, **changes):
    """What the file of such a network says of it."""
    precond, network, classes, kwargs = KINDS[kind]
    low, high = _RANGES.get(precond, (None, None))
    about = {
        "kind": "edm_network", "name": f"tiny-{kind}", "event_shape": [3, size, size], "precond": precond, "precond_kwargs": {},
        "network": network, "kwargs": kwargs, "label_dim": classes, "sigma_min": low, "sigma_max": high, "encoder": None,
        "sigma_data": 0.5 if precond in ("EDMPrecond", "Precond") else None,
    }  # fmt: skip
    return about | changes


def trained_levels(steps=1000, floor=0.001, offset=0.008):
    """iDDPM's u_0 > … > u_M = 0: u_{j−1}² + 1 = (u_j² + 1) / max(ᾱ_{j−1}/ᾱ_j, floor), ᾱ_j = sin²(π j / (2M (1 + offset)))."""
    alpha_bar = [math.sin(math.pi / 2 * j / steps / (1 + offset)) ** 2 for j in range(steps + 1)]
    levels = [0.0]
    for j in range(steps, 0, -1):
        levels.append(math.sqrt((levels[-1] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], floor) - 1))
    return torch.tensor(levels[::-1], dtype=torch.float32)


def tensors(about, seed=0):
    """The tensors of such a file, float32."""
    prefix = "unet" if about["precond"] == "Precond" else "model"
    empty = Description.of(about, tuple(about["event_shape"])).empty().state_dict()
    found = weights({f"{prefix}.{name}": tensor.shape for name, tensor in empty.items()}, seed)
    taps = torch.tensor(about["kwargs"].get("resample_filter", [1, 1]), dtype=torch.float32)
    for name in empty:
        if name.endswith("resample_filter"):
            found[f"{prefix}.{name}"] = (taps[:, None] * taps / taps.sum() ** 2)[None, None]
    return found | ({"u": trained_levels()} if about["precond"] == "iDDPMPrecond" else {})


def write(path, kind="ddpmpp", dtype=torch.float32, **changes):
    """Write such a file, and give its description."""
    about = description(kind, **changes)
    save(path, {name: tensor.to(dtype) for name, tensor in tensors(about).items()}, about)
    return about
