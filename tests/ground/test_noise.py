"""Noise that belongs to an image: seeds against batch composition, dtype and large values; mixing; refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steindiff.errors import InputError
from steindiff.noise import fresh_seed, generators, initial_noise, mix

torch.set_num_threads(1)
EVENT = (3, 4, 4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6, unique=True), st.randoms())
def test_an_image_depends_on_its_seed_alone(seeds, random):
    batch = initial_noise(seeds, EVENT, 80.0)
    order = list(range(len(seeds)))
    random.shuffle(order)
    assert torch.equal(initial_noise([seeds[i] for i in order], EVENT, 80.0), batch[order])
    for i, seed in enumerate(seeds):
        assert torch.equal(initial_noise([seed], EVENT, 80.0)[0], batch[i])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype_is_the_rounding_of_one_float64_draw(dtype):
    exact = initial_noise([3, 4], EVENT, 80.0, dtype=torch.float64)
    noise = initial_noise([3, 4], EVENT, 80.0, dtype=dtype)
    assert noise.dtype == dtype
    assert torch.equal(noise, exact.to(dtype))


def test_sigma_scales_and_shape_is_the_event():
    unit = initial_noise([0, 1], EVENT, 1.0, dtype=torch.float64)
    assert unit.shape == (2, *EVENT)
    assert torch.equal(initial_noise([0, 1], EVENT, 80.0, dtype=torch.float64), 80 * unit)


def test_the_noise_is_standard_normal():
    x = initial_noise(range(2000), (8,), 2.0, dtype=torch.float64) / 2
    n = x.numel()
    assert abs(float(x.mean())) < 4 / math.sqrt(n)
    assert abs(float(x.var()) - 1) < 4 * math.sqrt(2 / n)
    correlation = float((x[1:] * x[:-1]).mean())  # neighbouring seeds
    assert abs(correlation) < 4 / math.sqrt(n)


def test_small_seeds_are_torchs_own_streams():
    expected = torch.randn(EVENT, generator=torch.Generator().manual_seed(17), dtype=torch.float64)
    assert torch.equal(initial_noise([17], EVENT, 1.0, dtype=torch.float64)[0], expected)


@pytest.mark.parametrize("shift", [2**32, 2**33, 2**40, 2**62])
def test_seeds_that_agree_in_their_low_bits_give_different_images(shift):
    # torch's CPU generator keeps only the low 32 bits of a seed
    low, high = initial_noise([5, 5 + shift], EVENT, 1.0)
    assert not torch.isclose(low, high).any()


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, 1.5, float("nan"), "7", None])
def test_bad_seeds_are_named(seed):
    with pytest.raises(InputError, match=r"seed .*need a whole number"):
        generators([0, seed])


def test_whole_numbers_of_other_types_are_seeds():
    expected = initial_noise([7], EVENT, 1.0)
    assert torch.equal(initial_noise(np.array([7]), EVENT, 1.0), expected)
    assert torch.equal(initial_noise(torch.tensor([7]), EVENT, 1.0), expected)


@pytest.mark.parametrize(
    "seeds, event, sigma",
    [([], (3,), 80.0), ([0], (), 80.0), ([0], (3, 0), 80.0), ([0], (3,), -1.0), ([0], (3,), float("nan"))],
)
def test_bad_requests_are_refused(seeds, event, sigma):
    with pytest.raises(InputError, match="need"):
        initial_noise(seeds, event, sigma)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(2**63), 2**63), st.integers(-(2**31), 2**31))
def test_mix_has_no_collisions_among_nearby_inputs(a, b):
    values = {mix(a + i, b + j) for i in range(12) for j in range(12)}
    assert len(values) == 144
    assert all(0 <= v < 2**63 for v in values)
    assert len({v & 0xFFFFFFFF for v in values}) >= 143  # the bits torch's CPU generator reads


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 62))
def test_mix_flips_about_half_the_bits(a, bit):
    flipped = (mix(a) ^ mix(a ^ (1 << bit))).bit_count()
    assert 8 <= flipped <= 55  # 31.5 ± 4 standard deviations is 15.6 … 47.4; 200 draws stay well inside this


def test_mix_depends_on_order_and_length():
    assert len({mix(1, 2), mix(2, 1), mix(1), mix(1, 2, 0), mix(0, 1, 2), mix()}) == 6


def test_fresh_seeds_move_the_generator_on_and_are_reproducible():
    g, h = (torch.Generator().manual_seed(1) for _ in range(2))
    first = [fresh_seed(g) for _ in range(100)]
    assert first == [fresh_seed(h) for _ in range(100)]
    assert len(set(first)) == 100
    assert all(0 <= s < 2**62 for s in first)
