"""The frame of a blend, by hand: the model's own x = α y, where the step is α' T(y)."""

import pytest
import torch

from problems import MODEL
from steindiff.corrections import CleanTarget, Corrected, FixedGamma
from steindiff.denoisers import declare
from steindiff.divergence.products import dot
from steindiff.sampling import sample
from steindiff.schedules import VE, VPLinear

torch.set_num_threads(1)
D64 = torch.float64
LEVELS = torch.tensor([3.0, 1.0], dtype=D64)
X = 3 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=D64)


@pytest.mark.parametrize("schedule", [VE(), VPLinear()], ids=["ve", "vp"])
def test_a_blend_is_of_the_models_own_states(schedule):
    """α' y' = (1−γ) α y + γ α' T(y)."""
    denoiser, (a, a_next) = declare(MODEL, schedule=schedule), schedule.alpha_of(LEVELS)
    T = sample("ddim", denoiser, X, LEVELS).x
    made = sample(Corrected("ddim", FixedGamma((0.3,))), denoiser, X, LEVELS).x
    torch.testing.assert_close(a_next * made, 0.7 * a * X + 0.3 * a_next * T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", [VE(), VPLinear()], ids=["ve", "vp"])
def test_the_linear_part_is_of_the_models_own_states(schedule):
    """DDIM's linear part in x is σ_t/σ_s, with the σ = α s of the model: ∇·u ≈ (1 − σ_t/σ_s) d (E.1)."""
    denoiser = declare(MODEL, schedule=schedule)
    before, after = schedule.alpha_of(LEVELS) * LEVELS
    record = sample(Corrected("ddim", CleanTarget(mode="analytical")), denoiser, X, LEVELS).trace[0]
    assert record.moments["div"] == pytest.approx(float(1 - after / before) * 3, rel=1e-12)


def test_inner_products_are_summed_wide():
    """70,000 ones are more than float16 can hold; a difference of large sums would keep none of its digits."""
    ones = torch.ones(2, 70_000, dtype=torch.float16)
    assert dot(ones, ones).tolist() == [70_000.0, 70_000.0]
