"""Trains the embedded digits model: a UNet denoiser for scikit-learn's 8×8 digits, exported as float16 safetensors.

Loss (Karras et al. 2022, Eq. 8 and Table 1), with λ(σ) = (σ² + σ_d²) / (σ σ_d)²:

    L = E λ(σ) ‖D(x₀ + σε; σ) − x₀‖² / 64,   ln σ ~ N(P_mean, P_std²),   ε ~ N(0, I)

ln σ is drawn stratified: one value from each of `batch` equally likely strata, which lowers the gradient's variance.
The 1797 digits are split once and for all into 1500 for training and 297 held out. Recipes are to be chosen with
`--validate`, which trains on 1200 of the 1500 and reports on the other 300, so that the held-out digits stay unseen.
The file is written at the end, whole; an interrupted run leaves nothing, or the file that was there before.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

from steindiff import models
from steindiff.command import run_command
from steindiff.errors import InputError
from steindiff.files import manifest, writable_folder
from steindiff.networks import EDMPrecond, UNet, UNetConfig

EVENT_SHAPE = (1, 8, 8)
SPLIT_SEED = 1797
N_TRAIN, N_VALIDATE = 1500, 300
HELP = {
    "steps": "optimiser steps",
    "batch": "images per step",
    "lr": "peak learning rate",
    "warmup": "steps of linear warm-up, before the half cosine to zero",
    "weight_decay": "AdamW's decoupled weight decay",
    "ema": "half-life of the weight average, in steps",
    "p_mean": "mean of ln σ in training",
    "p_std": "standard deviation of ln σ in training",
    "seed": "of initialisation, dropout, batches and noise",
}
BINS = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 10.0)


@dataclass(frozen=True)
class Recipe:
    """Everything that the trained weights depend on, besides the network's shape, the data and the machine."""

    steps: int = 2500
    batch: int = 128
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.0
    ema: float = 300.0
    p_mean: float = -1.0
    p_std: float = 1.2
    seed: int = 0


def load_split() -> tuple[Tensor, Tensor, str]:
    """Training digits (1500, 1, 8, 8), held-out digits (297, 1, 8, 8), both in [−1, 1], and the raw data's SHA-256."""
    raw = load_digits().data.astype(np.uint8)  # 0..16
    order = np.random.default_rng(SPLIT_SEED).permutation(len(raw))
    x = torch.from_numpy(raw[order].astype(np.float32) / 8 - 1).reshape(-1, *EVENT_SHAPE)
    return x[:N_TRAIN], x[N_TRAIN:], hashlib.sha256(raw.tobytes()).hexdigest()


def weighted_errors(net: EDMPrecond, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """λ(σ) ‖D(x₀ + σε; σ) − x₀‖² / (C H W) of each image, (B,)."""
    sd = net.sigma_data
    weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
    d: Tensor = net(x0 + sigma[:, None, None, None] * noise, sigma)
    return weight * (d - x0).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def loss_per_bin(net: EDMPrecond, x0: Tensor, repeats: int = 4, seed: int = 1) -> list[float]:
    """The mean weighted error at each σ of `BINS`, over fixed noise: comparable between runs and along one run."""
    generator = torch.Generator().manual_seed(seed)
    x = x0.repeat(repeats, 1, 1, 1)
    noise = torch.randn(x.shape, generator=generator)
    return [weighted_errors(net, x, torch.full((len(x),), s), noise).mean().item() for s in BINS]


def draw_sigma(recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Stratified log-normal noise levels, (batch,)."""
    u = (torch.arange(recipe.batch) + torch.rand(recipe.batch, generator=generator)) / recipe.batch
    z: Tensor = torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))
    return (recipe.p_mean + recipe.p_std * z).exp()


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a half cosine to zero."""
    decay = 0.5 * (1 + np.cos(np.pi * step / recipe.steps))
    return float(recipe.lr * min(1.0, (step + 1) / recipe.warmup) * decay)


@torch.no_grad()
def update_average(average: EDMPrecond, net: EDMPrecond, step: int, recipe: Recipe) -> None:
    """Exponential moving average with a half-life of `ema` steps, shorter at the beginning (a twentieth of the run)."""
    half_life = min(recipe.ema, 1 + step / 20)
    weight = 1 - 0.5 ** (1 / half_life)
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), weight)


