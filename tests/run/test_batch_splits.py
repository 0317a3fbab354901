"""A seed's image does not depend on its batch: the same to 1e-4 of the images' range, and the same bytes when run again."""

import pytest
import torch

import steindiff as sd

LEVELS = sd.grids.karras(5)
SEEDS = range(8)
TOLERANCE = 1e-4


def drawn(solver, seeds, levels=LEVELS):
    model = sd.models.load("digits")
    return sd.sample(solver, model.denoiser, sd.initial_noise(seeds, model.event_shape), levels).x


@pytest.mark.parametrize("solver", [name for name in sd.solvers.names() if "(" not in name])
def test_a_seed_has_one_image_whatever_its_batch(solver):
    """What a network rounds with another batch size is all that differs."""
    whole = drawn(solver, SEEDS)
    assert torch.equal(drawn(solver, SEEDS), whole)
    for size in (1, 3):
        parts = [drawn(solver, SEEDS[i : i + size]) for i in range(0, len(SEEDS), size)]
        assert float((torch.cat(parts) - whole).abs().max()) < TOLERANCE


def test_a_correction_that_averages_over_the_batch_is_the_exception():
    """γ is one number a batch, so that the images of a batch belong together."""
    rule = sd.Corrected("dpmpp_2m(lower_order_final=False)", "clamped(mode=tweedie)")
    whole = drawn(rule, SEEDS)
    assert torch.equal(drawn(rule, SEEDS), whole)
    parts = torch.cat([drawn(rule, SEEDS[:4]), drawn(rule, SEEDS[4:])])
    assert float((parts - whole).abs().max()) > 10 * TOLERANCE
