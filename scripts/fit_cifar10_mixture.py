r"""Fit a mixture of factor analysers to CIFAR-10 by maximum likelihood, and measure how good the fit is.

The model (Ghahramani & Hinton, "The EM algorithm for mixtures of factor analyzers", CRG-TR-96-1, 1996):

    k ~ π,   z ~ N(0, I_r),   x = μ_k + W_k z + ε,   ε ~ N(0, Ψ_k),   Ψ_k = diag(ψ_k),

so that p(x) = Σ_k π_k N(x; μ_k, C_k) with C_k = W_k W_kᵀ + Ψ_k.

E-step. With M_k = I + W_kᵀ Ψ_k⁻¹ W_k (r × r), the determinant lemma and the Woodbury identity give

    log|C_k| = log|M_k| + Σ_i log ψ_ki,
    (x−μ_k)ᵀ C_k⁻¹ (x−μ_k) = (x−μ_k)ᵀ Ψ_k⁻¹ (x−μ_k) − |L_k⁻¹ W_kᵀ Ψ_k⁻¹ (x−μ_k)|²,   M_k = L_k L_kᵀ,
    h_nk = π_k N(x_n; μ_k, C_k) / Σ_j π_j N(x_n; μ_j, C_j).

M-step. With N_k = Σ_n h_nk the weights and the means have closed maxima, whatever W and Ψ are:

    π_k = N_k / N,   μ_k = Σ_n h_nk x_n / N_k,   S_k = Σ_n h_nk (x_n−μ_k)(x_n−μ_k)ᵀ / N_k.

Given S = S_k (never formed: only its products with r vectors are), a few EM steps for one factor analyser follow:

    β = M⁻¹ Wᵀ Ψ⁻¹,   W ← S βᵀ (M⁻¹ + β S βᵀ)⁻¹,   Ψ ← max(diag(S − W β S), floor).

Every piece raises the expected complete log-likelihood for the same h, so the likelihood never falls (generalised EM;
the floor clips a function that is unimodal in each ψ_i, hence gives its constrained maximum).

The start matters more than the rest (see `initialise`): k-means++, then EM at low rank, then PCA at full rank.

Run it (the shipped file; 4 to 8 minutes on one core), then measure it:

    python scripts/fit_cifar10_mixture.py --data /work/shared/data/cifar10
    python scripts/fit_cifar10_mixture.py --data /work/shared/data/cifar10 --evaluate
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import json
import lzma
import math
import os
import platform
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from steindiff.errors import InputError, ModelFileError

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_OUT = ROOT / "src" / "steindiff" / "models" / "weights" / "cifar10_mixture.safetensors"
EVENT_SHAPE = (3, 32, 32)
MAX_BYTES = 4_000_000
CHUNK = 2048
LEVEL = 1 / 127.5  # distance between neighbouring grey levels after x = u8 / 127.5 − 1
NEGLIGIBLE = 1e-8  # responsibilities below this do not enter the M-step
WARM_RANK = 4  # of the mixture that groups the points before the full rank is fitted
INNER_STEPS = 4  # factor-analyser steps per E-step; products with S are cheap beside the E-step
GROUPS = 20  # delete-a-group jackknife


@dataclass(frozen=True)
class Factors:
    """The parameters of a mixture of factor analysers.

    Args:
        log_weights: log π, shape (K,).
        means: μ, shape (K, d).
        loadings: W, shape (K, d, r).
        diagonal: ψ, shape (K, d).
    """

    log_weights: Tensor
    means: Tensor
    loadings: Tensor
    diagonal: Tensor


@dataclass(frozen=True)
class Fit:
    """A fitted mixture and the mean log-likelihood (nats per point) before each M-step and at the end."""

    factors: Factors
    history: tuple[float, ...]
    converged: bool


# ------------------------------------------------------------------------------------------------------------ data


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def decode(archive: Path) -> dict[str, NDArray[np.uint8]]:
    """The JPEG files of a tar archive by name, as arrays of shape (height, width, 3)."""
    from PIL import Image

    images: dict[str, NDArray[np.uint8]] = {}
    with tarfile.open(archive, "r:xz") as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.name.endswith(".jpg") else None
            if stream is not None:
                with Image.open(io.BytesIO(stream.read())) as image:
                    images[member.name] = np.asarray(image.convert("RGB"))
    return images


def read_images(archive: Path) -> Tensor:
    """All JPEG files of a tar archive in the order of their names, as uint8 of shape (N, 3, 32, 32)."""
    if not archive.is_file():
        raise InputError(f"no such file: {archive}; --data must name the folder with train.tar.xz and test.tar.xz")
    try:
        images = decode(archive)
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise InputError(f"{archive} is not a readable .tar.xz of JPEG images ({error}): copy it again") from error
    if not images or any(v.shape != (32, 32, 3) for v in images.values()):
        raise InputError(f"{archive} must hold JPEG images of 32×32 pixels; it holds {len(images)} of any size")
    return torch.from_numpy(np.stack([images[name] for name in sorted(images)])).permute(0, 3, 1, 2).contiguous()


def to_points(images: Tensor) -> Tensor:
    """The uint8 images as float32 points of shape (N, 3072) in [-1, 1]."""
    return images.flatten(1).float().div_(127.5).sub_(1)


def chunks(x: Tensor) -> tuple[Tensor, ...]:
    """Pieces of at most CHUNK points."""
    return torch.split(x, CHUNK)


def shuffled(images: Tensor, seed: int) -> Tensor:
    """The images in a random order fixed by the seed."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]


