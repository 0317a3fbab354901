"""On the levels of diffusers' own schedulers our solvers give their images."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from research import tiny_pipelines
from steindiff.integrations.diffusers import SteindiffScheduler

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
N = 6


def _images(tiny, scheduler, latents, **call):
    tiny.pipe.scheduler = scheduler
    given = {
        **tiny.call(len(latents)),
        "latents": latents / getattr(scheduler, "init_noise_sigma", 1.0),
        "output_type": "latent",
        **call,
    }
    result = tiny.pipe(**given)
    return result.images if hasattr(result, "images") else result[0]


CASES = {
    "ddim": (DDIMScheduler(clip_sample=False, steps_offset=1, **STABLE), "ddim"),
    "ddim, v": (DDIMScheduler(clip_sample=False, prediction_type="v_prediction", **STABLE), "ddim"),
    "dpm++ 1": (DPMSolverMultistepScheduler(solver_order=1, **STABLE), "ddim"),
    "dpm++ 2m": (DPMSolverMultistepScheduler(**STABLE), "dpmpp_2m"),
    "dpm++ 2m, thresholded": (DPMSolverMultistepScheduler(thresholding=True, sample_max_value=2.0, **STABLE), "dpmpp_2m"),
    "dpm++ 3m": (DPMSolverMultistepScheduler(solver_order=3, **STABLE), "dpmpp_3m"),
    "unipc 1": (UniPCMultistepScheduler(solver_order=1, **STABLE), "unipc_1"),
    "unipc 2": (UniPCMultistepScheduler(solver_order=2, **STABLE), "unipc_2"),
    "unipc 3": (UniPCMultistepScheduler(solver_order=3, **STABLE), "unipc_3"),
    "unipc 2, bh1": (
        UniPCMultistepScheduler(solver_type="bh1", final_sigmas_type="sigma_min", **STABLE),
        "unipc_2(variant=bh1)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_stable_diffusion_gives_the_images_of_diffusers(name):
    theirs, solver = CASES[name]
    tiny = tiny_pipelines.make("sd1")
    expected = _images(tiny, theirs, tiny.noise(), num_inference_steps=N)
    ours = SteindiffScheduler.from_config(theirs.config, solver=solver, final=theirs.config.get("final_sigmas_type", "zero"))
    times = theirs.timesteps.tolist()
    # UniPC and DPM-Solver++ take their times for levels rounded to whole numbers, as the network is told them.
    got = _images(tiny, ours, tiny.noise(), timesteps=times)
    assert len(times) == N
    torch.testing.assert_close(got / expected.std(), expected / expected.std(), rtol=0, atol=2e-3)


def test_guidance_is_rescaled_as_in_diffusers():
    tiny, (theirs, solver) = tiny_pipelines.make("sd2"), CASES["dpm++ 2m"]
    theirs = DPMSolverMultistepScheduler.from_config(theirs.config, prediction_type="v_prediction")
    call = {"guidance_scale": 5.0, "guidance_rescale": 0.7}
    expected = _images(tiny, theirs, tiny.noise(), num_inference_steps=N, **call)
    ours = SteindiffScheduler.from_config(theirs.config, solver=solver, final="zero")
    got = _images(tiny, ours, tiny.noise(), timesteps=theirs.timesteps.tolist(), **call)
    torch.testing.assert_close(got / expected.std(), expected / expected.std(), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("kind", "solver"),
    [(EulerDiscreteScheduler, "ddim"), (HeunDiscreteScheduler, "heun"), (DPMSolverMultistepScheduler, "dpmpp_2m")],
)
def test_levels_may_be_given_as_noise(kind, solver):
    """Karras levels, σ/α, by `sigmas`. Euler's and Heun's own latents are in VE coordinates."""
    theirs = kind(use_karras_sigmas=True, **STABLE)
    theirs.set_timesteps(N)
    levels = theirs.sigmas.unique().flip(0).tolist()
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ours = SteindiffScheduler.from_config(theirs.config, solver=solver)
    ours.set_timesteps(sigmas=levels)
    alphas = [ours.convention.schedule.alpha_of(torch.tensor(s)) for s in (levels[0], 0.0)]

    def network(x, t):
        return 0.8 * torch.tanh(x) + 0.1 * torch.cos(torch.as_tensor(float(t)) / 300)

    ve = kind is not DPMSolverMultistepScheduler
    expected = levels[0] * x if ve else alphas[0] * levels[0] * x
    for t in theirs.timesteps:
        expected = theirs.step(network(theirs.scale_model_input(expected, t), t), t, expected).prev_sample
    got = alphas[0] * levels[0] * x
    for t in ours.timesteps:
        got = ours.step(network(got, t), t, got).prev_sample
    assert len(ours.timesteps) == len(theirs.timesteps)
    torch.testing.assert_close(got, expected, rtol=0, atol=0.02 if kind is DPMSolverMultistepScheduler else 2e-3)


@pytest.mark.parametrize("name", ["sd3", "flux", "flux_two_passes"])
@pytest.mark.parametrize("sigmas", [[0.97, 0.8, 0.5, 0.3], None])
def test_flows_give_the_images_of_diffusers(name, sigmas):
    """Their Euler is DDIM. At t = 1 we take t = 0.999, which the network is told."""
    tiny = tiny_pipelines.make(name)
    theirs, noise = tiny.pipe.scheduler, tiny.noise()
    steps = [1.0, 0.75, 0.5, 0.25] if sigmas is None else sigmas
    expected = _images(tiny, theirs, noise, sigmas=steps)
    ours = SteindiffScheduler.from_config(theirs.config, solver="ddim", final="zero")
    got = _images(tiny, ours, noise, **({"num_inference_steps": 4} if sigmas is None else {"sigmas": sigmas}))
    assert ours.sigmas.tolist() == pytest.approx(theirs.sigmas.tolist(), abs=1.1e-3 if sigmas is None else 1e-6)
    torch.testing.assert_close(got / expected.std(), expected / expected.std(), rtol=0, atol=2e-2 if sigmas is None else 2e-3)


def test_edm_gives_the_images_of_diffusers():
    theirs = EDMEulerScheduler(sigma_data=0.7)
    theirs.set_timesteps(N)
    levels = theirs.sigmas.tolist()
    ours = SteindiffScheduler.from_config(theirs.config, solver="ddim")
    ours.set_timesteps(sigmas=levels)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
    x = 80 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    got = float(ours.convention.schedule.alpha_of(torch.tensor(80.0))) * x

    def network(x, t):
        return torch.tanh(x) + 0.2 * float(t)

    for t, s in zip(theirs.timesteps, ours.timesteps, strict=True):
        x = theirs.step(network(theirs.scale_model_input(x, t), t), t, x).prev_sample
        got = ours.step(network(got, s), s, got).prev_sample
    torch.testing.assert_close(got, x, rtol=0, atol=1e-4)


def test_a_variance_in_the_output_is_left_out_as_diffusers_leaves_it_out():
    theirs = DPMSolverMultistepScheduler(variance_type="learned_range")
    theirs.set_timesteps(N)
    ours = SteindiffScheduler.from_config(theirs.config, solver="dpmpp_2m", final="zero")
    ours.set_timesteps(timesteps=theirs.timesteps.tolist())
    x = got = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    got = ours.init_noise_sigma * got
    x = got.clone()
    for t in theirs.timesteps:
        x = theirs.step(torch.cat([0.5 * x, torch.ones_like(x)], 1), t, x).prev_sample
    for t in ours.timesteps:
        got = ours.step(torch.cat([0.5 * got, torch.ones_like(got)], 1), t, got).prev_sample
    torch.testing.assert_close(got, x, rtol=0, atol=1e-3)
