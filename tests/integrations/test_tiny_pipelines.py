"""What the other tests stand on: the tiny pipelines run, and their networks hear all that they are told."""

import inspect

import pytest
import torch

from research import tiny_pipelines

CONDITIONS = ("timestep", "encoder_hidden_states", "class_labels", "pooled_projections", "guidance", "added_cond_kwargs")


def _first_call(tiny):
    """The arguments of the network in the pipeline's first step, for 4 images, and the image that comes out in the end."""
    calls = []
    keep = tiny.network.register_forward_pre_hook(lambda module, args, named: calls.append((args, named)), with_kwargs=True)
    try:
        images = tiny.pipe(**tiny.call(4), num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np")
    finally:
        keep.remove()
    args, named = calls[0]
    return inspect.signature(tiny.network.forward).bind(*args, **named).arguments, images.images


def _other(name, value):
    """Another value of a condition."""
    if isinstance(value, dict):
        return {key: 2 * part for key, part in value.items()}
    if name == "timestep":
        return torch.as_tensor(value) / 3
    return 2 * value if name == "guidance" else value.roll(1, 0)


@pytest.mark.parametrize("name", tiny_pipelines.names())
def test_it_runs_and_its_network_hears_every_condition(name):
    tiny = tiny_pipelines.make(name)
    assert sum(p.numel() for p in tiny.network.parameters()) < 100_000
    called, images = _first_call(tiny)
    assert len(images) == 4
    assert torch.from_numpy(images).isfinite().all()
    x = "hidden_states" if "hidden_states" in called else "sample"

    @torch.no_grad()
    def output(**other):
        return tiny.network(**{**called, **other, "return_dict": False})[0][:, : called[x].shape[1]]

    prediction = output()
    assert 0.3 < prediction.std() < 3
    told = {key: value for key, value in called.items() if key in CONDITIONS and value is not None}
    assert ("encoder_hidden_states" in told) == tiny.prompted
    assert ("class_labels" in told) == (tiny.classes > 0)
    for key, value in {x: called[x].roll(1, 0), **{key: _other(key, value) for key, value in told.items()}}.items():
        change = (output(**{key: value}) - prediction).std() / prediction.std()
        assert change > (0.2 if key == x else 0.005), f"{key} changes {change:.3%}"


def test_pipelines_are_fresh_around_the_same_networks():
    one, two = tiny_pipelines.make("sd1"), tiny_pipelines.make("sd1")
    assert one.pipe is not two.pipe
    assert one.pipe.scheduler is not two.pipe.scheduler
    assert one.network is two.network
