"""EVODiff: the numbers of its authors' sampler, its cost, and what its formulas do to a denoiser that is constant."""

import math

import pytest
import torch

from problems import MODEL, mixture, noisy_state, run
from steindiff import grids, solvers
from steindiff.denoisers import Counter
from steindiff.solvers import EVODiff, Grid

D64 = torch.float64
START = 80 * torch.tensor([[[[0.5, -1.2]], [[0.3, 0.9]]], [[[-0.7, 0.1]], [[1.4, -0.2]]]], dtype=D64)
"""Two images of two channels of two pixels."""


def bent(x, sigma):
    """A denoiser of pixels one by one, without symmetry."""
    s = torch.as_tensor(sigma, dtype=x.dtype)
    return 0.2 + (0.3 * x + 0.4 * x.sin()) / (0.5 + s**2)


# The ends that the authors' public sampler for EDM networks (github.com/ShiguiLi/EVODiff, commit 1811f9e, MIT licence) gives
# for `bent` and START, run once; its noise levels are float32. To zero is its denoise_to_zero, one evaluation more.
THEIRS = {
    ("log_snr", 5, False): (2.1446694, -1.0046675, 1.7374562, 2.2337203, -0.1263426, 1.6965045, 2.3388166, 0.7530305),
    ("log_snr", 9, True): (2.1728023, -0.9784822, 2.1701509, 2.1738527, 0.8209891, 2.1560929, 2.1753251, 2.102575),
    ("karras", 10, False): (2.2977915, -1.1587299, 2.21009, 2.3270515, -0.0201699, 2.0732374, 2.3399912, 1.4506362),
    ("log_snr", 24, False): (2.1546399, -0.6913217, 2.1312083, 2.1778, 1.1370732, 2.0679704, 2.1921933, 1.9848073),
}


@pytest.mark.parametrize("case", THEIRS, ids=str)
def test_it_ends_where_the_authors_sampler_ends(case):
    name, n, zero = case
    sigmas = grids.with_zero(grids.make(name, n)) if zero else grids.make(name, n)
    ends = torch.tensor(THEIRS[case], dtype=D64)
    torch.testing.assert_close(run(EVODiff(), bent, START, sigmas).flatten(), ends, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 25])
@pytest.mark.parametrize("zero", [True, False])
def test_a_step_costs_one_evaluation(n, zero):
    sigmas = grids.with_zero(grids.karras(n)) if zero else grids.karras(n)
    counter = Counter(mixture)
    assert bool(torch.isfinite(run(solvers.make("evodiff"), counter, noisy_state(80.0), sigmas)).all())
    assert counter.calls == EVODiff().nfe(sigmas) == len(sigmas) - 1
    assert EVODiff().for_nfe(n) == (EVODiff(), n)


def test_channels_are_weighed_alone_and_points_as_a_whole():
    sigmas = grids.log_snr(6)
    whole = run(EVODiff(), bent, START, sigmas)
    for channel in (0, 1):
        part = slice(channel, channel + 1)
        torch.testing.assert_close(run(EVODiff(), bent, START[:, part], sigmas), whole[:, part])
        points = run(EVODiff(), bent, START[:, channel, 0], sigmas)
        torch.testing.assert_close(points, whole[:, channel, 0])
    assert not torch.allclose(run(EVODiff(), bent, START.flatten(1), sigmas), whole.flatten(1), rtol=1e-3)


@pytest.mark.parametrize(("n", "share"), [(5, 0.0705), (10, 0.0927), (20, 0.028)])
def test_a_constant_denoiser_is_exact_up_to_the_last_step_of_the_authors(n, share):
    """On a log-SNR grid every b is one. The last step then adds c (1−t)/2 of D and shrinks the rest by √(σσ')."""
    c = torch.tensor([0.5, -1.0, 2.0], dtype=D64)
    x, sigmas = noisy_state(80.0), grids.log_snr(n)

    def constant(z, sigma):
        return c.expand_as(z)

    exact = c + sigmas[-1] / sigmas[0] * (x - c)
    torch.testing.assert_close(run(EVODiff(last=False), constant, x, sigmas), exact, rtol=1e-9, atol=1e-9)
    r = float(sigmas[-1] / sigmas[-2])
    t = 1 - math.sqrt(r if r < 0.5 else r - 0.5) / 2
    theirs = (1 - (sigmas[-1] * sigmas[-2]).sqrt()) * exact + (1 - r) * (1 - t) / 2 * c
    torch.testing.assert_close(run(EVODiff(), constant, x, sigmas), theirs, rtol=1e-9, atol=1e-9)
    assert float(((theirs - exact) / c).mean()) == pytest.approx(share, abs=5e-4)


def test_without_that_step_it_is_of_first_order():
    """The paper says second: the weights (1−2η)/ζ of the difference do not tend to one."""
    x = noisy_state(10.0)
    exact = MODEL.flow(x, 10.0, 0.4, tol=1e-8)

    def error(solver, n):
        return float((run(solver, mixture, x, grids.log_snr(n, 0.4, 10.0)) - exact).abs().max())

    assert math.log2(error(EVODiff(last=False), 64) / error(EVODiff(last=False), 128)) == pytest.approx(1, abs=0.25)
    assert math.log2(error(solvers.make("dpmpp_2m"), 64) / error(solvers.make("dpmpp_2m"), 128)) == pytest.approx(2, abs=0.25)
    assert error(EVODiff(), 128) > 0.9 * error(EVODiff(), 64) > 10 * error(EVODiff(last=False), 64)


def test_linear_is_what_is_left_of_the_state():
    """With its network outputs held fixed a step is affine in x."""
    grid = Grid.of(grids.karras(6))
    x, state = noisy_state(80.0), ()
    for i in range(grid.steps):
        outputs = []

        def record(z, sigma, seen=outputs):
            seen.append(mixture(z, sigma))
            return seen[-1]

        step = EVODiff().step(record, x, grid.interval(i), state)
        kept = iter(outputs)
        after = EVODiff().step(lambda z, sigma, k=kept: next(k), x + 1.0, grid.interval(i), state)
        expected = EVODiff().linear(grid.interval(i), state).expand_as(x)
        torch.testing.assert_close(after.x - step.x, expected, rtol=1e-8, atol=1e-8)
        x, state = step.x, step.state
