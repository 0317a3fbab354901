"""The study of pipelines at few evaluations: what it compares, and the table that it shows."""

import pytest
import torch

from research import pipelines, tiny_pipelines
from steindiff.calibration import Options, Settings
from steindiff.integrations.diffusers import SteindiffScheduler


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small = Options(steps=8, settings=Settings(iterations=1, patience=1))
    for name, value in {"NFE": 2, "FINE": 6, "IMAGES": 3, "TRAJECTORIES": 8, "HOW": small}.items():
        monkeypatch.setattr(pipelines, name, value)
    monkeypatch.setattr(pipelines, "FLOW", ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "UniPCMultistep"))


def test_one_pipeline_has_all_numbers_and_a_row():
    found = pipelines.measure("flux")
    assert found["evaluations"] == 2
    assert [one["name"] for one in found["others"]] == [
        "FlowMatchEulerDiscrete",
        "UniPCMultistep",
    ]  # Flux tells Heun its levels
    assert all(len(one["errors"]) == 3 and one["evaluations"] <= 2 for one in found["others"])
    (row,) = pipelines.lines({"flux": found})
    assert len(row) == len(pipelines.COLUMNS)
    assert "FluxPipeline" in row[0]


def test_a_training_by_steps_is_repeated_to_the_bit():
    first, again, longer = (pipelines.trained(tiny_pipelines.make("ddpm"), steps).network.state_dict() for steps in (2, 2, 3))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, longer[name]) for name, value in first.items())
    assert list(pipelines.passed(4)) == [0.0, 0.25, 0.5, 0.75]


def test_every_variant_is_one_that_the_scheduler_takes():
    config = tiny_pipelines.make("sd1").pipe.scheduler.config
    assert len(list(pipelines.settings("UniPCMultistep", config))) == 6
    assert [more.get("timestep_spacing") for more in pipelines.settings("DDIM", config)] == list(pipelines.SPACINGS)
    flow = tiny_pipelines.make("sd3").pipe.scheduler.config
    assert list(pipelines.settings("FlowMatchEulerDiscrete", flow)) == [{}]
    (only,) = pipelines.settings("UniPCMultistep", flow)
    assert only["flow_shift"] == 3.0


def test_the_ends_are_those_of_the_pipelines_own_loop():
    tiny = tiny_pipelines.make("sd3")
    end, count = pipelines.ends(tiny, SteindiffScheduler.from_config(tiny.pipe.scheduler.config), 4)
    assert count == 4
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    tiny.pipe.scheduler = SteindiffScheduler.from_config(tiny.pipe.scheduler.config)
    own = tiny.pipe(**tiny.call(3), num_inference_steps=4, generator=generators, output_type="latent").images
    torch.testing.assert_close(end.float(), own, rtol=1e-5, atol=1e-5)
