"""Estimators of ∇·g: Hutchinson's, Hutch++, and the exact trace."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, repeat
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.divergence.choosing import Choice, choose, priced_batched
from steindiff.divergence.products import METHODS, Contract, Map, Options, Products, dot, linearise
from steindiff.errors import InputError, SteindiffError, require, require_numbers
from steindiff.noise import mix, moved

Method = Literal["auto", "jvp", "vjp", "fd"]
A = TypeVar("A")
Through = Callable[[Denoiser, Tensor], tuple[Tensor, A]]
"""g(denoiser, x) -> (value, by-product): a map that sees its network as an argument, image by image."""

_PROBE_TAG = 0x57E1


class Estimate(NamedTuple):
    """Estimates of ∇·g, and what they cost in evaluations of g."""

    values: Tensor
    """(k, B), or (k, B, n) where products were contracted to n numbers: one estimate per probe and sample."""
    primals: int
    jvps: int
    vjps: int
    share: float = 1.0
    """m/B where all but the first evaluation, and every product, are of m of the B images."""

    @property
    def mean(self) -> Tensor:
        """Batch mean, () or (n,)."""
        return self.values.flatten(0, 1).mean(0)

    @property
    def se(self) -> Tensor:
        """Standard error of the batch mean: spread over samples, over probes for a batch of one, NaN for a single draw."""
        spread = self.values.mean(0) if self.values.shape[1] > 1 else self.values[:, 0]
        if len(spread) < 2:
            return torch.full_like(self.mean, float("nan"))
        return torch.std(spread, dim=0) / math.sqrt(len(spread))


class Estimator(ABC):
    """Estimates ∇·g from a few products with its Jacobian."""

    choice: Choice | None
    """What a probe of the network found, once resolved."""

    @abstractmethod
    def __call__(self, g: Map[A], x: Tensor, index: int, contract: Contract = dot) -> tuple[Estimate, A]:
        """∇·g at x, (B, *event), and g's by-product detached; `index` (the step) picks the probes.

        `contract(v, Jv)` makes the estimate from a product, by default vᵀJv, (B,); one that returns (B, n) estimates n partial
        traces tr P_b J at once, from the products of one.
        """

    @abstractmethod
    def resolve(self, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> "Estimator":
        """This estimator with its method chosen and its cost measured on `denoiser`."""

    def through(self, g: Through[A], denoiser: Denoiser, x: Tensor, index: int, contract: Contract = dot) -> tuple[Estimate, A]:
        """The estimate of z ↦ g(denoiser, z); an estimator may spare the network what it does not need."""
        return self(partial(g, denoiser), x, index, contract)

    def seeded(self, seed: int | tuple[int, ...]) -> "Estimator":
        """This estimator with probes from other seeds."""
        return self


@dataclass(frozen=True)
class Hutchinson(Estimator):
    """∇·g ≈ (1/k) Σ_i v_iᵀ (∂g/∂x) v_i (Hutchinson 1990; SteinDiff Algorithm 1).

    Args:
        probes: k; the paper uses 5 and finds that one works.
        kind: "rademacher" (±1) or "gaussian" probes.
        method: "vjp", "jvp", "fd" (finite difference of step `fd_step` times the RMS of x), or "auto", which probes the
            network once at the start of a run and takes vjp where it works, then jvp, then fd.
        fd_step: relative step of the finite difference.
        seed: what probes are drawn from; one int, or one per image, which makes its probes independent of its batch.
        choice: a probe's result to reuse (`result.stats.choice` of an earlier run); None probes anew.
        antithetic: fd takes the pair x ± hv: O(h²) off, two evaluations a probe; False: x + hv alone, O(h) off, one
            evaluation. An exact derivative is linear in v: ±v give the same vᵀJv there, and a pair would gain nothing.
        batched: the k products of vjp or jvp in one vmapped pass: True, or "auto": where a measurement at the start of the
            run finds it cheaper. Equal to False up to rounding; memory grows with k.
        samples: m: only the first m images of the batch get products, and E[∇·g] is a mean over these. The others are
            evaluated once, without derivative. None, or m ≥ B: all images. The network must accept a part of the batch.
    """

    probes: int = 1
    kind: Literal["rademacher", "gaussian"] = "rademacher"
    method: Method = "auto"
    fd_step: float = 1e-3
    seed: int | tuple[int, ...] = 0
    choice: Choice | None = None
    antithetic: bool = True
    batched: bool | Literal["auto"] = False
    samples: int | None = None

    def __post_init__(self) -> None:
        require_numbers(probes=self.probes, fd_step=self.fd_step)
        require(self.probes >= 1, "need at least one probe", probes=self.probes)
        require(self.fd_step > 0, "need a step > 0", fd_step=self.fd_step)
        require(self.kind in ("rademacher", "gaussian"), "choose rademacher or gaussian", kind=self.kind)
        require(self.method in ("auto", *METHODS), "choose auto, vjp, jvp or fd", method=self.method)
        some = self.samples is None or self.samples >= 1
        require(some, "need at least one image, or None for the whole batch", samples=self.samples)
        possible = self.batched in (False, "auto") or (self.batched is True and self.method != "fd")
        remedy = "choose 'auto' or False; fd has no batched pass"
        require(possible, remedy, batched=self.batched, method=self.method)

    def seeded(self, seed: int | tuple[int, ...]) -> "Hutchinson":
        """This estimator with probes from `seed`."""
        return replace(self, seed=seed)

    def resolve(self, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> "Hutchinson":
        """This estimator with `choice` filled in, or kept if given. Raises SteindiffError where the method cannot work."""
        methods = METHODS if self.method == "auto" else (self.method,)
        choice = self.choice or choose(denoiser, x, sigma, methods=methods, fd_step=self.fd_step, antithetic=self.antithetic)
        method = choice.method if self.method == "auto" else self.method
        if choice.costs.get(method) is None:
            raise SteindiffError(f"method={method!r} is not among the usable ones of {choice}: use method='auto'")
        choice = self._resolve_batched(choice, method, denoiser, x, sigma)
        return replace(self, choice=choice, method=method, batched=choice.batched)  # type: ignore[arg-type]

    def _resolve_batched(self, choice: Choice, method: str, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Choice:
        """`choice` with whether products share a pass, measured unless it says it."""
        if not self.batched or self._at_once() < 2 or (self.batched == "auto" and method == "fd"):
            return choice._replace(batched=False)
        key = f"{method}_batched"
        if key not in choice.costs and method != "fd":
            choice = priced_batched(choice, denoiser, x, sigma, method, self._at_once())
        if self.batched is True and choice.costs.get(key) is None:
            why = choice.notes.get(key, "finite differences have no batched pass")
            raise SteindiffError(f"batched=True does not work by {method} on this network: {why}; use batched='auto' or False")
        return choice._replace(batched=self.batched is True or choice.batched)

    def __call__(self, g: Map[A], x: Tensor, index: int, contract: Contract = dot) -> tuple[Estimate, A]:
        """k products; see `Estimator`. Method "auto" must have been resolved. g is evaluated on all of x."""
        if self.method == "auto":
            raise InputError("method='auto' is chosen per network: call resolve(denoiser, x, sigma) first")
        m = self._attended(x)
        options = Options(self.fd_step, self.antithetic, self.batched is True)

        def on_head(z: Tensor) -> tuple[Tensor, A]:
            value, aux = g(torch.cat([z, x[m:].detach()]))
            return value[:m], aux

        products = linearise(self.method, g if m == len(x) else on_head, x[:m], options)
        values = self._values(products, self._draw(x, index), contract)
        return Estimate(values.detach(), products.primals, products.jvps, products.vjps), products.aux

    def through(self, g: Through[A], denoiser: Denoiser, x: Tensor, index: int, contract: Contract = dot) -> tuple[Estimate, A]:
        """See `Estimator`; with `samples`, the other images are evaluated once, and never differentiated."""
        m = self._attended(x)
        if m == len(x):
            return super().through(g, denoiser, x, index, contract)
        passes = chain([_head(denoiser, m, tail=True)], repeat(_head(denoiser, m, tail=False)))
        estimate, aux = self(lambda z: g(next(passes), z), x, index, contract)
        return estimate._replace(share=m / len(x)), aux

    def _attended(self, x: Tensor) -> int:
        """The number of images whose divergence is estimated."""
        return min(self.samples or len(x), len(x))

    def _at_once(self) -> int:
        """The number of probes in the largest block."""
        return self.probes

    def _values(self, products: Products[A], probes: Iterator[Tensor], contract: Contract) -> Tensor:
        """(k, B) or (k, B, n)."""
        return torch.stack([contract(v, w) for v, w in products.pairs(probes)])

    def _draw(self, x: Tensor, index: int) -> Iterator[Tensor]:
        """The probes of step `index` for the images attended to: k tensors (m, *event)."""
        seeds = (self.seed,) if isinstance(self.seed, int) else self.seed
        if len(seeds) not in (1, len(x)):
            raise InputError(f"{len(seeds)} probe seeds for a batch of {len(x)}: give one, or one per image")
        x = x[: self._attended(x)]
        seeds = seeds[: len(x)]
        shape = torch.Size((len(x) // len(seeds), *x.shape[1:]))
        streams = [torch.Generator().manual_seed(mix(_PROBE_TAG, s, index)) for s in seeds]
        for _ in range(self.probes):
            yield moved(torch.cat([_probe(shape, s, self.kind) for s in streams]), x.dtype, x.device)


@dataclass(frozen=True)
class HutchPlusPlus(Hutchinson):
    """∇·g ≈ tr QᵀJQ + (1/r) Σ_j h_jᵀ J h_j, Q = orth(JS), h_j = (1 − QQᵀ) v_j (Meyer, Musco, Musco & Woodruff 2021).

    Of k products per sample, s = ⌊k/3⌋ sketch the range, s take its trace exactly, and r = k − 2s estimate the rest, with
    S and v random probes. Unbiased. The variance is 2/r ‖(1−QQᵀ)J(1−QQᵀ)‖² for a symmetric J (less the diagonal for
    Rademacher): below Hutchinson's 2/k ‖J‖² only where few directions hold most of ‖J‖². Exact for rank ≤ s.
    Arguments as `Hutchinson`'s; the sketch of d directions makes it exact, and the residual is then left out.
    """

    probes: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        remedy = "Hutch++ needs 3 or more (sketch, projection, residual), or use Hutchinson"
        require(self.probes >= 3, remedy, probes=self.probes)

    def _at_once(self) -> int:
        return self.probes - 2 * (self.probes // 3)

    def _values(self, products: Products[A], probes: Iterator[Tensor], contract: Contract) -> Tensor:
        """(r, B) or (r, B, n): every residual probe's estimate, with the projection's trace in each."""
        d = products.x[0].numel()
        s = min(self.probes // 3, d)
        columns = [w.flatten(1) for _, w in products.pairs(islice(probes, s))]
        wide = torch.promote_types(products.x.dtype, torch.float32)
        q = torch.linalg.qr(torch.stack(columns, -1).to(wide))[0]  # (B, d, s)
        basis = (column.reshape(products.x.shape).to(products.x) for column in q.unbind(-1))
        captured = torch.stack([contract(v, w) for v, w in products.pairs(basis)]).sum(0)
        if s == d:
            return captured[None]
        rest = _orthogonal_to(q, islice(probes, self.probes - 2 * s))
        return torch.stack([captured + contract(v, w) for v, w in products.pairs(rest)])


@dataclass(frozen=True)
class Exact(Estimator):
    """∇·g = Σ_i e_iᵀ (∂g/∂x) e_i, d products by VJP: for tests and small d."""

    choice: Choice | None = None

    def resolve(self, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> "Exact":
        """This estimator with the cost of a VJP measured."""
        return replace(self, choice=self.choice or choose(denoiser, x, sigma, methods=("vjp",)))

    def __call__(self, g: Map[A], x: Tensor, index: int, contract: Contract = dot) -> tuple[Estimate, A]:
        """See `Estimator`; one row of values, exact up to rounding."""
        dim = x[0].numel()
        basis = torch.eye(dim, dtype=x.dtype, device=x.device).reshape(dim, 1, *x.shape[1:])
        products = linearise("vjp", g, x, Options())
        values = torch.stack([contract(v, w) for v, w in products.pairs(e.expand_as(x) for e in basis)])
        return Estimate(values.sum(0, keepdim=True).detach(), 1, 0, products.vjps), products.aux


def _probe(shape: torch.Size, stream: torch.Generator, kind: str) -> Tensor:
    if kind == "gaussian":
        return torch.randn(shape, generator=stream, dtype=torch.float64)
    return torch.randint(2, shape, generator=stream, dtype=torch.int64).mul_(2).sub_(1)


def _orthogonal_to(q: Tensor, probes: Iterable[Tensor]) -> Iterator[Tensor]:
    """(1 − QQᵀ) v for every probe, Q (B, d, s)."""
    for v in probes:
        flat = v.flatten(1).to(q)[..., None]
        yield (flat - q @ (q.mT @ flat)).reshape(v.shape).to(v)


def _head(denoiser: Denoiser, m: int, tail: bool) -> Denoiser:
    """D with a derivative for the first m images; the others are evaluated without one, or pass unseen."""

    def parts(x: Tensor, sigma: Tensor) -> Tensor:
        head, rest = denoiser(x[:m], sigma[:m] if sigma.ndim else sigma), x[m:].detach()  # detach drops a tangent too
        if tail:
            with torch.no_grad():
                rest = denoiser(rest, sigma[m:] if sigma.ndim else sigma)
        return torch.cat([head, rest])

    return parts
