"""What diffusers expects of every scheduler, and the traps that its pipelines set for one."""

import copy
import inspect
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from research import tiny_pipelines
from steindiff.errors import InputError, NonFiniteError, StateWarning
from steindiff.integrations.diffusers import SteindiffScheduler, scheduler
from steindiff.solvers import Purpose, Table
from steindiff.solvers.table import save_all

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BASES = {
    "ddim": DDIMScheduler(clip_sample=False),
    "ddpm": DDPMScheduler(variance_type="learned_range"),
    "pndm": PNDMScheduler(skip_prk_steps=True, steps_offset=1, **STABLE),
    "dpm": DPMSolverMultistepScheduler(use_karras_sigmas=True, **STABLE),
    "unipc": UniPCMultistepScheduler(**STABLE),
    "euler": EulerDiscreteScheduler(timestep_spacing="trailing", **STABLE),
    "zero-snr": EulerDiscreteScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", **STABLE),
    "edm": EDMEulerScheduler(),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dynamic flow": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
}
SHAPE = (2, 3, 4, 4)


def _make(base="ddim", **options):
    return SteindiffScheduler.from_config(BASES[base].config, **options)


def _noise(dtype=torch.float32):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)


def _network(x, t):
    """Something smooth of x and t."""
    return (0.6 * torch.tanh(x.float()) + 0.1 * torch.sin(torch.as_tensor(float(t)))).to(x.dtype)


def _loop(made, x, network=_network, change=None, start=0, **kwargs):
    """The loop that every pipeline has; `change` may alter latents after a step."""
    for i, t in enumerate(made.timesteps[start:]):
        out = network(made.scale_model_input(x, t), t)
        x = made.step(out, t, x, **kwargs).prev_sample
        x = x if change is None else change(i, x)
    return x


def _run(made, n=5, x=None, **kwargs):
    made.set_timesteps(n, mu=0.8)
    return _loop(made, _noise() if x is None else x, **kwargs)


# Configs.


@pytest.mark.parametrize("base", BASES)
def test_every_setting_is_kept_and_comes_back_from_a_file(base, tmp_path):
    """A swallow-all constructor would leave values in the config that the scheduler does not follow."""
    theirs, made = BASES[base], _make(base, solver="dpmpp_3m", guidance_scale=2.0, ignore=("comment",))
    for name, value in theirs.config.items():
        if not name.startswith("_"):
            assert made.config[name] == value
    made.save_pretrained(tmp_path)
    again = SteindiffScheduler.from_pretrained(tmp_path)
    assert again.options == made.options
    assert {k: v for k, v in again.config.items() if k[0] != "_"} == {k: v for k, v in made.config.items() if k[0] != "_"}
    assert torch.equal(_run(again), _run(made))
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == "SteindiffScheduler"


def test_a_loaded_config_names_the_class_it_is_of(tmp_path):
    BASES["pndm"].save_pretrained(tmp_path)
    made = SteindiffScheduler.from_config(PNDMScheduler.from_pretrained(tmp_path).config, solver="ddim")
    assert made.config["_class_name"] == "SteindiffScheduler"
    assert SteindiffScheduler.from_config(made.config).options == made.options


def test_a_scheduler_goes_to_diffusers_and_back(caplog):
    made = _make("pndm", solver="unipc_3", guidance_scale=4.0)
    theirs = DPMSolverMultistepScheduler.from_config(made.config)
    assert (theirs.config.beta_schedule, theirs.config.beta_end) == ("scaled_linear", 0.012)
    back = SteindiffScheduler.from_config(theirs.config)
    assert back.options == made.options
    assert torch.equal(_run(back), _run(made))
    assert SteindiffScheduler.from_config(made.config, solver="ddim").options.guidance_scale == 4.0
    assert not caplog.records


def test_fields_of_the_config_may_be_changed_on_the_way():
    made = _make("ddim", prediction_type="v_prediction", solver="ddim")
    assert made.convention.prediction == made.config.prediction_type == "v_prediction"


