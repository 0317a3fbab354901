"""Products of a Jacobian J = ∂g/∂x with probes: reverse mode, forward mode, finite differences, and what each costs.

Products come one by one, or for a block of probes in one pass (vmap over the probes: the primal is evaluated once).
"""

import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from steindiff.divergence.plain import PlainNorms
from steindiff.errors import SteindiffError

METHODS = ("vjp", "jvp", "fd")
_FORWARD = threading.RLock()
"""Torch has one level of forward-mode derivatives for all threads, and refuses a second: threads take turns at it."""
A = TypeVar("A")
Map = Callable[[Tensor], tuple[Tensor, A]]
"""g(x) -> (value, whatever else was computed on the way)."""
Contract = Callable[[Tensor, Tensor], Tensor]
"""(v, product of the Jacobian or its transpose with v) -> (B,) or (B, n), bilinear."""


@dataclass(frozen=True)
class Options:
    """How products are taken: the finite difference's relative step and pair, and whether probes share a pass."""

    fd_step: float = 1e-3
    antithetic: bool = True
    batched: bool = False


class Products(ABC, Generic[A]):
    """Products with J (or Jᵀ) at x; counts the evaluations of g it takes. The first evaluation gives the by-product."""

    aux: A
    """g's by-product, detached; forward mode has it after the first product."""

    def __init__(self, g: Map[A], x: Tensor, options: Options) -> None:
        self.g, self.x, self.options = g, x, options
        self.primals = self.jvps = self.vjps = 0

    def pairs(self, probes: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """(v, product with v) for each probe, (B, *event) both; batched, one pass over all of them."""
        if not self.options.batched:
            yield from ((v, self.one(v)) for v in probes)
            return
        block = torch.stack(list(probes))
        with warnings.catch_warnings():  # an operation without a batching rule is looped over: the measured cost says it
            warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
            yield from zip(block, self.block(block), strict=True)

    @abstractmethod
    def one(self, v: Tensor) -> Tensor:
        """The product with one probe, (B, *event)."""

    def block(self, block: Tensor) -> Tensor:
        """The products with n probes, (n, B, *event), in one pass where the method has one."""
        return torch.stack([self.one(v) for v in block])


class Vjp(Products[A]):
    """One evaluation with a graph, one backward pass per probe or per block."""

    def __init__(self, g: Map[A], x: Tensor, options: Options) -> None:
        super().__init__(g, x, options)
        if torch.is_inference_mode_enabled():
            raise SteindiffError("inside torch.inference_mode no gradient exists: use torch.no_grad (estimators have 'fd' too)")
        with torch.enable_grad(), PlainNorms() if options.batched else nullcontext():
            self.z = fresh(x).requires_grad_(True)
            self.value, aux = g(self.z)
        self.aux = mapped(Tensor.detach, aux)
        self.primals = 1

    def one(self, v: Tensor) -> Tensor:
        """Jᵀv."""
        self.vjps += 1
        return pulled(self.value, self.z, v)

    def block(self, block: Tensor) -> Tensor:
        """Jᵀv for every v, in one pass."""
        self.vjps += len(block)
        grads = torch.autograd.grad(self.value, self.z, block, retain_graph=True, is_grads_batched=True)
        return torch.as_tensor(grads[0])


class _Jvp(Products[A]):
    """One evaluation per probe or per block, carrying tangents."""

    def __init__(self, g: Map[A], x: Tensor, options: Options) -> None:
        super().__init__(g, x, options)
        with _FORWARD:
            _load_forward_rules()

    def one(self, v: Tensor) -> Tensor:
        with _FORWARD, torch.no_grad(), _unfused(), forward_ad.dual_level():
            value, aux = self.g(forward_ad.make_dual(fresh(self.x).clone(), v))  # a clone: x may be expanded
            tangent: Tensor | None = forward_ad.unpack_dual(value).tangent
            if tangent is None:
                raise SteindiffError("the tangent was lost on the way (inference mode, or an operation without forward rule)")
            self.primals, self.jvps = self.primals + 1, self.jvps + 1
            if self.primals == 1:
                self.aux = mapped(lambda t: forward_ad.unpack_dual(t).primal.detach(), aux)
        return tangent

    def block(self, block: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise SteindiffError("the tangent is lost in inference mode: use torch.no_grad, or method='fd'")
        trees: list[A] = []

        def g(z: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            value, aux = self.g(z)
            leaves: list[Tensor] = []
            trees.append(mapped(lambda t: leaves.append(t) or t, aux))  # type: ignore[func-returns-value]
            return value, tuple(leaves)

        def push(v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            _, *rest = torch.func.jvp(g, (fresh(self.x).clone(),), (v,), has_aux=True)
            return rest[0], rest[1]

        with _FORWARD, torch.no_grad(), _unfused():
            # None: the primal is the same for all probes.
            products, leaves = torch.func.vmap(push, out_dims=(0, None))(block)  # type: ignore[arg-type]
        self.primals, self.jvps = self.primals + 1, self.jvps + len(block)
        if self.primals == 1:
            rest = iter(leaves)
            self.aux = mapped(lambda t: next(rest).detach(), trees[0])
        return torch.as_tensor(products)


class _Fd(Products[A]):
    """(g(x+hv) − g(x−hv))/(2h), or (g(x+hv) − g(x))/h; h = fd_step · RMS(x) per sample (RMS 1 for x = 0)."""

    def __init__(self, g: Map[A], x: Tensor, options: Options) -> None:
        super().__init__(g, x.detach(), options)
        with torch.no_grad():
            self.value, aux = g(self.x)
            rms = self.x.flatten(1).square().mean(1).sqrt()
            self.h = options.fd_step * torch.where(rms > 0, rms, 1.0).reshape(-1, *[1] * (x.ndim - 1))
        self.aux = mapped(Tensor.detach, aux)
        self.primals = 1

    def one(self, v: Tensor) -> Tensor:
        x, h = self.x, self.h
        with torch.no_grad():
            if self.options.antithetic:
                self.primals += 2
                return (self.g(x + h * v)[0] - self.g(x - h * v)[0]) / (2 * h)
            self.primals += 1
            return (self.g(x + h * v)[0] - self.value) / h


def linearise(method: str, g: Map[A], x: Tensor, options: Options) -> Products[A]:
    """Products with ∂g/∂x at x by "vjp", "jvp" or "fd"."""
    kinds: dict[str, type[Products[A]]] = {"vjp": Vjp, "jvp": _Jvp, "fd": _Fd}
    return kinds[method](g, x, options)


def pulled(value: Tensor, z: Tensor, v: Tensor, graph: bool = False) -> Tensor:
    """(∂value/∂z)ᵀv, with a graph of its own or not.

    It is the gradient of the number ⟨value, v⟩: where v is given as a gradient of the output, torch imports sympy.
    """
    with torch.enable_grad():
        inner = (value * v).sum()
    return torch.autograd.grad(inner, z, retain_graph=True, create_graph=graph)[0]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ per sample, (B,), accumulated in float32 or better."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) * b.to(wide)).flatten(1).sum(1)


@contextmanager
def _unfused() -> Iterator[None]:
    """Attention by its formula, and plain norms: no fused kernel has a forward derivative."""
    with sdpa_kernel(SDPBackend.MATH), PlainNorms():
        yield


@cache
def _load_forward_rules() -> None:
    """Let torch compile its forward-mode rules here, where its warning about its own torch.jit.script can be dropped."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


def fresh(x: Tensor) -> Tensor:
    """Return x without graph or tangent; as a copy where x was made in inference mode, which gradients cannot leave."""
    return x.detach().clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x.detach()


def differentiated(x: Tensor) -> bool:
    """Whether x is being differentiated: it has a tangent, or requires gradients where they are on."""
    return (x.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(x).tangent is not None


def mapped(leaf: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply `leaf` to every tensor in a tree of tuples, lists, dicts and frozen dataclasses."""
    if isinstance(tree, Tensor):
        return leaf(tree)
    if isinstance(tree, list):
        return [mapped(leaf, part) for part in tree]
    if isinstance(tree, dict):
        return {key: mapped(leaf, part) for key, part in tree.items()}
    if isinstance(tree, tuple):
        parts = [mapped(leaf, part) for part in tree]
        return tuple(parts) if type(tree) is tuple else type(tree)(*parts)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{f.name: mapped(leaf, getattr(tree, f.name)) for f in fields(tree) if f.init})
    return tree
