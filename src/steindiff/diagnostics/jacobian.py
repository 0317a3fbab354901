"""Products with the Jacobian of a step, and the largest singular value of it.

J = ∂f/∂x of a map f that acts on each sample alone. Three answers to "how much does f stretch differences?":

    worst direction      ‖J‖₂ = max_v ‖Jv‖/‖v‖, the local Lipschitz constant
    random directions    ‖Jv‖/‖v‖ for v ~ N(0, I); its RMS is ‖J‖_F/√d
    actual discrepancy   see `discrepancy_amplification`

‖J‖₂ comes from power iteration on JᵀJ (one JVP and one VJP each), accelerated: the best vector of the space spanned by the
iterates (Rayleigh–Ritz, i.e. Lanczos) replaces the last iterate. It is never above ‖J‖₂ but for rounding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steindiff.analytic.checks import noise_level
from steindiff.arguments import check_batch, check_callable, check_denoiser
from steindiff.denoisers import Denoiser, expand
from steindiff.divergence.products import Options, Vjp, dot, linearise, pulled
from steindiff.errors import NonFiniteError, SteindiffError, require, require_numbers, require_whole
from steindiff.noise import mix

Map = Callable[[Tensor], Tensor]
"""f: (B, *event) → (B, *event), acting on each sample alone."""
Push = Literal["auto", "double", "forward", "fd"]

_TAG = 0xD1A6


@dataclass(frozen=True, eq=False)
class Linearization:
    """f near x, sample by sample: `value` is f(x), `push` v ↦ Jv by the method named, and `pull` w ↦ Jᵀw."""

    value: Tensor
    push: Map
    pull: Map
    method: str


def linearize(f: Map, x: Tensor, method: Push = "auto") -> Linearization:
    """One evaluation of f at x (B, *event) with its graph; Jᵀw is a backward pass through it.

    Jv is taken by "double", the derivative of the linear w ↦ Jᵀw, which evaluates f no more; by "forward" mode; by "fd", a
    central difference; or by "auto", the first of these that agrees with Jᵀ: ⟨w, Jv⟩ = ⟨Jᵀw, v⟩. A part of f that cuts the
    graph without an error (no_grad, detach) counts as a constant; `along_trajectory` checks for it.

    Raises:
        InputError: an unknown method.
        SteindiffError: f(x) has no gradient, or no method gives Jv.
    """
    require(method in ("auto", *_PUSHES), "choose auto, double, forward or fd", method=method)
    check_callable(f, "map", "f(x)")
    check_batch(x)
    reverse = Vjp(lambda z: (f(z), None), x, Options())
    value = reverse.value
    if not value.requires_grad:
        raise SteindiffError("f(x) carries no gradient: is a part of the network under torch.no_grad, or outside torch?")
    notes: dict[str, str] = {}
    for name in _PUSHES if method == "auto" else (method,):
        try:
            push = _PUSHES[name](f, reverse.z, value)
            _check_adjoint(push, reverse.one, x)
            return Linearization(value.detach(), push, reverse.one, name)
        except (RuntimeError, SteindiffError) as error:  # NotImplementedError is a RuntimeError
            notes[name] = str(error).partition("\n")[0]
    raise SteindiffError(f"no Jacobian-vector product of this map: {notes}; try method='auto', or a float64 model")


def _double(f: Map, z: Tensor, value: Tensor) -> Map:
    """Jv = ∂⟨Jᵀw, v⟩/∂w."""
    w = torch.zeros_like(value, requires_grad=True)
    back = pulled(value, z, w, graph=True)
    return lambda v: pulled(back, w, v).detach()


def _central(f: Map, z: Tensor, value: Tensor) -> Map:
    """(f(x + hv) − f(x − hv))/(2h), h ‖v‖ = ε^(1/3) ‖x‖ per sample (‖x‖ := √d for x = 0)."""
    x = z.detach()
    size = norms(x)
    scale = torch.finfo(x.dtype).eps ** (1 / 3) * torch.where(size > 0, size, math.sqrt(x[0].numel()))

    def push(v: Tensor) -> Tensor:
        h = expand(scale / norms(v).clamp_min(torch.finfo(x.dtype).tiny), x)
        with torch.no_grad():
            return (f(x + h * v) - f(x - h * v)) / (2 * h)

    return push


_PUSHES: dict[str, Callable[[Map, Tensor, Tensor], Map]] = {
    "double": _double,
    "forward": lambda f, z, _: linearise("jvp", lambda y: (f(y), None), z.detach(), Options()).one,
    "fd": _central,
}


def _check_adjoint(push: Map, pull: Map, x: Tensor) -> None:
    """⟨w, Jv⟩ = ⟨Jᵀw, v⟩: a derivative rule that is missing a part fails it."""
    v, w = (_gaussian(x, k) for k in (1, 2))
    jv, jw = push(v), pull(w)
    gap = (dot(w, jv) - dot(jw, v)).abs()
    if bool((gap > 0.01 * (norms(w) * norms(jv) + norms(jw) * norms(v))).any()):
        raise SteindiffError("Jv and Jᵀw are not adjoint: a derivative rule of the network is incomplete")


@dataclass(frozen=True, eq=False)
class Lipschitz:
    """The largest singular value of J, per sample, (B,).

    `value` is θ^½, not above ‖J‖₂ but for rounding, and `direction` the v that J stretches most, unit norm, (B, *event). The
    `residual` is ‖JᵀJv − θv‖/θ: a singular value lies within this relative distance of `value`. That it is the largest follows
    from the random start, with probability close to one. `iterations` are JVP–VJP pairs until the residual was ≤ tol.
    """

    value: Tensor
    residual: Tensor
    converged: Tensor
    iterations: Tensor
    direction: Tensor


def lipschitz(
    f: Map | Linearization, x: Tensor, *, tol: float = 1e-3, max_iterations: int = 100, seed: int = 0, method: Push = "auto"
) -> Lipschitz:
    """‖∂f/∂x‖₂ per sample, by accelerated power iteration on JᵀJ.

    That is Lanczos on A = JᵀJ with full reorthogonalisation; A V = V T + β v⁺ eᵀ, so a Ritz pair's residual is β |y_last|.
    A sample is done at the relative residual `tol`; an iteration is a JVP–VJP pair. `seed` draws the start vector. For f, x and
    `method`, and further errors, see `linearize`, whose result may stand for f.

    Raises:
        InputError: tol or max_iterations not positive.
        NonFiniteError: a product is NaN or infinite.

    Example:
        >>> import torch
        >>> A = torch.tensor([[1.0, 4.0], [0.0, 1.0]])
        >>> result = lipschitz(lambda z: z @ A.mT, torch.zeros(1, 2))
        >>> result.value, result.converged
        (tensor([4.2361]), tensor([True]))
    """
    require_numbers(tol=tol)
    require_whole(1, max_iterations=max_iterations)
    require(tol > 0, "need a relative residual above 0", tol=tol)
    check_batch(x)
    J = f if isinstance(f, Linearization) else linearize(f, x, method)
    v = _gaussian(x, 0, seed)
    v = v / expand(norms(v), x)
    basis: list[Tensor] = []
    diagonal: list[Tensor] = []
    off: list[Tensor] = []
    iterations = torch.full((len(x),), max_iterations, device=x.device)
    for k in range(1, max_iterations + 1):
        basis.append(v)
        w = J.pull(J.push(v))
        diagonal.append(dot(v, w))
        size = norms(w)
        for _ in range(2):  # twice is enough (Kahan)
            for u in basis:
                w = w - expand(dot(u, w), x) * u
        beta = norms(w)
        beta = torch.where(beta > 8 * torch.finfo(x.dtype).eps * size, beta, 0.0)  # an invariant space has been exhausted
        theta, y = _ritz(diagonal, off)
        residual = torch.where(theta > 0, beta * y[:, -1].abs() / theta.clamp_min(torch.finfo(x.dtype).tiny), 0.0)
        iterations = torch.where((residual <= tol) & (iterations > k), k, iterations)
        if bool((residual <= tol).all()):
            break
        off.append(beta)
        v = w * expand(torch.where(beta > 0, 1 / beta, 0.0), x)
    direction = torch.stack([expand(c, x) * u for c, u in zip(y.unbind(1), basis, strict=True)]).sum(0)
    return Lipschitz(theta.sqrt(), residual, residual <= tol, iterations, direction)


def _ritz(diagonal: list[Tensor], off: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue (B,) of the tridiagonal matrix and its eigenvector (B, k)."""
    T = torch.diag_embed(torch.stack(diagonal, -1))
    if off:
        T = T + torch.diag_embed(torch.stack(off, -1), 1) + torch.diag_embed(torch.stack(off, -1), -1)
    if not bool(torch.isfinite(T).all()):
        raise NonFiniteError("a Jacobian product is NaN or infinite: check the state's scale and the network's dtype")
    values, vectors = torch.linalg.eigh(T.to("cpu", torch.float64))
    return values[:, -1].clamp_min(0).to(T), vectors[..., -1].to(T)


