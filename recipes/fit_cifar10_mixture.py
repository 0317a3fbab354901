"""Fits a mixture of factor analysers to CIFAR-10 by maximum likelihood and writes it as a model file, or measures one.

The shipped file's recipe (4 to 8 minutes on one core), a pilot in seconds, the tables of the model card (2 to 4 minutes):

    python -m recipes.fit_cifar10_mixture --data PATH/TO/cifar10 --out outputs/cifar10_mixture.safetensors
    python -m recipes.fit_cifar10_mixture --data PATH/TO/cifar10 --dry-run --components 4 --rank 20 --iterations 5 --subset 5000
    python -m recipes.fit_cifar10_mixture --data PATH/TO/cifar10 --evaluate cifar10_mixture

`factor_em` has the mathematics. --evaluate prints likelihoods in nats and in bits per dimension, −log₂(p(x) (1/127.5)^d)/d,
of the model, of one factor analyser of the same rank and of one full Gaussian, whose covariance has no eigenvalue below the
variance of a quantisation step; then the energy and Fréchet distances of unclipped samples to test images.
"""

import importlib.metadata
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from recipes import factor_em
from recipes.command import command, need, print_table
from recipes.factor_em import Factors, Fit, Settings, check_rank, fit, log_joint, mean_log_likelihood, mixture
from steindiff import models
from steindiff.analytic import ExactModel, FactorMixture, Gaussian
from steindiff.errors import InputError
from steindiff.io.files import sha256, writable_folder
from steindiff.metrics import EnergyTarget, SampleMoments, Value, energy_distance, frechet_distance
from steindiff.models import Model
from steindiff.models.datasets import load_images

EVENT_SHAPE = (3, 32, 32)
LEVEL = 1 / 127.5  # distance between neighbouring grey levels after x = u8 / 127.5 − 1
MAX_BYTES = 4_000_000
HELD_OUT_SAMPLES = 2000  # most samples for the energy distance to held-out images
CHECKED = 1000  # test images on which two codes' densities are compared


@dataclass(frozen=True, kw_only=True)
class Options(Settings):
    """The command line; the defaults are those of the shipped file and its card."""

    data: Annotated[Path, "folder with train.tar.xz and test.tar.xz, archives of 32×32 JPEG or PNG images"]
    components: Annotated[int, "number of components K", 1] = 10
    rank: Annotated[int, "factors per component r"] = 63
    holdout: Annotated[int, "training images kept out of the fit, for choosing K and r"] = 0
    subset: Annotated[int | None, "fit to this many training images; default: all", 1] = None
    threads: Annotated[int, "CPU threads; they change the last digits", 1] = 1
    out: Annotated[Path | None, "the .safetensors file to write; required without --dry-run and --evaluate"] = None
    dry_run: Annotated[bool, "fit and report, write nothing"] = False
    evaluate: Annotated[str | None, "measure this model, by name or file, and fit nothing"] = None
    n: Annotated[int, "with --evaluate: points of each set for the energy distance", 40] = 2000
    n_frechet: Annotated[int, "with --evaluate: the same for the Fréchet distance, of cost n³", 40] = 500


