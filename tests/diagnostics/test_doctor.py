"""The doctor: a denoiser that is understood rightly is called so, and each way to get it wrong is seen."""

import math

import pytest
import torch

from steindiff import models
from steindiff.analytic import Gaussian
from steindiff.denoisers import FromEps, FromFlow, FromV, FromX0, declare, prediction_of
from steindiff.diagnostics import doctor
from steindiff.divergence import Exact
from steindiff.grids import karras
from steindiff.report.doctor import verdict
from steindiff.schedules import VE, DiscreteBetas, RectifiedFlow
from steindiff.solvers import Setting

LAW = Gaussian(torch.tensor([1.0, -1.0, 0.5]), torch.diag(torch.tensor([0.5, 0.1, 0.02])))
DDPM = DiscreteBetas.linear()


def noise_predicting(schedule):
    """The network of the law that predicts ε under this schedule."""

    def network(x, t):
        alpha, s = (f(t).to(x)[:, None] for f in (schedule.alpha, schedule.ratio))
        return (x / alpha - LAW(x / alpha, s[:, 0])) / s

    return network


def examined(denoiser, **options):
    setting = Setting.of(denoiser, 80.0, 0.02, event=(3,))
    return doctor.examine(denoiser, setting, nfe=(4,), images=128, **options)


def test_a_right_adapter_is_called_right():
    found = examined(FromEps(noise_predicting(DDPM), DDPM))
    assert found.sound, found
    assert len(found.levels) == doctor.LEVELS
    assert "at every level tried" in verdict(found)
    facts = {fact.what: fact.value for fact in found.facts}
    assert facts["prediction"] == "FromEps"
    assert facts["schedule"] == "DiscreteBetas(1000 indices, σ/α from 0.01 to 157.4)"
    assert facts["guidance"] == "none"


@pytest.mark.parametrize(
    "wrong",
    [
        FromEps(noise_predicting(DDPM), DiscreteBetas.scaled_linear()),
        FromV(noise_predicting(DDPM), DDPM),
        FromX0(noise_predicting(DDPM), DDPM),
        FromFlow(noise_predicting(DDPM), RectifiedFlow()),
    ],
    ids=["schedule", "v", "x0", "flow"],
)
def test_a_wrong_adapter_is_seen(wrong):
    found = examined(wrong)
    assert not found.sound
    assert found.complaint or "It is not consistent: told σ" in verdict(found)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_told_half_or_twice_the_noise_is_measured_as_such(factor):
    """Of a law of unit variance (σ̂/σ)² = c² (1 + σ²)/(1 + c² σ²): c where σ is small, and 1 where it is large."""
    law, x0 = Gaussian(torch.zeros(4), torch.eye(4)), torch.randn(4096, 4, generator=torch.Generator().manual_seed(0))
    sigmas = (0.05, 1.0, 100.0)
    levels = doctor.told_and_seen(lambda x, sigma: law(x, factor * sigma), x0, sigmas, Exact())
    for sigma, level in zip(sigmas, levels, strict=True):
        assert level.ratio == pytest.approx(factor * math.sqrt((1 + sigma**2) / (1 + factor**2 * sigma**2)), rel=0.03)


def test_a_denoiser_outside_torch_is_examined_by_differences():
    found = examined(declare(lambda x, sigma: torch.from_numpy(LAW(x, sigma).detach().numpy()), schedule=VE()))
    assert found.derivatives.method == "fd"
    assert found.derivatives.costs["vjp"] is None
    assert found.sound


def test_a_denoiser_that_overflows_is_told_so():
    found = examined(declare(lambda x, sigma: x * float("nan"), schedule=VE()))
    assert "NaN or infinite" in found.complaint
    assert not found.sound


def test_a_level_that_it_acts_for_is_named_or_there_is_none():
    levels = [doctor.Level(sigma, ratio, 1.0, 1.0) for sigma, ratio in ((8.0, 1.0), (4.0, 3.0), (2.0, 0.5), (1.0, math.nan))]
    named, none = (verdict(doctor.Examination((), tuple(levels[:n]), None, ())) for n in (3, 4))
    assert named.startswith("It is not consistent: told σ = 4 it acts as for 3 times as much.")
    assert none.startswith("It is not consistent: told σ = 1 what it takes off is no noise.")


def test_what_auto_takes_has_its_reason():
    model = models.load("digits")
    usual, low = (Setting.of(model.denoiser, top, event=model.event_shape) for top in (80.0, 2.0))
    own, universal, plain = (doctor.taken(*pair) for pair in ((4, usual), (12, usual), (4, low)))
    assert (own.solver, own.reason) == ("calibrated table of 4 evaluations", "a table was calibrated on this network")
    assert universal.solver == "universal table of 12 evaluations"
    assert "there is a universal one" in universal.reason
    assert "there is no table: sigma_max/sigma_data" in plain.reason
    assert plain.levels == tuple(karras(4, sigma_max=2.0).tolist())
    assert (len(own.levels), own.levels[0], own.levels[-1]) == (6, 80.0, 0.002)


def test_the_adapter_is_found_under_wrappers():
    adapter = FromV(lambda x, t: x, DDPM)
    assert prediction_of(declare(adapter, schedule=DDPM)) == "FromV"
    assert prediction_of(LAW) is None


def test_the_machine_names_what_is_installed_and_what_is_not(monkeypatch):
    monkeypatch.setattr(doctor, "LIBRARIES", ("torch", "no-such-library"))
    facts = {fact.what: fact.value for fact in doctor.machine()}
    assert facts["torch"] == torch.__version__
    assert facts["no-such-library"] == "not installed"
    assert "math has a forward-mode derivative" in facts["attention"]