def local_denoiser_lipschitz(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, *, tol: float = 1e-3, max_iterations: int = 100, seed: int = 0
) -> Lipschitz:
    """L_D = ‖∂D(x, σ)/∂x‖₂ per sample, in VE coordinates; in a model's own x = αy it is L_D/α. Arguments as `lipschitz`."""
    check_denoiser(denoiser)
    check_batch(x)
    level = noise_level(sigma, x)
    return lipschitz(lambda z: denoiser(z, level), x, tol=tol, max_iterations=max_iterations, seed=seed)


def random_directions(f: Map | Linearization, x: Tensor, k: int = 8, *, seed: int = 0, method: Push = "auto") -> Tensor:
    """‖Jv‖/‖v‖ for k ≥ 1 Gaussian directions, (k, B). Raises as `linearize`."""
    J = f if isinstance(f, Linearization) else linearize(f, x, method)
    require_whole(1, k=k)
    probes = [_gaussian(x, 3 + i, seed) for i in range(k)]
    return torch.stack([norms(J.push(v)) / norms(v) for v in probes])


def _gaussian(like: Tensor, *seed: int) -> Tensor:
    """v ~ N(0, I), shaped like the batch; drawn on the CPU in float64, so that every dtype and device sees the same."""
    stream = torch.Generator().manual_seed(mix(_TAG, *seed))
    return torch.randn(like.shape, generator=stream, dtype=torch.float64).to(like)


def norms(v: Tensor) -> Tensor:
    """‖v‖ per sample, (B,)."""
    size: Tensor = torch.linalg.vector_norm(v.flatten(1), dim=1)
    return size
