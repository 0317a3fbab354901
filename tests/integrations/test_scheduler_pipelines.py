"""The scheduler in unmodified pipelines: what comes out is what `sample` makes of the pipeline's denoiser."""

import functools
import io

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline

from research import tiny_pipelines
from steindiff import sample
from steindiff.integrations.diffusers import SteindiffScheduler, denoiser
from steindiff.solvers import Tabulated


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


SPECS = [(name, "auto") for name in tiny_pipelines.names()]
SPECS += [(name, "unipc_2") for name in ("ddim", "dit", "flux_two_passes")]
SPECS += [(name, "heun") for name in ("ldm", "flux")]


@pytest.mark.parametrize(("name", "solver"), SPECS)
def test_latents_are_those_of_sample(name, solver):
    watched = Watched(name, solver=solver, guidance_scale=3.0)
    watched(4)
    expected = watched.reference()
    assert len(watched.seen) == expected.stats.nfe
    assert expected.stats.nfe == (2 if name == "img2img" else 4)
    scale = expected.x.std()
    torch.testing.assert_close(watched.outputs[-1][:2] / scale, expected.x / scale, rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("sd2", {"guidance_scale": 5.0, "guidance_rescale": 0.7}),
        ("sdxl", {"guidance_scale": 5.0, "guidance_rescale": 0.5}),
        ("pixart", {"guidance_scale": 1.0}),
    ],
)
def test_guidance_of_every_kind(name, call):
    watched = Watched(name, solver="dpmpp_2m")
    watched.tiny.extra.update(call)
    watched(4)
    expected = watched.reference()
    torch.testing.assert_close(watched.outputs[-1] / expected.x.std(), expected.x / expected.x.std(), rtol=0, atol=5e-4)


@pytest.mark.parametrize("correction", ["clamped(mode=tweedie)", "epsilon_scaling(b=1.02)"])
def test_corrected_latents_are_those_of_sample(correction):
    watched = Watched("sd1", solver="dpmpp_3m", correction=correction)
    watched(5)
    expected = watched.reference(correction=correction)
    torch.testing.assert_close(watched.outputs[-1] / expected.x.std(), expected.x / expected.x.std(), rtol=0, atol=1e-3)


def test_dit_hands_both_halves_of_guidance_to_the_step():
    """The doubled batch is a batch; both halves are the same image."""
    watched = Watched("dit", solver="unipc_3", guidance_scale=3.0)
    watched(4, n=3)
    assert {len(x) for x in watched.seen} == {6}
    assert torch.equal(watched.outputs[-1][:3], watched.outputs[-1][3:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_pipeline_in_half_precision(dtype):
    watched = Watched("ldm", solver="auto")
    watched.pipe.unet.to(dtype)
    try:
        latents, steps = watched.tiny.noise().to(dtype), watched.scheduler
        steps.set_timesteps(5)
        for t in steps.timesteps:
            latents = steps.step(watched.pipe.unet(latents, t).sample, t, latents).prev_sample
            assert latents.dtype == dtype
    finally:
        watched.pipe.unet.float()
    whole = watched.tiny.noise().to(dtype).float()
    steps.set_timesteps(5)
    for t in steps.timesteps:
        whole = steps.step(watched.pipe.unet(whole, t).sample, t, whole).prev_sample
    assert float((latents.float() - whole).abs().max() / whole.std()) < (0.02 if dtype == torch.float16 else 0.15)


@pytest.mark.parametrize(("solver", "nfe"), [("auto", 5), ("dpmpp_3s", 4)])
def test_the_progress_bar_and_callbacks_count_evaluations(solver, nfe):
    watched, bars, told = Watched("sd1", solver=solver, guidance_scale=3.0), [], []
    inner = watched.pipe.progress_bar

    def progress_bar(*args, **kwargs):
        bars.append(inner(*args, **kwargs))
        return bars[-1]

    def callback(pipe, i, t, values):
        told.append((i, float(t)))
        assert values["latents"].shape == (2, 4, 8, 8)
        return values

    watched.pipe.progress_bar = progress_bar
    watched.pipe.set_progress_bar_config(disable=False, file=io.StringIO())
    watched(nfe, callback_on_step_end=callback)
    assert [(bar.total, bar.n) for bar in bars] == [(nfe, nfe)]
    assert [i for i, _ in told] == list(range(nfe))
    assert [t for _, t in told] == watched.scheduler.timesteps.tolist()


def test_a_callback_may_change_the_latents():
    """The rest of the run starts from what it leaves."""
    ends = []
    for size in (0.0, 0.5):
        watched = Watched("sd1", solver="unipc_2")
        watched(4, callback_on_step_end=lambda pipe, i, t, values, size=size: {"latents": values["latents"] + size * (i == 1)})
        ends.append(watched.outputs[-1])
    assert float((ends[1] - ends[0]).abs().min()) > 1e-4


@pytest.mark.parametrize(("solver", "strength", "left"), [("auto", 0.6, 6), ("heun", 0.4, 4), ("auto", 1.0, 10)])
def test_the_strength_of_image_to_image_is_a_part_of_the_evaluations(solver, strength, left):
    watched = Watched("img2img", solver=solver, guidance_scale=3.0)
    watched.tiny.extra["strength"] = strength
    watched(10)
    assert len(watched.seen) == left
    whole = watched.scheduler.plan
    running = watched.scheduler._running.plan
    assert list(running.told) == list(whole.told[-left:])
    assert isinstance(running.solver, Tabulated) == (solver == "auto" and strength == 1.0)


def test_inpainting_keeps_what_is_outside_the_mask():
    """The pipeline rewrites latents outside the mask after every step, and ends with those of the image."""
    parts = tiny_pipelines.make("sd1").pipe.components
    pipe = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    ends = []
    for solver in ("auto", "unipc_2"):
        pipe.scheduler = SteindiffScheduler.from_config(parts["scheduler"].config, solver=solver, guidance_scale=3.0)
        latents = pipe(
            prompt="snow", image=image, mask_image=mask, height=16, width=16, num_inference_steps=6, strength=0.9,
            generator=torch.Generator().manual_seed(0), guidance_scale=3.0, output_type="latent",
        ).images  # fmt: skip
        ends.append(latents)
    clean = ends[0][..., :4]
    torch.testing.assert_close(clean, ends[1][..., :4])
    assert bool((ends[0][..., 4:] != ends[1][..., 4:]).all())


def test_a_run_may_stop_for_a_refiner():
    """`denoising_end` cuts the loop short; the latents are those of the whole run there, with the noise of the next time."""
    part, whole = (Watched("sdxl", solver="dpmpp_2m", grid="time_uniform", guidance_scale=3.0) for _ in range(2))
    part(8, denoising_end=0.5)
    whole(8)
    assert (len(part.seen), part.scheduler.step_index) == (4, 4)
    assert torch.equal(part.outputs[-1], whole.outputs[3])


def test_the_denoiser_of_a_pipeline_with_our_scheduler_is_that_of_its_config():
    """What our scheduler was told of the network, as that nothing is bounded, is said of the denoiser too."""
    watched = Watched("ddim", solver="ddim", bounded=False, sigma_data=0.7)
    made, plain = denoiser(watched.pipe), denoiser(watched.pipe, scheduler=watched.base, bounded=False, sigma_data=0.7)
    x, sigma = 3 * watched.tiny.noise(), torch.tensor(3.0)
    assert torch.equal(made(x, sigma), plain(x, sigma))
    assert made.sigma_data == plain.sigma_data == 0.7
    assert not torch.equal(made(x, sigma), denoiser(watched.pipe, scheduler=watched.base)(x, sigma))
