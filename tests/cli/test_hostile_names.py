"""A model whose name is a path, too long, or not to be shown: every command that takes a model writes inside its folder."""

import pytest
import torch

from commandline import run_command
from steindiff import models

NAMES = {"relative": "../../../evil\0\ud800" + "x" * 300, "absolute": "{outside}/evil"}
COMMANDS = {
    "sample": ["--nfe", "1", "--solver", "ddim", "--seeds", "0-1", "--outdir", "{out}"],
    "bench": [
        "--solvers", "ddim", "--grids", "karras", "--nfe", "2", "--corrections", "none", "--samples", "40", "--batch", "40",
        "--metrics", "endpoint,energy", "--outdir", "{out}",
    ],
    "evaluate": [
        "--data", "digits", "--n", "8", "--runs", "ddim-1", "--features", "none", "--outdir", "{out}",
    ],
    "calibrate": ["--nfe", "1", "--trajectories", "8", "--out", "{out}/tables.safetensors"],
    "doctor": ["--nfe", "2", "--images", "2"],
    "diagnose": ["--solver", "ddim", "--nfe", "2", "--samples", "1", "--batch", "2", "--outdir", "{out}"],
}  # fmt: skip


def hostile(path, name):
    """A small mixture of 8×8 images under that name."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "weights": torch.ones(2) / 2, "means": torch.randn(2, 64, generator=generator) / 4,
        "loadings": torch.randn(2, 64, 1, generator=generator) / 8, "log_diagonal": torch.full((2, 64), -3.0),
    }  # fmt: skip
    models.save(path, tensors, {"kind": "factor_mixture", "name": name, "event_shape": [1, 8, 8]})
    return path


def everything(folder):
    return set(folder.rglob("*"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stays_in_its_folder(tmp_path, monkeypatch, capsys, command):
    (tmp_path / "models").mkdir()
    (tmp_path / "outside").mkdir()
    for kind, name in NAMES.items():
        model = hostile(tmp_path / "models" / f"{kind}.safetensors", name.format(outside=tmp_path / "outside"))
        out = tmp_path / "a" / "b" / "c" / kind
        before = everything(tmp_path)
        flag = "--beds" if command == "bench" else "--model"
        words = [word.format(out=out) for word in COMMANDS[command]]
        code, shown, error = run_command(monkeypatch, capsys, command, flag, model, *words)
        assert "Traceback" not in error
        assert code == (1 if command == "doctor" and "not consistent" in shown else 0), shown + error
        made = everything(tmp_path) - before
        assert all(path == out or out in path.parents or path in out.parents for path in made), made
        assert all(len(path.name.encode()) <= 255 for path in made)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a\0b", "x" * 300, "..", "\udcff"])
def test_a_model_is_not_trained_under_a_path(tmp_path, monkeypatch, capsys, name):
    args = ["train", "--preset", "smoke", "--data", "digits", "--outdir", tmp_path / "out", "--name", name]
    code, _, error = run_command(monkeypatch, capsys, *args)
    assert code == 2
    assert "--name" in error
    assert not (tmp_path / "out").exists()
