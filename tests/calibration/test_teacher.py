"""Fine runs: their states at and between levels against the exact flow, their weights, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from exact_paths import D64, LEVELS, closed_form, normal
from problems import MODEL
from steindiff.calibration import trajectories
from steindiff.errors import InputError, NonFiniteError

NOISE = 80 * normal(24, 3)


@pytest.fixture(scope="module")
def law():
    return trajectories(MODEL, NOISE)


def test_a_fine_run_starts_from_the_noise_and_ends_on_the_exact_flow(law):
    assert len(law.levels) == 65
    assert (law.levels[0], law.levels[-1]) == (80.0, 0.002)
    assert torch.equal(law.noise, NOISE)
    exact = MODEL.flow(NOISE, 80.0, 0.002, tol=1e-7)
    assert 0 < law.rmse(exact) < 2e-4
    finer = trajectories(MODEL, NOISE, count=96)
    assert finer.rmse(exact) < law.rmse(exact) / 2, "the error is that of the steps"


@pytest.mark.parametrize("sigma", [60.0, 17.3, 5.0, 1.0, 0.31, 0.05, 0.0023])
def test_between_levels_a_state_is_on_the_exact_flow(law, sigma):
    assert sigma not in law.levels
    exact = MODEL.flow(NOISE, 80.0, sigma, tol=1e-7)
    assert float((law.at(sigma) - exact).abs().max()) < 3e-4 * float(exact.std())


def test_the_cubic_is_of_fourth_order():
    errors = []
    for n in (8, 16):
        levels = tuple(torch.logspace(1, -1, n + 1, dtype=D64).tolist())
        path = closed_form(levels)
        sigma = math.sqrt(levels[n // 2] * levels[n // 2 + 1])
        exact = path.noise * math.sqrt((0.3 + sigma**2) / (0.3 + levels[0] ** 2))
        errors.append(float((path.at(sigma) - exact).abs().max()))
    assert errors[0] / errors[1] > 12  # 16 but for the place of the middle


def test_at_its_own_levels_a_state_is_what_the_run_passed_through(law):
    for i in (0, 1, 30, 63, 64):
        torch.testing.assert_close(law.at(law.levels[i]), law.states[i], rtol=1e-12, atol=1e-12)
        sigma = torch.tensor(law.levels[i], dtype=D64)
        torch.testing.assert_close(law.slopes[i], law.states[i] - MODEL(law.states[i], sigma), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sigma", [80.1, 0.0019, 0.0, -1.0, math.nan, math.inf])
def test_levels_outside_are_refused(law, sigma):
    with pytest.raises(InputError, match=r"sigma=.*: need a level between 0\.002 and 80"):
        law.at(sigma)


def test_states_are_about_the_mean():
    """The same law elsewhere has the same trajectories about its mean."""
    m = torch.tensor([3.0, -1.0, 0.5], dtype=D64)
    there = trajectories(lambda x, sigma: m + MODEL(x - m, sigma), NOISE + m, count=24, mean=m)
    here = trajectories(MODEL, NOISE, count=24)
    torch.testing.assert_close(there.states, here.states, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(there.slopes, here.slopes, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(there.weight, here.weight, rtol=1e-7, atol=0)
    torch.testing.assert_close(there.denoise(NOISE, 2.0), here.denoise(NOISE, 2.0), rtol=1e-7, atol=1e-9)


def test_an_error_as_large_as_the_spread_counts_one():
    for n in (2, 24):
        law = trajectories(MODEL, NOISE[:n], count=12)
        gap = law.ends - law.ends.mean(0)
        assert float(law.product(gap, gap)) == pytest.approx(1)
    alone = trajectories(MODEL, NOISE[:1], count=12)
    assert float(alone.product(alone.ends, alone.ends)) == pytest.approx(1)
    assert alone.rmse(alone.ends + 0.5) == pytest.approx(0.5)


def test_a_denoiser_whose_images_belong_together_sees_its_own_batch_only():
    seen = []

    def network(x, sigma):
        seen.append(len(x))
        return MODEL(x, sigma) + 0.01 * x.mean(0)

    law, runs = trajectories(network, NOISE, count=8, stacked=False), normal(5, 24, 3, seed=1)
    apart = law.denoise(runs, 1.0)
    assert set(seen) == {24}
    torch.testing.assert_close(apart, torch.stack([law.denoise(run, 1.0) for run in runs]), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(replace(law, stacked=True).denoise(runs, 1.0), apart)


def test_every_step_ticks():
    ticks = []
    trajectories(MODEL, NOISE, 80.0, 0.1, count=7, tick=lambda: ticks.append(1))
    assert len(ticks) == 7


def test_a_law_that_is_none_is_refused():
    with pytest.raises(NonFiniteError, match="NaN or infinite at step 0"):
        trajectories(lambda x, sigma: x * math.nan, NOISE)
    with pytest.raises(NonFiniteError, match="the denoiser's law is degenerate"):
        trajectories(MODEL, NOISE[:1].expand(4, 3))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"levels": LEVELS[::-1]}, "levels that decrease"),
        ({"levels": (*LEVELS[:-1], 0.0)}, "above 0"),
        ({"levels": (*LEVELS[:-1], math.nan)}, "finite levels"),
        ({"levels": LEVELS[:-1]}, "a state and a slope at each of 4 levels"),
        ({"slopes": torch.zeros(5, 16, 2, dtype=D64)}, "a state and a slope"),
    ],
)
def test_trajectories_whose_parts_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(closed_form(LEVELS), **change)
