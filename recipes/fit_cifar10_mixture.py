"""Fit a mixture of factor analysers to CIFAR-10 by maximum likelihood and write it as a model file.

The mathematics is in `factor_em`. Run it (the recipe of the shipped file; 4 to 8 minutes on one core), then measure it:

    python -m recipes.fit_cifar10_mixture --data PATH/TO/cifar10 --out outputs/cifar10_mixture.safetensors
    python -m recipes.evaluate_cifar10_mixture --data PATH/TO/cifar10 --model outputs/cifar10_mixture.safetensors
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from recipes.cifar10 import DATA_HELP, EVENT_SHAPE, bits_per_dim, read_images, shuffled, to_points
from recipes.factor_em import INNER_STEPS, WARM_RANK, Factors, Fit, check_sizes, fit, mean_log_likelihood, mixture
from steindiff import models
from steindiff.cli.script import run_command
from steindiff.errors import InputError
from steindiff.io.files import sha256, writable_folder
from steindiff.metrics import energy_distance

MAX_BYTES = 4_000_000
HELD_OUT_SAMPLES = 2000  # most samples for the energy distance to held-out images


def check_options(args: argparse.Namespace) -> None:
    """Raise InputError for an option that cannot work, before any data is read."""
    d = math.prod(EVENT_SHAPE)
    check_sizes(args.components, args.rank, args.iterations, d)
    size = args.components * (args.rank + 2) * d * 2
    if size > MAX_BYTES and not args.dry_run:
        raise InputError(f"the file would have {size:,} bytes, over {MAX_BYTES:,}: lower --components or --rank")
    if not args.floor > 0:
        raise InputError(f"--floor {args.floor}: must be positive, or constant pixels have infinite likelihood")
    if not 0 <= args.seed < 2**32:
        raise InputError(f"--seed {args.seed}: must be from 0 to {2**32 - 1}")
    if args.threads < 1:
        raise InputError(f"--threads {args.threads}: must be at least 1")
    if args.warm < 0:
        raise InputError(f"--warm {args.warm}: must be at least 0")
    if args.subset is not None and args.subset < 1:
        raise InputError(f"--subset {args.subset}: must be at least 1")
    check_output(args)


def check_output(args: argparse.Namespace) -> None:
    """Raise InputError where the model file could not be written."""
    if args.dry_run:
        return
    if args.out is None or args.out.suffix != ".safetensors":
        raise InputError(f"--out {args.out}: name a file that ends with .safetensors, or give --dry-run")
    writable_folder(args.out.parent)


def half(f: Factors) -> dict[str, Tensor]:
    """The tensors of the file: float16, the diagonal by its logarithm since small ψ are subnormal in float16."""
    return {
        "weights": f.log_weights.double().softmax(0).float(),
        "means": f.means.half().contiguous(),
        "loadings": f.loadings.half().contiguous(),
        "log_diagonal": f.diagonal.log().half().contiguous(),
    }


def write(path: Path, f: Factors, recipe: dict[str, object], event_shape: Sequence[int]) -> None:
    """Write the model file."""
    tensors = half(f)
    tensors["means"] = tensors["means"].reshape(-1, *event_shape)
    info = {
        "kind": "factor_mixture",
        "name": path.stem,
        "event_shape": list(event_shape),
        "diagonal": "exp(log_diagonal)",
        "recipe": recipe,
    }
    models.save(path, tensors, info)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="examples (the shipped file's recipe, 4 to 8 minutes; a small pilot in seconds):\n"
        "  python -m recipes.fit_cifar10_mixture --data PATH/TO/cifar10 --out outputs/cifar10_mixture.safetensors\n"
        "  python -m recipes.fit_cifar10_mixture --data PATH/TO/cifar10 --dry-run --components 4 --rank 20 --iterations 5 "
        "--subset 5000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--data", type=Path, required=True, help=DATA_HELP)
    p.add_argument("--components", type=int, default=10, help="number of components K; default: %(default)s")
    p.add_argument("--rank", type=int, default=63, help="factors per component r; default: %(default)s")
    p.add_argument("--iterations", type=int, default=60, help="most EM iterations; default: %(default)s")
    p.add_argument(
        "--warm", type=int, default=20, help=f"EM iterations at rank {WARM_RANK} before; 0: k-means only; default: %(default)s"
    )
    p.add_argument(
        "--tolerance", type=float, default=1e-4, help="least gain per iteration, nats per dimension; default: %(default)s"
    )
    p.add_argument(
        "--floor", type=float, default=1e-4, help="least noise variance ψ, on the [-1, 1] scale; default: %(default)s"
    )
    p.add_argument("--seed", type=int, default=0, help="seed of everything random; default: %(default)s")
    p.add_argument(
        "--holdout", type=int, default=0, help="training images kept out of the fit, for choosing K and r; default: %(default)s"
    )
    p.add_argument("--subset", type=int, default=None, help="fit to this many training images (pilots); default: all")
    p.add_argument("--threads", type=int, default=1, help="threads of torch; changes the last digits; default: %(default)s")
    p.add_argument("--out", type=Path, help="the .safetensors file to write; required without --dry-run")
    p.add_argument("--dry-run", action="store_true", help="fit and report, write nothing (pilots)")
    return p


def recipe_of(args: argparse.Namespace, result: Fit, images: int) -> dict[str, object]:
    """What the file records about how it was made."""
    packages = ("torch", "numpy", "scikit-learn", "pillow")
    return {
        "data": "CIFAR-10 (Krizhevsky 2009), x = u8 / 127.5 - 1",
        "sha256": {f"{s}.tar.xz": sha256(args.data / f"{s}.tar.xz") for s in ("train", "test")},
        "images": images,
        "method": "k-means++, EM at low rank, PCA, EM",
        "components": args.components,
        "rank": args.rank,
        "floor": args.floor,
        "seed": args.seed,
        "tolerance": args.tolerance,
        "warm_iterations": args.warm,
        "warm_rank": WARM_RANK,
        "inner_steps": INNER_STEPS,
        "iterations": len(result.history) - 1,
        "converged": result.converged,
        "train_log_likelihood_nats": round(result.history[-1], 4),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
    }


def fit_and_write(args: argparse.Namespace) -> None:
    """Read, split, fit, report, write."""
    check_options(args)
    torch.set_num_threads(args.threads)
    images = shuffled(read_images(args.data / "train.tar.xz"), args.seed)
    if not 0 <= args.holdout < len(images):
        raise InputError(f"--holdout {args.holdout}: must be from 0 to {len(images) - 1}")
    start = time.perf_counter()
    x = to_points(images[args.holdout :][: args.subset])
    options = {"iterations": args.iterations, "warm": args.warm, "seed": args.seed}
    result = fit(x, args.components, args.rank, tolerance=args.tolerance, floor=args.floor, **options)
    seconds = time.perf_counter() - start
    print(f"K={args.components} r={args.rank} iterations={len(result.history) - 1} converged={result.converged}")
    print(f"train log-likelihood {result.history[-1]:.2f} nats ({len(x)} images, {seconds:.0f} s)")
    report(result.factors, args.floor)
    if args.holdout:
        report_held_out(result.factors, to_points(images[: args.holdout]), args.seed)
    if not args.dry_run:
        write(args.out, result.factors, recipe_of(args, result, len(x)), EVENT_SHAPE)
        print(f"wrote {args.out} ({args.out.stat().st_size:,} bytes)")


def report(f: Factors, floor: float) -> None:
    """Print the weights and how small the noise variances are."""
    print("weights " + " ".join(f"{w:.3f}" for w in f.log_weights.exp().tolist()))
    print(f"psi min {float(f.diagonal.min()):.3g} median {float(f.diagonal.median()):.3g}")
    print(f"share of psi at the floor {float((f.diagonal <= floor).double().mean()):.4f}")


def report_held_out(f: Factors, held: Tensor, seed: int) -> None:
    """Print the likelihood of images that were not fitted, and how far samples are from them."""
    value = mean_log_likelihood(held, f)
    print(f"held-out log-likelihood {value:.2f} nats, {bits_per_dim(value, held.shape[1]):.4f} bits/dim")
    n = min(len(held), HELD_OUT_SAMPLES)
    samples = mixture(f, EVENT_SHAPE).sample(n, torch.Generator().manual_seed(seed))
    if n > 1:
        print(f"held-out energy distance {energy_distance(samples, held[:n])} ({n} samples)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends with exit status 2 and one line that says what to change."""
    return run_command(parser(), fit_and_write, argv)


if __name__ == "__main__":
    sys.exit(main())
