"""Divergence of a map g: (B, *event) → (B, *event), sample by sample: ∇·g = tr ∂g/∂x.

Hutchinson: E[vᵀ (∂g/∂x) v] = ∇·g for any v with E[vvᵀ] = I. The product comes from forward mode (JVP), reverse mode (VJP)
or a central difference. One call of an estimator also returns g's own value, so that the primal evaluation is shared.
"""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from steindiff.denoisers import Denoiser
from steindiff.errors import InputError, SteindiffError
from steindiff.noise import mix

__all__ = ["Choice", "Estimate", "Estimator", "Exact", "Hutchinson", "Method", "choose"]

Method = Literal["auto", "jvp", "vjp", "fd"]
A = TypeVar("A")
Map = Callable[[Tensor], tuple[Tensor, A]]
"""g(x) -> (value, whatever else was computed on the way)."""
Contract = Callable[[Tensor, Tensor], Tensor]
"""(v, product of the Jacobian or its transpose with v) -> (B,) or (B, n)."""

_METHODS = ("vjp", "jvp", "fd")
_PROBE_TAG = 0x57E1


class Estimate(NamedTuple):
    """Estimates of ∇·g, and what they cost in evaluations of g."""

    values: Tensor
    """(k, B), or (k, B, n) where products were contracted to n numbers: one estimate per probe and sample."""
    primals: int
    jvps: int
    vjps: int

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


class Choice(NamedTuple):
    """What a one-off probe of a network found: the method chosen, and each method's cost in forwards (None: unusable)."""

    method: str
    costs: dict[str, float | None]
    """Forward-equivalents of one vᵀJv beyond the primal evaluation."""
    notes: dict[str, str]
    """Why a method cannot be used, or how far it is from the reference product."""