# -------------------------------------------------------------------------------------------------------------- EM


def log_joint(x: Tensor, f: Factors) -> Tensor:
    """The terms log π_k + log N(x_n; μ_k, C_k), shape (N, K) in float64, in chunks; one large product per chunk."""
    K, d, r = f.loadings.shape
    A = f.loadings / f.diagonal[..., None]  # Ψ⁻¹W
    M = torch.eye(r, dtype=torch.float64) + (f.loadings.mT @ A).double()
    L = torch.linalg.cholesky(M)
    B = torch.linalg.solve_triangular(L, A.mT.double(), upper=False).to(x.dtype)  # L⁻¹WᵀΨ⁻¹, (K, r, d)
    precision = 1 / f.diagonal
    log_det = 2 * L.diagonal(dim1=1, dim2=2).log().sum(1) + f.diagonal.double().log().sum(1)
    constant = f.log_weights.double() - 0.5 * (log_det + d * math.log(2 * math.pi))
    offset = (B @ f.means[..., None]).squeeze(-1)
    square = (precision.double() * f.means.double() ** 2).sum(1)
    linear = torch.cat([B.reshape(K * r, d), precision * f.means]).mT.contiguous()
    out = torch.empty(len(x), K, dtype=torch.float64)
    for i in range(0, len(x), CHUNK):
        c = x[i : i + CHUNK]
        y = c @ linear
        explained = (y[:, : K * r].reshape(-1, K, r) - offset).square().sum(-1)
        mahalanobis = (c.square() @ precision.mT).double() - 2 * y[:, K * r :].double() + square - explained.double()
        out[i : i + CHUNK] = constant - 0.5 * mahalanobis
    return out


def mean_log_likelihood(x: Tensor, f: Factors) -> float:
    """Mean of log p(x_n) in nats per point."""
    return float(torch.logsumexp(log_joint(x, f), 1).mean())


def sample(f: Factors, n: int, seed: int) -> Tensor:
    """Draw n points from the mixture, shape (n, d)."""
    g = torch.Generator().manual_seed(seed)
    d, r = f.loadings.shape[1:]
    k = torch.multinomial(f.log_weights.double().exp(), n, replacement=True, generator=g)
    z, e = (torch.randn(n, m, generator=g, dtype=f.means.dtype) for m in (r, d))
    x = f.means[k] + f.diagonal[k].sqrt() * e
    for j in range(len(f.means)):
        x[k == j] += z[k == j] @ f.loadings[j].mT
    return x


