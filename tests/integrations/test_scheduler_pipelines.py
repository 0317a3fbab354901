"""The scheduler in unmodified pipelines: what comes out is what `sample` makes of the pipeline's denoiser."""

import functools

import pytest
import torch

import tiny_pipelines
from steindiff import sample
from steindiff.integrations.diffusers import SteindiffScheduler, denoiser


class Watched:
    """A pipeline with our scheduler, whose steps are noted: what the network was shown, and what came out."""

    def __init__(self, name, **options):
        self.tiny = tiny_pipelines.make(name)
        self.pipe = self.tiny.pipe
        self.base = self.pipe.scheduler
        self.scheduler = self.pipe.scheduler = SteindiffScheduler.from_config(self.base.config, **options)
        self.seen, self.outputs = [], []
        inner = self.scheduler.step

        @functools.wraps(inner)  # pipelines look at the names of its arguments
        def step(model_output, timestep, sample, *args, **kwargs):
            self.seen.append(sample)
            result = inner(model_output, timestep, sample, *args, **kwargs)
            self.outputs.append(result[0] if isinstance(result, tuple) else result.prev_sample)
            return result

        self.scheduler.step = step

    def __call__(self, nfe, n=2, seed=0, **call):
        generator = torch.Generator().manual_seed(seed)
        arguments = {**self.tiny.call(n), **call, "num_inference_steps": nfe, "generator": generator, "output_type": "np"}
        return self.pipe(**arguments)

    def reference(self, n=2, correction=None):
        """The end of `sample` from the same noise, with the same solver and the denoiser of the pipeline."""
        plan = self.scheduler._running.plan
        call = {key: value for key, value in self.tiny.call(n).items() if key != "batch_size"}
        made = Told(denoiser(self.pipe, scheduler=self.base, **call), plan.told)
        solver = plan.solver if correction is None else plan.corrected
        return sample(solver, made, plan.gain * self.seen[0][:n].float(), plan.sigmas)


class Told:
    """A denoiser that is told the levels that the scheduler tells: only the first of them is not the solver's own."""

    def __init__(self, inner, told):
        self.denoiser, self._told = inner, iter(told)

    def __call__(self, x, sigma):
        told = next(self._told)
        return self.denoiser(x, torch.tensor(told, dtype=torch.float64))


@pytest.mark.parametrize("solver", ["auto", "unipc_2", "heun"])
@pytest.mark.parametrize("name", tiny_pipelines.names())
def test_latents_are_those_of_sample(name, solver):
    watched = Watched(name, solver=solver, guidance_scale=3.0)
    watched(4)
    expected = watched.reference()
    assert len(watched.seen) == expected.stats.nfe
    assert expected.stats.nfe == (2 if name == "img2img" else 4)
    scale = expected.x.std()
    torch.testing.assert_close(watched.outputs[-1][:2] / scale, expected.x / scale, rtol=0, atol=5e-4)
