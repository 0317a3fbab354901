r"""Mixtures of factor analysers fitted by maximum likelihood: the EM algorithm.

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
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from recipes.command import need
from steindiff.analytic import FactorMixture
from steindiff.errors import InputError

CHUNK = 2048
NEGLIGIBLE = 1e-8  # responsibilities below this do not enter the M-step
WARM_RANK = 4  # of the mixture that groups the points before the full rank is fitted
INNER_STEPS = 4  # factor-analyser steps per E-step; products with S are cheap beside the E-step


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a mixture is fitted."""

    iterations: Annotated[int, "most EM iterations", 1] = 60
    warm: Annotated[int, f"EM iterations at rank {WARM_RANK} before; 0: k-means only", 0] = 20
    tolerance: Annotated[float, "least gain per iteration, nats per dimension"] = 1e-4
    floor: Annotated[float, "least noise variance ψ, on the scale of the data"] = 1e-4
    seed: Annotated[int, "seed of everything random"] = 0


class Factors(NamedTuple):
    """The parameters of a mixture of factor analysers: log π (K,), μ (K, d), W (K, d, r) and ψ (K, d)."""

    log_weights: Tensor
    means: Tensor
    loadings: Tensor
    diagonal: Tensor


class Fit(NamedTuple):
    """A fitted mixture and the mean log-likelihood (nats per point) before each M-step and at the end."""

    factors: Factors
    history: tuple[float, ...]
    converged: bool


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
    parts = []
    for c in x.split(CHUNK):
        y = c @ linear
        explained = (y[:, : K * r].reshape(-1, K, r) - offset).square().sum(-1)
        mahalanobis = (c.square() @ precision.mT).double() - 2 * y[:, K * r :].double() + square - explained.double()
        parts.append(constant - 0.5 * mahalanobis)
    return torch.cat(parts)


def mean_log_likelihood(x: Tensor, f: Factors) -> float:
    """Mean of log p(x_n) in nats per point."""
    return float(torch.logsumexp(log_joint(x, f), 1).mean())


def mixture(f: Factors, event_shape: Sequence[int]) -> FactorMixture:
    """The law with these parameters, in the dtype of the means."""
    weights = f.log_weights.double().softmax(0).to(f.means.dtype)
    return FactorMixture(weights, f.means.reshape(-1, *event_shape), f.loadings, f.diagonal)


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
        maximise_component(x, column, W, psi, floor) if n >= 1 else (mean, W, psi)
        for n, column, mean, W, psi in zip(total, h.mT, *f[1:], strict=True)
    ]
    return Factors((total / total.sum()).clamp_min(1e-30).log(), *map(torch.stack, zip(*parts, strict=True)))


def em(x: Tensor, f: Factors, how: Settings) -> Fit:
    """Alternate E- and M-steps until the gain falls below tolerance·d nats per point, or iterations run out."""
    history: list[float] = []
    for step in (bar := tqdm(range(how.iterations + 1), desc=f"EM, rank {f.loadings.shape[2]}", unit="it", mininterval=5)):
        joint = log_joint(x, f)
        evidence = torch.logsumexp(joint, 1)
        history.append(float(evidence.mean()))
        bar.set_postfix_str(f"log-likelihood {history[-1]:.3f} nats")
        converged = step > 0 and history[-1] - history[-2] < how.tolerance * x.shape[1]
        if converged or step == how.iterations:
            break
        f = maximise(x, (joint - evidence[:, None]).exp(), f, how.floor)
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


def from_labels(x: Tensor, labels: Tensor, components: int, rank: int, how: Settings) -> Factors:
    """The mixture whose components are the PCA of each labelled part."""
    counts = torch.bincount(labels, minlength=components)
    if int(counts.min()) <= rank:
        few = f"a cluster has only {int(counts.min())} of {len(x)} points, not more than --rank {rank}"
        raise InputError(f"{few}: use fewer --components, a lower --rank or more data")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        parts = [pca_component(x[labels == k], rank, how.floor) for k in range(components)]
    return Factors((counts / counts.sum()).log().to(x.dtype), *map(torch.stack, zip(*parts, strict=True)))


def cluster(x: Tensor, components: int, seed: int) -> Tensor:
    """Labels of a k-means clustering, shape (N,)."""
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if components == 1:
        return torch.zeros(len(x), dtype=torch.int64)
    with threadpool_limits(limits=1):  # more threads change the order of sums, hence the result
        kmeans = MiniBatchKMeans(components, init="k-means++", n_init=3, batch_size=4096, random_state=seed)
        return torch.from_numpy(kmeans.fit_predict(x.numpy())).long()


def initialise(x: Tensor, components: int, rank: int, how: Settings) -> Factors:
    """k-means++ clusters, `warm` EM iterations at WARM_RANK, a hard assignment by that mixture, a PCA of each part.

    k-means parts images by brightness; with hundreds of parameters per point EM at full rank then hardly moves a
    point, since each component overfits its own. A mixture of low rank regroups them by texture and contrast first.
    """
    labels = cluster(x, components, how.seed)
    if how.warm and components > 1 and rank > WARM_RANK:
        start = from_labels(x, labels, components, WARM_RANK, how)
        labels = log_joint(x, em(x, start, replace(how, iterations=how.warm, tolerance=0.0)).factors).argmax(1)
    return from_labels(x, labels, components, rank, how)


def fit(x: Tensor, components: int, rank: int, how: Settings) -> Fit:
    """Initialise a mixture of so many components, each of so many factors, on points x (N, d), and run EM.

    Raises:
        InputError: a rank out of range, or a cluster with no more points than the rank.
    """
    check_rank(rank, x.shape[1])
    return em(x, initialise(x, components, rank, how), how)


def check_rank(rank: int, d: int) -> None:
    """Raise InputError for a rank out of range."""
    need(1 <= rank < d, f"must be from 1 to {d - 1}, one less than the dimension", rank=rank)
