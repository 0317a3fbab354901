"""Loops written by hand after the papers, in the manner of k-diffusion: what a step of ours is timed against.

A loop takes (denoiser, x, sigmas), its coefficients are 0-dim tensors of x's dtype, and every line is a line of its paper. A
solver's options here are those of `plain`, so that both sides compute the same numbers: no order is lowered at the end, and
the grid ends above zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from steindiff import solvers
from steindiff.denoisers import Denoiser
from steindiff.grids import karras
from steindiff.solvers import PNDM, DPMpp2M, DPMpp3M, Grid, Solver, Tabulated, UniPC
from steindiff.solvers.deis import DEIS
from steindiff.solvers.dpm_v3 import DPMSolverV3, _coefficients, _rate_at
from steindiff.solvers.restart import Restart

Loop = Callable[[Denoiser, Tensor, Tensor], Tensor]

_ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plain(name: str) -> Solver:
    """The solver of this name without what the loops here leave out."""
    known: dict[str, Solver] = {
        "dpmpp_2m": DPMpp2M(lower_order_final=False),
        "dpmpp_3m": DPMpp3M(lower_order_final=False),
        "pndm": PNDM(middle="sigma"),
        **{f"unipc_{k}": UniPC(k, lower_order_final=False) for k in (1, 2, 3)},
    }
    return known.get(name) or solvers.make(name)


def euler(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """Euler's method, which in VE coordinates is DDIM."""
    for i in range(len(sigmas) - 1):
        d = (x - denoiser(x, sigmas[i])) / sigmas[i]
        x = x + d * (sigmas[i + 1] - sigmas[i])
    return x


