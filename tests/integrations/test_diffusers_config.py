"""What a scheduler's config says, against what diffusers' own schedulers make of the same config."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from steindiff.errors import InputError
from steindiff.integrations.diffusers import read
from steindiff.integrations.diffusers.bounds import Clip, Threshold
from steindiff.integrations.diffusers.config import FIRST_OF_FLOW
from steindiff.schedules import LogNoise, RectifiedFlow

# Euler's scheduler of ancestral steps asks numpy 2 for a copy in a way that it no longer takes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

WITH_BETAS = (
    DDIMScheduler, DDPMScheduler, PNDMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler,
    UniPCMultistepScheduler, DEISMultistepScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler, LMSDiscreteScheduler,
)  # fmt: skip
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _alpha_bar(convention, n):
    s = convention.schedule.ratio(torch.arange(n, dtype=torch.float64))
    return convention.schedule.alpha_of(s) ** 2


@pytest.mark.parametrize("scheduler", WITH_BETAS)
def test_the_table_of_every_class_is_its_own(scheduler):
    theirs = scheduler(**STABLE)
    convention = read(theirs.config)
    torch.testing.assert_close(_alpha_bar(convention, 1000).float(), theirs.alphas_cumprod, rtol=2e-5, atol=0)
    ratios = ((1 - theirs.alphas_cumprod) / theirs.alphas_cumprod).sqrt()
    assert convention.sigma_max == pytest.approx(float(ratios[-1]), rel=1e-5)
    assert convention.sigma_min == pytest.approx(float(ratios[0]), rel=1e-3)
    assert (convention.prediction, convention.from_noise) == ("epsilon", False)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
def test_every_schedule_of_betas(name):
    theirs = DDPMScheduler(beta_schedule=name, num_train_timesteps=200)
    torch.testing.assert_close(_alpha_bar(read(theirs.config), 200).float(), theirs.alphas_cumprod, rtol=2e-4, atol=1e-9)


def test_the_exponential_schedule_of_heun():
    theirs = HeunDiscreteScheduler(beta_schedule="exp", num_train_timesteps=100)
    torch.testing.assert_close(_alpha_bar(read(theirs.config), 100).float(), theirs.alphas_cumprod, rtol=1e-4, atol=0)


@pytest.mark.parametrize("given", [np.linspace(0.001, 0.02, 50), [0.01 + 0.001 * i for i in range(50)]])
def test_trained_betas(given):
    theirs = DDIMScheduler(trained_betas=given, num_train_timesteps=50)
    torch.testing.assert_close(_alpha_bar(read(theirs.config), 50).float(), theirs.alphas_cumprod, rtol=1e-5, atol=0)


def test_a_schedule_rescaled_to_zero_signal_starts_at_the_level_of_diffusers():
    theirs = DPMSolverMultistepScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", **STABLE)
    convention = read(theirs.config)
    torch.testing.assert_close(_alpha_bar(convention, 1000).float(), theirs.alphas_cumprod, rtol=1e-3, atol=0)
    assert convention.from_noise
    assert convention.sigma_max == pytest.approx(math.sqrt(2**24 - 1), rel=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "rest", [{}, {"clip_sample": True, "clip_sample_range": 0.7}, {"thresholding": True, "sample_max_value": 1.5}]
)
def test_the_denoised_value_is_that_of_diffusers(prediction, rest):
    theirs = DDIMScheduler(prediction_type=prediction, **{"clip_sample": False, **rest})
    theirs.set_timesteps(10)
    x, output = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).unbind()
    t = theirs.timesteps[3]
    convention, seen = read(theirs.config), []
    s = convention.schedule.ratio(t.double())
    denoiser = convention.denoiser(lambda x, t: seen.append((x, t)) or output)
    ours = denoiser(x / convention.schedule.alpha_of(s).float(), s)
    torch.testing.assert_close(ours, theirs.step(output, t, x).pred_original_sample, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0][0], x)
    assert seen[0][1].tolist() == pytest.approx([float(t)] * 2, rel=1e-6)


@pytest.mark.parametrize("scheduler", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_networks_get_their_preconditioning(scheduler, prediction):
    theirs = scheduler(prediction_type=prediction, sigma_data=0.7, sigma_max=40.0)
    theirs.set_timesteps(5)
    x, output = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).unbind()
    sigma, convention, seen = theirs.sigmas[2], read(theirs.config), []
    ours = convention.denoiser(lambda x, t: seen.append((x, t)) or output)(x, sigma)
    torch.testing.assert_close(ours, theirs.precondition_outputs(x, output, sigma))
    torch.testing.assert_close(seen[0][0], theirs.precondition_inputs(x, sigma))
    torch.testing.assert_close(seen[0][1], theirs.timesteps[2].expand(2))
    assert (convention.sigma_max, convention.sigma_min, convention.sigma_data) == (40.0, 0.002, 0.7)


def test_euler_with_continuous_times_is_told_log_noise():
    theirs = EulerDiscreteScheduler(
        timestep_type="continuous",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        use_karras_sigmas=True,
        **STABLE,
    )
    theirs.set_timesteps(4)
    x, output = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).unbind()
    convention, seen = read(theirs.config), []
    theirs.scale_model_input(x, theirs.timesteps[0])
    ours = convention.denoiser(lambda x, t: seen.append(t) or output)(x, theirs.sigmas[0])
    torch.testing.assert_close(ours, theirs.step(output, theirs.timesteps[0], x).pred_original_sample, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(seen[0], theirs.timesteps[0].expand(2))
    assert (convention.sigma_max, convention.sigma_min) == (700.0, 0.002)


@pytest.mark.parametrize(
    "theirs",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        FlowMatchHeunDiscreteScheduler(),
        DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
        UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_every_flow_is_a_rectified_flow_of_a_thousand_times(theirs):
    convention = read(theirs.config)
    assert (convention.schedule, convention.prediction, convention.from_noise) == (
        RectifiedFlow(1000.0),
        "flow_prediction",
        True,
    )
    assert convention.sigma_max == FIRST_OF_FLOW
    assert convention.sigma_min == pytest.approx(1 / 999)


def test_the_denoised_value_of_a_flow():
    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(4)
    x, output = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).unbind()
    t = theirs.sigmas[1].double()
    convention, seen = read(theirs.config), []
    ours = convention.denoiser(lambda x, t: seen.append(t) or output)(x / (1 - t).float(), t / (1 - t))
    torch.testing.assert_close(ours, x - t.float() * output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen[0], theirs.timesteps[1].expand(2))


def test_half_of_the_channels_may_be_a_variance():
    x = torch.ones(2, 3, 4, 4)
    double = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    learned = read(DDPMScheduler(variance_type="learned_range", clip_sample=False).config)
    silent = read(DDIMScheduler(clip_sample=False).config)
    fixed = read(DDPMScheduler(variance_type="fixed_small", clip_sample=False).config)
    mean = learned.denoiser(lambda x, t: double[:, :3])(x, torch.tensor(2.0))
    for convention in (learned, silent):
        assert torch.equal(convention.denoiser(lambda x, t: double)(x, torch.tensor(2.0)), mean)
    with pytest.raises(InputError, match="variance_type='learned_range'"):
        fixed.denoiser(lambda x, t: double)(x, torch.tensor(2.0))
    with pytest.raises(InputError, match=r"returned \(2, 5, 4, 4\) for \(2, 3, 4, 4\)"):
        learned.denoiser(lambda x, t: double[:, :5])(x, torch.tensor(2.0))


def test_what_the_data_are_is_guessed_from_the_bound_and_may_be_said():
    clips, latent = DDIMScheduler(clip_sample_range=1.5), DDIMScheduler(clip_sample=False)
    thresholds = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9)
    assert [read(s.config).sigma_data for s in (clips, latent, thresholds)] == [0.5, 1.0, 0.5]
    assert [read(s.config).bound for s in (clips, latent, thresholds)] == [Clip(1.5), None, Threshold(0.9, 1.0)]
    free = read(clips.config, bounded=False, sigma_data=0.3)
    assert (free.bound, free.sigma_data) == (None, 0.3)
    assert isinstance(read(EDMEulerScheduler().config).schedule, LogNoise)


def test_a_config_that_went_through_other_classes_keeps_its_meaning(tmp_path):
    """Hidden entries of one class stay in the config of the next, and classes are named only in files."""
    PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, **STABLE).save_pretrained(tmp_path)
    first = PNDMScheduler.from_pretrained(tmp_path)
    last = EulerDiscreteScheduler.from_config(DPMSolverMultistepScheduler.from_config(first.config).config)
    assert "skip_prk_steps" in last.config
    torch.testing.assert_close(_alpha_bar(read(last.config), 1000), _alpha_bar(read(first.config), 1000))


def _betas(**changes):
    return {**dict(DDIMScheduler(clip_sample=False).config), **changes}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_betas(original_inference_steps=50), r"original_inference_steps=50, which we do not know.*ignore="),
        (_betas(_class_name="LCMScheduler"), "unknown scheduler 'LCMScheduler'"),
        (_betas(prediction_type="score"), "unknown prediction_type 'score'"),
        (_betas(prediction_type="flow_prediction"), "set use_flow_sigmas=True"),
        (_betas(beta_schedule="square"), "unknown beta_schedule 'square'"),
        (_betas(beta_end=float("nan")), "beta_end=nan: need a finite number"),
        (_betas(beta_end=1.5), "inside"),
        (_betas(trained_betas=[0.1, 0.2]), r"trained_betas has shape \(2,\)"),
        (_betas(num_train_timesteps=1), "num_train_timesteps=1"),
        (_betas(variance_type="guessed"), "variance_type='guessed'"),
        (_betas(clip_sample="yes"), "clip_sample='yes': need true or false"),
        (_betas(clip_sample=True, clip_sample_range=-1.0), "clip_sample_range=-1.0"),
        (_betas(thresholding=True, dynamic_thresholding_ratio=2.0), "dynamic_thresholding_ratio=2.0"),
        (_betas(sigma_max=900.0), "those of the betas"),
        (_betas(shift=3.0), "shift=3.0 is of a flow"),
        (dict(FlowMatchEulerDiscreteScheduler(invert_sigmas=True).config), "invert_sigmas=True"),
        (_betas(use_flow_sigmas=True, sigma_max=3.0), "times in"),
        ({"num_train_timesteps": 1000}, "to know the noise schedule"),
        ({"sigma_data": 0.5, "solver_order": 2}, "CosineDPMSolverMultistepScheduler"),
        ({"sigma_data": 0.5, "sigma_min": 90.0}, "sigma_min < sigma_max"),
        ({"sigma_data": -1.0}, "positive standard deviation"),
        ("scheduler_config.json", "the config is str"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_refused_by_name(config, message):
    with pytest.raises(InputError, match=message):
        read(config)


def test_a_field_may_be_ignored():
    ignored = read(_betas(comment="mine"), ignore=("comment",))
    assert (ignored.prediction, ignored.sigma_max) == ("epsilon", read(_betas()).sigma_max)