def test_a_saved_pipeline_comes_back_with_it(tmp_path):
    tiny = tiny_pipelines.make("ddim")
    tiny.pipe.scheduler = SteindiffScheduler.from_config(tiny.pipe.scheduler.config, solver="dpmpp_2m")
    tiny.pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["steindiff.integrations.diffusers.scheduler", "SteindiffScheduler"]
    again = type(tiny.pipe).from_pretrained(tmp_path)
    # DDIMPipeline makes a DDIMScheduler of whatever it is given; the options survive in its config.
    assert isinstance(again.scheduler, DDIMScheduler)
    assert SteindiffScheduler.from_config(again.scheduler.config).options.solver == "dpmpp_2m"
    ldm = tiny_pipelines.make("ldm")
    ldm.pipe.scheduler = _make("ddim", solver="dpmpp_2m")
    ldm.pipe.save_pretrained(tmp_path / "ldm")
    assert isinstance(type(ldm.pipe).from_pretrained(tmp_path / "ldm").scheduler, SteindiffScheduler)


def test_ddim_pipelines_take_it_after_they_are_made():
    unet = tiny_pipelines.make("ddim").network
    pipe = DDIMPipeline(unet, _make("ddim"))
    assert isinstance(pipe.scheduler, DDIMScheduler)
    pipe.scheduler = _make("ddim")
    assert isinstance(pipe.scheduler, SteindiffScheduler)


def test_the_interface_that_pipelines_look_at():
    made = _make("dpm")
    assert {"eta", "generator", "use_clipped_model_output"} <= inspect.signature(made.step).parameters.keys()
    assert {"timesteps", "sigmas", "mu", "device"} <= inspect.signature(made.set_timesteps).parameters.keys()
    assert (made.order, len(made), made.step_index, made.begin_index) == (1, 1000, None, None)
    assert made.config.get("use_karras_sigmas") is True
    torch.testing.assert_close(made.alphas_cumprod, BASES["dpm"].alphas_cumprod, rtol=2e-5, atol=0)
    assert len(made.timesteps) == 1000
    copied = copy.deepcopy(made)
    assert torch.equal(_run(copied), _run(made))


# Runs.


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("n", [1, 4, 10])
@pytest.mark.parametrize("solver", ["auto", "dpmpp_3s"])
def test_inference_steps_are_evaluations(base, solver, n):
    made = _make(base, solver=solver)
    made.set_timesteps(n, mu=0.8)
    assert made.num_inference_steps == len(made.timesteps) == len(made.sigmas) - 1 == n
    assert made.timesteps.dtype == torch.float32
    assert bool((made.timesteps.diff() <= 0).all())
    assert bool(_loop(made, made.init_noise_sigma * _noise()).isfinite().all())
    assert made.step_index == n


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("solver", ["auto", "unipc_2"])
def test_latents_stay_in_the_networks_type_and_the_state_does_not(dtype, solver):
    seen = []
    made = _make("pndm", solver=solver)
    made.set_timesteps(6)
    x = _noise(dtype)
    for t in made.timesteps:
        result = made.step(_network(x, t), t, x)
        seen.append((result.prev_sample.dtype, result.pred_original_sample.dtype))
        x = result.prev_sample
    assert set(seen) == {(dtype, dtype)}
    assert made._running.run.x.dtype == torch.promote_types(dtype, torch.float32)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(x.float(), _run(made, 6), rtol=0, atol=max(30 * eps, 1e-4))


def test_tuples_and_outputs_say_the_same():
    made = _make()
    ends = []
    for form in (True, False):
        made.set_timesteps(3)
        x = _noise()
        for t in made.timesteps:
            result = made.step(_network(x, t), t, x, return_dict=form)
            x = result.prev_sample if form else result[0]
            assert result[1].shape == SHAPE
        ends.append(x)
    assert torch.equal(*ends)


