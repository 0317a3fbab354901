"""Spectrum errors: known ratios of power, scipy's transform, standard errors against repeated draws."""

import math

import pytest
import torch
from scipy.fft import dctn

from steindiff.corrections.bands import Channels, Cosine, Whole
from steindiff.errors import InputError
from steindiff.metrics import spectrum
from steindiff.metrics.spectrum import SpectrumTarget, spectrum_error
from steindiff.metrics.values import Value

BANDS = Cosine(4)
EVENT = torch.Size((1, 8, 8))


def _images(seed: int, n: int, gains: list[float] | None = None) -> torch.Tensor:
    """White noise, its bands scaled."""
    white = torch.randn(n, *EVENT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return white if gains is None else BANDS.scale(white, torch.tensor(gains, dtype=torch.float64))


def test_scaled_bands_give_their_ratios_exactly():
    y = _images(0, 20)
    gains = [1.0, 1.1, 0.5, 2.0]
    got = SpectrumTarget(y, BANDS).spectrum(BANDS.scale(y, torch.tensor(gains, dtype=torch.float64)))
    expected = [2 * math.log(gain) for gain in gains]
    torch.testing.assert_close(got.ratios, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert got.rms.distance == pytest.approx(math.sqrt(sum(r * r for r in expected) / 4), rel=1e-12)
    assert len(got) == len(got.values) == 4
    assert [got.error(b).distance for b in range(4)] == pytest.approx([abs(r) for r in expected])
    same = SpectrumTarget(y, BANDS).spectrum(y)
    assert same.rms.value == Value(0.0, 0.0)


def test_power_is_that_of_scipys_transform(monkeypatch):
    x, y = _images(0, 11, [1.0, 2.0, 1.0, 0.7]), _images(1, 9)
    powers = [(dctn(z[:, 0].numpy(), axes=(1, 2), norm="ortho") ** 2).mean(0).reshape(-1) for z in (x, y)]
    labels = BANDS.labels(EVENT).numpy()
    expected = [math.log(powers[0][labels == b].sum() / powers[1][labels == b].sum()) for b in range(4)]
    for rows in (4, 1024):
        monkeypatch.setattr(spectrum, "ROWS", rows)
        assert SpectrumTarget(y, BANDS).spectrum(x).ratios.tolist() == pytest.approx(expected, rel=1e-10)


def test_standard_errors_agree_with_the_spread_of_repeated_draws():
    draws = [SpectrumTarget(_images(2 * i, 60), BANDS).spectrum(_images(2 * i + 1, 50, [1, 1.2, 0.8, 1.5])) for i in range(80)]
    columns = [[s.values[b] for s in draws] for b in range(4)] + [[s.rms.value for s in draws]]
    for column in columns:
        spread = float(torch.tensor([v.value for v in column]).std())
        assert 0.75 < sum(v.se for v in column) / len(column) / spread < 1.3


def test_paired_differences_are_sharper():
    target = SpectrumTarget(_images(0, 60), BANDS)
    x = _images(1, 50, [1, 1.2, 0.8, 1.5])
    got, base = target.spectrum(x), target.spectrum(x * 1.02 + 0.01 * _images(2, 50))
    for here, there in [(got.rms, base.rms), (got.error(3), base.error(3)), (got.band(2), base.band(2))]:
        difference = here.minus(there)
        assert difference.value == pytest.approx(here.distance - there.distance, abs=1e-12)
        assert 0 < difference.se < 0.3 * here.value.se
    assert got.error(3).minus(base.error(3)).value < 0
    assert got.error(2).minus(base.error(2)).value > 0  # band 2 is too weak: 1.02 brings the base nearer


def test_colour_images_have_luma_and_chroma_and_other_bands_serve():
    x = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert len(SpectrumTarget(x).spectrum(2 * x)) == len(Cosine(8).sizes(x.shape[1:]))
    assert spectrum_error(2 * x, x).value == pytest.approx(math.log(4), rel=1e-6)
    assert spectrum_error(3 * x, x, Channels()).value == pytest.approx(math.log(9), rel=1e-6)
    latents = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    assert spectrum_error(2 * latents, latents, Whole()).value == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectrum_error(torch.zeros(5, 1, 8, 8), torch.ones(1, 1, 8, 8)), "at least 2"),
        (lambda: spectrum_error(torch.ones(5, 1, 8, 8), torch.ones(5, 1, 9, 8)), "need the same"),
        (lambda: spectrum_error(torch.ones(5, 2, 8, 8), torch.ones(5, 2, 8, 8)), "use Channels"),
        (lambda: spectrum_error(_images(0, 5), torch.zeros(5, 1, 8, 8)), "use fewer bands"),
        (lambda: SpectrumTarget(_images(0, 5)).spectrum(SpectrumTarget(_images(0, 5), BANDS)), "need the same"),
    ],
)
def test_what_has_no_ratio_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