def analyser_step(xc: Tensor, h: Tensor, W: Tensor, psi: Tensor, variance: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """One EM step of a factor analyser on centred points with normalised weights h; returns the new W and ψ."""
    A = W / psi[:, None]
    M = torch.eye(W.shape[1], dtype=torch.float64) + (W.mT @ A).double()
    M_inverse = torch.cholesky_inverse(torch.linalg.cholesky(M))
    beta_t = A @ M_inverse.to(A.dtype)  # βᵀ, (d, r)
    S_beta_t = xc.mT @ (h[:, None] * (xc @ beta_t))
    second = M_inverse + (beta_t.mT @ S_beta_t).double()  # E[zzᵀ]
    W = torch.linalg.solve(second, S_beta_t.double(), left=False).to(W.dtype)
    return W, (variance - (W * S_beta_t).sum(1)).clamp_min(floor)


def maximise_component(x: Tensor, h: Tensor, W: Tensor, psi: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """The M-step of one component: its mean, loadings and diagonal from the responsibilities h (N,)."""
    rows = h > NEGLIGIBLE
    h = (h[rows] / h[rows].sum()).to(x.dtype)
    xc = x[rows]
    mean = h @ xc
    xc -= mean
    variance = h @ xc.square()
    for _ in range(INNER_STEPS):
        W, psi = analyser_step(xc, h, W, psi, variance, floor)
    return mean, W, psi


def maximise(x: Tensor, h: Tensor, f: Factors, floor: float) -> Factors:
    """The M-step; a component that has lost all its points keeps its shape."""
    total = h.sum(0)
    parts = [
        maximise_component(x, h[:, k], f.loadings[k], f.diagonal[k], floor)
        if total[k] >= 1
        else (f.means[k], f.loadings[k], f.diagonal[k])
        for k in range(len(total))
    ]
    means, loadings, diagonal = (torch.stack(p) for p in zip(*parts, strict=True))
    log_weights = (total / total.sum()).clamp_min(1e-30).log()
    return Factors(log_weights, means, loadings, diagonal)


def em(x: Tensor, f: Factors, *, iterations: int, tolerance: float, floor: float) -> Fit:
    """Alternate E- and M-steps until the gain falls below tolerance·d nats per point, or iterations run out."""
    history: list[float] = []
    converged = False
    with tqdm(total=iterations, desc=f"EM, rank {f.loadings.shape[2]}", unit="it", mininterval=5) as bar:
        for step in range(iterations + 1):
            joint = log_joint(x, f)
            evidence = torch.logsumexp(joint, 1)
            history.append(float(evidence.mean()))
            bar.set_postfix_str(f"log-likelihood {history[-1]:.3f} nats")
            converged = step > 0 and history[-1] - history[-2] < tolerance * x.shape[1]
            if converged or step == iterations:
                break
            f = maximise(x, (joint - evidence[:, None]).exp(), f, floor)
            bar.update()
    return Fit(f, tuple(history), converged)


def pca_component(points: Tensor, rank: int, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, loadings and diagonal of one cluster from its leading principal components."""
    mean = points.mean(0)
    xc = points - mean
    _, s, V = torch.pca_lowrank(xc, q=rank, center=False, niter=2)
    variance = xc.square().mean(0)
    eigenvalues = s.square() / len(xc)
    rest = (variance.sum() - eigenvalues.sum()).clamp_min(0) / xc.shape[1]  # Tipping & Bishop (1999), eq. 8
    W = V * (eigenvalues - rest).clamp_min(floor).sqrt()
    return mean, W, (variance - W.square().sum(1)).clamp_min(floor)


def from_labels(x: Tensor, labels: Tensor, components: int, rank: int, *, seed: int, floor: float) -> Factors:
    """The mixture whose components are the PCA of each labelled part."""
    counts = torch.bincount(labels, minlength=components)
    if int(counts.min()) <= rank:
        raise InputError(
            f"a cluster has only {int(counts.min())} of {len(x)} points, not more than --rank {rank}: "
            "use fewer --components, a lower --rank or more data"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = [pca_component(x[labels == k], rank, floor) for k in range(components)]
    means, loadings, diagonal = (torch.stack(p) for p in zip(*parts, strict=True))
    return Factors((counts / counts.sum()).log().to(x.dtype), means, loadings, diagonal)


def cluster(x: Tensor, components: int, seed: int) -> Tensor:
    """Labels of a k-means clustering, shape (N,)."""
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if components == 1:
        return torch.zeros(len(x), dtype=torch.int64)
    with threadpool_limits(limits=1):  # more threads change the order of sums, hence the result
        kmeans = MiniBatchKMeans(components, init="k-means++", n_init=3, batch_size=4096, random_state=seed)
        return torch.from_numpy(kmeans.fit_predict(x.numpy())).long()


def initialise(x: Tensor, components: int, rank: int, *, warm: int, seed: int, floor: float) -> Factors:
    """k-means++ clusters, `warm` EM iterations at WARM_RANK, a hard assignment by that mixture, a PCA of each part.

    k-means parts images by brightness; with hundreds of parameters per point EM at full rank then hardly moves a
    point, since each component overfits its own. A mixture of low rank regroups them by texture and contrast first.
    """
    labels = cluster(x, components, seed)
    if warm and components > 1 and rank > WARM_RANK:
        start = from_labels(x, labels, components, WARM_RANK, seed=seed, floor=floor)
        labels = log_joint(x, em(x, start, iterations=warm, tolerance=0, floor=floor).factors).argmax(1)
    return from_labels(x, labels, components, rank, seed=seed, floor=floor)


def fit(
    x: Tensor,
    components: int,
    rank: int,
    *,
    iterations: int = 60,
    warm: int = 20,
    tolerance: float = 1e-4,
    floor: float = 1e-4,
    seed: int = 0,
) -> Fit:
    """Initialise and run EM; refuses sizes that make no mixture of factor analysers.

    Args:
        x: points, shape (N, d).
        components: K ≥ 1.
        rank: r with 1 ≤ r < d.
        iterations: most EM iterations, ≥ 1.
        warm: EM iterations at low rank before these.
        tolerance: stop when an iteration gains less than this many nats per point and dimension.
        floor: least ψ.
        seed: of the clustering and of the randomised PCA.
    """
    check_sizes(components, rank, iterations, x.shape[1])
    start = initialise(x, components, rank, warm=warm, seed=seed, floor=floor)
    return em(x, start, iterations=iterations, tolerance=tolerance, floor=floor)


def check_sizes(components: int, rank: int, iterations: int, d: int) -> None:
    """Raise InputError for a number of components, rank or iterations out of range."""
    if components < 1:
        raise InputError(f"--components {components}: must be at least 1")
    if not 1 <= rank < d:
        raise InputError(f"--rank {rank}: must be from 1 to {d - 1}, one less than the dimension")
    if iterations < 1:
        raise InputError(f"--iterations {iterations}: must be at least 1")


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
    if args.warm < 0:
        raise InputError(f"--warm {args.warm}: must be at least 0")
    if args.subset is not None and args.subset < 1:
        raise InputError(f"--subset {args.subset}: must be at least 1")


# ------------------------------------------------------------------------------------------------------------ file


def half(f: Factors) -> dict[str, Tensor]:
    """The tensors of the file: float16, the diagonal by its logarithm since small ψ are subnormal in float16."""
    return {
        "weights": f.log_weights.double().softmax(0).float(),
        "means": f.means.half().contiguous(),
        "loadings": f.loadings.half().contiguous(),
        "log_diagonal": f.diagonal.log().half().contiguous(),
    }


def write(path: Path, f: Factors, recipe: dict[str, object], event_shape: Sequence[int]) -> None:
    """Write the model file atomically: a temporary file beside it, then a rename."""
    tensors = half(f)
    tensors["means"] = tensors["means"].reshape(-1, *event_shape)
    header = {
        "format": 1,
        "kind": "factor_mixture",
        "name": path.stem,
        "event_shape": list(event_shape),
        "diagonal": "exp(log_diagonal)",
        "recipe": recipe,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={"steindiff": json.dumps(header, sort_keys=True)})
        temporary.chmod(0o644)  # safetensors creates files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> tuple[Factors, dict[str, object]]:
    """The float16-rounded parameters of a model file in float64, and its recipe."""
    if not path.is_file():
        raise ModelFileError(f"no such model file: {path}; fit it first, without --evaluate")
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118 (not a mapping)
        recipe: dict[str, object] = json.loads(file.metadata()["steindiff"])["recipe"]
    means = tensors["means"].flatten(1)
    return Factors(tensors["weights"].log(), means, tensors["loadings"], tensors["log_diagonal"].exp()), recipe


# ------------------------------------------------------------------------------------------------------ evaluation


def bits_per_dim(nats: float, d: int) -> float:
    """Bits per dimension of the 8-bit values: the density times the volume of one level, −log₂(p(x)·levelᵈ)/d."""
    return (-nats / d - math.log(LEVEL)) / math.log(2)


@dataclass(frozen=True)
class Gaussian:
    """The Gaussian of given mean (d,), covariance eigenvalues (d,) and eigenvectors V (d, d), in float64."""

    mean: Tensor
    eigenvalues: Tensor
    V: Tensor

    def mean_log_likelihood(self, x: Tensor) -> float:
        """Mean of log p(x_n) in nats per point."""
        quadratic = [((c.double() - self.mean) @ self.V).square() @ (1 / self.eigenvalues) for c in chunks(x)]
        log_det = (2 * math.pi * self.eigenvalues).log().sum()
        return float(-0.5 * (torch.cat(quadratic).mean() + log_det))

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw n points, shape (n, d)."""
        e = torch.randn(n, len(self.mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return self.mean + (e * self.eigenvalues.sqrt()) @ self.V.mT


def full_gaussian(x: Tensor, floor: float) -> Gaussian:
    """The Gaussian of greatest likelihood whose covariance eigenvalues are at least floor."""
    mean = x.double().mean(0)
    S = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for c in chunks(x):
        xc = c.double() - mean
        S.addmm_(xc.mT, xc)
    eigenvalues, V = torch.linalg.eigh(S / len(x))
    return Gaussian(mean, eigenvalues.clamp_min(floor), V)


def keep_without(n: int) -> Iterator[Tensor]:
    """The indices that remain when each of GROUPS interleaved groups is left out in turn."""
    index = torch.arange(n)
    for g in range(GROUPS):
        yield index[index % GROUPS != g]


def with_jackknife(statistic: Callable[[Tensor], float], n: int) -> tuple[float, float]:
    """A two-sample statistic and its delete-a-group jackknife standard error (groups leave both samples together)."""
    value = statistic(torch.arange(n))
    left_out = np.array([statistic(keep) for keep in keep_without(n)])
    return value, float(np.sqrt((GROUPS - 1) * left_out.var()))


def energy_distance(x: Tensor, y: Tensor) -> tuple[float, float]:
    """2E|x−y| − E|x−x'| − E|y−y'| as an unbiased U-statistic, Euclidean norm, with its standard error."""
    xy, xx, yy = torch.cdist(x, y), torch.cdist(x, x).fill_diagonal_(0), torch.cdist(y, y).fill_diagonal_(0)

    def statistic(keep: Tensor) -> float:
        n = len(keep)
        cross, within_x, within_y = (m[keep][:, keep].sum() for m in (xy, xx, yy))
        return float(2 * cross / n**2 - (within_x + within_y) / (n * (n - 1)))

    return with_jackknife(statistic, len(x))


def frechet_distance(x: Tensor, y: Tensor) -> tuple[float, float]:
    """|m_x − m_y|² + tr(C_x + C_y − 2(C_x C_y)^½) of the sample moments, with its standard error.

    With centred data X, Y the last trace is the nuclear norm of X Yᵀ/(n − 1), which is n × n.
    """

    def statistic(keep: Tensor) -> float:
        a, b = x[keep], y[keep]
        shift = (a.mean(0) - b.mean(0)).square().sum()
        a, b = a - a.mean(0), b - b.mean(0)
        nuclear = torch.linalg.svdvals(a @ b.mT).sum()
        return float(shift + (a.square().sum() + b.square().sum() - 2 * nuclear) / (len(keep) - 1))

    return with_jackknife(statistic, len(x))


def print_agreement(test: Tensor, f: Factors) -> None:
    """How far the package's density of the file is from the one here (float64): two codes, two formulas."""
    from steindiff.analytic import FactorMixture

    for dtype in (torch.float64, torch.float32):
        means = f.means.reshape(-1, *EVENT_SHAPE)
        mixture = FactorMixture(*(t.to(dtype) for t in (f.log_weights.exp(), means, f.loadings, f.diagonal)))
        x = test.to(dtype).reshape(-1, *EVENT_SHAPE)
        values = torch.cat([mixture.log_density(c, 0.0) for c in torch.split(x, 250)]).double()
        error = (values - torch.logsumexp(log_joint(test.double(), f), 1)).abs().max()
        print(f"log-density by steindiff.analytic in {dtype}: within {float(error):.2g} nats on {len(x)} test images")


def evaluate(args: argparse.Namespace) -> None:
    """Print the table of the model card: likelihoods against references, distances of samples against the floor."""
    f, recipe = read(args.out)
    floor = float(str(recipe["floor"]))
    train, test = (to_points(shuffled(read_images(args.data / f"{s}.tar.xz"), args.seed)) for s in ("train", "test"))
    K, d, r = f.loadings.shape
    print(f"{args.out.name}: K = {K}, r = {r}, {args.out.stat().st_size:,} bytes\n")
    print("| model | test log-likelihood (nats) | bits/dim |\n|---|---|---|")
    values = torch.logsumexp(log_joint(test.double(), f), 1)
    value, error = float(values.mean()), float(values.std()) / math.sqrt(len(values))
    print(f"| this file (float16) | {value:.1f} ± {error:.1f} | {bits_per_dim(value, d):.4f} |")
    single = fit(train, 1, r, iterations=args.iterations, tolerance=args.tolerance, floor=floor, seed=args.seed)
    value = mean_log_likelihood(test, single.factors)
    print(f"| one factor analyser, r = {r} | {value:.1f} | {bits_per_dim(value, d):.4f} |", flush=True)
    gaussian = full_gaussian(train, floor=LEVEL**2 / 12)
    value = gaussian.mean_log_likelihood(test)
    print(f"| one full Gaussian | {value:.1f} | {bits_per_dim(value, d):.4f} |\n")
    n = 2000
    rows = {
        "samples of this file": sample(f, n, args.seed),
        "samples of one full Gaussian": gaussian.sample(n, args.seed),
        "training images (the floor)": train[:n].double(),
    }
    print_distances(rows, test[:n].double())
    print_agreement(test[:1000], f)


def print_distances(rows: dict[str, Tensor], test: Tensor) -> None:
    """The second table of the model card."""
    print(f"| {len(test)} points against {len(test)} test images | energy distance | pixel Fréchet distance |")
    print("|---|---|---|")
    for name, points in rows.items():
        (e, e_error), (w, w_error) = energy_distance(points, test), frechet_distance(points, test)
        print(f"| {name} | {e:.4f} ± {e_error:.4f} | {w:.2f} ± {w_error:.2f} |", flush=True)


# ----------------------------------------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description="Fit a mixture of factor analysers to CIFAR-10 by EM and write it as a model file.",
        epilog="example: python scripts/fit_cifar10_mixture.py --data /work/shared/data/cifar10 "
        "--components 4 --rank 20 --iterations 5 --subset 5000 --out /tmp/small.safetensors",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--data", type=Path, required=True, help="folder with train.tar.xz and test.tar.xz")
    p.add_argument("--components", type=int, default=10, help="number of components K")
    p.add_argument("--rank", type=int, default=63, help="factors per component r")
    p.add_argument("--iterations", type=int, default=60, help="most EM iterations")
    p.add_argument("--warm", type=int, default=20, help=f"EM iterations at rank {WARM_RANK} before; 0: k-means only")
    p.add_argument("--tolerance", type=float, default=1e-4, help="least gain per iteration, nats per dimension")
    p.add_argument("--floor", type=float, default=1e-4, help="least noise variance ψ, on the [-1, 1] scale")
    p.add_argument("--seed", type=int, default=0, help="seed of everything random")
    p.add_argument("--holdout", type=int, default=0, help="training images kept out of the fit, for choosing K and r")
    p.add_argument("--subset", type=int, default=None, help="fit to this many training images (pilots)")
    p.add_argument("--threads", type=int, default=1, help="threads of torch; changes the last digits")
    p.add_argument("--out", type=Path, default=DEFAULT_OUT, help="model file")
    p.add_argument("--dry-run", action="store_true", help="fit and report, write nothing (pilots)")
    p.add_argument("--evaluate", action="store_true", help="measure the file at --out instead of fitting")
    return p


def recipe_of(args: argparse.Namespace, result: Fit, images: int) -> dict[str, object]:
    """What the file records about how it was made."""
    packages = ("torch", "numpy", "scikit-learn", "pillow")
    return {
        "data": "CIFAR-10 (Krizhevsky 2009), JPEG copy, x = u8 / 127.5 - 1",
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
    images = shuffled(read_images(args.data / "train.tar.xz"), args.seed)
    if not 0 <= args.holdout < len(images):
        raise InputError(f"--holdout {args.holdout}: must be from 0 to {len(images) - 1}")
    start = time.perf_counter()
    x = to_points(images[args.holdout :][: args.subset])
    options = {"iterations": args.iterations, "warm": args.warm, "seed": args.seed}
    result = fit(x, args.components, args.rank, tolerance=args.tolerance, floor=args.floor, **options)
    seconds, f = time.perf_counter() - start, result.factors
    print(f"K={args.components} r={args.rank} iterations={len(result.history) - 1} converged={result.converged}")
    print(f"train log-likelihood {result.history[-1]:.2f} nats ({len(x)} images, {seconds:.0f} s)")
    print("weights " + " ".join(f"{w:.3f}" for w in f.log_weights.exp().tolist()))
    print(f"psi min {float(f.diagonal.min()):.3g} median {float(f.diagonal.median()):.3g}")
    print(f"share of psi at the floor {float((f.diagonal <= args.floor).double().mean()):.4f}")
    if args.holdout:
        held = mean_log_likelihood(to_points(images[: args.holdout]), f)
        print(f"held-out log-likelihood {held:.2f} nats, {bits_per_dim(held, x.shape[1]):.4f} bits/dim")
        n = min(args.holdout, 2000)
        energy, error = energy_distance(sample(f, n, args.seed), to_points(images[:n]))
        print(f"held-out energy distance {energy:.4f} ± {error:.4f} ({n} samples)")
    if not args.dry_run:
        write(args.out, f, recipe_of(args, result, len(x)), EVENT_SHAPE)
        print(f"wrote {args.out} ({args.out.stat().st_size:,} bytes)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends with exit status 2 and one line that says what to change."""
    p = parser()
    args = p.parse_args(argv)
    torch.set_num_threads(max(1, args.threads))
    try:
        evaluate(args) if args.evaluate else fit_and_write(args)
    except (InputError, ModelFileError) as error:
        print(f"{p.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
