"""Measures the embedded digits model: samples against held-out digits, beside the noise floor, and a check for copying.

Samples: the deterministic Heun solver of Karras et al. (2022, Algorithm 1 with S_churn = 0) on dx/dσ = (x − D(x; σ))/σ, on
`--steps` noise levels from 80 to 0.002 with ρ = 7, and then 0; float32, unclipped, one seed per image.

Distances, by `steindiff.metrics` on flattened images in R^64, pixels in [−1, 1]; X samples, Y held-out digits:

    energy  = 2 E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖          (no square root, no factor 1/2; unbiased: may be negative)
    Fréchet = ‖μ_X − μ_Y‖² + tr(C_X + C_Y − 2 (C_X C_Y)^{1/2})          (biased upward at finite size; no square root)

Standard errors, over both samples: the Hájek projection for the energy distance, a jackknife of 20 groups for Fréchet.
Noise floor: the same statistics between the training and the held-out digits (same sizes), and their mean and 95 %
quantile over random re-splits of all 1797 digits, which is what a perfect model would reach. A model that copies its
training digits reaches the floor too; hence the distances from samples to their nearest training digits.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from steindiff import grids, initial_noise, models, sample
from steindiff.cli.script import run_command
from steindiff.denoisers import Denoiser
from steindiff.errors import InputError
from steindiff.io.images import contact_sheet, save_png, to_uint8
from steindiff.metrics import EnergyTarget, energy_distance, frechet_distance
from steindiff.models.datasets import load_digits
from steindiff.solvers import Heun

EVENT_SHAPE = (1, 8, 8)
LEAST = 40  # two samples in each of the jackknife's 20 groups
SIGMA_MAX = 80.0
BATCH = 250


def load_denoiser(name: str) -> Denoiser:
    """The denoiser of an embedded model or a model file; refuses other images than 8×8 grey ones."""
    model = models.load(name)
    if model.event_shape != EVENT_SHAPE:
        raise InputError(f"--model {name} makes images of shape {model.event_shape}: need {EVENT_SHAPE}, 8×8 grey digits")
    return model.denoiser


def draw(denoiser: Denoiser, n: int, steps: int, seed: int) -> tuple[Tensor, int]:
    """Samples (n, 1, 8, 8) of the seeds seed … seed + n − 1, and the evaluations each took."""
    sigmas = grids.with_zero(grids.karras(steps - 1, sigma_max=SIGMA_MAX))
    noise = initial_noise(range(seed, seed + n), EVENT_SHAPE, SIGMA_MAX)
    runs = [sample(Heun(), denoiser, x, sigmas) for x in tqdm(noise.split(BATCH), unit="batch", desc="sampling")]
    return torch.cat([run.x for run in runs]), runs[0].stats.nfe


def resplits(digits: Tensor, size: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Energy and Fréchet distances between the two parts of random re-splits of all digits, `size` in the first; (count,)."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in tqdm(range(count), unit="split", desc="noise floor"):
        p = torch.randperm(len(digits), generator=generator)
        x, y = digits[p[:size]], digits[p[size:]]
        # The spread over re-splits is wanted, not each one's own error: two groups are the fewest, hence the fastest.
        values.append([energy_distance(x, y).value, frechet_distance(x, y, groups=2).value])
    energy, frechet = torch.tensor(values, dtype=torch.float64).unbind(1)
    return energy, frechet


def nearest(x: Tensor, train: Tensor) -> Tensor:
    """Distance of each image to the nearest training digit, by differences: exactly 0 for a copy."""
    d = torch.cdist(x.flatten(1), train.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    return d.min(1).values


def describe_copies(x: Tensor, train: Tensor, held: Tensor) -> list[str]:
    """Quantiles of the distance to the nearest training digit, of samples and of held-out digits."""
    near = {"samples": nearest(x, train), "held-out": nearest(held, train)}
    levels = torch.tensor([0.01, 0.1, 0.5, 0.9], dtype=torch.float64)
    lines = [f"{'':10}{'1 %':>8}{'10 %':>8}{'50 %':>8}{'90 %':>8}{'mean':>8}{'se':>8}"]
    for name, d in near.items():
        row = [*d.quantile(levels).tolist(), float(d.mean()), float(d.std()) / len(d) ** 0.5]
        lines.append(f"{name:10}" + "".join(f"{v:8.3f}" for v in row))
    share = float((near["samples"] < near["held-out"].quantile(0.01)).double().mean())
    lines.append(f"samples nearer than the held-out digits' 1 % quantile: {100 * share:.2f} %")
    return lines


def print_report(x: Tensor, t: Tensor, h: Tensor, count: int, seed: int) -> None:
    """Prints every statistic for samples x, training digits t and held-out digits h, all float64."""
    print(f"samples: range [{x.min():.2f}, {x.max():.2f}], mean {x.mean():.4f}, sd {x.std():.4f}")
    print(f"held-out digits: mean {h.mean():.4f}, sd {h.std():.4f}")
    to_held, to_train = EnergyTarget(h), EnergyTarget(t)
    for name, target, p, q in (
        ("samples against held-out", to_held, x, h),
        ("training against held-out", to_held, t, h),
        ("samples against training", to_train, x, t),
    ):
        print(f"{name:26}  energy {target.shares(p).value}   Fréchet {frechet_distance(p, q)}")
    floors = resplits(torch.cat([t, h]), len(t), count, seed)
    for name, values in zip(("energy", "Fréchet"), floors, strict=True):
        spread = f"mean {values.mean():.4f}, sd {values.std():.4f}, 95 % {values.quantile(0.95):.4f}"
        print(f"floor over {count} re-splits: {name} {spread}")
    print("distance to the nearest training digit")
    print("\n".join(describe_copies(x, t, h)))


def parser() -> argparse.ArgumentParser:
    """The command line; defaults are those of the model card."""
    p = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="examples (the model card's, 3 minutes; a quick look with a picture):\n"
        "  python -m recipes.evaluate_digits --n 1500 --steps 100 --seed 0\n"
        "  python -m recipes.evaluate_digits --n 200 --steps 20 --resplits 20 --image outputs/digits.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", default="digits", help="a model's name, or a file of `steindiff train`; default: %(default)s")
    p.add_argument("--n", type=int, default=1500, help="samples; 1500, as many as training digits, by default")
    p.add_argument("--steps", type=int, default=100, help="noise levels above 0; default: %(default)s")
    p.add_argument("--seed", type=int, default=0, help="first of the image seeds, and of the re-splits; default: %(default)s")
    p.add_argument("--resplits", type=int, default=200, help="random re-splits for the floor; default: %(default)s")
    p.add_argument("--threads", type=int, default=1, help="CPU threads; default: %(default)s")
    p.add_argument("--image", type=Path, help="also write a PNG: up to 100 samples, then as many held-out digits")
    return p


def check_options(a: argparse.Namespace) -> None:
    """Raise InputError for an option that cannot work, before any sample is drawn."""
    for name, least in (("n", LEAST), ("steps", 2), ("seed", 0), ("resplits", 2), ("threads", 1)):
        if getattr(a, name) < least:
            raise InputError(f"--{name} {getattr(a, name)}: must be at least {least}")


def evaluate(a: argparse.Namespace) -> None:
    """Samples, measures and prints."""
    check_options(a)
    torch.set_num_threads(a.threads)
    denoiser = load_denoiser(a.model)
    train, held = (images.points() for images in load_digits())
    start = time.perf_counter()
    samples, nfe = draw(denoiser, a.n, a.steps, a.seed)
    print(f"{a.n} samples with {nfe} evaluations each, {time.perf_counter() - start:.0f} s")
    print(f"{len(train)} training and {len(held)} held-out digits")
    if a.image:
        shown = min(100, a.n)
        both = torch.cat([samples[:shown], held[:shown]])
        save_png(a.image, contact_sheet(to_uint8(both), columns=20, scale=6))
    print_report(samples.double(), train.double(), held.double(), a.resplits, a.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends with exit status 2 and one line that says what to change."""
    return run_command(parser(), evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
