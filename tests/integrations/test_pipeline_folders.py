"""Pipelines in folders as models of the commands and of the study."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import steindiff as sd
from commandline import run_command
from research import tiny_pipelines
from steindiff.errors import InputError, ModelFileError
from steindiff.integrations.diffusers import denoiser
from steindiff.integrations.loading import load
from steindiff.io.files import read_json
from steindiff.solvers.table import load_all
from steindiff.study import testbed


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved pipelines: of latents, of prompts, of classes; and a file of prompts."""
    place = tmp_path_factory.mktemp("models")
    for name in ("ldm", "sd1", "dit", "ddpm"):
        tiny_pipelines.make(name).pipe.save_pretrained(place / name)
    (place / "prompts.txt").write_text("a red fox\n\n snow \nold map\n")
    return place


def test_a_latent_model_carries_its_range_and_decodes(folders):
    model, tiny = load(folders / "ldm"), tiny_pipelines.make("ldm")
    assert (model.name, model.event_shape, model.image_shape) == ("ldm", (3, 8, 8), (3, 16, 16))
    assert model.noise_range == pytest.approx((0.03876, 83.82), rel=1e-3)
    assert model.sigma_data == 1.0
    assert not model.needs_class
    x = tiny.noise(2)
    own = denoiser(tiny.pipe)
    assert torch.equal(model.denoiser(x, torch.tensor(2.0)), own(x, torch.tensor(2.0)))
    torch.testing.assert_close(model.decode(x), own.decode(x), rtol=0, atol=1e-5)
    assert load(folders / "ldm").sha256 == model.sha256 != load(folders / "ddpm").sha256


def test_prompts_are_drawn_by_seeds_and_guided(folders):
    model = load(f"{folders / 'sd1'}@{folders / 'prompts.txt'}")
    assert model.said == ("a red fox", "snow", "old map")
    assert model.needs_class
    x, sigma = tiny_pipelines.make("sd1").noise(3), torch.tensor(2.0)
    prompts = ["old map", "snow", "old map"]
    expected = denoiser(model.pipe, prompt=prompts, guidance_scale=4.0)(x, sigma)
    torch.testing.assert_close(model.guided(torch.tensor([2, 1, 2]), 4.0)(x, sigma), expected)
    assert sd.denoisers.guidance_of(model.of_seeds(range(3), 4.0)) == 4.0
    assert sd.denoisers.forwards_per_call(model.of_seeds(range(3))) == 1
    with pytest.raises(InputError, match="has 3 classes or prompts"):
        model.labelled(torch.tensor([3]))


def test_many_classes_are_recorded_as_they_are_drawn(folders):
    model = load(folders / "dit")
    assert model.classes == 1000
    x, labels = tiny_pipelines.make("dit").noise(4), torch.tensor([7, 3, 7, 999])
    expected = denoiser(model.pipe, class_labels=labels.tolist(), guidance_scale=2.0)(x, torch.tensor(1.0))
    torch.testing.assert_close(model.guided(labels, 2.0)(x, torch.tensor(1.0)), expected)


def test_a_command_samples_pngs_of_decoded_latents(folders, tmp_path, monkeypatch, capsys):
    args = ["sample", "--model", str(folders / "ldm"), "--seeds", "0-2", "--nfe", "4", "--outdir", str(tmp_path)]
    code, out, err = run_command(monkeypatch, capsys, *args)
    assert code == 0, out + err
    model = load(folders / "ldm")
    noise = sd.initial_noise(range(3), model.event_shape, model.denoiser.sigma_max)
    end = model.decode(sd.sample("auto", model.denoiser, noise, nfe=4).x)
    image = np.asarray(Image.open(next(tmp_path.rglob("*000001.png")))).astype(float)
    assert np.abs(image - (255 * (end[1] + 1) / 2).movedim(0, -1).numpy()).max() < 1
    assert read_json(tmp_path / "run.json")["sigmas"][0] == pytest.approx(model.denoiser.sigma_max)


