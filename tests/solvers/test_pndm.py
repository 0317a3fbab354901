"""PNDM: its start, its cost and what it refuses; order, parity and conformance stand with those of all solvers."""

import pytest
import torch

from problems import mixture, noisy_state, run
from steindiff import grids, solvers
from steindiff.denoisers import Counter
from steindiff.errors import InputError
from steindiff.schedules import VPLinear
from steindiff.solvers import PNDM, Grid


@pytest.mark.parametrize("middle", ["vp_time", "sigma"])
def test_a_step_of_the_start_in_the_coordinates_of_the_paper(middle):
    """The transfer of a variance-preserving state, x' = √ᾱ' (x − √(1−ᾱ) ε)/√ᾱ + √(1−ᾱ') ε, and the weights of Runge–Kutta."""
    start, end = torch.tensor([7.0, 3.0], dtype=torch.float64)
    schedule, y = VPLinear(), noisy_state(7.0)
    between = schedule.ratio((schedule.time(start) + schedule.time(end)) / 2) if middle == "vp_time" else (start + end) / 2

    def noise(x, sigma):
        alpha = schedule.alpha_of(sigma)
        return (x / alpha - mixture(x / alpha, sigma)) / sigma

    def transfer(x, eps, sigma, there):
        (a, b), (s, t) = [(schedule.alpha_of(z), z * schedule.alpha_of(z)) for z in (sigma, there)]
        return s * (x - b * eps) / a + t * eps

    x = schedule.alpha_of(start) * y
    e1 = noise(x, start)
    e2 = noise(transfer(x, e1, start, between), between)
    e3 = noise(transfer(x, e2, start, between), between)
    e4 = noise(transfer(x, e3, start, end), end)
    expected = transfer(x, (e1 + 2 * e2 + 2 * e3 + e4) / 6, start, end) / schedule.alpha_of(end)
    ours = run(PNDM(middle=middle), mixture, y, torch.stack((start, end)))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_s_pndm_is_heuns_step_and_then_adams_bashforth():
    sigmas, x = grids.karras(6, 0.1, 20.0), noisy_state(20.0)
    first = run(solvers.make("heun"), mixture, x, sigmas[:2])
    grid = Grid.of(sigmas)
    step = PNDM(2).step(mixture, x, grid.interval(0), ())
    torch.testing.assert_close(step.x, first, rtol=1e-12, atol=1e-12)
    second = PNDM(2).step(mixture, step.x, grid.interval(1), step.state)
    eps = step.state[0] / sigmas[0]
    new = (step.x - mixture(step.x, sigmas[1])) / sigmas[1]
    expected = step.x + (sigmas[2] - sigmas[1]) * (3 * new - eps) / 2
    torch.testing.assert_close(second.x, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("order", "least"), [(4, 12), (2, 2)])
def test_a_budget_pays_the_start_first(order, least):
    for nfe in range(least, least + 12):
        solver, steps = PNDM(order).for_nfe(nfe)
        counter = Counter(mixture)
        run(solver, counter, noisy_state(80.0), grids.karras(steps))
        assert counter.calls == solver.nfe(grids.karras(steps)) == nfe
    with pytest.raises(InputError, match=f"nfe={least - 1}.*takes {least} evaluations"):
        PNDM(order).for_nfe(least - 1)


def test_the_spec_reaches_both():
    assert solvers.make("pndm") == PNDM()
    assert solvers.make("pndm(2, middle=sigma)") == PNDM(2, "sigma")


@pytest.mark.parametrize("options", [{"order": 3}, {"middle": "time"}])
def test_bad_settings_of_pndm_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        PNDM(**options)
