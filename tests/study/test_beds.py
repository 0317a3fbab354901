"""The testbeds with names: the wine mixture, and the digits mixture under guidance."""

import pytest
import torch

from steindiff import grids, sample, solvers
from steindiff.analytic import Gaussian
from steindiff.denoisers import guidance_of, schedule_of
from steindiff.errors import InputError
from steindiff.noise import initial_noise, mix
from steindiff.schedules import VE
from steindiff.study.draw import draw
from steindiff.study.measure import references
from steindiff.study.testbed import digits_mixture, make, names, wine_mixture

X = initial_noise(range(6), (1, 8, 8), 2.0)


def test_the_wine_law_is_standardised():
    law = wine_mixture()
    assert law.event_shape == (13,)
    assert len(law.weights) == 3
    assert law.mean.abs().max() < 1e-12
    assert law.sigma_data == pytest.approx(0.5, abs=0.01)
    bed = make("wine_mixture")
    assert bed.law is not None
    assert not bed.is_image
    assert bed.setting.sigma_data == pytest.approx(law.sigma_data, rel=1e-6)


def test_every_image_is_guided_to_the_class_of_its_seed():
    seeds, law, sigma = range(40, 46), digits_mixture().to(torch.float32), torch.tensor(1.5)
    found = make("digits_guided_3").denoiser_for(seeds)(X, sigma)
    for i, seed in enumerate(seeds):
        c = mix(seed) % 10
        alone = Gaussian(law.means[c], law.covariances[c])(X[i : i + 1], sigma)
        whole = law(X[i : i + 1], sigma)
        torch.testing.assert_close(found[i : i + 1], whole + 3 * (alone - whole), rtol=1e-4, atol=1e-4)
    assert len({mix(seed) % 10 for seed in range(100)}) == 10


def test_a_guided_bed_says_its_scale_and_the_whole_laws_deviation():
    one, many = make("digits_guided_1"), make("digits_guided_2.5")
    assert one.law is None
    assert many.setting.guidance == 2.5
    assert many.setting.sigma_data == pytest.approx(make("digits_mixture").setting.sigma_data)
    denoiser = many.denoiser_for(range(3))
    assert guidance_of(denoiser) == 2.5
    assert schedule_of(denoiser) == VE()
    assert one.digest != many.digest
    own = torch.tensor([0.5, 1.0, 4.0])
    each = torch.cat([many.denoiser_for([s])(X[s : s + 1], own[s]) for s in range(3)])
    torch.testing.assert_close(denoiser(X[:3], own), each, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="an image for each label"):
        denoiser(X, own[0])


def test_without_guidance_the_flow_is_that_of_the_class():
    bed = make("digits_guided_1")
    end = draw(solvers.make("unipc_3"), bed, grids.karras(60), [7]).samples
    law, c = digits_mixture(), mix(7) % 10
    exact = Gaussian(law.means[c], law.covariances[c]).flow(initial_noise([7], (1, 8, 8), dtype=torch.float64), 80.0, 0.002)
    assert float((end - exact).square().mean().sqrt()) < 1e-3


def test_the_fine_runs_of_a_guided_law_are_its_flow():
    found = references(make("digits_guided_8"), range(40), checked=8)
    assert found.error is not None
    assert found.error < 1e-4
    assert "200-step" in found.how


def test_auto_knows_that_a_bed_is_guided():
    bed = make("digits_guided_5")
    x = initial_noise(range(2), bed.event_shape)
    few, enough = (sample("auto", bed.denoiser_for(range(2)), x, nfe=nfe).solver for nfe in (4, 8))
    assert (few, enough) == ("DDIM()", "universal table of 8 evaluations")


def test_all_beds_have_names():
    assert set(names()) > {"digits_mixture", "wine_mixture", "digits", "cifar10", "digits_guided_1", "digits_guided_8"}
    with pytest.raises(InputError, match="digits_guided_x"):
        make("digits_guided_x")
