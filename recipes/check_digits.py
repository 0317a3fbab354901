"""What the digits' card says beyond `steindiff evaluate`: the spread of the noise floor, and a check for copying (3 minutes).

    python -m recipes.check_digits
    python -m recipes.check_digits --n 200 --steps 20 --resplits 20

Samples are unclipped, of Heun's method on --steps noise levels from 80 to 0.002 (ρ = 7) and then 0, one seed an image. The
floor is the energy and the Fréchet distance between the parts of random re-splits of all 1797 digits, which a perfect model
would reach. A model that copies its training digits reaches it too: hence the distances to the nearest training digit.
"""

from typing import Annotated

import torch
from torch import Tensor
from tqdm import tqdm

from recipes.command import command
from steindiff import grids, initial_noise, models, sample
from steindiff.metrics import energy_distance, frechet_distance
from steindiff.models.datasets import load_digits


def nearest(x: Tensor, train: Tensor) -> Tensor:
    """Distance of each image to the nearest training digit, by differences: exactly 0 for a copy."""
    return torch.cdist(x.flatten(1), train.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").min(1).values


@command
def main(
    model: Annotated[str, "a model's name, or a file of `steindiff train`"] = "digits",
    n: Annotated[int, "samples; 40 are two in each of the jackknife's groups", 40] = 1500,
    steps: Annotated[int, "noise levels above 0", 2] = 100,
    seed: Annotated[int, "first of the image seeds, and the seed of the re-splits", 0] = 0,
    resplits: Annotated[int, "random re-splits for the floor", 2] = 200,
) -> None:
    """Sample, measure and print; the defaults are those of the card."""
    denoiser = models.load(model).denoiser
    train, held = (images.points().double() for images in load_digits())
    sigmas = grids.with_zero(grids.karras(steps - 1))
    noise = initial_noise(range(seed, seed + n), train.shape[1:], 80.0)
    runs = [sample("heun", denoiser, x, sigmas) for x in tqdm(noise.split(250), unit="batch", desc="sampling")]
    x = torch.cat([run.x for run in runs]).double()
    print(f"{n} samples with {runs[0].stats.nfe} evaluations each; {len(train)} training and {len(held)} held-out digits")
    for name, p, q in (("samples, held-out", x, held), ("training, held-out", train, held), ("samples, training", x, train)):
        print(f"{name:20} energy {energy_distance(p, q)}   Fréchet {frechet_distance(p, q)}")
    digits, generator = torch.cat([train, held]), torch.Generator().manual_seed(seed)
    floor = []
    for _ in tqdm(range(resplits), unit="split", desc="noise floor"):
        parts = digits[torch.randperm(len(digits), generator=generator)].tensor_split([len(train)])
        # Two groups are the fastest; no error is wanted.
        floor.append([energy_distance(*parts).value, frechet_distance(*parts, groups=2).value])
    for name, values in zip(("energy", "Fréchet"), torch.tensor(floor, dtype=torch.float64).unbind(1), strict=True):
        spread = f"mean {values.mean():.4f}, sd {values.std():.4f}, 95 % {values.quantile(0.95):.4f}"
        print(f"floor over {resplits} re-splits: {name} {spread}")
    print("distance to the nearest training digit\n" + " " * 10 + "".join(f"{p:>8}" for p in ("1 %", "10 %", "50 %", "90 %")))
    levels, near = x.new_tensor([0.01, 0.1, 0.5, 0.9]), {"samples": nearest(x, train), "held-out": nearest(held, train)}
    for name, d in near.items():
        print(f"{name:10}" + "".join(f"{v:8.3f}" for v in d.quantile(levels).tolist()))
    share = float((near["samples"] < near["held-out"].quantile(0.01)).double().mean())
    print(f"samples nearer than the held-out digits' 1 % quantile: {100 * share:.2f} %")
