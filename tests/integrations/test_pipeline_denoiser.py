"""The denoiser of a pipeline is the pipeline: our DDIM on it ends where the pipeline's own loop ends."""

import copy
from dataclasses import dataclass

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

import steindiff as sd
from research import tiny_pipelines
from steindiff.denoisers import forwards_per_call, guidance_of, is_conditioned, schedule_of, sigma_data_of
from steindiff.errors import InputError
from steindiff.identity import network_of
from steindiff.integrations.diffusers import asking, denoiser, forward_derivatives

FLOWS = ("sd3", "flux", "flux_two_passes")
STEPS = 5


@dataclass
class Watched:
    """A pipeline's own run: its states before and after, and the levels of its steps in VE coordinates."""

    first: Tensor
    last: Tensor
    sigmas: Tensor


def _own_run(tiny, n, schedule, **call) -> Watched:
    """The pipeline by its own loop, with diffusers' DDIM or flow Euler, whose steps are those of our DDIM."""
    states, times = [], []
    flow = tiny.name in FLOWS
    kind = FlowMatchEulerDiscreteScheduler if flow else DDIMScheduler
    own = {} if flow else {"set_alpha_to_one": True, "timestep_spacing": "leading", "steps_offset": 0, "clip_sample": False}
    scheduler = kind(shift=1.0) if flow else DDIMScheduler.from_config(tiny.pipe.scheduler.config, **own)
    plain = scheduler.step

    def step(prediction, t, sample, *args, **kwargs):
        done = plain(prediction, t, sample, *args, **kwargs)
        times.append(float(t))
        states.append(sample)
        states.append(done[0] if isinstance(done, tuple) else done.prev_sample)
        return done

    scheduler.step = step
    tiny.pipe.scheduler = scheduler
    levels = {"sigmas": torch.linspace(0.97, 0.1, STEPS).tolist()} if flow else {}
    tiny.pipe(
        **{**tiny.call(n), **call}, **levels, num_inference_steps=STEPS, output_type="np",
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    return Watched(states[0][:n], states[-1][:n], torch.cat([schedule.ratio(torch.tensor(times).double()), torch.zeros(1)]))


def _agree(tiny, own, made, atol=2e-3):
    alpha = made.schedule.alpha_of(own.sigmas[0])
    ours = sd.sample("ddim", made, own.first / alpha.float(), own.sigmas)
    scale = own.last.std()
    torch.testing.assert_close(ours.x / scale, own.last / scale, rtol=0, atol=atol)
    return ours


@pytest.mark.parametrize("name", tiny_pipelines.names())
def test_our_ddim_on_the_denoiser_ends_where_the_pipeline_does(name):
    tiny = tiny_pipelines.make(name)
    made = denoiser(tiny.pipe, bounded=False, **tiny.call(3))  # where diffusers clips, it steps by the noise of before
    own = _own_run(tiny, 3, made.schedule, **({"strength": 1.0} if name == "img2img" else {}))
    if name == "img2img":  # the pipeline adds its noise to an image
        assert own.sigmas[0] < made.sigma_max
    assert made.event_shape == tiny.latents
    ours = _agree(tiny, own, made)
    assert ours.stats.nfe == STEPS
    assert ours.stats.forward_equivalents == STEPS * made.forwards


@pytest.mark.parametrize("name", tiny_pipelines.names())
def test_the_denoiser_says_what_it_is(name):
    tiny = tiny_pipelines.make(name)
    made = denoiser(tiny.pipe, **tiny.call(2))
    scale = 3.5 if name == "flux" else 3.0 if made.conditioned else 1.0
    assert guidance_of(made) == scale
    assert forwards_per_call(made) == (2 if made.conditioned and name != "flux" else 1)
    assert is_conditioned(made) == (tiny.prompted or tiny.classes > 0)
    assert made.images == (2 if made.conditioned else 1)
    assert schedule_of(made) is made.schedule
    assert sigma_data_of(made) == (0.5 if name in ("ddpm", "ddim") else 1.0)
    assert network_of(made) == network_of(tiny.network)
    assert made.setting.sigma_max == pytest.approx(_ends(name)[0], rel=1e-3)
    assert made.setting.sigma_min == pytest.approx(_ends(name)[1], rel=1e-3)
    assert made.noise(range(2)).shape == (2, *tiny.latents)


def _ends(name):
    """The first and the last level in VE coordinates."""
    if name in FLOWS:
        return 1000.0, 1 / 999
    if name == "ldm":
        return 83.82, 0.03876
    return (157.4, 0.01) if name in ("ddpm", "ddim", "dit", "pixart") else (14.61, 0.02917)


def test_the_pipeline_is_left_as_it_was():
    tiny = tiny_pipelines.make("sd1")
    scheduler, config, hooks = tiny.pipe.scheduler, dict(tiny.pipe.config), len(tiny.network._forward_hooks)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    denoiser(tiny.pipe, **tiny.call(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert tiny.pipe.scheduler is scheduler
    assert dict(tiny.pipe.config) == config
    assert len(tiny.network._forward_hooks) == hooks
    assert tiny.pipe._progress_bar_config == {"disable": True}
    with pytest.raises(ValueError, match="prompt"):  # an error of the pipeline itself
        denoiser(tiny.pipe, prompt="a fox", prompt_embeds=torch.zeros(1, 12, 16))
    assert tiny.pipe.scheduler is scheduler


@pytest.mark.parametrize("name", ["sd1", "sdxl", "pixart", "sd3", "flux", "flux_two_passes", "dit"])
def test_every_image_has_its_own_condition_and_some_may_be_taken(name):
    """Eleven images are recorded in two portions; the places of some, and one condition for all."""
    tiny = tiny_pipelines.make(name)
    made, x = denoiser(tiny.pipe, **tiny.call(11)), tiny.noise(11)
    whole, places = made(x, torch.tensor(1.0)), torch.tensor([8, 1, 10])
    torch.testing.assert_close(made.of(places)(x[places], torch.tensor(1.0)), whole[places], rtol=1e-4, atol=1e-5)
    one = denoiser(tiny.pipe, **{**tiny.call(11), **_first_of(tiny)})
    assert one.images == 1
    alike = one(x[:1].expand(3, *x.shape[1:]), torch.tensor(1.0))
    torch.testing.assert_close(alike, whole[:1].expand_as(alike), rtol=1e-4, atol=1e-5)
    other = one(x[1:2], torch.tensor(1.0))
    assert (other - whole[1]).norm() > 1e-3 * other.norm()
    with pytest.raises(InputError, match="3 images, and prompts or labels for 11"):
        made(x[:3], torch.tensor(1.0))


def _first_of(tiny):
    return {"prompt": tiny_pipelines.PROMPTS[0]} if tiny.prompted else {"class_labels": [0]}


def test_noise_levels_may_differ_in_a_batch():
    tiny = tiny_pipelines.make("sd2")
    made, x, sigmas = denoiser(tiny.pipe, **tiny.call(2)), tiny.noise(2), torch.tensor([0.5, 5.0])
    both = made(x, sigmas)
    for i in range(2):
        torch.testing.assert_close(made.of([i])(x[i : i + 1], sigmas[i]), both[i : i + 1], rtol=1e-4, atol=1e-5)


def test_the_negative_prompt_and_the_rescale_are_bound():
    tiny = tiny_pipelines.make("sd2")
    plain = denoiser(tiny.pipe, **tiny.call(2))
    call = {**tiny.call(2), "negative_prompt": ["fog", "ice"], "guidance_rescale": 0.7}
    made = denoiser(tiny.pipe, bounded=False, **call)
    assert made.asked.guidance.rescale == 0.7
    _agree(tiny, _own_run(tiny, 2, made.schedule, **call), made)
    x, sigma = tiny.noise(2), torch.tensor(2.0)
    assert (made(x, sigma) - plain(x, sigma)).norm() > 1e-2 * plain(x, sigma).norm()


def test_embeddings_serve_in_the_place_of_prompts():
    tiny = tiny_pipelines.make("sd1")
    embeds, negative = tiny.pipe.encode_prompt(tiny.call(2)["prompt"], "cpu", 1, True)
    by_words = denoiser(tiny.pipe, **tiny.call(2))
    by_numbers = denoiser(tiny.pipe, prompt_embeds=embeds, negative_prompt_embeds=negative, guidance_scale=3.0)
    x = tiny.noise(2)
    assert torch.equal(by_words(x, torch.tensor(2.0)), by_numbers(x, torch.tensor(2.0)))


def test_without_guidance_the_network_runs_once():
    tiny = tiny_pipelines.make("sd1")
    made = denoiser(tiny.pipe, **{**tiny.call(2), "guidance_scale": 1.0})
    assert (made.forwards, made.guidance, made.conditioned) == (1, 1.0, True)


@pytest.mark.parametrize("name", ["ddpm", "sd1", "dit", "pixart", "sd3", "flux"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_a_network_in_half_precision_serves_a_state_in_float32(name, dtype):
    tiny = tiny_pipelines.make(name)
    whole = denoiser(tiny.pipe, **tiny.call(2))
    pipe = type(tiny.pipe)(**{key: _copy_in(part, dtype) for key, part in tiny.pipe.components.items()})
    pipe.set_progress_bar_config(disable=True)
    half, x = denoiser(pipe, **tiny.call(2)), tiny.noise(2)
    assert half.dtype == dtype
    value, exact = half(x, torch.tensor(1.0)), whole(x, torch.tensor(1.0))
    assert value.dtype == torch.float32
    assert (value - exact).norm() < (0.01 if dtype == torch.float16 else 0.08) * exact.norm()


def _copy_in(part, dtype):
    return copy.deepcopy(part).to(dtype) if isinstance(part, torch.nn.Module) else part


@pytest.mark.parametrize("name", ["ldm", "sd1", "dit", "pixart", "sd3", "flux_two_passes"])
def test_derivatives_run_through_it(name):
    """In reverse mode as it is, in forward mode within `forward_derivatives`; both are what differences say."""
    tiny = tiny_pipelines.make(name)
    made = denoiser(tiny.pipe, **tiny.call(2))
    x, v, sigma = tiny.noise(2), tiny.noise(2, seed=1), torch.tensor(1.0)
    x = x.requires_grad_()
    (back,) = torch.autograd.grad((made(x, sigma) * v).sum(), x)
    with forward_derivatives():
        value, slope = torch.func.jvp(lambda z: made(z, sigma), (x.detach(),), (v,))
    torch.testing.assert_close(value, made(x, sigma).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((slope * v).sum(), (back * v).sum(), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        h = 1e-2
        differences = (made(x + h * v, sigma) - made(x - h * v, sigma)) / (2 * h)
    assert (differences - slope).norm() < 0.02 * slope.norm()


def test_forward_derivatives_are_what_attention_lacks():
    tiny = tiny_pipelines.make("sd1")
    made, x = denoiser(tiny.pipe, **tiny.call(2)), tiny.noise(2)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda z: made(z, torch.tensor(1.0)), (x,), (x,))


@pytest.mark.parametrize("how", [{}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": "bool"}, {"attn_mask": "float"}])
def test_plain_attention_is_torchs(how):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3))
    if how.get("attn_mask") == "bool":
        how = {"attn_mask": torch.rand(5, 5, generator=generator) > 0.3}
    elif how.get("attn_mask") == "float":
        how = {"attn_mask": torch.randn(5, 5, generator=generator)}
    attend = torch.nn.functional.scaled_dot_product_attention
    with forward_derivatives():
        plain = attend(q, k, v, **how)
    torch.testing.assert_close(plain, attend(q, k, v, **how), rtol=1e-5, atol=1e-6)
    few = k[:, :1], v[:, :1]
    with forward_derivatives():
        grouped = attend(q, *few, enable_gqa=True)
    torch.testing.assert_close(grouped, attend(q, *few, enable_gqa=True), rtol=1e-5, atol=1e-6)


def test_a_correction_that_differentiates_runs_on_it():
    tiny = tiny_pipelines.make("sd1")
    made = denoiser(tiny.pipe, **tiny.call(2))
    result = sd.sample(sd.Corrected("dpmpp_2m", "clamped"), made, made.noise([0, 1]), made.setting.karras(4))
    assert result.stats.vjps > 0
    assert result.x.isfinite().all()


@pytest.mark.parametrize("name", tiny_pipelines.names())
def test_images_are_those_of_the_pipelines_own_autoencoder(name):
    tiny = tiny_pipelines.make(name)
    made = denoiser(tiny.pipe, **tiny.call(2))
    last, plain = [], type(tiny.pipe.scheduler).step

    def step(*args, **kwargs):
        done = plain(tiny.pipe.scheduler, *args, **kwargs)
        last[:] = [done[0] if isinstance(done, tuple) else done.prev_sample]
        return done

    tiny.pipe.scheduler.step = step
    steps = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
    images = torch.from_numpy(tiny.pipe(**tiny.call(2), **steps).images).movedim(-1, 1)
    decoded = made.decode(last[0][:2])
    assert decoded.shape == images.shape
    torch.testing.assert_close((decoded + 1) / 2, images, rtol=0, atol=1e-5)


# A network alone


def test_a_network_alone_is_the_pipelines():
    tiny = tiny_pipelines.make("ldm")
    whole, alone = denoiser(tiny.pipe), denoiser(tiny.network, tiny.pipe.scheduler.config)
    x = tiny.noise(3)
    assert torch.equal(alone(x, torch.tensor(2.0)), whole(x, torch.tensor(2.0)))
    assert alone.event_shape == whole.event_shape
    assert not alone.conditioned
    assert torch.equal(alone.decode(x), x.clamp(-1, 1))


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_a_network_alone_takes_its_conditions(name):
    tiny = tiny_pipelines.make(name)
    call = {**tiny.call(2), **({"guidance_scale": 1.0} if name == "sdxl" else {})}
    whole = denoiser(tiny.pipe, **call)
    fixed = asking.plain(whole.asked.calls[0].fixed)
    conditions = {key: value for key, value in fixed.items() if value is not None}
    alone = denoiser(tiny.network, tiny.pipe.scheduler, event_shape=tiny.latents, **conditions)
    x = tiny.noise(2)
    torch.testing.assert_close(alone(x, torch.tensor(2.0)), whole(x, torch.tensor(2.0)))
    assert alone.conditioned
    assert alone.images == 2


# What is refused


def _inpainting():
    from diffusers import StableDiffusionInpaintPipeline

    parts = tiny_pipelines._sd_parts(DDIMScheduler(clip_sample=False, steps_offset=1))
    with torch.random.fork_rng(devices=[]):
        parts["unet"] = type(parts["unet"])(**{**dict(parts["unet"].config), "in_channels": 9})
    pipe = StableDiffusionInpaintPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 16)
    return pipe, {"prompt": "a fox", "image": image, "mask_image": image[:, :1].round(), "height": 16, "width": 16}


def test_a_network_that_sees_more_than_the_state_is_refused_by_name():
    pipe, call = _inpainting()
    with pytest.raises(InputError, match=r"StableDiffusionInpaintPipeline shows its network sample .*pass the network"):
        denoiser(pipe, **call)


def test_a_pipeline_that_combines_otherwise_is_refused():
    tiny = tiny_pipelines.make("sd1")

    class Other(type(tiny.pipe)):
        """Its guidance is none that we know."""

        def __call__(self, prompt, guidance_scale=2.0, num_inference_steps=4, generator=None):
            x = torch.randn(1, 4, 8, 8, generator=generator)
            text, negative = self.encode_prompt(prompt, "cpu", 1, True)
            self.scheduler.set_timesteps(num_inference_steps)
            for t in self.scheduler.timesteps:
                u, c = self.unet(torch.cat([x, x]), t, torch.cat([negative, text])).sample.chunk(2)
                self.scheduler.step(u + guidance_scale**2 * (c - u), t, x)

    pipe = Other(**tiny_pipelines._sd_parts(tiny.pipe.scheduler))
    with pytest.raises(InputError, match=r"Other makes one prediction of 2 in a way that we do not know \(scales \[2.0\]"):
        denoiser(pipe, prompt="a fox")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: denoiser(tiny_pipelines.make("sd1").pipe, prompt="a fox", prompts="a fox"), "takes no prompts"),
        (lambda: denoiser(tiny_pipelines.make("ddpm").network), "alone does not say its schedule"),
        (lambda: denoiser(tiny_pipelines.make("ddpm").network, 3), "scheduler is int"),
        (lambda: denoiser(torch.nn.Linear(2, 2), DDIMScheduler()), "we know networks of diffusers"),
        (lambda: denoiser(tiny_pipelines.make("ddpm").network, DDIMScheduler(), prompt="a fox"), "takes no prompt"),
        (lambda: denoiser("a fox"), "neither a pipeline of diffusers nor a network"),
        (lambda: denoiser(tiny_pipelines.make("ddpm").pipe, event_shape=(3, 8, 8)), "a pipeline says this itself"),
        (lambda: denoiser(tiny_pipelines.make("flux").network, DDIMScheduler()), "pass event_shape"),
        (lambda: denoiser(tiny_pipelines.make("ddpm").pipe, {"shape": 3}), "which we do not know"),
        (lambda: denoiser(tiny_pipelines.make("sd1").pipe, prompt=["a"] * 3).of([3]), "images 0 to 2"),
    ],
)
def test_bad_input_is_named(made, message):
    with pytest.raises(InputError, match=message):
        made()