def heun(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """Karras et al. 2022, Algorithm 1."""
    for i in range(len(sigmas) - 1):
        d, dt = (x - denoiser(x, sigmas[i])) / sigmas[i], sigmas[i + 1] - sigmas[i]
        there = x + d * dt
        d_there = (there - denoiser(there, sigmas[i + 1])) / sigmas[i + 1]
        x = x + (d + d_there) / 2 * dt
    return x


def dpmpp_2s(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++(2S), r = 1/2."""
    t = -sigmas.log()
    for i in range(len(sigmas) - 1):
        h = t[i + 1] - t[i]
        middle = (-(t[i] + h / 2)).exp()
        inner = (middle / sigmas[i]) * x - torch.expm1(-h / 2) * denoiser(x, sigmas[i])
        x = (sigmas[i + 1] / sigmas[i]) * x - torch.expm1(-h) * denoiser(inner, middle)
    return x


def dpmpp_3s(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++(3S), r₁ = 1/3 and r₂ = 2/3."""
    t = -sigmas.log()
    for i in range(len(sigmas) - 1):
        h, d0 = t[i + 1] - t[i], denoiser(x, sigmas[i])
        s1, s2, k = (-(t[i] + h / 3)).exp(), (-(t[i] + 2 * h / 3)).exp(), 2 * h / 3
        d1 = denoiser((s1 / sigmas[i]) * x - torch.expm1(-h / 3) * d0, s1)
        inner = (s2 / sigmas[i]) * x - torch.expm1(-k) * d0 + 2 * (torch.expm1(-k) / k + 1) * (d1 - d0)
        d2 = denoiser(inner, s2)
        x = (sigmas[i + 1] / sigmas[i]) * x - torch.expm1(-h) * d0 + 1.5 * (torch.expm1(-h) / h + 1) * (d2 - d0)
    return x


def dpmpp_2m(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++(2M)."""
    t, old = -sigmas.log(), None
    for i in range(len(sigmas) - 1):
        denoised, h = denoiser(x, sigmas[i]), t[i + 1] - t[i]
        extrapolated = denoised
        if old is not None:
            r = (t[i] - t[i - 1]) / h
            extrapolated = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * old
        x = (sigmas[i + 1] / sigmas[i]) * x - torch.expm1(-h) * extrapolated
        old = denoised
    return x


def dpmpp_3m(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++(3M), as published code has it."""
    t, past = -sigmas.log(), list[Tensor]()
    for i in range(len(sigmas) - 1):
        denoised, h = denoiser(x, sigmas[i]), t[i + 1] - t[i]
        x = torch.exp(-h) * x - torch.expm1(-h) * denoised
        if len(past) == 1:
            x = x - torch.expm1(-h) * (denoised - past[0]) / (2 * (t[i] - t[i - 1]) / h)
        elif past:
            r0, r1 = (t[i] - t[i - 1]) / h, (t[i - 1] - t[i - 2]) / h
            first, second = (denoised - past[0]) / r0, (past[0] - past[1]) / r1
            slope, curve = first + (first - second) * r0 / (r0 + r1), (first - second) / (r0 + r1)
            phi = torch.expm1(-h) / h + 1
            x = x + phi * slope - (phi / h - 0.5) * curve
        past = [denoised, *past[:1]]
    return x


def unipc(order: int) -> Loop:
    """UniPC-p with B = e^h − 1, predictor and corrector."""

    def loop(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
        t, known = -sigmas.log(), list[tuple[Tensor, Tensor]]()
        for i in range(len(sigmas) - 1):
            current = known[0][0] if i else denoiser(x, sigmas[0])
            known = [(current, t[i]), *known[1:]][:order]
            h = t[i + 1] - t[i]
            base = (sigmas[i + 1] / sigmas[i]) * x - torch.expm1(-h) * current
            ratios = [(at - t[i]) / h for _, at in known[1:]]
            changes = [(value - current) / r for (value, _), r in zip(known[1:], ratios, strict=True)]
            x = base + _unipc_change(h, ratios, changes)
            if i < len(sigmas) - 2:
                ahead = denoiser(x, sigmas[i + 1])
                x = base + _unipc_change(h, [*ratios, torch.ones_like(h)], [*changes, ahead - current])
                known = [(ahead, t[i + 1]), *known]
        return x

    return loop


def _unipc_change(h: Tensor, ratios: Sequence[Tensor], changes: Sequence[Tensor]) -> Tensor:
    if not changes:
        return torch.zeros_like(h)
    scale, phi, factorial, sides = torch.expm1(-h), torch.expm1(-h) / -h - 1, 1, list[Tensor]()
    for k in range(1, len(changes) + 1):
        factorial *= k
        sides.append(phi * factorial / scale)
        phi = phi / -h - 1 / (factorial * (k + 1))
    rows = [torch.stack(list(ratios)) ** k for k in range(len(changes))]
    weights = torch.full((1,), 0.5) if len(changes) == 1 else torch.linalg.solve(torch.stack(rows), torch.stack(sides))
    change = sum(w.to(h) * c for w, c in zip(weights, changes, strict=True))
    return -scale * change


def adams(rows: Callable[[Tensor], Sequence[Sequence[float]]]) -> Loop:
    """x' = x + Σ_j w_j ε_j, whose weights are known before the run."""

    def loop(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
        past = list[Tensor]()
        for i, row in enumerate(rows(sigmas)):
            past = [(x - denoiser(x, sigmas[i])) / sigmas[i], *past][: max(len(row), 4)]
            for w, d in zip(row, past, strict=False):
                x = x + w * d
        return x

    return loop


def ipndm(order: int) -> Loop:
    """Adams–Bashforth of equal steps."""

    def loop(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
        past = list[Tensor]()
        for i in range(len(sigmas) - 1):
            past = [(x - denoiser(x, sigmas[i])) / sigmas[i], *past[: order - 1]]
            d = sum(c * z for c, z in zip(_ADAMS[len(past) - 1], past, strict=True))
            x = x + d * (sigmas[i + 1] - sigmas[i])
        return x

    return loop


def pndm(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """F-PNDM with the middle of a step in σ."""
    past = list[Tensor]()
    for i in range(len(sigmas) - 1):
        start, end = sigmas[i], sigmas[i + 1]
        d = (x - denoiser(x, start)) / start
        past = [d, *past[:3]]
        if i < 3:
            middle = (start + end) / 2
            d2 = _slope(denoiser, x + (middle - start) * d, middle)
            d3 = _slope(denoiser, x + (middle - start) * d2, middle)
            d4 = _slope(denoiser, x + (end - start) * d3, end)
            d = (d + 2 * d2 + 2 * d3 + d4) / 6
        else:
            d = (55 * past[0] - 59 * past[1] + 37 * past[2] - 9 * past[3]) / 24
        x = x + (end - start) * d
    return x


def _slope(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    return (x - denoiser(x, sigma)) / sigma


def table(solver: Tabulated) -> Loop:
    """A table, as docs/universal.md writes it out."""

    def loop(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
        past = list[Tensor]()
        for i, row in enumerate(solver.rows):
            if row.values:
                past = [denoiser(x, solver.told[i] * sigmas[i]), *past]
            x = row.a * x
            for w, d in zip(row.values, past, strict=False):
                x = x + w * d
        return x

    return loop


def evodiff(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """EVODiff over a short run that ends above zero; the formulas are those of `steindiff/solvers/evodiff.py`."""
    n, last, values = len(sigmas) - 1, sigmas[-1], list[Tensor]()
    for i in range(n):
        start, end = sigmas[i], sigmas[i + 1]
        d = values[0] if len(values) > 1 else denoiser(x, start)
        r = end / start
        c = 1 - r
        base = r * x + c * d
        if not values:
            x, values = base, [d]
            continue
        before = values[-1]
        if i == n - 1:
            t = 1 - torch.sqrt(r if r < 0.5 else r - 0.5) / 2
            return (1 - torch.sqrt(start * end)) * base + c * (d - t * before) / 2
        rho = (sigmas[i - 1] / start).log() / (start / end).log()
        w, root = (1 - ((end + last) / (sigmas[0] + last)) ** 2) / 2, torch.sqrt(r / (start / sigmas[i - 1]))
        b = (1 - w) * root + w * _share(d, before)
        gap = d - b * before
        q = rho * torch.sigmoid(b.abs() / 4)
        there = base + c * gap / (2 * q)
        ahead = denoiser(there, end)
        up = rho * (ahead - ((1 - w) * root + w * _share(ahead, d)) * d)
        eta = torch.sigmoid((_share(up + gap / rho, up - gap / rho) / 2).abs()) / 2
        mixed = (1 - eta) * up - eta * gap / rho
        zeta = torch.sigmoid((_share(there - base - c * mixed / (2 * q), gap) / c).abs() - 0.5)
        x, values = base + c * mixed / (2 * zeta), [ahead, d]
    return x


def _share(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩/‖b‖² for each channel of each image, between ±2."""
    return ((a * b).sum((2, 3), keepdim=True) / (b * b).sum((2, 3), keepdim=True)).clamp(-2, 2)


def restart(method: Restart) -> Loop:
    """Heun's method that goes back up in noise. The noise is what ours draws, each image's own, so that it costs both alike."""
    (cycle,) = method.cycles

    def loop(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
        levels = sigmas.tolist()
        place = min(range(1, len(levels)), key=lambda i: abs(levels[i] - cycle.low))
        low = levels[place]
        down, scale = karras(cycle.steps, low, cycle.high).to(sigmas), math.sqrt(cycle.high**2 - low**2)
        x = heun(denoiser, x, sigmas[: place + 1])
        for turn in range(cycle.times):
            x = heun(denoiser, x + method._noise(x, scale, place - 1, turn), down)
        return heun(denoiser, x, sigmas[place:])

    return loop


def dpm_v3(method: DPMSolverV3) -> Loop:
    """DPM-Solver-v3 without a corrector, whose coefficients are known before the run."""
    kept = dict[int, list[tuple[Tensor, Tensor, list[Tensor], Tensor]]]()

    def loop(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
        if len(sigmas) not in kept:
            kept[len(sigmas)] = _of_dpm_v3(method, sigmas.tolist(), x)
        past = list[Tensor]()
        for sigma, (line, growth, weights, fixed) in zip(sigmas[:-1], kept[len(sigmas)], strict=True):
            past = [(x - denoiser(x, sigma)) - line * x, *past[:2]]
            x = growth * x + fixed
            for w, f in zip(weights, past, strict=True):
                x = x + w * f
        return x

    return loop


def _of_dpm_v3(method: DPMSolverV3, levels: list[float], x: Tensor) -> list[tuple[Tensor, Tensor, list[Tensor], Tensor]]:
    """Of each step: l, and what multiplies x, what multiplies the values, and what is added."""
    like, found = (x.dtype, x.device), list[tuple[Tensor, Tensor, list[Tensor], Tensor]]()
    for i in range(len(levels) - 1):
        points = (levels[i + 1], *reversed(levels[max(0, i - method.order + 1) : i + 1]))
        growth, weights, fixed = _coefficients(method.statistics, points, False, *like)
        found.append((1 - _rate_at(method.statistics, levels[i], *like), growth, [-w for w in weights], fixed))
    return found


def after_a_free_step(a: float, then: Loop) -> Loop:
    """x₁ = a x₀, then a loop over the other levels."""
    return lambda denoiser, x, sigmas: then(denoiser, a * x, sigmas[1:])


def _deis(order: int) -> Callable[[Tensor], Sequence[Sequence[float]]]:
    method, kept = DEIS(order), dict[tuple[float, ...], list[tuple[float, ...]]]()

    def rows(sigmas: Tensor) -> Sequence[Sequence[float]]:
        levels = tuple(sigmas.tolist())
        if levels not in kept:
            grid = Grid.of(sigmas.double())
            kept[levels] = [method.weights(grid, i).values for i in range(grid.steps)]
        return kept[levels]

    return rows


LOOPS: dict[str, Loop] = {
    "ddim": euler,
    "heun": heun,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_3s": dpmpp_3s,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    **{f"unipc_{k}": unipc(k) for k in (1, 2, 3)},
    **{f"deis_{k}": adams(_deis(k)) for k in (1, 2, 3, 4)},
    **{f"ipndm_{k}": ipndm(k) for k in (1, 2, 3, 4)},
    "pndm": pndm,
    "evodiff": evodiff,
    "restart": restart(Restart()),
}
"""By the name of the solver of ours that computes the same."""
