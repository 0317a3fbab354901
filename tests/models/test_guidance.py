"""The shipped class-conditional network: its classes, its null class, guidance, and what is refused."""

from pathlib import Path

import pytest
import torch
from recipes.check_classes import classifier, share

import steindiff
from steindiff import initial_noise, models, sample
from steindiff.denoisers import forwards_per_call, guidance_of, schedule_of, sigma_data_of
from steindiff.errors import InputError
from steindiff.models.datasets import load_digits
from steindiff.schedules import VE

MODEL = models.load("digits_classes")
X = initial_noise(range(4), MODEL.event_shape, 2.0)
LABELS = torch.tensor([3, 1, 4, 1])
SIGMA = torch.tensor(1.5)


def test_a_guided_model_extrapolates_from_the_null_class():
    null, alone = MODEL.labelled(torch.tensor(10))(X, SIGMA), MODEL.labelled(LABELS)(X, SIGMA)
    assert torch.equal(MODEL.denoiser(X, SIGMA), null)
    assert float((alone - null).abs().max()) > 0.1
    guided = MODEL.guided(LABELS, 3)
    torch.testing.assert_close(guided(X, SIGMA), null + 3 * (alone - null))
    torch.testing.assert_close(MODEL.guided(LABELS, 1)(X, SIGMA), alone)
    assert torch.equal(MODEL.guided(LABELS, 0)(X, SIGMA), null)
    one = MODEL.guided(torch.tensor(1), 3.0)(X, SIGMA)
    torch.testing.assert_close(one[1], guided(X, SIGMA)[1], rtol=1e-4, atol=1e-4)


def test_a_guided_model_says_its_scale_its_cost_and_its_deviation():
    guided = MODEL.guided(LABELS, 3)
    assert (guidance_of(guided), forwards_per_call(guided)) == (3.0, 2)
    assert sigma_data_of(guided) == MODEL.info["sigma_data"]
    assert schedule_of(guided) == VE()
    few, enough = (sample("auto", guided, 40 * X, nfe=nfe) for nfe in (2, 7))
    assert (few.solver, enough.solver) == ("DDIM()", "universal table of 7 evaluations")
    assert (enough.stats.nfe, enough.stats.forward_equivalents) == (7, 14)


def test_samples_are_digits_of_the_class_that_was_asked_for():
    """With eight evaluations; by chance a tenth would be."""
    labels = torch.arange(100) % 10
    x = initial_noise(range(500, 600), MODEL.event_shape)
    machine = classifier(load_digits()[0])
    found = {w: share(machine, sample("auto", MODEL.guided(labels, w), x, nfe=8).x.clamp(-1, 1), labels).value for w in (1, 3)}
    assert found[1] >= 0.85
    assert found[3] >= 0.95


@pytest.mark.parametrize("name", ["digits", "cifar10_mixture"])
def test_a_model_without_a_null_class_cannot_be_guided(name):
    with pytest.raises(InputError, match=f"the model {name} has no null class.*label_dropout"):
        models.load(name).guided(torch.tensor(0), 2.0)


def test_a_scale_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="guidance=nan: need a finite scale of guidance"):
        MODEL.guided(LABELS, float("nan"))


def test_the_page_shows_how_a_model_is_guided():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    names = {"steindiff": steindiff, "labels": torch.tensor(3), "noise": initial_noise(range(2), MODEL.event_shape)}
    exec(page.split("## Guidance")[1].split("```python")[1].split("```")[0], names)
    assert names["images"].solver == "calibrated table of 8 evaluations"
