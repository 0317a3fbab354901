"""Bands are orthogonal projections that sum to the identity."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steindiff.corrections.bands import Channels, Cosine, RandomBands, Whole
from steindiff.errors import InputError

CASES = [
    (Whole(), (3, 8, 8), 1),
    (Whole(), (5,), 1),
    (Channels(), (4, 6, 6), 4),
    (Cosine(8), (3, 32, 32), 16),
    (Cosine(4), (1, 8, 8), 4),
    (Cosine(8), (3, 4, 6), None),
    (RandomBands(5), (3, 4), 5),
    (RandomBands(8), (33,), 8),
]


def _states(event, n=6, seed=0):
    return torch.randn(n, *event, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("bands", "event", "count"), CASES)
def test_projections(bands, event, count):
    x, y = _states(event), _states(event, seed=1)
    labels = bands.labels(torch.Size(event))
    n = int(labels.max()) + 1
    assert sorted(set(labels.tolist())) == list(range(n))
    assert count is None or n == count
    assert int(bands.sizes(torch.Size(event)).sum()) == x[0].numel()
    parts = [bands.scale(x, torch.eye(n, dtype=torch.float64)[b]) for b in range(n)]
    assert torch.allclose(sum(parts), x, atol=1e-12)  # they sum to the identity
    inner = bands.inner(x, y)
    for b, part in enumerate(parts):
        assert torch.allclose(bands.scale(part, torch.eye(n, dtype=torch.float64)[b]), part, atol=1e-12)  # idempotent
        assert torch.allclose((part * y).flatten(1).sum(1), inner[:, b], atol=1e-10)  # ⟨P_b x, y⟩ = ⟨P_b x, P_b y⟩
    assert torch.allclose(inner.sum(1), (x * y).flatten(1).sum(1), atol=1e-10)
    assert torch.allclose(bands.synthesise(bands.analyse(x), torch.Size(event)), x, atol=1e-12)


@pytest.mark.parametrize(("bands", "event", "_"), CASES)
def test_white_noise_has_energy_d_b_in_each_band(bands, event, _):
    inner = bands.inner(_states(event, 4000), _states(event, 4000))
    se = inner.std(0) / 4000**0.5
    assert bool(((inner.mean(0) - bands.sizes(torch.Size(event))).abs() < 4.5 * se).all())


def test_cosine_bands_separate_what_they_should():
    """A constant grey image is all in luma's first ring; a red one also in chroma's; a checkerboard in the highest ring."""
    bands, event = Cosine(8), torch.Size((3, 32, 32))
    grey = torch.ones(1, *event, dtype=torch.float64)
    assert bands.inner(grey, grey)[0].argmax() == 0
    assert float(bands.inner(grey, grey)[0, 0]) == pytest.approx(3072)
    red = grey.clone()
    red[:, 1:] = 0
    energies = bands.inner(red, red)[0]
    assert energies[[0, 8]].tolist() == pytest.approx([1024 / 3, 2048 / 3])
    checks = grey * (-1.0) ** (torch.arange(32)[:, None] + torch.arange(32)[None, :])
    assert bands.inner(checks, checks)[0].argmax() == 7


@given(st.integers(1, 6), st.integers(2, 9), st.integers(2, 9), st.sampled_from([1, 3]))
@settings(max_examples=25, deadline=None)
def test_any_image_size_round_trips(radial, height, width, channels):
    x = _states((channels, height, width), 2)
    bands = Cosine(radial)
    assert torch.allclose(bands.synthesise(bands.analyse(x), x.shape[1:]), x, atol=1e-12)
    assert set(bands.labels(x.shape[1:]).tolist()) == set(range(int(bands.labels(x.shape[1:]).max()) + 1))


def test_float32_stays_float32_and_bad_shapes_are_refused():
    x = _states((3, 8, 8)).float()
    assert Cosine().scale(x, torch.ones(16)[: len(Cosine().sizes(x.shape[1:]))]).dtype == torch.float32
    with pytest.raises(InputError, match="Cosine bands need"):
        Cosine().analyse(_states((4, 8, 8)))
    with pytest.raises(InputError, match="at most 5"):
        RandomBands(6).labels(torch.Size((5,)))
    for make in (lambda: Cosine(0), lambda: RandomBands(0)):
        with pytest.raises(InputError, match="at least one"):
            make()
