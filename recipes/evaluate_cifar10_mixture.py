r"""Measures the embedded CIFAR-10 mixture: likelihoods against references, samples against test images and the noise floor.

Bits per dimension: −log₂(p(x) (1/127.5)^d)/d for x = u8 / 127.5 − 1, d = 3072. References: one factor analyser of the same
rank, fitted here by the same EM, and the Gaussian of the training images' mean and covariance, its eigenvalues raised to at
least (1/127.5)²/12, the variance of a quantisation step.

Distances, by `steindiff.metrics` on unclipped flattened images; X points, Y test images:

    energy  = 2 E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖          (no square root, no factor 1/2; unbiased: may be negative)
    Fréchet = ‖μ_X − μ_Y‖² + tr(C_X + C_Y − 2 (C_X C_Y)^{1/2})          (biased upward at finite size; no square root)

The Fréchet distance depends on the points' linear span alone: it is computed in coordinates on it, which costs O(n³) instead
of O(d³). Standard errors: the Hájek projection for the energy distance, a jackknife of 20 groups for Fréchet.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from recipes.cifar10 import DATA_HELP, EVENT_SHAPE, LEVEL, bits_per_dim, read_images, shuffled, to_points
from recipes.factor_em import Factors, fit, log_joint, mixture
from steindiff import models
from steindiff.analytic import ExactModel, FactorMixture, Gaussian
from steindiff.cli.script import run_command
from steindiff.errors import InputError
from steindiff.metrics import EnergyTarget, Value, frechet_distance
from steindiff.models import Model

LEAST = 40  # two points in each of the jackknife's 20 groups
CHUNK = 1000
CHECKED = 1000  # test images on which two codes' densities are compared


def load(name: str) -> tuple[Model, FactorMixture]:
    """An embedded mixture or a model file, in float64; refuses other kinds, other shapes and a file without its recipe."""
    model = models.load(name, dtype=torch.float64)
    if not isinstance(model.denoiser, FactorMixture) or model.event_shape != EVENT_SHAPE:
        raise InputError(f"--model {name} is {model.info['kind']} on {model.event_shape}: need factor_mixture on {EVENT_SHAPE}")
    if not {"floor", "seed"} <= set(model.info.get("recipe", {})):
        raise InputError(f"--model {name} does not record how it was fitted: make it with fit_cifar10_mixture.py")
    return model, model.denoiser


def log_densities(model: ExactModel, points: Tensor) -> Tensor:
    """Log p(x_n) of points (n, 3072) in nats by the package, (n,) in float64."""
    x = points.reshape(-1, *EVENT_SHAPE)
    return torch.cat([model.log_density(c.to(model.dtype), 0.0).double() for c in x.split(CHUNK)])


def full_gaussian(x: Tensor, floor: float, event_shape: Sequence[int] = EVENT_SHAPE) -> Gaussian:
    """The Gaussian of greatest likelihood whose covariance eigenvalues are at least floor."""
    mean = x.double().mean(0)
    S = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for c in x.split(CHUNK):
        xc = c.double() - mean
        S.addmm_(xc.mT, xc)
    eigenvalues, V = torch.linalg.eigh(S / len(x))
    covariance = (V * eigenvalues.clamp_min(floor)) @ V.mT
    return Gaussian(mean.reshape(*event_shape), (covariance + covariance.mT) / 2)


def print_likelihoods(model: Model, law: FactorMixture, gaussian: Gaussian, train: Tensor, test: Tensor) -> None:
    """The first table of the model card: the mean over all test images, ± its standard error."""
    rank, recipe = law.loadings.shape[2], model.info["recipe"]
    single = fit(train, 1, rank, floor=float(recipe["floor"]), seed=int(recipe["seed"]))
    rows: dict[str, ExactModel] = {
        f"{model.path.name} (float16)": law,
        f"one factor analyser, r = {rank}": mixture(single.factors, EVENT_SHAPE).to(torch.float64),
        "one full Gaussian": gaussian,
    }
    print("| model | test log-likelihood (nats) | bits/dim |\n|---|---|---|")
    for name, reference in rows.items():
        values = log_densities(reference, test)
        value = Value(float(values.mean()), float(values.std()) / math.sqrt(len(values)))
        print(f"| {name} | {value.value:.1f} ± {value.se:.1f} | {bits_per_dim(value.value, test.shape[1]):.4f} |", flush=True)


def print_distances(rows: dict[str, Tensor], test: Tensor, n: int, n_frechet: int) -> None:
    """The second table of the model card: the first n points against as many test images; Fréchet on the first n_frechet."""
    target = EnergyTarget(test[:n])
    print(f"| points against test images | energy distance, {n} each | pixel Fréchet distance, {n_frechet} each |")
    print("|---|---|---|")
    for name, points in rows.items():
        energy, frechet = target.shares(points).value, frechet_distance(points[:n_frechet], test[:n_frechet])
        print(f"| {name} | {energy} | {frechet} |", flush=True)


def print_agreement(law: FactorMixture, test: Tensor) -> None:
    """How far the package's density is from EM's own formula in float64: two codes, two formulas."""
    f = Factors(law.weights.log(), law.means.flatten(1), law.loadings, law.diagonal)
    expected = torch.logsumexp(log_joint(test, f), 1)
    for dtype in (torch.float64, torch.float32):
        error = (log_densities(law.to(dtype), test) - expected).abs().max()
        print(f"log-density by steindiff.analytic in {dtype}: within {float(error):.2g} nats on {len(test)} test images")


def parser() -> argparse.ArgumentParser:
    """The command line; defaults are those of the model card."""
    p = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="examples (the model card's, some minutes; a file of your own):\n"
        "  python -m recipes.evaluate_cifar10_mixture --data PATH/TO/cifar10\n"
        "  python -m recipes.evaluate_cifar10_mixture --data PATH/TO/cifar10 --model outputs/cifar10_mixture.safetensors",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--data", type=Path, required=True, help=DATA_HELP)
    p.add_argument(
        "--model", default="cifar10_mixture", help="a name, or a file of fit_cifar10_mixture.py; default: %(default)s"
    )
    p.add_argument("--n", type=int, default=2000, help="points of each set for the energy distance; default: %(default)s")
    p.add_argument("--n-frechet", type=int, default=500, help="the same for Fréchet, of cost n³; default: %(default)s")
    p.add_argument("--seed", type=int, default=0, help="of the samples and of the images' order; default: %(default)s")
    p.add_argument("--threads", type=int, default=1, help="CPU threads; change the last digits; default: %(default)s")
    return p


def evaluate(args: argparse.Namespace) -> None:
    """Read, check the sizes, print the tables and the comparison of two codes."""
    for name, least in (("n", LEAST), ("n_frechet", LEAST), ("seed", 0), ("threads", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least {least}")
    torch.set_num_threads(args.threads)
    model, law = load(args.model)
    train, test = (to_points(shuffled(read_images(args.data / f"{s}.tar.xz"), args.seed)) for s in ("train", "test"))
    if not args.n_frechet <= args.n <= min(len(train), len(test)):
        sizes = f"{len(train)} training and {len(test)} test images"
        raise InputError(f"--n {args.n}, --n-frechet {args.n_frechet}: need n-frechet ≤ n, and n ≤ both of {sizes}")
    K, _, r = law.loadings.shape
    print(f"{model.path.name}: K = {K}, r = {r}, {model.path.stat().st_size:,} bytes\n")
    gaussian = full_gaussian(train, floor=LEVEL**2 / 12)
    print_likelihoods(model, law, gaussian, train, test)
    rows = {
        f"samples of {model.path.name}": law.sample(args.n, torch.Generator().manual_seed(args.seed)).flatten(1),
        "samples of one full Gaussian": gaussian.sample(args.n, torch.Generator().manual_seed(args.seed)).flatten(1),
        "training images (the floor)": train[: args.n].double(),
    }
    print()
    print_distances(rows, test[: args.n].double(), args.n, args.n_frechet)
    outside = float((rows[f"samples of {model.path.name}"].abs() > 1).double().mean())
    print(f"\n{100 * outside:.1f} % of the samples' values are outside [-1, 1]")
    print_agreement(law, test[:CHECKED].double())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends with exit status 2 and one line that says what to change."""
    return run_command(parser(), evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
