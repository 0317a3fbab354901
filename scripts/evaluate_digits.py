"""Measures the embedded digits model: samples against held-out digits, beside the noise floor, and a check for copying.

Samples: the deterministic Heun solver of Karras et al. (2022, Algorithm 1 with S_churn = 0) on dx/dσ = (x − D(x; σ))/σ,
on `--steps` noise levels σ_i = (σ_max^(1/ρ) + i/(N−1) (σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ, ρ = 7, and then 0; float32,
unclipped.

Distances, on flattened images in R^64, pixels in [−1, 1]; X samples, Y held-out digits:

    energy  = 2 E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖          (no square root, no factor 1/2; unbiased: may be negative)
    Fréchet = ‖μ_X − μ_Y‖² + tr(C_X + C_Y − 2 (C_X C_Y)^{1/2})          (biased upward at finite size; no square root)

Standard errors: delete-one jackknife over both samples, which take the held-out digits' randomness into account.
Noise floor: the same statistics between the training and the held-out digits (same sizes), and their mean and 95 %
quantile over random re-splits of all 1797 digits, which is what a perfect model would reach. A model that copies its
training digits reaches the floor too; hence the distances from samples to their nearest training digits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from steindiff.networks import EDMPrecond, UNet, UNetConfig
from train_digits import load_split

Array = NDArray[np.float64]
MODEL = Path(__file__).parents[1] / "src/steindiff/models/weights/digits.safetensors"


def load_model(path: Path) -> EDMPrecond:
    """The network of a model file, in float32 and evaluation mode."""
    with safe_open(path, framework="pt") as f:
        d = json.loads(f.metadata()["steindiff"])
        tensors = {k: f.get_tensor(k).float() for k in f.keys()}  # noqa: SIM118 (not a dict)
    net = EDMPrecond(UNet(UNetConfig(**d["unet"])), d["sigma_data"])
    net.load_state_dict(tensors)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def heun(net: EDMPrecond, x: Tensor, sigmas: Tensor) -> Tensor:
    """Heun's method along σ, from x ~ sigmas[0] · unit noise to the last level, 0, which an Euler step reaches."""
    for s, t in itertools.pairwise(sigmas):
        d = (x - net(x, s)) / s
        y = x + (t - s) * d
        if t > 0:
            y = x + (t - s) * (d + (y - net(y, t)) / t) / 2
        x = y
    return x


