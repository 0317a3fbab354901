"""What a benchmark compares computes the same: a loop by hand ends where ours ends."""

import pytest
import torch
from benchmarks.loop import Half, cases

from steindiff import grids, initial_noise, sample
from steindiff.denoisers import Counter

EVENT = (3, 8, 8)
CASES = cases(EVENT)


def bent(x, sigma):
    """Not linear, so that every evaluation and every weight matters."""
    return torch.tanh(x / (1 + torch.as_tensor(sigma).to(x))) * 0.5


@pytest.mark.parametrize("name", CASES)
def test_a_loop_by_hand_ends_where_ours_does_for_as_many_evaluations(name):
    solver, loop = CASES[name]
    sigmas = grids.karras(8) if solver.own_grid is None else solver.own_grid
    x = initial_noise(range(3), EVENT, float(sigmas[0]), dtype=torch.float64)
    by_hand, ours = Counter(bent), Counter(bent)
    with torch.no_grad():
        expected, found = loop(by_hand, x, sigmas), sample(solver, ours, x, sigmas).x
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert by_hand.calls == ours.calls


def test_the_network_of_the_benchmark_counts_its_calls():
    half = Half()
    sample("heun", half, torch.full((1, 2), 80.0), nfe=7)
    assert half.calls == 7