class Estimator(ABC):
    """Estimates ∇·g from a few products with its Jacobian."""

    choice: Choice | None
    """What a probe of the network found, once resolved."""

    @abstractmethod
    def __call__(self, g: Map[A], x: Tensor, index: int, contract: Contract | None = None) -> tuple[Estimate, A]:
        """∇·g at x, (B, *event), and g's by-product detached; `index` (the step) picks the probes.

        `contract(v, Jv)` makes the estimate from a product, by default vᵀJv, (B,); one that returns (B, n) estimates n partial
        traces tr P_b J at once, from the products of one.
        """

    @abstractmethod
    def resolve(self, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Estimator:
        """This estimator with its method chosen and its cost measured on `denoiser`."""

    def seeded(self, seed: int | tuple[int, ...]) -> Estimator:
        """This estimator with probes from other seeds."""
        return self


@dataclass(frozen=True)
class Hutchinson(Estimator):
    """∇·g ≈ (1/k) Σ_i v_iᵀ (∂g/∂x) v_i (Hutchinson 1990; SteinDiff Algorithm 1).

    Args:
        probes: k; the paper uses 5 and finds that one works.
        kind: "rademacher" (±1) or "gaussian" probes.
        method: "vjp", "jvp", "fd" (central difference of step `fd_step` times the RMS of x), or "auto", which probes the
            network once at the start of a run and takes vjp where it works, then jvp, then fd.
        fd_step: relative step of the central difference.
        seed: of the probes; one int, or one per image, which makes an image's probes independent of its batch.
        choice: a probe's result to reuse (`result.stats.choice` of an earlier run); None probes anew.

    Raises:
        InputError: probes < 1, fd_step ≤ 0, or unknown names.
    """

    probes: int = 1
    kind: Literal["rademacher", "gaussian"] = "rademacher"
    method: Method = "auto"
    fd_step: float = 1e-3
    seed: int | tuple[int, ...] = 0
    choice: Choice | None = None

    def __post_init__(self) -> None:
        if self.probes < 1 or not self.fd_step > 0:
            raise InputError(f"probes={self.probes}, fd_step={self.fd_step}: need probes ≥ 1 and fd_step > 0")
        if self.kind not in ("rademacher", "gaussian") or self.method not in ("auto", *_METHODS):
            raise InputError(
                f"kind={self.kind!r}, method={self.method!r}: choose rademacher or gaussian, and auto, vjp, jvp or fd"
            )

    def seeded(self, seed: int | tuple[int, ...]) -> Hutchinson:
        """The same, with probes from `seed`."""
        return replace(self, seed=seed)

    def resolve(self, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Hutchinson:
        """The same, with `choice` filled in (kept if given). Raises SteindiffError where the method cannot work."""
        methods = _METHODS if self.method == "auto" else (self.method,)
        choice = self.choice or choose(denoiser, x, sigma, methods=methods, fd_step=self.fd_step)
        method = choice.method if self.method == "auto" else self.method
        if choice.costs.get(method) is None:
            raise SteindiffError(f"method={method!r} is not among the usable ones of {choice}: use method='auto'")
        return replace(self, choice=choice, method=method)  # type: ignore[arg-type]

    def __call__(self, g: Map[A], x: Tensor, index: int, contract: Contract | None = None) -> tuple[Estimate, A]:
        """k products; see `Estimator`. Method "auto" must have been resolved."""
        if self.method == "auto":
            raise InputError("method='auto' is chosen per network: call resolve(denoiser, x, sigma) first")
        return _PRODUCTS[self.method](g, x, self._draw(x, index), self.fd_step, contract or dot)

    def _draw(self, x: Tensor, index: int) -> Iterator[Tensor]:
        """The probes of step `index`: k tensors shaped like x."""
        seeds = (self.seed,) if isinstance(self.seed, int) else self.seed
        if len(seeds) not in (1, len(x)):
            raise InputError(f"{len(seeds)} probe seeds for a batch of {len(x)}: give one, or one per image")
        shape = x.shape if len(seeds) == 1 else x.shape[1:]
        streams = [torch.Generator().manual_seed(mix(_PROBE_TAG, s, index)) for s in seeds]
        for _ in range(self.probes):
            draws = [_probe(shape, s, self.kind) for s in streams]
            yield (draws[0] if len(seeds) == 1 else torch.stack(draws)).reshape(x.shape).to(x)


@dataclass(frozen=True)
class Exact(Estimator):
    """∇·g = Σ_i e_iᵀ (∂g/∂x) e_i, d products by VJP: for tests and small d."""

    choice: Choice | None = None

    def resolve(self, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Exact:
        """The same, with the cost of a VJP measured."""
        return replace(self, choice=self.choice or choose(denoiser, x, sigma, methods=("vjp",)))

    def __call__(self, g: Map[A], x: Tensor, index: int, contract: Contract | None = None) -> tuple[Estimate, A]:
        """See `Estimator`; one row of values, exact up to rounding."""
        dim = x[0].numel()
        basis = torch.eye(dim, dtype=x.dtype, device=x.device).reshape(dim, 1, *x.shape[1:])
        estimate, aux = _by_vjp(g, x, (e.expand_as(x) for e in basis), 0.0, contract or dot)
        return estimate._replace(values=estimate.values.sum(0, keepdim=True)), aux


def _probe(shape: torch.Size, stream: torch.Generator, kind: str) -> Tensor:
    if kind == "gaussian":
        return torch.randn(shape, generator=stream, dtype=torch.float64)
    return torch.randint(2, shape, generator=stream, dtype=torch.int64).mul_(2).sub_(1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ per sample, (B,), accumulated in float32 or better."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) * b.to(wide)).flatten(1).sum(1)


def _by_vjp(g: Map[A], x: Tensor, probes: Iterator[Tensor], fd_step: float, contract: Contract) -> tuple[Estimate, A]:
    """One evaluation with a graph, one backward pass per probe."""
    if torch.is_inference_mode_enabled():
        raise SteindiffError("inside torch.inference_mode no gradient exists: use torch.no_grad, or method='fd'")
    with torch.enable_grad():
        z = _fresh(x).requires_grad_(True)
        value, aux = g(z)
        rows = [contract(v, torch.autograd.grad(value, z, v, retain_graph=True)[0]) for v in probes]
    return Estimate(torch.stack(rows).detach(), 1, 0, len(rows)), _map(Tensor.detach, aux)


def _by_jvp(g: Map[A], x: Tensor, probes: Iterator[Tensor], fd_step: float, contract: Contract) -> tuple[Estimate, A]:
    """One evaluation per probe, carrying its tangent; the first gives the by-product."""
    _load_forward_rules()
    rows: list[Tensor] = []
    kept: list[A] = []
    for v in probes:
        with torch.no_grad(), forward_ad.dual_level():
            value, aux = g(forward_ad.make_dual(_fresh(x).clone(), v))  # a clone: x may be expanded
            tangent = forward_ad.unpack_dual(value).tangent
            if tangent is None:
                raise SteindiffError("the tangent was lost on the way (inference mode, or an operation without forward rule)")
            rows.append(contract(v, tangent))
            kept = kept or [_map(lambda t: forward_ad.unpack_dual(t).primal.detach(), aux)]
    return Estimate(torch.stack(rows).detach(), len(rows), len(rows), 0), kept[0]


def _by_fd(g: Map[A], x: Tensor, probes: Iterator[Tensor], fd_step: float, contract: Contract) -> tuple[Estimate, A]:
    """Vᵀ (g(x+hv) − g(x−hv))/(2h), h = fd_step · RMS(x) per sample (RMS 1 for x = 0): 1 + 2k evaluations."""
    with torch.no_grad():
        x = x.detach()
        _, aux = g(x)
        rms = x.flatten(1).square().mean(1).sqrt()
        h = fd_step * torch.where(rms > 0, rms, 1.0).reshape(-1, *[1] * (x.ndim - 1))
        rows = [contract(v, (g(x + h * v)[0] - g(x - h * v)[0]) / (2 * h)) for v in probes]
    return Estimate(torch.stack(rows), 1 + 2 * len(rows), 0, 0), _map(Tensor.detach, aux)


@cache
def _load_forward_rules() -> None:
    """Torch compiles its forward-mode rules with the deprecated torch.jit.script at the first use: not its callers' concern."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


def _fresh(x: Tensor) -> Tensor:
    """X without graph or tangent; a copy where x was made in inference mode and could not be differentiated outside it."""
    return x.detach().clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x.detach()


_PRODUCTS: dict[str, Callable[..., tuple[Estimate, Any]]] = {"vjp": _by_vjp, "jvp": _by_jvp, "fd": _by_fd}


def _map(leaf: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same tree of tuples, lists, dicts and frozen dataclasses with `leaf` applied to every tensor."""
    if isinstance(tree, Tensor):
        return leaf(tree)
    if isinstance(tree, list):
        return [_map(leaf, part) for part in tree]
    if isinstance(tree, dict):
        return {key: _map(leaf, part) for key, part in tree.items()}
    if isinstance(tree, tuple):
        parts = [_map(leaf, part) for part in tree]
        return tuple(parts) if type(tree) is tuple else type(tree)(*parts)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{f.name: _map(leaf, getattr(tree, f.name)) for f in fields(tree) if f.init})
    return tree


def choose(
    denoiser: Denoiser,
    x: Tensor,
    sigma: Tensor,
    *,
    methods: tuple[str, ...] = _METHODS,
    fd_step: float = 1e-3,
    samples: int = 8,
    repeats: int = 5,
) -> Choice:
    """Try vᵀJv of D by each method on a few samples; check it against difference quotients; time it against a forward.

    Returns:
        The first of `methods` that runs and gives the right number, and each one's cost beyond the primal, in forwards.

    Raises:
        SteindiffError: none of them works.
    """
    z = x[:samples].detach()
    v = torch.ones_like(z)
    quotients = _quotients(denoiser, z, sigma)
    costs: dict[str, float | None] = {}
    notes: dict[str, str] = {}
    values: dict[str, Tensor] = {}
    for method in methods:

        def attempt(product: Any = _PRODUCTS[method]) -> Tensor:
            estimate: Estimate = product(lambda y: (denoiser(y, sigma), None), z, iter([v]), fd_step, dot)[0]
            return estimate.values[0]

        try:
            value = attempt()
            if method != "fd":
                _confirm(value, *quotients)
            costs[method] = _excess(attempt, lambda: denoiser(z, sigma), z, repeats)
            values[method] = value
        except Exception as error:  # the plain forward works, so whatever is raised here is about the derivative
            costs[method], notes[method] = None, f"{type(error).__name__}: {error}".partition("\n")[0]
    if not values:
        raise SteindiffError(f"no derivative of this network by {' or '.join(methods)}: {notes}; {_remedy(methods)}")
    first, reference = next(iter(values.items()))
    for method, value in values.items():
        gap = float((value - reference).norm() / reference.norm().clamp_min(1e-30))
        notes[method] = f"works; {gap:.1e} from {first}, relatively"
    return Choice(first, costs, notes)


def _remedy(methods: tuple[str, ...]) -> str:
    if set(methods) != set(_METHODS):
        return "use Hutchinson(method='auto'), which takes whichever works"
    return "use a rule or a mode that needs none (FixedGamma, mode='analytical')"


def _quotients(denoiser: Denoiser, z: Tensor, sigma: Tensor) -> list[Tensor]:
    """1ᵀJ1 by central differences along 1/√d, steps 0.1σ and 0.3σ: an exact denoiser is smooth on that scale."""
    with torch.no_grad():
        steps = [c * float(sigma.max()) / z[0].numel() ** 0.5 for c in (0.1, 0.3)]
        return [((denoiser(z + h, sigma) - denoiser(z - h, sigma)) / (2 * h)).flatten(1).sum(1) for h in steps]


def _confirm(value: Tensor, near: Tensor, far: Tensor) -> None:
    """Refuse a product that differs from the difference quotients by far more than these from each other.

    A part of the network that cuts the graph (no_grad, detach, numpy) raises nothing: its derivative is silently missing.
    """
    gap, doubt = float((value - near).norm()), float((near - far).norm())
    size = max(float(value.norm()), float(near.norm()))
    decided = min(float(near.norm()), float(far.norm())) > 0  # a coarse dtype may see no difference at all
    if not torch.isfinite(value).all() or (decided and gap > 0.25 * size + 10 * doubt):
        raise SteindiffError(
            f"gives {value.mean():.3g} where finite differences give {near.mean():.3g}: is a part of the network under "
            "torch.no_grad, detached, or outside torch?"
        )


def _excess(product: Callable[[], object], plain: Callable[[], object], x: Tensor, repeats: int) -> float:
    """What `product` costs beyond `plain`, in units of `plain`: timed in turns, the least of each.

    What else runs on the machine only ever adds, and in turns it adds to both.
    """

    def seconds(run: Callable[[], object]) -> float:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        start = time.perf_counter()
        run()
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - start

    rounds = [(seconds(product), seconds(plain)) for _ in range(repeats + 1)][1:]  # the first warms up
    return max(0.0, min(p for p, _ in rounds) / max(min(f for _, f in rounds), 1e-9) - 1)