def sample(net: EDMPrecond, n: int, steps: int, seed: int, batch: int = 250) -> Tensor:
    """Draws n samples, (n, 1, 8, 8), from `steps` noise levels between 80 and 0.002."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    a, b = 80 ** (1 / 7), 0.002 ** (1 / 7)
    sigmas = torch.cat([(a + ramp * (b - a)) ** 7, torch.zeros(1, dtype=torch.float64)]).float()
    noise = torch.randn((n, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    return torch.cat([heun(net, sigmas[0] * z, sigmas) for z in tqdm(torch.split(noise, batch), unit="batch", desc="sampling")])


def distances(x: Array, y: Array) -> Array:
    """‖x_i − y_j‖, (n, m), by differences: exact zeros where points coincide."""
    out: Array = np.stack([np.sqrt(np.square(y - row).sum(axis=1)) for row in x])
    return out


def jackknife(xs: Array, ys: Array) -> float:
    """Standard error from the delete-one values of the X sample and of the Y sample."""
    return float(np.sqrt(sum((len(v) - 1) / len(v) * np.square(v - v.mean()).sum() for v in (xs, ys))))


def energy(xx: Array, yy: Array, xy: Array) -> tuple[float, float]:
    """The unbiased energy distance and its standard error, from the three distance matrices."""
    n, m = xy.shape
    sx, sy, sxy = xx.sum(), yy.sum(), xy.sum()
    value = 2 * sxy / (n * m) - sx / (n * (n - 1)) - sy / (m * (m - 1))
    without_x = 2 * (sxy - xy.sum(1)) / ((n - 1) * m) - (sx - 2 * xx.sum(1)) / ((n - 1) * (n - 2)) - sy / (m * (m - 1))
    without_y = 2 * (sxy - xy.sum(0)) / (n * (m - 1)) - sx / (n * (n - 1)) - (sy - 2 * yy.sum(1)) / ((m - 1) * (m - 2))
    return float(value), jackknife(without_x, without_y)


def moments(x: Array) -> tuple[Array, Array]:
    """Mean (64,) and unbiased covariance (64, 64)."""
    return x.mean(0), np.cov(x, rowvar=False)


def without_each(x: Array) -> list[tuple[Array, Array]]:
    """The moments with each point left out in turn, by rank-one downdates of the full ones."""
    n, (mean, cov) = len(x), moments(x)
    out = []
    for row in x - mean:
        out.append((mean - row / (n - 1), ((n - 1) * cov - n / (n - 1) * np.outer(row, row)) / (n - 2)))
    return out


def root(c: Array) -> Array:
    """The symmetric square root of a covariance."""
    w, v = np.linalg.eigh(c)
    out: Array = (v * np.sqrt(np.maximum(w, 0))) @ v.T
    return out


def frechet_of(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """The squared Fréchet distance of two Gaussians; tr (C_a C_b)^{1/2} is the nuclear norm of C_a^{1/2} C_b^{1/2}."""
    cross = np.linalg.svd(root(a[1]) @ root(b[1]), compute_uv=False).sum()
    return float(np.square(a[0] - b[0]).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * cross)


def frechet(x: Array, y: Array) -> tuple[float, float]:
    """The Fréchet distance in pixel space and its jackknife standard error."""
    a, b = moments(x), moments(y)
    xs = np.array([frechet_of(a_, b) for a_ in without_each(x)])
    ys = np.array([frechet_of(a, b_) for b_ in without_each(y)])
    return frechet_of(a, b), jackknife(xs, ys)


def resplits(train: Array, held: Array, count: int, seed: int) -> tuple[Array, Array]:
    """Energy and Fréchet distances between the parts of random re-splits of all digits, of the same two sizes."""
    both = np.concatenate([train, held])
    d = distances(both, both)
    rng = np.random.default_rng(seed)
    values = []
    for _ in tqdm(range(count), unit="split", desc="noise floor"):
        p = rng.permutation(len(both))
        i, j = p[: len(train)], p[len(train) :]
        e, _ = energy(d[np.ix_(i, i)], d[np.ix_(j, j)], d[np.ix_(i, j)])
        values.append((e, frechet_of(moments(both[i]), moments(both[j]))))
    table = np.array(values)
    return table[:, 0], table[:, 1]


def describe_copies(x: Array, train: Array, held: Array) -> list[str]:
    """Quantiles of the distance to the nearest training digit, of samples and of held-out digits."""
    near = {"samples": distances(x, train).min(1), "held-out": distances(held, train).min(1)}
    lines = [f"{'':10}{'1 %':>8}{'10 %':>8}{'50 %':>8}{'90 %':>8}{'mean':>8}{'se':>8}"]
    for name, d in near.items():
        row = [*np.quantile(d, [0.01, 0.1, 0.5, 0.9]), d.mean(), d.std(ddof=1) / np.sqrt(len(d))]
        lines.append(f"{name:10}" + "".join(f"{v:8.3f}" for v in row))
    limit = np.quantile(near["held-out"], 0.01)
    share = float((near["samples"] < limit).mean())
    lines.append(f"samples nearer than the held-out digits' 1 % quantile: {100 * share:.2f} %")
    return lines


def parser() -> argparse.ArgumentParser:
    """The command line; defaults are those of the model card."""
    p = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="example:\n  python scripts/evaluate_digits.py --n 1500 --steps 100 --seed 0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", type=Path, default=MODEL, help="a .safetensors file written by train_digits.py")
    p.add_argument("--n", type=int, default=1500, help="samples; 1500, as many as training digits, by default")
    p.add_argument("--steps", type=int, default=100, help="noise levels above 0; default: %(default)s")
    p.add_argument("--seed", type=int, default=0, help="of the initial noise and of the re-splits; default: %(default)s")
    p.add_argument("--resplits", type=int, default=200, help="random re-splits for the floor; default: %(default)s")
    p.add_argument("--threads", type=int, default=1, help="CPU threads; default: %(default)s")
    p.add_argument("--image", type=Path, help="also write a PNG with 100 samples (top) and 100 held-out digits")
    return p


def write_image(path: Path, samples: Tensor, held: Tensor) -> None:
    """Two panels of 5 × 20 images, enlarged six times."""
    from PIL import Image

    tiles = [torch.nn.functional.pad(t[:100, 0], (1, 1, 1, 1)) for t in (samples, held)]  # a grey frame, 10 × 10 each
    panels = [t.reshape(5, 20, 10, 10).permute(0, 2, 1, 3).reshape(50, 200) for t in tiles]
    pixels = ((torch.cat([panels[0], torch.ones(2, 200), panels[1]]).clamp(-1, 1) + 1) * 127.5).byte().numpy()
    Image.fromarray(pixels).resize((200 * 6, 102 * 6), Image.Resampling.NEAREST).save(path)


def print_report(x: Array, t: Array, h: Array, count: int, seed: int) -> None:
    """Prints every statistic for samples x, training digits t and held-out digits h."""
    print(f"samples: range [{x.min():.2f}, {x.max():.2f}], mean {x.mean():.4f}, sd {x.std():.4f}")
    print(f"held-out digits: mean {h.mean():.4f}, sd {h.std():.4f}")
    xx, tt, hh = distances(x, x), distances(t, t), distances(h, h)
    for name, p, pp, q, qq in (
        ("samples against held-out", x, xx, h, hh),
        ("training against held-out", t, tt, h, hh),
        ("samples against training", x, xx, t, tt),
    ):
        (e, e_se), (f, f_se) = energy(pp, qq, distances(p, q)), frechet(p, q)
        print(f"{name:26}  energy {e:.4f} ± {e_se:.4f}   Fréchet {f:.3f} ± {f_se:.3f}")
    for name, values in zip(("energy", "Fréchet"), resplits(t, h, count, seed), strict=True):
        q95 = np.quantile(values, 0.95)
        print(f"floor over {count} re-splits: {name} mean {values.mean():.4f}, sd {values.std():.4f}, 95 % {q95:.4f}")
    print("distance to the nearest training digit")
    print("\n".join(describe_copies(x, t, h)))


def main(argv: Sequence[str] | None = None) -> None:
    """Samples, measures and prints."""
    a = parser().parse_args(argv)
    torch.set_num_threads(a.threads)
    train, held, _ = load_split()
    start = time.time()
    samples = sample(load_model(a.model), a.n, a.steps, a.seed)
    print(f"{a.n} samples with {2 * a.steps - 1} evaluations each, {time.time() - start:.0f} s")
    print(f"{len(train)} training and {len(held)} held-out digits")
    if a.image:
        write_image(a.image, samples, held)
    x, t, h = (v.flatten(1).double().numpy() for v in (samples, train, held))
    print_report(x, t, h, a.resplits, a.seed)


if __name__ == "__main__":
    main()
