"""The toy of Fig. 3: a map of Lipschitz constant 1 that oscillates, blends that converge, and what it says of real steps."""

import math

import pytest
import torch

from problems import MODEL, noisy_state
from steindiff import solvers
from steindiff.diagnostics import step_maps
from steindiff.diagnostics.toy import run_toy, turn

HALF, QUARTER = run_toy()


def test_the_maps_are_reflection_and_rotation_about_the_origin():
    x = torch.tensor([[0.3, -2.0], [1.0, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(turn(x, math.pi), -x, rtol=0, atol=1e-15)
    torch.testing.assert_close(turn(x, math.pi / 2), torch.stack([-x[:, 1], x[:, 0]], 1), rtol=0, atol=1e-15)
    assert (HALF.angle, QUARTER.angle) == (math.pi, math.pi / 2)


@pytest.mark.parametrize("one", [HALF, QUARTER], ids=["half", "quarter"])
def test_both_are_non_expansive_and_no_strict_contractions(one):
    assert one.lipschitz == pytest.approx(1, abs=1e-12)


def test_their_own_iterates_oscillate_for_ever():
    back_and_forth = torch.tensor([[(-1.0) ** k, 0.0] for k in range(13)], dtype=torch.float64)
    torch.testing.assert_close(HALF.orbits[0].path, back_and_forth, rtol=0, atol=1e-14)
    corners = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(QUARTER.orbits[0].path, corners[torch.arange(13) % 4], rtol=0, atol=1e-14)
    assert HALF.orbits[0].gamma == QUARTER.orbits[0].gamma == 1


@pytest.mark.parametrize(
    ("one", "factors"),
    [(HALF, [1.0, 0.8, 0.5, 0.0]), (QUARTER, [1.0, 0.82**0.5, 0.625**0.5, 0.5**0.5])],
    ids=["half", "quarter"],
)
def test_a_blend_shrinks_every_step_by_the_closed_form(one, factors):
    assert [orbit.gamma for orbit in one.orbits] == pytest.approx([1.0, 0.9, 0.75, 0.5])
    for orbit, q in zip(one.orbits, factors, strict=True):
        want = torch.tensor([q**k for k in range(13)], dtype=torch.float64)
        torch.testing.assert_close(orbit.path.norm(dim=1), want, rtol=1e-12, atol=1e-15)
        assert orbit.factor == pytest.approx(q, abs=1e-9 if q else 0.06)  # rounding, to the power 1/12
    assert all(orbit.path[-1].norm() < 0.4 for orbit in one.orbits[1:])


@pytest.mark.parametrize("angle", [0.1, 1.0, math.pi / 2, 3.0, math.pi])
def test_the_best_gamma_is_one_half_for_every_map_that_keeps_the_distance(angle):
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = x - turn(x, angle)
    assert float((u * x).sum() / u.square().sum()) == pytest.approx(0.5)
    assert HALF.best == pytest.approx(0.5)
    assert QUARTER.best == pytest.approx(0.5)


@pytest.mark.parametrize("levels", [(80.0, 10.0), (2.0, 0.5), (0.5, 0.002)])
def test_no_first_order_step_of_an_exact_denoiser_turns_back(levels):
    """∂T/∂x = r + (1−r) Cov[x* | x]/σ² is symmetric, and no eigenvalue is below r > 0: no direction changes sign."""
    x, sigmas = noisy_state(levels[0], batch=20), torch.tensor(levels, dtype=torch.float64)
    (step,) = step_maps(solvers.make("ddim"), MODEL, x, sigmas)
    J = torch.autograd.functional.jacobian(lambda z: step.map(z).sum(0), x).movedim(1, 0)
    torch.testing.assert_close(J, J.mT)
    assert float(torch.linalg.eigvalsh(J).min()) >= levels[1] / levels[0] * (1 - 1e-9)
