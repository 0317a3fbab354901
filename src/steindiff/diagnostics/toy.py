"""The toy of the paper's Fig. 3: a map of Lipschitz constant 1 that oscillates for ever, and the blend that comes to rest.

The paper speaks of an instructive map that is non-expansive, no strict contraction, and can oscillate instead of converging.
Which map it is, is not recoverable. Ours is the rotation T of the plane by an angle θ about its fixed point x* = 0; half a turn
is T(x) = −x. The paper's blend of it shrinks every distance to x* by the same factor:

    x' = (1−γ) x + γ T(x),      ‖x'‖ = q ‖x‖,      q² = 1 − 4 γ (1−γ) sin²(θ/2).

So q = 1 for γ = 1, and q < 1 for every γ between 0 and 1. The paper's coefficient (Eq. 9) is γ* = ⟨u, x − x*⟩/‖u‖² with
u = x − T(x). For every map that keeps the distance to x*, ‖T(x) − x*‖ = ‖x − x*‖, it is exactly 1/2.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff.diagnostics.jacobian import lipschitz

ANGLES = {"half a turn, T(x) = −x": math.pi, "a quarter turn": math.pi / 2}
"""θ of the maps that are shown."""
GAMMAS = (1.0, 0.9, 0.75)
"""The γ of the runs; one more has γ*."""
STEPS = 12


@dataclass(frozen=True, eq=False)
class Orbit:
    """A run of the blend from (1, 0): its γ, and its states (steps + 1, 2)."""

    gamma: float
    path: Tensor

    @property
    def factor(self) -> float:
        """The geometric mean of ‖x'‖/‖x‖ over the steps."""
        start, end = self.path[0].norm(), self.path[-1].norm()
        return float((end / start) ** (1 / (len(self.path) - 1)))


@dataclass(frozen=True, eq=False)
class Turn:
    """One map: its angle θ, its measured Lipschitz constant, γ* of Eq. 9, and its runs, the last of them with γ*."""

    name: str
    angle: float
    lipschitz: float
    best: float
    orbits: tuple[Orbit, ...]

    def as_json(self) -> dict[str, object]:
        """Its numbers, and the factor a step of every run by its γ."""
        factors = {f"{orbit.gamma:g}": orbit.factor for orbit in self.orbits}
        return {"angle": self.angle, "lipschitz": self.lipschitz, "best": self.best, "factors": factors}


def turn(x: Tensor, angle: float) -> Tensor:
    """T(x), x (B, 2) turned by `angle` in radians."""
    c, s = math.cos(angle), math.sin(angle)
    return torch.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], 1)


def predicted(gamma: float, angle: float) -> float:
    """q = √(1 − 4 γ (1−γ) sin²(θ/2)), by which a step of the blend shrinks the distance to the fixed point."""
    return math.sqrt(max(0.0, 1 - 4 * gamma * (1 - gamma) * math.sin(angle / 2) ** 2))


def run_toy() -> tuple[Turn, ...]:
    """Every map with its runs, float64."""
    return tuple(_run(name, angle) for name, angle in ANGLES.items())


def _run(name: str, angle: float) -> Turn:
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    u = start - turn(start, angle)
    best = float((u * start).sum() / u.square().sum())
    found = lipschitz(lambda z: turn(z, angle), start, tol=1e-9)
    return Turn(name, angle, float(found.value), best, tuple(_orbit(start, angle, gamma) for gamma in (*GAMMAS, best)))


def _orbit(x: Tensor, angle: float, gamma: float) -> Orbit:
    path = [x]
    for _ in range(STEPS):
        x = torch.lerp(x, turn(x, angle), gamma)
        path.append(x)
    return Orbit(gamma, torch.cat(path))