def test_a_command_samples_a_prompt(folders, tmp_path, monkeypatch, capsys):
    args = [
        "sample",
        "--model",
        str(folders / "sd1"),
        "--seeds",
        "0-1",
        "--nfe",
        "4",
        "--solver",
        "ddim",
        "--outdir",
        str(tmp_path),
    ]
    code, out, err = run_command(monkeypatch, capsys, *args, "--prompt", "a red fox", "--guidance", "3")
    assert code == 0, out + err
    assert read_json(tmp_path / "run.json")["model"]["info"]["prompts"] == ["a red fox"]
    code, out, err = run_command(monkeypatch, capsys, *args)
    assert code == 2
    assert "there are none in" in err


def test_a_folder_is_calibrated_and_auto_takes_its_table(folders, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "ldm"
    shutil.copytree(folders / "ldm", folder)
    out = folder / "steindiff" / "tables.safetensors"
    args = ["calibrate", "--model", str(folder), "--nfe", "2", "--trajectories", "8", "--out", str(out)]
    code, text, err = run_command(monkeypatch, capsys, *args)
    assert code == 0, text + err
    (table,) = load_all(out)
    bed = testbed.make(str(folder))
    assert bed.setting.sigma_max == pytest.approx(table.solver.levels[0])
    solver, _ = sd.solvers.make("auto").plan(2, bed.setting)
    assert repr(solver) == repr(table.solver)


def test_a_study_runs_on_a_folder_and_on_it_guided(folders):
    bed = testbed.make(f"{folders / 'sd1'}@{folders / 'prompts.txt'}_guided_3")
    assert bed.name == "sd1_guided_3"
    assert bed.setting.guidance == 3.0
    denoise = bed.denoiser_for((5, 6))
    x = tiny_pipelines.make("sd1").noise(2)
    expected = load(f"{folders / 'sd1'}@{folders / 'prompts.txt'}").of_seeds((5, 6), 3.0)(x, torch.tensor(1.0))
    torch.testing.assert_close(denoise(x, torch.tensor(1.0)), expected)


def _changed_index(folders, tmp_path, **changes):
    folder = tmp_path / "changed"
    shutil.copytree(folders / "ldm", folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **changes}))
    return folder


@pytest.mark.parametrize("changes", [{"_class_name": ["own", "Pipeline"]}, {"unet": ["own_module", "Net"]}])
def test_code_of_the_folder_is_refused(folders, tmp_path, changes):
    folder = _changed_index(folders, tmp_path, **changes)
    (folder / "own.py").write_text("raise SystemExit('executed')")
    with pytest.raises(InputError, match="code is not run"):
        load(folder)


def test_damage_and_misuse_are_named(folders, tmp_path):
    folder = _changed_index(folders, tmp_path)
    weights = next(folder.glob("unet/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="no readable pipeline"):
        load(folder)
    with pytest.raises(InputError, match=r"without model_index\.json"):
        load(tmp_path)
    with pytest.raises(InputError, match="takes no prompts"):
        load(folders / "ldm", prompt="a fox")
    with pytest.raises(InputError, match="only the folder of a text-to-image pipeline"):
        load("digits", prompt="a fox")


@pytest.mark.parametrize(
    ("part", "text", "reason"),
    [
        (
            "unet/config.json",
            '{"_class_name": "UNet2DModel", "layers_per_block": 10000000}',
            "layers_per_block = 10000000: more than",
        ),
        ("unet/config.json", "[" * 100_000, "deeper than 64"),
        ("scheduler/scheduler_config.json", '{"a": 1, "a": 2}', "the key 'a' twice"),
        ("model_index.json", '{"_class_name": ' + "[" * 70 + "]" * 70 + "}", "deeper than 64"),
        ("model_index.json", "[1]", ""),
    ],
    ids=["layers", "deep", "twice", "deep index", "list"],
)
def test_absurd_descriptions_are_refused(folders, tmp_path, part, text, reason):
    shutil.copytree(folders / "ddpm", tmp_path / "bad")
    (tmp_path / "bad" / part).write_text(text)
    with pytest.raises(ModelFileError, match=rf"bad is no readable pipeline.*{reason}"):
        load(tmp_path / "bad")


def test_prompts_that_are_no_text_are_refused(folders, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"prompts\.txt is no readable text"):
        load(f"{folders / 'sd1'}@{tmp_path / 'prompts.txt'}")