def read(folder: Path, split: str, seed: int) -> Tensor:
    """The images of a split as float32 points (N, 3072) in [-1, 1], in an order that the seed fixes.

    Raises:
        InputError: no such file, not a readable archive, or images of another size.
    """
    archive = folder / f"{split}.tar.xz"
    images = load_images(archive)
    if images.event_shape != EVENT_SHAPE:
        raise InputError(f"{archive} holds images of {images.event_shape}: need {EVENT_SHAPE}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.pixels[order].flatten(1).float().div_(127.5).sub_(1)


def bits_per_dim(nats: float, d: int) -> float:
    """Bits per dimension of the 8-bit values: the density times the volume of one level, −log₂(p(x)·levelᵈ)/d."""
    return (-nats / d - math.log(LEVEL)) / math.log(2)


def check_options(o: Options) -> None:
    """Raise InputError for an option that cannot work, before any data is read."""
    d = math.prod(EVENT_SHAPE)
    check_rank(o.rank, d)
    size = o.components * (o.rank + 2) * d * 2
    if size > MAX_BYTES and not o.dry_run:
        raise InputError(f"the file would have {size:,} bytes, over {MAX_BYTES:,}: lower --components or --rank")
    need(o.floor > 0, "must be positive, or constant pixels have infinite likelihood", floor=o.floor)
    need(0 <= o.seed < 2**32, f"must be from 0 to {2**32 - 1}", seed=o.seed)
    if not o.dry_run and not o.evaluate:
        named = o.out is not None and o.out.suffix == ".safetensors"
        need(named, "name a file that ends with .safetensors, or give --dry-run", out=o.out)
        writable_folder(o.out.parent)


def write(path: Path, f: Factors, recipe: dict[str, object], event_shape: Sequence[int]) -> None:
    """Write the model file in float16; the diagonal by its logarithm, since small ψ are subnormal in float16."""
    tensors = {
        "weights": f.log_weights.double().softmax(0).float(),
        "means": f.means.half().reshape(-1, *event_shape).contiguous(),
        "loadings": f.loadings.half().contiguous(),
        "log_diagonal": f.diagonal.log().half().contiguous(),
    }
    info = {"name": path.stem, "event_shape": list(event_shape), "diagonal": "exp(log_diagonal)", "recipe": recipe}
    models.save(path, tensors, {"kind": "factor_mixture", **info})


def recipe_of(o: Options, result: Fit, images: int) -> dict[str, object]:
    """What the file records about how it was made."""
    packages = ("torch", "numpy", "scikit-learn", "pillow")
    return {
        "data": "CIFAR-10 (Krizhevsky 2009), x = u8 / 127.5 - 1",
        "sha256": {f"{s}.tar.xz": sha256(o.data / f"{s}.tar.xz") for s in ("train", "test")},
        "images": images,
        "method": "k-means++, EM at low rank, PCA, EM",
        **{name: getattr(o, name) for name in ("components", "rank", "floor", "seed", "tolerance")},
        **{"warm_iterations": o.warm, "warm_rank": factor_em.WARM_RANK, "inner_steps": factor_em.INNER_STEPS},
        **{"iterations": len(result.history) - 1, "converged": result.converged},
        "train_log_likelihood_nats": round(result.history[-1], 4),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
    }


def fit_and_write(o: Options) -> None:
    """Read, split, fit, report, write."""
    points = read(o.data, "train", o.seed)
    need(0 <= o.holdout < len(points), f"must be from 0 to {len(points) - 1}", holdout=o.holdout)
    start = time.perf_counter()
    held, x = points[: o.holdout], points[o.holdout :][: o.subset]
    result = fit(x, o.components, o.rank, o)
    f, seconds = result.factors, time.perf_counter() - start
    print(f"K={o.components} r={o.rank} iterations={len(result.history) - 1} converged={result.converged}")
    print(f"train log-likelihood {result.history[-1]:.2f} nats ({len(x)} images, {seconds:.0f} s)")
    print("weights " + " ".join(f"{w:.3f}" for w in f.log_weights.exp().tolist()))
    print(f"psi min {float(f.diagonal.min()):.3g} median {float(f.diagonal.median()):.3g}")
    print(f"share of psi at the floor {float((f.diagonal <= o.floor).double().mean()):.4f}")
    if o.holdout:
        value, n = mean_log_likelihood(held, f), min(o.holdout, HELD_OUT_SAMPLES)
        print(f"held-out log-likelihood {value:.2f} nats, {bits_per_dim(value, held.shape[1]):.4f} bits/dim")
        samples = mixture(f, EVENT_SHAPE).sample(n, torch.Generator().manual_seed(o.seed))
        if n > 1:
            print(f"held-out energy distance {energy_distance(samples, held[:n])} ({n} samples)")
    if o.out is not None and not o.dry_run:
        write(o.out, f, recipe_of(o, result, len(x)), EVENT_SHAPE)
        print(f"wrote {o.out} ({o.out.stat().st_size:,} bytes)")


def load(name: str) -> tuple[Model, FactorMixture]:
    """A mixture by name or file, in float64. Raises InputError for another kind or shape, or without a recipe."""
    model = models.load(name, dtype=torch.float64)
    fits = isinstance(model.denoiser, FactorMixture) and model.event_shape == EVENT_SHAPE
    need(fits, f"need factor_mixture on {EVENT_SHAPE}, not {model.info['kind']} on {model.event_shape}", evaluate=name)
    recorded = {"floor", "seed"} <= set(model.info.get("recipe", {}))
    need(recorded, "does not record how it was fitted: fit it with this command", evaluate=name)
    return model, model.denoiser


def log_densities(law: ExactModel, points: Tensor) -> Tensor:
    """Log p(x_n) of points (n, 3072) in nats by the package, (n,) in float64."""
    return law.log_density(points.reshape(-1, *EVENT_SHAPE).to(law.dtype), 0.0).double()


def full_gaussian(x: Tensor, floor: float, event_shape: Sequence[int] = EVENT_SHAPE) -> Gaussian:
    """The Gaussian of greatest likelihood whose covariance eigenvalues are at least floor."""
    moments = SampleMoments.of(x)
    eigenvalues, V = torch.linalg.eigh(moments.scatter / moments.n)
    covariance = (V * eigenvalues.clamp_min(floor)) @ V.mT
    return Gaussian(moments.mean.reshape(*event_shape), (covariance + covariance.mT) / 2)


def evaluate(o: Options) -> None:
    """Print the likelihoods, the distances, and how far two codes for the density are apart."""
    model, law = load(str(o.evaluate))
    train, test = (read(o.data, split, o.seed) for split in ("train", "test"))
    sizes = f"{len(train)} training and {len(test)} test images"
    enough = o.n_frechet <= o.n <= min(len(train), len(test))
    need(enough, f"need n-frechet ≤ n, and n ≤ both of {sizes}", n=o.n, n_frechet=o.n_frechet)
    (K, _, r), recipe, file = law.loadings.shape, model.info["recipe"], model.path.name
    print(f"{file}: K = {K}, r = {r}, {model.path.stat().st_size:,} bytes\n")
    gaussian = full_gaussian(train, floor=LEVEL**2 / 12)
    single = mixture(fit(train, 1, r, Settings(floor=recipe["floor"], seed=recipe["seed"])).factors, EVENT_SHAPE)
    references: dict[str, ExactModel] = {
        f"{file} (float16)": law,
        f"one factor analyser, r = {r}": single.to(torch.float64),
        "one full Gaussian": gaussian,
    }
    found = ((name, Value.mean_of(log_densities(reference, test))) for name, reference in references.items())
    lines = ((name, f"{v.value:.1f} ± {v.se:.1f}", f"{bits_per_dim(v.value, test.shape[1]):.4f}") for name, v in found)
    print_table(("model", "test log-likelihood (nats)", "bits/dim"), lines)
    drawn, smooth = (x.sample(o.n, torch.Generator().manual_seed(o.seed)).flatten(1) for x in (law, gaussian))
    rows = {
        f"samples of {file}": drawn,
        "samples of one full Gaussian": smooth,
        "training images (the floor)": train[: o.n].double(),
    }
    target, few = EnergyTarget(test[: o.n].double()), slice(o.n_frechet)
    print()
    print_table(
        ("points against test images", f"energy distance, {o.n} each", f"pixel Fréchet distance, {o.n_frechet} each"),
        ((name, target.shares(x).value, frechet_distance(x[few], test[few].double())) for name, x in rows.items()),
    )
    print(f"\n{100 * float((drawn.abs() > 1).double().mean()):.1f} % of the samples' values are outside [-1, 1]")
    print_agreement(law, test[:CHECKED].double())


def print_agreement(law: FactorMixture, test: Tensor) -> None:
    """How far the package's density is from EM's own formula in float64: two codes, two formulas."""
    f = Factors(law.weights.log(), law.means.flatten(1), law.loadings, law.diagonal)
    expected = torch.logsumexp(log_joint(test, f), 1)
    for dtype in (torch.float64, torch.float32):
        error = (log_densities(law.to(dtype), test) - expected).abs().max()
        print(f"log-density by steindiff.analytic in {dtype}: within {float(error):.2g} nats on {len(test)} test images")


@command
def main(o: Options) -> None:
    """Fit, or evaluate."""
    check_options(o)
    evaluate(o) if o.evaluate else fit_and_write(o)