def test_timesteps_go_to_the_device():
    made = _make()
    made.set_timesteps(3, device=torch.device("cpu"))
    assert made.timesteps.device.type == "cpu"
    made.set_timesteps(3, device="meta")
    assert (made.timesteps.device.type, made.sigmas.device.type) == ("meta", "cpu")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_what_the_network_predicts_does_not_matter(prediction):
    """The same denoised values, said in three ways, give the same images."""
    made = SteindiffScheduler.from_config(BASES["ddim"].config, prediction_type=prediction, solver="dpmpp_2m")
    made.set_timesteps(6)
    schedule = made.convention.schedule

    def network(x, t):
        s = schedule.ratio(t.double())
        alpha = schedule.alpha_of(s)
        sigma, x = alpha * s, x.double()
        clean = 0.3 * torch.tanh(x)
        eps = (x - alpha * clean) / sigma
        return {"epsilon": eps, "sample": clean, "v_prediction": alpha * eps - sigma * clean}[prediction]

    end = _loop(made, _noise(torch.float64), network)
    other = SteindiffScheduler.from_config(BASES["ddim"].config, prediction_type="sample", solver="dpmpp_2m")
    other.set_timesteps(6)
    torch.testing.assert_close(end, _loop(other, _noise(torch.float64), lambda x, t: 0.3 * torch.tanh(x)), rtol=0, atol=1e-6)


def test_trained_betas_are_followed():
    theirs = DDIMScheduler(trained_betas=torch.linspace(0.01, 0.3, 20).tolist(), num_train_timesteps=20, clip_sample=False)
    made = SteindiffScheduler.from_config(theirs.config, solver="ddim", grid="time_uniform")
    made.set_timesteps(4)
    assert made.timesteps.tolist() == pytest.approx([19, 14.25, 9.5, 4.75], abs=1e-3)


@pytest.mark.parametrize("base", ["ddim", "zero-snr", "flow"])
def test_noise_is_added_as_diffusers_adds_it(base):
    made, theirs = _make(base), BASES[base]
    theirs.set_timesteps(8)
    t = theirs.timesteps[[0, 4]]
    clean, noise = _noise(), torch.flip(_noise(), (0,))
    if base == "flow":
        expected, ours = theirs.scale_noise(clean, t, noise), made.scale_noise(clean, t, noise)
    else:
        expected, ours = theirs.add_noise(clean, noise, t), made.add_noise(clean, noise, t)
        if base == "zero-snr":  # Euler's latents are in VE coordinates
            expected = expected * made.convention.schedule.alpha(t.double()).float().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    assert made.add_noise(clean.half(), noise.half(), t[:1]).dtype == torch.float16


def test_noise_at_a_time_of_the_run_is_what_a_run_from_there_expects():
    """An exact denoiser of one image takes the noised image back to it."""
    made = _make("pndm", solver="dpmpp_2m", prediction_type="sample")
    made.set_timesteps(8)
    clean = _noise()
    for begin in (0, 3, 7):
        made.set_timesteps(8)
        made.set_begin_index(begin)
        x = made.add_noise(clean, torch.flip(clean, (0,)), made.timesteps[begin])
        left = _loop(made, x, lambda x, t: clean, start=begin) - clean
        assert float(left.abs().max()) < 4 * made.convention.sigma_min


@pytest.mark.parametrize(("base", "off"), [("pndm", 0.01), ("ddim", 0.01), ("flow", 0.04)])
def test_the_first_evaluation_is_told_where_noise_of_deviation_one_is_right(base, off):
    """Whatever noise a pipeline begins with is shown to the network, which a free step has not seen."""
    made = _make(base)
    made.set_timesteps(5)
    plan, schedule = made.plan, made.convention.schedule
    nominal = plan.evaluations[0].sigma
    assert 0 < abs(plan.told[0] / nominal - 1) < off
    assert plan.told[1:] == tuple(point.sigma for point in plan.evaluations[1:])
    state = plan.gain * plan.solver.rows[0].a
    assert float(schedule.alpha_of(torch.tensor(plan.told[0], dtype=torch.float64))) * state == pytest.approx(1, rel=1e-9)
    assert float(made.timesteps[0]) == pytest.approx(float(schedule.time(torch.tensor(plan.told[0]))), rel=1e-4)


@pytest.mark.parametrize(
    "theirs",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
        FlowMatchEulerDiscreteScheduler(shift=2.0, shift_terminal=0.1),
        UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0),
    ],
)
def test_the_levels_of_a_flow_are_shifted_as_in_diffusers(theirs):
    times = [0.97, 0.8, 0.5, 0.3]
    ours = SteindiffScheduler.from_config(theirs.config, solver="ddim", final="zero")
    mu = 0.7 if theirs.config.use_dynamic_shifting else None
    theirs.set_timesteps(sigmas=np.array(times), mu=mu)
    ours.set_timesteps(sigmas=times, mu=mu)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps.float(), rtol=0, atol=1.0)  # UniPC's are whole numbers