def train(
    config: UNetConfig, recipe: Recipe, x_train: Tensor, x_report: Tensor, every: int = 0, quiet: bool = False
) -> EDMPrecond:
    """The averaged network after training on x_train, in evaluation mode; reports on x_report every `every` steps."""
    torch.manual_seed(recipe.seed)  # initialisation and dropout
    generator = torch.Generator().manual_seed(recipe.seed + 1)  # batches, noise levels, noise
    net = EDMPrecond(UNet(config), round(x_train.std().item(), 4))
    average = copy.deepcopy(net).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
    )
    bar = tqdm(total=recipe.steps * recipe.batch, unit="img", unit_scale=True, disable=quiet, mininterval=2.0)
    running = float("nan")
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        x0 = x_train[torch.randint(len(x_train), (recipe.batch,), generator=generator)]
        noise = torch.randn(x0.shape, generator=generator)
        loss = weighted_errors(net, x0, draw_sigma(recipe, generator), noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_average(average, net, step, recipe)
        running = loss.item() if running != running else 0.99 * running + 0.01 * loss.item()
        bar.update(recipe.batch)
        bar.set_postfix(loss=f"{running:.4f}", refresh=False)
        if every and (step + 1) % every == 0:
            report(average, step + 1, running, x_train, x_report)
    bar.close()
    return average


def report(net: EDMPrecond, step: int, running: float, x_train: Tensor, x_report: Tensor) -> None:
    """Prints the loss per noise level on digits that were not trained on, and on as many that were."""
    with tqdm.external_write_mode():
        print(f"step {step}: running training loss {running:.4f}")
        for name, x in (("unseen", x_report), ("seen", x_train[: len(x_report)])):
            bins = loss_per_bin(net, x)
            line = "  ".join(f"{s:g}: {v:.4f}" for s, v in zip(BINS, bins, strict=True))
            print(f"  {name:6}  {line}  | mean {np.mean(bins):.4f}", flush=True)


def export(net: EDMPrecond, config: UNetConfig, path: Path, recipe: dict[str, object]) -> None:
    """Writes the network as float16, with all that is needed to rebuild it, as a model file of this package."""
    info = {
        "kind": "edm_unet",
        "name": path.stem,
        "event_shape": list(EVENT_SHAPE),
        "sigma_data": net.sigma_data,
        "unet": dataclasses.asdict(config),
        "recipe": recipe,
    }
    models.save(path, {k: v.to(torch.float16) for k, v in net.state_dict().items()}, info)


def parser() -> argparse.ArgumentParser:
    """The command line; defaults are those of the published model."""
    p = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="examples (the published recipe, 8 minutes; a poor model in a minute):\n"
        "  python scripts/train_digits.py --out outputs/digits.safetensors\n"
        "  python scripts/train_digits.py --steps 300 --out outputs/poor.safetensors",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    r, u = Recipe(), UNetConfig()
    p.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    for f in dataclasses.fields(Recipe):
        default = getattr(r, f.name)
        text = f"{HELP[f.name]}; default: {default}"
        p.add_argument(f"--{f.name.replace('_', '-')}", type=type(default), default=default, help=text)
    for name in ("channels", "blocks", "heads"):
        p.add_argument(f"--{name}", type=int, default=getattr(u, name), help="of the UNet; default: %(default)s")
    p.add_argument("--mults", type=int, nargs="+", default=u.mults, help="of the UNet; default: 1 2")
    p.add_argument("--attention", type=int, nargs="*", default=u.attention, help="attending levels; default: 1")
    p.add_argument("--dropout", type=float, default=0.25, help="inside the residual blocks; default: %(default)s")
    p.add_argument("--threads", type=int, default=1, help="CPU threads; changes rounding only; default: %(default)s")
    p.add_argument("--every", type=int, default=1000, help="steps between reports; default: %(default)s")
    p.add_argument("--validate", action="store_true", help="train on 1200, report on 300 of the training digits")
    return p


def check_options(a: argparse.Namespace) -> None:
    """Raise InputError for an option that cannot work, before the training: also where the file could not be written."""
    for name in ("steps", "batch", "warmup", "threads"):
        if getattr(a, name) < 1:
            raise InputError(f"--{name} {getattr(a, name)}: must be at least 1")
    for name in ("lr", "ema", "p_std"):
        if not getattr(a, name) > 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(a, name)}: must be positive")
    if a.out.suffix != ".safetensors":
        raise InputError(f"--out {a.out}: the name of a model file ends with .safetensors")
    writable_folder(a.out.parent)


def run(a: argparse.Namespace) -> None:
    """Trains, reports and writes the model file."""
    check_options(a)
    torch.set_num_threads(a.threads)
    recipe = Recipe(**{f.name: getattr(a, f.name) for f in dataclasses.fields(Recipe)})
    config = UNetConfig(**{k: getattr(a, k) for k in ("channels", "mults", "blocks", "attention", "heads", "dropout")})
    x_train, x_report, digest = load_split()
    if a.validate:
        x_train, x_report = x_train[:-N_VALIDATE], x_train[-N_VALIDATE:]
    start = time.perf_counter()
    net = train(config, recipe, x_train, x_report, a.every)
    seconds = round(time.perf_counter() - start)
    unseen, seen = ([round(v, 5) for v in loss_per_bin(net, x)] for x in (x_report, x_train))
    record = manifest(
        **dataclasses.asdict(recipe),
        data={"source": "sklearn.datasets.load_digits", "sha256_uint8": digest, "split_seed": SPLIT_SEED},
        n_train=len(x_train),
        seconds=seconds,
        sklearn=sklearn.__version__,
        sigma_bins=list(BINS),
        loss_unseen=unseen,
        loss_seen=seen,
    )
    export(net, config, a.out, record)
    n_parameters = sum(p.numel() for p in net.parameters())
    print(f"{a.out}: {a.out.stat().st_size} bytes, {n_parameters} parameters, trained in {seconds} s")
    for s, u, v in zip(BINS, unseen, seen, strict=True):
        print(f"  sigma {s:<6g} loss unseen {u:.4f}  seen {v:.4f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends with exit status 2 and one line that says what to change."""
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
