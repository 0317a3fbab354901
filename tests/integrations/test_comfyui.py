"""The nodes for ComfyUI, against a stand-in of what it documents."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import comfy_standin as standin
import steindiff as sd
from problems import MODEL
from steindiff.errors import InputError
from steindiff.solvers.table import load_all

PACKAGE = Path(sd.__file__).parent / "integrations" / "comfyui"
SHAPE = (1, 1, 3)  # latents (B, C, H, W) of three numbers
SIGMAS = sd.grids.with_zero(sd.grids.karras(4, 0.03, 14.6)).float()
TIMES = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.2, 0.0])
PROMPTS = standin.conditioning([0.3, -0.2, 0.1]), standin.conditioning([0.0, 0.0, 0.0])


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """ComfyUI, with the nodes loaded as it loads a folder of custom_nodes."""
    comfy = standin.install(monkeypatch, tmp_path / "models")
    folder = tmp_path / "custom_nodes" / "steindiff"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(LOADER)
    for name in [name for name in sys.modules if name.startswith("steindiff.integrations.comfyui")]:
        monkeypatch.delitem(sys.modules, name)
    comfy.nodes = load(folder)
    yield comfy
    for name in [name for name in sys.modules if name.startswith("steindiff.integrations.comfyui")]:
        del sys.modules[name]


PAGE = (Path(__file__).parents[2] / "docs" / "integrations" / "comfyui.md").read_text()
LOADER = next(line.split("'")[1] for line in PAGE.splitlines() if line.lstrip().startswith("echo 'from steindiff"))


def load(folder):
    spec = importlib.util.spec_from_file_location("custom_nodes_steindiff", folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS


def run(node, **inputs):
    """Call a node as the program does: its function by name, its inputs by name, in inference mode."""
    with torch.inference_mode():
        return getattr(node(), node.FUNCTION)(**inputs)


def sampler(comfy, **inputs):
    return run(comfy.nodes["SteindiffSampler"], **{"solver": "auto", "correction": "none", "table": "none", **inputs})[0]


def draw(comfy, using, model=None, sigmas=SIGMAS, cfg=1.0, batch=4, latent=None, **more):
    """What SamplerCustom does with a SAMPLER."""
    latent = torch.zeros(batch, *SHAPE) if latent is None else latent
    noise = standin.prepare_noise(latent, 7)
    model = standin.patcher(MODEL) if model is None else model
    return comfy.sample.sample_custom(model, noise, cfg, using, sigmas, *PROMPTS, latent, disable_pbar=True, seed=7, **more)


def moved(x, sigma):
    """The law that the positive prompt alone asks for."""
    prompt = PROMPTS[0][0][0]
    return (MODEL(x.flatten(1).double() - prompt, sigma.double()) + prompt).to(x.dtype).reshape(x.shape)


def test_every_node_declares_what_comfyui_reads(comfy):
    for node in comfy.nodes.values():
        given = node.INPUT_TYPES()
        assert "seed" not in {
            name for part in given.values() for name in part
        }  # the page draws one of that name anew each time
        assert set(given) <= {"required", "optional"}
        kinds = [kind[0] for part in given.values() for kind in part.values()]
        known = {"MODEL", "CONDITIONING", "LATENT", "INT", "FLOAT", "STRING", "BOOLEAN"}
        assert all(isinstance(kind, list) or kind in known for kind in kinds)
        assert isinstance(node.RETURN_TYPES, tuple)
        assert callable(getattr(node, node.FUNCTION))
        assert node.CATEGORY.startswith("sampling")
    solvers = comfy.nodes["SteindiffSampler"].INPUT_TYPES()["required"]["solver"][0]
    assert solvers[0] == "auto"  # the default of a list is its first entry
    assert set(sd.solvers.names()) <= set(solvers)


def test_the_folder_itself_can_be_linked(comfy):
    assert set(load(PACKAGE)) == {"SteindiffSampler", "SteindiffCalibrate"}


@pytest.mark.parametrize("solver", ["auto", "universal", "dpmpp_2m", "heun"])
def test_the_sampler_node(comfy, solver):
    model, seen = standin.patcher(MODEL), []
    end = draw(comfy, sampler(comfy, solver=solver), model, callback=lambda *step: seen.append(step))
    noise = (1 + 14.6**2) ** 0.5 * standin.prepare_noise(torch.zeros(4, *SHAPE), 7)
    setting = sd.solvers.Setting(float(SIGMAS[0]), 0.0, 1.0)
    how = {"sigmas": SIGMAS} if solver in ("dpmpp_2m", "heun") else {"nfe": 5, "setting": setting}
    torch.testing.assert_close(end, sd.sample(solver, moved, noise, **how).x, rtol=1e-4, atol=1e-4)
    assert model.model.calls == (18 if solver == "heun" else 10)  # both prompts in each evaluation
    assert [step[0] for step in seen] == [0, 1, 2, 3, 4]
    assert {step[3] for step in seen} == {5}


def test_the_guiders_scale_chooses_the_table(comfy):
    weak, strong = (draw(comfy, sampler(comfy), cfg=cfg) for cfg in (1.0, 5.0))
    setting = sd.solvers.Setting(float(SIGMAS[0]), 0.0, 1.0, guidance=5.0)
    noise = (1 + 14.6**2) ** 0.5 * standin.prepare_noise(torch.zeros(4, *SHAPE), 7)

    def plain(x, sigma):
        return MODEL(x.flatten(1).double(), sigma.double()).to(x.dtype).reshape(x.shape)

    expected = sd.sample("auto", lambda x, s: plain(x, s) + 5 * (moved(x, s) - plain(x, s)), noise, nfe=5, setting=setting)
    torch.testing.assert_close(strong, expected.x, rtol=1e-3, atol=1e-3)
    assert not torch.equal(weak, strong)


@pytest.mark.parametrize("correction", ["clamped(mode=tweedie)", "clamped", "energy", "epsilon_scaling", "dcw"])
def test_corrections_run_in_inference_mode(comfy, correction):
    """Gradients do not exist there, and the weights are inference tensors: a derivative is a finite difference."""
    assert correction in comfy.nodes["SteindiffSampler"].INPUT_TYPES()["required"]["correction"][0]
    model, plain = standin.patcher(MODEL), draw(comfy, sampler(comfy, solver="dpmpp_2m"), batch=32)
    end = draw(comfy, sampler(comfy, solver="dpmpp_2m", correction=correction), model, batch=32)
    rule = sd.Corrected("dpmpp_2m", correction, divergence=sd.Hutchinson(method="fd"), frame="ve")
    noise = (1 + 14.6**2) ** 0.5 * standin.prepare_noise(torch.zeros(32, *SHAPE), 7)
    ours = sd.sample(rule, lambda x, s: moved(x, s), noise, SIGMAS, generator=sd.generators([7])[0]).x
    torch.testing.assert_close(end, ours, rtol=2e-2, atol=2e-2)
    assert torch.isfinite(end).all()
    assert not torch.equal(end, plain) or correction == "energy"  # a deficit within its noise is not corrected
    assert model.model.calls >= 10


def test_a_partial_denoise_and_a_mask(comfy):
    latent = MODEL.sample(4, torch.Generator().manual_seed(3)).float().reshape(4, *SHAPE)
    mask = torch.tensor([1.0, 1.0, 0.0]).expand(4, *SHAPE)
    low = sd.grids.with_zero(sd.grids.karras(4, 0.03, 1.0)).float()
    end = draw(comfy, sampler(comfy), sigmas=low, latent=latent, noise_mask=mask)
    torch.testing.assert_close(end[..., 2], latent[..., 2], rtol=0, atol=1e-5)  # iPNDM ends at what the model answers
    assert float((end - latent)[..., :2].abs().mean()) > 0.1


def test_the_ordinary_list_has_the_samplers_once(comfy):
    names = comfy.samplers.KSampler.SAMPLERS
    assert names[:3] == ["euler", "steindiff", "steindiff_universal"]
    load(PACKAGE)
    assert len(set(names)) == len(names)
    for name in names[1:]:
        end = draw(comfy, comfy.samplers.sampler_object(name))
        solver = "auto" if name == "steindiff" else name.removeprefix("steindiff_")
        torch.testing.assert_close(end, draw(comfy, sampler(comfy, solver=solver)))


def test_a_flow_is_seen_as_one(comfy):
    end = draw(comfy, sampler(comfy, solver="dpmpp_2m"), standin.patcher(MODEL, flow=True), TIMES, batch=64)
    noise = 1000 * standin.prepare_noise(torch.zeros(64, *SHAPE), 7)
    ratios = torch.cat([torch.tensor([1000.0]), (TIMES / (1 - TIMES))[1:]])
    torch.testing.assert_close(end, sd.sample("dpmpp_2m", moved, noise, ratios).x, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("flow", [False, True])
def test_a_table_is_calibrated_and_used(comfy, flow, tmp_path):
    model, levels = standin.patcher(MODEL, flow), TIMES if flow else SIGMAS
    inputs = {"positive": PROMPTS[0], "negative": PROMPTS[1], "latent_image": {"samples": torch.zeros(1, *SHAPE)}}
    how = {"cfg": 2.0, "noises": 32, "batch": 8, "calibration_seed": 0, "name": "mine"}
    node = comfy.nodes["SteindiffCalibrate"]
    (path,) = run(node, model=model, evaluations=2, **inputs, **how)
    assert Path(path) == tmp_path / "models" / "steindiff_tables" / "mine.safetensors"
    if not flow:
        assert run(node, model=model, evaluations=1, **inputs, **how) == (path,)
        assert run(node, model=model, evaluations=1, **inputs, **how) == (path,)
        assert [table.nfe for table in load_all(path)] == [2, 1]  # the second in place of the one before
    ends = torch.stack([levels[0], levels[2], levels[-1]])
    assert "mine.safetensors" in comfy.nodes["SteindiffSampler"].INPUT_TYPES()["required"]["table"][0]
    of_list, of_path = sampler(comfy, table="mine.safetensors"), sampler(comfy, table_path=path)
    end = draw(comfy, of_list, model, ends, cfg=2.0, batch=16)
    assert torch.equal(end, draw(comfy, of_path, model, ends, cfg=2.0, batch=16))
    fine = TIMES.new_tensor([1, *[1 - i / 80 for i in range(1, 80)], 0]) if flow else sd.grids.karras(60, 0.002, 14.6).float()
    exact = draw(comfy, sampler(comfy, solver="unipc_3"), model, fine, cfg=2.0, batch=16)
    plain = draw(comfy, sampler(comfy, solver="dpmpp_2m"), model, ends, cfg=2.0, batch=16)
    assert float((end - exact).norm()) < float((plain - exact).norm())
    for given, said in [({"cfg": 7.0}, "calibrated tables are for 2"), ({"sigmas": levels}, "nfe=5: .* has tables of (1, )?2")]:
        with pytest.raises(InputError, match=said):
            draw(comfy, of_list, **{"model": model, "sigmas": ends, "cfg": 2.0, **given})
    other = standin.patcher(MODEL, flow)
    with torch.inference_mode():
        other.model.weight.fill_(2.0)
    with pytest.raises(InputError, match="calibrated for network"):
        draw(comfy, of_list, other, ends, cfg=2.0)
    draw(comfy, sampler(comfy, table="mine.safetensors", any_network=True), other, ends, cfg=2.0)


def test_bad_inputs_are_refused(comfy):
    with pytest.raises(InputError, match="a table is a solver: leave solver at 'auto'"):
        sampler(comfy, solver="ddim", table_path="some.safetensors")
    with pytest.raises(InputError, match="there is no such file in models/steindiff_tables"):
        sampler(comfy, table="gone.safetensors")
    node, latents = comfy.nodes["SteindiffCalibrate"], {"samples": torch.zeros(1, *SHAPE)}
    inputs = {
        "positive": PROMPTS[0],
        "negative": PROMPTS[1],
        "latent_image": latents,
        "cfg": 1.0,
        "evaluations": 2,
        "calibration_seed": 0,
    }
    with pytest.raises(InputError, match=r"name='\.\./x': need letters"):
        run(node, model=standin.patcher(MODEL), noises=32, batch=8, name="../x", **inputs)
    with pytest.raises(InputError, match="need 32 trajectories or more"):
        run(node, model=standin.patcher(MODEL), noises=8, batch=8, name="x", **inputs)
