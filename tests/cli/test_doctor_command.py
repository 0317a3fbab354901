"""`steindiff doctor`, as a user types it."""

import json

import pytest
import torch

from commandline import run_command
from research import tiny_pipelines
from steindiff import models
from steindiff.models import save
from steindiff.models.store import read


@pytest.fixture
def doctor(monkeypatch, capsys):
    return lambda *args: run_command(monkeypatch, capsys, "doctor", *args)


def test_without_a_model_it_shows_the_machine(doctor):
    code, out, _ = doctor()
    assert code == 0
    assert torch.__version__ in out
    assert "CUDA devices" in out
    assert "The denoiser" not in out


def test_a_shipped_model_is_sound(doctor):
    code, out, _ = doctor("--model", "digits", "--nfe", "4,12", "--images", "4")
    assert code == 0
    assert "It takes off the noise that it is told" in out
    assert "calibrated table of 4 evaluations" in out
    assert "universal table of 12 evaluations" in out


def test_a_model_that_was_scaled_wrongly_is_not(doctor, tmp_path):
    """The same network with another σ_data: its preconditioning no longer fits the weights."""
    info, tensors = read(models.load("digits").path)
    save(tmp_path / "wrong.safetensors", tensors, {**info, "sigma_data": 8 * info["sigma_data"]})
    code, out, _ = doctor("--model", tmp_path / "wrong.safetensors", "--nfe", "4", "--images", "8", "--json")
    assert code == 1
    found = json.loads(out)
    assert found["machine"]["torch"] == torch.__version__
    assert found["model"]["sound"] is False
    assert "It is not consistent: told σ" in found["model"]["verdict"]
    assert {fact["what"] for fact in found["model"]["facts"]} >= {"schedule", "prediction", "σ_data"}


def test_the_folder_of_a_pipeline_is_read_as_its_scheduler_says(doctor, tmp_path):
    """The network has random weights, so that it is no denoiser of anything."""
    tiny_pipelines.make("ldm").pipe.save_pretrained(tmp_path / "ldm")
    code, out, _ = doctor("--model", tmp_path / "ldm", "--nfe", "4", "--images", "2", "--json")
    assert code == 1
    found = json.loads(out.splitlines()[-1])["model"]
    facts = {fact["what"]: fact["value"] for fact in found["facts"]}
    assert facts["prediction"] == "FromEps"
    assert facts["schedule"].startswith("DiscreteBetas(1000 indices")
    assert facts["images"] == "3 × 8 × 8"


@pytest.mark.parametrize("args", [("--model", "no-such-model"), ("--nfe", "x", "--model", "digits"), ("--images", "1")])
def test_what_cannot_be_examined_is_refused_in_a_line(doctor, args):
    code, out, err = doctor(*args)
    assert code == 2
    assert "Traceback" not in out + err
