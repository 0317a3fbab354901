"""Tables calibrated on pipelines: where they are kept, what they are for, and that a stopped calibration goes on."""

import pytest
import torch

import steindiff as sd
from research import tiny_pipelines
from steindiff.calibration import Options, Settings
from steindiff.errors import InputError
from steindiff.integrations.diffusers import SteindiffScheduler, calibrate, denoiser, tables_beside
from steindiff.integrations.diffusers.asking import digest
from steindiff.solvers.table import load_all

QUICK = {"trajectories": 8, "options": Options(steps=8, settings=Settings(iterations=1, patience=1)), "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline of latent diffusion, saved."""
    place = tmp_path_factory.mktemp("pipelines") / "ldm"
    tiny_pipelines.make("ldm").pipe.save_pretrained(place)
    return place


def _loaded(name, folder):
    pipe = type(tiny_pipelines.make(name).pipe).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_tables_lie_beside_the_pipeline_and_auto_finds_them(folder):
    pipe = _loaded("ldm", folder)
    assert tables_beside(pipe) is None
    found = calibrate(pipe, nfe=[1, 2], **QUICK)
    assert found.path == folder / "steindiff" / "tables.safetensors"
    assert [path.name for path in found.path.parent.iterdir()] == [found.path.name]  # nothing is left of the work
    assert tables_beside(pipe) == str(found.path.parent)
    assert [table.nfe for table in found.tables] == [1, 2]
    assert found.tables[0].report["pipeline"] == "LDMPipeline"
    assert found.tables[1].report["gate"]["kept"] == "calibrated table"
    made = denoiser(_loaded("ldm", folder))
    noise = made.noise(range(8))
    runs = {name: sd.sample(name, made, noise, nfe=2) for name in ("auto", "ddim", "dpmpp_2m", "unipc_3")}
    assert runs["auto"].solver == "calibrated table of 2 evaluations"
    exact = sd.sample("unipc_3", made, noise, made.setting.karras(30)).x
    errors = {name: float((run.x - exact).norm()) for name, run in runs.items()}
    assert errors["auto"] < 0.8 * min(error for name, error in errors.items() if name != "auto")
    assert sorted(table.nfe for table in load_all(found.path)) == [1, 2]


def test_a_pipeline_that_was_saved_with_our_scheduler_finds_its_tables(tmp_path, caplog):
    folder = tmp_path / "ldm"
    pipe = tiny_pipelines.make("ldm").pipe
    pipe.save_pretrained(folder)
    pipe = _loaded("ldm", folder)
    pipe.scheduler = SteindiffScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(folder)
    assert _loaded("ldm", folder).scheduler.beside is None
    path = calibrate(pipe, nfe=2, **QUICK).path
    folder.rename(tmp_path / "moved")
    path = tmp_path / "moved" / path.relative_to(folder)
    made = _loaded("ldm", path.parent.parent).scheduler
    assert made.beside == str(path.parent)
    for nfe, taken in ((2, "calibrated table of 2 evaluations"), (3, "universal table of 3 evaluations")):
        made.set_timesteps(nfe)
        assert str(made.plan.solver) == taken
    assert [f"It lies in {made.beside}" in record.message for record in caplog.records] == [True, False]
    made.set_timesteps(2)
    with pytest.raises(InputError, match=r"calibrate one for this size, or take solver='universal' without a table"):
        made.step(torch.zeros(1, 3, 2, 2), made.timesteps[0], torch.randn(1, 3, 2, 2))
    (path.parent / "tables.safetensors").unlink()
    assert _loaded("ldm", path.parent.parent).scheduler.beside is None


def test_scales_prompts_and_what_else_is_called_are_part_of_it(tmp_path):
    tiny = tiny_pipelines.make("sd1")
    path = tmp_path / "deep" / "sd.safetensors"
    found = calibrate(tiny.pipe, ["a fox", "snow"], 2, [2, 4], path=path, negative_prompt="fog", **QUICK)
    assert [table.solver.purpose.guidance for table in found.tables] == [4.0, 2.0]
    call = {"prompt": ["rain", "a map"], "negative_prompt": ["fog", "fog"]}
    made = denoiser(tiny.pipe, guidance_scale=3.0, **call)
    x = made.noise(range(2))
    assert "between w = 2 and 4" in sd.sample(f"calibrated({str(path)!r})", made, x, nfe=2).solver
    with pytest.raises(InputError, match="guidance 6: the calibrated tables are for 2, 4"):
        sd.sample(f"calibrated({str(path)!r})", denoiser(tiny.pipe, guidance_scale=6.0, **call), x, nfe=2)


def test_labels_and_embedded_guidance(tmp_path):
    dit = tiny_pipelines.make("dit")
    found = calibrate(dit.pipe, [0, 1, 2], 1, 3.0, path=tmp_path / "dit.safetensors", **QUICK)
    assert found.tables[0].solver.purpose.conditioned
    flux = tiny_pipelines.make("flux")
    flux.extra.pop("guidance_scale")
    found = calibrate(flux.pipe, "a fox", 1, [2.0, 5.0], path=tmp_path / "flux.safetensors", **flux.extra, **QUICK)
    assert [table.solver.purpose.guidance for table in found.tables] == [5.0, 2.0]
    assert found.tables[0].solver.levels[0] == 1000.0


def test_a_stopped_calibration_goes_on_and_knows_its_prompts(tmp_path):
    tiny, path, asked = tiny_pipelines.make("dit"), tmp_path / "dit.safetensors", []
    count = tiny.network.register_forward_hook(lambda *told: asked.append(len(told[-1][0])))
    how = {"nfe": 1, "guidance_scale": 2.0, "path": path, **QUICK}

    def images(labels, **changes):
        """How many images the network evaluates in a calibration."""
        asked.clear()
        calibrate(tiny.pipe, labels, **{**how, **changes})
        return sum(asked)

    class Stop(Exception):
        pass

    def stop(*_):
        if any(tmp_path.rglob("fine.safetensors")):
            raise Stop

    halt = tiny.network.register_forward_pre_hook(stop)
    with pytest.raises(Stop):
        images([0, 1])
    halt.remove()
    assert not path.exists()
    rest = images([0, 1])
    path.unlink()
    work = tmp_path / "work"
    whole = images([0, 1], work=work)
    assert whole - rest == 2 * (8 + 1) * 8  # the fine runs
    assert images([0, 1], work=work) < rest  # nothing but the recorded step is left
    images([0, 2], work=work)
    assert len(list(work.rglob("fine.safetensors"))) == 2
    count.remove()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "give path="),
        ({"path": "tables.json"}, "tables are .safetensors files"),
        ({"path": "t.safetensors", "prompts": "a fox"}, "takes neither prompts nor class labels"),
        ({"path": "t.safetensors", "guidance_scale": []}, "need a scale of guidance"),
        ({"path": "t.safetensors", "trajectories": 0}, "need at least one trajectory"),
    ],
)
def test_bad_input_is_named(how, message):
    with pytest.raises(InputError, match=message):
        calibrate(tiny_pipelines.make("ldm").pipe, **how)


def test_a_pipeline_of_prompts_needs_some(tmp_path):
    with pytest.raises(InputError, match="need a prompt or label"):
        calibrate(tiny_pipelines.make("sd1").pipe, [], path=tmp_path / "t.safetensors")


def test_other_prompts_have_another_digest():
    tiny = tiny_pipelines.make("sd1")
    one, same, other = (digest(denoiser(tiny.pipe, prompt=prompt).asked) for prompt in ("a fox", "a fox", "snow"))
    assert one == same != other