def test_bounds_may_be_switched_off():
    base = DDIMScheduler(clip_sample_range=0.5, prediction_type="sample").config
    for bounded, most in ((True, 0.5), (False, 2.0)):
        made = SteindiffScheduler.from_config(base, bounded=bounded, solver="ddim")
        made.set_timesteps(3)
        said = made.step(torch.full(SHAPE, 2.0), made.timesteps[0], _noise()).pred_original_sample
        assert float(said.max()) == most


def test_first_latents_of_another_scale_are_noticed():
    """Euler's own latents are x* + σ ε."""
    made = _make("euler", solver="ddim")
    with pytest.warns(StateWarning, match="root mean square of 15"):
        _run(made, 3, 14.6 * _noise())


# Traps.


@pytest.mark.parametrize("solver", ["unipc_2", "unipc_3", "heun", "dpmpp_2s", "dpmpp_3s", "dpmpp_3m", "ddim", "auto"])
def test_what_a_pipeline_changes_in_the_latents_is_not_forgotten(solver):
    """UniPC's corrector and Heun's second half go back to where their step began, and would forget it."""
    made, fixed = _make("pndm", solver=solver, prediction_type="sample"), torch.full(SHAPE, 0.3)

    def end(place, size):
        made.set_timesteps(6)
        return _loop(made, _noise(), lambda x, t: fixed, lambda i, x: x + size if i == place else x)

    for place in range(5):
        moved = (end(place, 1.0) - end(place, 0.0)).abs()
        assert bool((moved > 1e-5).all()), f"the change after step {place} is lost"


def test_a_change_of_the_latents_is_one_of_the_state():
    """With one evaluation a step, a pipeline that rewrites its latents starts the rest of the run from them."""
    made, other = _make("pndm", solver="ddim"), torch.flip(_noise(), (1,))
    made.set_timesteps(4)
    end = _loop(made, _noise(), change=lambda i, x: other if i == 1 else x)
    made.set_timesteps(4)
    made.set_begin_index(2)
    torch.testing.assert_close(_loop(made, other, start=2), end, rtol=0, atol=1e-5)


def test_an_unchanged_run_in_half_precision_keeps_the_whole_state():
    """The latents are rounded for the network; the state is not made of them."""
    made = _make("pndm", solver="dpmpp_2m", prediction_type="sample")
    halves, wholes = (_run(made, 8, _noise(dtype), network=lambda x, t: torch.full(SHAPE, 0.25).to(x)) for dtype in
                      (torch.float16, torch.float32))  # fmt: skip
    first = _noise(torch.float16).float() - _noise()
    assert float((halves.float() - wholes).abs().max()) <= float(first.abs().max()) + 2**-11


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_spacing_of_the_old_scheduler_moves_no_level(spacing):
    """Four steps of "leading" begin at t = 750, and diffusers' DDIM steps beside its own levels for the two others."""
    base = DDIMScheduler(timestep_spacing=spacing, clip_sample=False, **STABLE)
    made = SteindiffScheduler.from_config(base.config, solver="ddim")
    made.set_timesteps(4)
    assert float(made.timesteps[0]) == pytest.approx(999, abs=1e-3)
    clean, exact = torch.full(SHAPE, 0.4), SteindiffScheduler.from_config(made.config, prediction_type="sample")
    end = _run(exact, 4, network=lambda x, t: clean)  # a straight line to a level σ_min above the image
    expected = clean + exact.convention.sigma_min / exact.convention.sigma_max * (exact.plan.gain * _noise() - clean)
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["auto", "unipc_2", "restart(heun, low=0.5, high=2.0)"])
def test_inference_mode(solver):
    made = _make("pndm", solver=solver, correction="clamped(mode=tweedie)")
    n = 14 if "restart" in solver else 5
    with torch.inference_mode():
        inside = _run(made, n)
    assert torch.equal(inside.clone(), _run(made, n))


