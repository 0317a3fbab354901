"""The testbeds with names: the wine mixture, and a mixture and a network of the digits under guidance."""

from dataclasses import replace

import pytest
import torch

from steindiff import grids, models, sample, solvers
from steindiff.analytic import Gaussian
from steindiff.denoisers import forwards_per_call, guidance_of, schedule_of
from steindiff.errors import InputError
from steindiff.noise import initial_noise, mix
from steindiff.report.study import write_report
from steindiff.schedules import VE
from steindiff.study.draw import draw
from steindiff.study.grid import PRESETS
from steindiff.study.measure import References, Ruler, references
from steindiff.study.run import _shown, run_study
from steindiff.study.testbed import components, digits_mixture, make, names, wine_mixture

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


@pytest.mark.parametrize("name", ["wine", "cifar10_mixture"])
def test_other_mixtures_are_guided_to_a_component_too(name):
    """Components weighted by their responsibilities make the mixture."""
    whole, bed = make("wine_mixture" if name == "wine" else name), make(f"{name}_guided_4")
    law, sigma = whole.law, torch.tensor(1.5)
    assert (bed.law, bed.kind, bed.setting.guidance) == (None, "guided", 4)
    assert bed.setting.sigma_data == whole.setting.sigma_data
    x, parts = initial_noise([7], whole.event_shape, 2.0), components(law)
    values = torch.cat([part(x, sigma) for part in parts])
    weights = law.responsibilities(x, sigma)[0].reshape(-1, *[1] * (x.ndim - 1))
    torch.testing.assert_close((weights * values).sum(0, keepdim=True), law(x, sigma), rtol=1e-4, atol=1e-4)
    own = values[mix(7) % len(parts)]
    torch.testing.assert_close(bed.denoiser_for([7])(x, sigma)[0], 4 * own - 3 * law(x, sigma)[0], rtol=1e-4, atol=1e-4)


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


def test_a_network_is_guided_to_the_class_of_a_seed_as_the_law_is():
    model, bed, seeds = models.load("digits_classes"), make("digits_classes_guided_2.5"), range(40, 46)
    sigma, labels = torch.tensor(1.5), torch.tensor([mix(seed) % 10 for seed in seeds])
    assert torch.equal(bed.denoiser_for(seeds)(X, sigma), model.guided(labels, 2.5)(X, sigma))
    assert (bed.setting.guidance, bed.setting.sigma_data) == (2.5, model.info["sigma_data"])
    assert (bed.law, bed.kind, bed.event_shape) == (None, "guided network", (1, 8, 8))
    assert forwards_per_call(bed.denoiser_for(seeds)) == 2
    file = make(f"{model.path}_guided_2.5")
    assert file.name == bed.name
    assert file.digest == bed.digest != make("digits_classes_guided_2").digest != make("digits_classes").digest
    with pytest.raises(InputError, match="cifar10 has no null class"):
        make("cifar10_guided_3")


@pytest.mark.parametrize(("name", "classes"), [("digits_classes_guided_1", 10), ("digits", 0)])
def test_a_report_shows_one_image_of_each_class(name, classes):
    bed, seeds = make(name), range(200, 280)
    x = torch.linspace(-1, 1, 80)[:, None, None, None].expand(80, 1, 8, 8)  # the grey of an image says which it is
    ruler = Ruler(bed, References(x, x, x, "test"), seeds=seeds)
    shown = _shown(ruler, x)
    places = [int(g) for g in ((shown[:, 0, 0, 0].double() / 255) * 79).round()]
    if not classes:
        assert places == list(range(12))
        return
    labels = [mix(seed) % 10 for seed in seeds]
    assert [labels[i] for i in places] == list(range(10))
    assert places == [labels.index(c) for c in range(10)]


@pytest.mark.parametrize(("name", "steps", "error"), [("digits_guided_8", 200, 1e-4), ("digits_classes_guided_8", 50, 3e-3)])
def test_the_fine_runs_of_a_guided_denoiser_are_its_flow(name, steps, error):
    bed = make(name)
    assert bed.fine_steps == 200
    found = references(replace(bed, fine_steps=steps), range(8), checked=8)
    assert found.error is not None
    assert found.error < error
    assert f"{steps}-step" in found.how


def test_a_study_of_a_guided_network_runs_and_says_what_it_is(tmp_path):
    config = PRESETS["universal"].but({
        "beds": ["digits_classes_guided_3"], "solvers": ["ddim", "universal", "auto"], "grids": ["karras"], "nfe": [6, 7],
        "metrics": ["endpoint"], "n": 40, "checked": 0,
    })  # fmt: skip
    bed = replace(make("digits_classes_guided_3"), fine_steps=30)
    study = run_study(config, tmp_path, beds=[bed], progress=False)
    assert study.beds["digits_classes_guided_3"].kind == "guided network"
    error = {(c.solver, c.nfe): r.values["endpoint"].value for c, r in study.results.items()}
    assert error["universal", 7] < 0.5 * error["ddim", 7]
    assert error["auto", 7] == error["universal", 7]
    assert error["auto", 6] < error["universal", 6]  # it has a calibrated table
    write_report(tmp_path, study, {"rerun": "steindiff bench"})
    assert "digits_classes_guided_3: a trained network under guidance" in (tmp_path / "report.md").read_text()


def test_auto_knows_that_a_bed_is_guided():
    bed = make("digits_guided_5")
    x = initial_noise(range(2), bed.event_shape)
    few, enough = (sample("auto", bed.denoiser_for(range(2)), x, nfe=nfe).solver for nfe in (2, 4))
    assert (few, enough) == ("DDIM()", "universal table of 4 evaluations")


def test_all_beds_have_names():
    assert set(names()) > {"digits_mixture", "wine_mixture", "digits", "cifar10", "digits_guided_1", "digits_guided_8"}
    assert "digits_classes_guided_3" in names()
    with pytest.raises(InputError, match="digits_guided_x"):
        make("digits_guided_x")
