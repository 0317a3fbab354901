"""The samplers for A1111's web UI and Forge, against a stand-in of how both keep theirs."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import steindiff as sd
import steindiff.integrations
import webui_standin as standin
from problems import MODEL

SIGMAS = sd.grids.with_zero(sd.grids.karras(4, 0.03, 14.6)).float()
TIMES = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.2, 0.0])
PAGE = (Path(__file__).parents[2] / "docs" / "integrations" / "comfyui.md").read_text()
SCRIPT = PAGE.split("<!-- script -->\n```python\n")[1].split("```")[0]
NAME = "steindiff.integrations.webui"


class Checkpoint:
    """A model as its CFGDenoiser presents it: guidance by `cond_scale` inside."""

    def __init__(self, kind=None, is_sd3=False):
        self.is_sd3 = is_sd3
        if kind is not None:
            model = SimpleNamespace(predictor=SimpleNamespace(prediction_type=kind))
            self.forge_objects = SimpleNamespace(unet=SimpleNamespace(model=model))
        self.flow = kind == "const" or is_sd3

    def __call__(self, x, sigma, cond, uncond, cond_scale, image_cond, s_min_uncond):
        y, s = x.double(), sigma.double()
        if self.flow:
            y, s = y / (1 - s[:, None]), s / (1 - s)
        none, some = (MODEL(y - shift, s) + shift for shift in (uncond, cond))
        return (none + cond_scale * (some - none)).to(x.dtype)


@pytest.fixture
def samplers(monkeypatch):
    """The web UI after it has run the extension's script."""
    samplers = standin.install(monkeypatch)
    exec(SCRIPT, {})
    yield samplers
    del sys.modules[NAME]  # the next test has another web UI
    del steindiff.integrations.webui


def draw(samplers, name, model, sigmas=SIGMAS, scale=1.0):
    sampler = samplers.create_sampler(name, model)
    top = 1.0 if float(sigmas[0]) == 1 else float(sigmas[0])
    x = top * torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    end = sampler.sample(x, sigmas, torch.full((4, 3), 0.2).double(), torch.zeros(4, 3).double(), scale)
    assert sampler.steps == [0, 1, 2, 3, 4]
    return x, end


def guided(scale):
    def D(x, sigma):
        none, some = (MODEL(x.double() - shift, sigma.double()) + shift for shift in (0.0, 0.2))
        return (none + scale * (some - none)).to(x.dtype)

    return D


def test_the_samplers_are_in_the_list_once(samplers):
    assert samplers.shown[:3] == ["Euler", "SteinDiff", "SteinDiff universal"]
    assert len(samplers.shown) == len(set(samplers.shown)) == len(samplers.all_samplers_map)
    assert samplers.all_samplers_map["SteinDiff unipc_3"].aliases == ["steindiff_unipc_3"]
    before = list(samplers.all_samplers)
    assert importlib.import_module(NAME).register() == samplers.shown[1:]
    assert samplers.all_samplers == before


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_auto_plans_for_the_scale_of_guidance(samplers, scale):
    x, end = draw(samplers, "SteinDiff", Checkpoint(), scale=scale)
    setting = sd.solvers.Setting(float(SIGMAS[0]), 0.0, 1.0, guidance=scale)
    torch.testing.assert_close(end, sd.sample("auto", guided(scale), x, nfe=5, setting=setting).x, rtol=1e-4, atol=1e-4)


def test_a_solver_of_the_list_runs_on_the_schedule_of_the_page(samplers):
    x, end = draw(samplers, "SteinDiff unipc_3", Checkpoint("epsilon"))
    torch.testing.assert_close(end, sd.sample("unipc_3", guided(1.0), x, SIGMAS).x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", [Checkpoint("const"), Checkpoint(is_sd3=True)])
def test_a_flow_is_seen_as_one(samplers, model):
    x, end = draw(samplers, "SteinDiff ipndm_4", model, TIMES)
    ratios = torch.cat([torch.tensor([1000.0]), (TIMES / (1 - TIMES))[1:]])
    torch.testing.assert_close(end, sd.sample("ipndm_4", guided(1.0), 1000 * x, ratios).x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("model", "flow"),
    [(Checkpoint("const"), True), (Checkpoint("v_prediction", is_sd3=True), False), (Checkpoint(), False), (object(), False)],
)
def test_what_says_that_a_checkpoint_is_a_flow(samplers, model, flow):
    assert sys.modules[NAME].is_flow(model) is flow