def test_a_generator_seeds_a_solver_that_draws_noise():
    made = _make("pndm", solver="restart(heun, low=0.5, high=2.0)")
    ends = [_run(made, 14, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_corrections_of_values_run_in_the_scheduler():
    plain = _run(_make("pndm", solver="dpmpp_2m"))
    for correction in ("tweedie", "energy(moment=20.0, significance=0.0)", "epsilon_scaling(b=1.01)"):
        assert not torch.equal(_run(_make("pndm", solver="dpmpp_2m", correction=correction)), plain)
    with pytest.raises(InputError, match=r"takes derivatives.*integrations\.diffusers\.denoiser"):
        _run(_make("pndm", solver="dpmpp_2m", correction="clamped"))


# Messages and errors.


def test_auto_says_once_what_it_takes(caplog):
    scheduler._once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            _make("pndm").set_timesteps(5)
        _make("pndm", solver="ddim").set_timesteps(5)
    assert len(caplog.records) == 1
    said = caplog.text
    for part in ("universal table of 5 evaluations", "sigma_data=1", "guidance_scale=1 (not said", "calibrate(pipe"):
        assert part in said
    _make("pndm", guidance_scale=3.0).set_timesteps(5)
    assert "not said" not in caplog.records[1].message


def _table(base="pndm", guidance=3.0, event=SHAPE[1:], nfe=5, **range_):
    ends = _make(base).convention
    table = Table.universal(nfe, **{"sigma_max": ends.sigma_max, "sigma_min": ends.sigma_min, "sigma_data": 1.0, **range_})
    purpose = Purpose("0123456789abcdef", event, guidance, True)
    return replace(table, solver=replace(table.solver, purpose=purpose, name="calibrated table"))


def test_a_calibrated_table_is_taken_from_a_file_or_a_folder(tmp_path, caplog):
    table = _table()
    path = table.save(tmp_path / "mine.safetensors")
    ends = [
        _run(_make("pndm", **{"table": str(where), "guidance_scale": w})) for where in (path, tmp_path) for w in (3.0, None)
    ]
    assert all(torch.equal(end, ends[0]) for end in ends)
    made = _make("pndm", table=str(path))
    made.set_timesteps(5)
    assert str(made.plan.solver) == "calibrated table of 5 evaluations"
    assert not caplog.records


@pytest.mark.parametrize(
    ("guidance", "changes", "message"),
    [
        (4.0, {}, "guidance 4: the calibrated tables are for 3"),
        (3.0, {"nfe": 4}, "has tables of 4 evaluations"),
        (3.0, {"sigma_max": 14.0}, "is for levels from 14 to"),
        (3.0, {"event": (4, 64, 64)}, r"calibrated for \(4, 64, 64\)"),
    ],
)
def test_a_table_for_something_else_is_refused(tmp_path, guidance, changes, message):
    path = _table(**changes).save(tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match=message):
        _run(_make("pndm", table=str(path), guidance_scale=guidance))


def test_tables_for_several_scales_need_one_said(tmp_path):
    path = save_all(tmp_path / "mine.safetensors", [_table(guidance=w) for w in (2.0, 4.0)])
    with pytest.raises(InputError, match="tables for guidance 2, 4: say which"):
        _run(_make("pndm", table=str(path)))
    _run(_make("pndm", table=str(path), guidance_scale=4.0))
    with pytest.raises(InputError, match=r"no \.safetensors file"):
        _run(_make("pndm", table=str(tmp_path / "..")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "dpmp_2m"}, "did you mean 'dpmpp_2m'"),
        ({"solver": Table.universal(5).solver}, "so that it can be saved"),
        ({"table": "x.safetensors", "solver": "ddim"}, "leave solver='auto'"),
        ({"final": "one"}, "sigma_min or zero"),
        ({"solvr": "ddim"}, "solvr='ddim', which we do not know"),
        ({"solver": "universal"}, "there are universal tables for"),
        ({"solver": "pndm"}, "takes 12 evaluations"),
        ({"guidance_scale": "3"}, "guidance_scale='3'"),
        ({"sigma_data": -1.0}, "sigma_data=-1.0: need a positive number"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        _make("pndm", **options).set_timesteps(11 if options.get("solver") == "pndm" else 60)


def test_steps_out_of_order_are_refused():
    made, x = _make("pndm", solver="dpmpp_2m"), _noise()
    with pytest.raises(InputError, match="call set_timesteps before step"):
        made.step(x, 999, x)
    made.set_timesteps(4)
    t = made.timesteps
    with pytest.raises(InputError, match="none of the times of set_timesteps"):
        made.step(x, 500.5, x)
    x = made.step(x, t[0], x).prev_sample
    with pytest.raises(InputError, match=r"timestep=999 at evaluation 1, where 785.* is next"):
        made.step(x, t[0], x)
    with pytest.raises(InputError, match="at evaluation 1"):
        made.step(x, t[2], x)
    with pytest.raises(InputError, match=r"latents of shape \(1, 3, 4, 4\) at evaluation 1, and \(2, 3, 4, 4\) before"):
        made.step(x[:1], t[1], x[:1])
    with pytest.raises(InputError, match=r"returned \(2, 4, 4, 4\)"):
        made.step(torch.zeros(2, 4, 4, 4), t[1], x)
    for i in (1, 2, 3):
        x = made.step(x, float(t[i]), x).prev_sample
    with pytest.raises(InputError, match="has 4 evaluations and is over"):
        made.step(x, t[3], x)
    made.set_timesteps(4)
    with pytest.raises(InputError, match="leave eta at 0"):
        made.step(x, t[0], x, eta=0.5)


def test_set_timesteps_needs_one_thing():
    made = _make("pndm", solver="dpmpp_2m")
    for call, message in (
        ({}, "give the number of evaluations"),
        ({"timesteps": [9, 5], "sigmas": [3.0, 1.0]}, "not both"),
        ({"num_inference_steps": 3, "timesteps": [900, 400]}, "these levels are 2 evaluations"),
        ({"sigmas": [20.0, 1.0]}, "trained up to sigma = 14.61"),
        ({"sigmas": [1.0, 2.0]}, "strictly decreasing"),
        ({"num_inference_steps": 0}, "at least one"),
    ):
        with pytest.raises(InputError, match=message):
            made.set_timesteps(**call)
    with pytest.raises(InputError, match="chooses its own levels"):
        _make("pndm").set_timesteps(timesteps=[900, 400])
    with pytest.raises(InputError, match="needs mu"):
        _make("dynamic flow", solver="ddim").set_timesteps(4)
    _make("dynamic flow", solver="auto").set_timesteps(4)


def test_a_run_that_ends_in_nan_says_so():
    made = _make("pndm", solver="ddim")
    with pytest.raises(NonFiniteError, match="float16 overflows"):
        _run(made, 3, network=lambda x, t: x * float("nan"))


@pytest.mark.parametrize(("solver", "n"), [("dpmpp_2m", 4), ("dpmpp_2m", 1), ("heun", 5), ("auto", 5), ("unipc_3", 3)])
@pytest.mark.parametrize("base", ["pndm", "flow"])
def test_a_run_may_end_at_zero(solver, n, base):
    """The last step takes what the network says, so that nothing is left of the noise."""
    made = (
        _make(base, solver=solver, final="zero", prediction_type="sample")
        if base == "pndm"
        else _make(base, solver=solver, final="zero")
    )
    made.set_timesteps(n)
    assert (float(made.sigmas[-1]), len(made.timesteps)) == (0.0, n)
    clean = torch.full(SHAPE, 0.3)
    level = dict(zip(made.timesteps.tolist(), made.sigmas.tolist(), strict=False))
    network = (lambda x, t: clean) if base == "pndm" else (lambda x, t: (x - clean) / level[float(t)])
    if solver != "auto":  # a table is no consistent method for an image far off the data's mean
        torch.testing.assert_close(_loop(made, made.init_noise_sigma * _noise(), network), clean, rtol=0, atol=2e-4)


def test_a_solver_that_cannot_end_at_zero_says_so():
    with pytest.raises(InputError, match="4 evaluations: this solver spends another number in a run to zero"):
        _make("pndm", solver="heun", final="zero").set_timesteps(4)


def test_a_start_in_the_middle_of_a_step_is_refused():
    made = _make("pndm", solver="heun")
    made.set_timesteps(6)
    made.set_begin_index(1)
    with pytest.raises(InputError, match="its steps begin at 0, 2, 4; choose a strength"):
        made.step(_noise(), made.timesteps[1], _noise())
