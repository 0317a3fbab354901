"""Measure, once at the start of a run, which derivatives a network supports and what they cost."""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser, Pure
from steindiff.divergence.products import METHODS, Options, dot, linearise
from steindiff.errors import SteindiffError, require

SAMPLES, REPEATS = 8, 5
LEAST, ENOUGH = 3, 2.0
"""After so many turns, timing ends once it has taken so many seconds: what takes long is disturbed least."""
DOUBTS = 10
"""How many times the quotients' own disagreement a right product may be off. It is a tolerance, and has no right value.

A smooth network's product is off by an eighth of that, since the steps are 0.1σ and 0.3σ. One with details as fine as the
steps is off by several times as much, though it is right (2 refuses some), and a missing part of a network that varies over
0.25σ along every axis is noticed still (by 15 it is not).
"""


class Choice(NamedTuple):
    """What a one-off probe of a network found: the method chosen, and each method's cost in forwards (None: unusable)."""

    method: str
    costs: dict[str, float | None]
    """Forwards that one vᵀJv costs beyond the primal; "vjp_batched" and "jvp_batched" price one of several at once."""
    notes: dict[str, str]
    """Why a method cannot be used, or how far it is from the reference product."""
    batched: bool = False
    """Whether the products of a step share one pass; batched="auto" sets what was found cheaper."""

    def cost(self, product: str) -> float:
        """The price of a "vjp" or "jvp" of the run, in forwards."""
        return self.costs.get(f"{product}_batched" if self.batched else product) or 0.0


def choose(
    denoiser: Denoiser,
    x: Tensor,
    sigma: Tensor,
    *,
    methods: tuple[str, ...] = METHODS,
    fd_step: float = 1e-3,
    antithetic: bool = True,
    samples: int = SAMPLES,
    repeats: int = REPEATS,
) -> Choice:
    """Try vᵀJv of D by each method on a few samples; check it against difference quotients; time it against a forward.

    Returns the first of `methods` that runs and gives the right number, and each one's cost beyond the primal, in forwards.

    Raises:
        SteindiffError: none of them works.
    """
    fits = callable(denoiser) and isinstance(x, Tensor) and x.is_floating_point()
    kinds = {"denoiser": type(denoiser).__name__, "x": type(x).__name__}
    require(fits, "need a function D(x, sigma) and a floating-point state", **kinds)
    z, denoiser = x[:samples].detach(), Pure(denoiser)
    v, quotients = torch.ones_like(z), _quotients(denoiser, z, sigma)
    costs: dict[str, float | None] = {}
    notes, values = dict[str, str](), dict[str, Tensor]()

    def product(method: str) -> Tensor:
        products = linearise(method, lambda y: (denoiser(y, sigma), None), z, Options(fd_step, antithetic))
        return dot(v, products.one(v)).detach()

    for method in methods:
        try:
            value = product(method)
            if method != "fd":
                _confirm(value, *quotients)
            costs[method] = excess(partial(product, method), partial(denoiser, z, sigma), z, repeats)
            values[method] = value
        except Exception as error:  # the plain forward works, so whatever is raised here is about the derivative
            costs[method], notes[method] = None, _first_line(error)
    if not values:
        some = "use Hutchinson(method='auto'), which takes whichever works"
        none = "use a rule or a mode that needs none (FixedGamma, mode='analytical')"
        remedy = none if set(methods) == set(METHODS) else some
        raise SteindiffError(f"no derivative of this network by {' or '.join(methods)}: {notes}; {remedy}")
    first, reference = next(iter(values.items()))
    scale = reference.norm().clamp_min(1e-30)
    gaps = {m: f"works; {float((v - reference).norm() / scale):.1e} from {first}, relatively" for m, v in values.items()}
    return Choice(first, costs, {**notes, **gaps})


def priced_batched(choice: Choice, denoiser: Denoiser, x: Tensor, sigma: Tensor, method: str, probes: int) -> Choice:
    """`choice` with the cost of a product when `probes` of them share a pass, and whether that beats one by one.

    Both are timed in turns with a forward. A network whose operations cannot be vmapped, or whose batched products differ
    from the others, gets the cost None and a note.
    """
    z = x[:SAMPLES].detach()
    stream = torch.Generator().manual_seed(0)
    probe = [torch.randn(z.shape, generator=stream, dtype=torch.float64).to(z) for _ in range(probes)]

    def run(batched: bool) -> Tensor:
        products = linearise(method, lambda y: (denoiser(y, sigma), None), z, Options(batched=batched))
        return torch.stack([dot(v, w) for v, w in products.pairs(probe)]).detach()

    costs, notes, key = dict(choice.costs), dict(choice.notes), f"{method}_batched"
    try:
        torch.testing.assert_close(run(True), run(False), rtol=1e-3, atol=1e-3)
        together, single = (excess(partial(run, b), partial(denoiser, z, sigma), z, REPEATS) for b in (True, False))
    except Exception as error:  # products one by one work, so whatever is raised here is about vmap
        costs[key], notes[key] = None, _first_line(error)
        return choice._replace(costs=costs, notes=notes, batched=False)
    costs[key] = together / probes
    notes[key] = f"works; {probes} products beyond the primal: {together:.2f} forwards at once, {single:.2f} one by one"
    return choice._replace(costs=costs, notes=notes, batched=together < single)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


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
    if not torch.isfinite(value).all() or (decided and gap > 0.25 * size + DOUBTS * doubt):
        raise SteindiffError(
            f"gives {value.mean():.3g} where finite differences give {near.mean():.3g}: is a part of the network under "
            "torch.no_grad, detached, or outside torch?"
        )


def excess(product: Callable[[], object], plain: Callable[[], object], x: Tensor, repeats: int) -> float:
    """The cost of `product` beyond `plain`, in units of `plain`; both are timed in turns, and the least of each counts.

    Other work on the machine can only add time, and taking turns makes it add to both. Each turn leaves the device idle. There
    are as many turns as `repeats`, or fewer where they take long (`ENOUGH`).
    """

    def seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - start

    seconds(product), seconds(plain)  # warms up
    rounds, start = list[tuple[float, float]](), time.perf_counter()
    while len(rounds) < repeats and (len(rounds) < LEAST or time.perf_counter() < start + ENOUGH):
        rounds.append((seconds(product), seconds(plain)))
    return max(0.0, min(p for p, _ in rounds) / max(min(f for _, f in rounds), 1e-9) - 1)
