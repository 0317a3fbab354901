"""The program that compares with the official code, on a stand-in of a clone, and the one that counts what a network costs."""

import pickle
import sys

import pytest

from edm_files import write
from research import compare_edm, paper_costs

STAND_IN = '''
import torch
from steindiff import models

class Official:
    """What a clone's network offers, made of a converted file; in float64, so that rounding differs."""
    def __init__(self, file, error=0.0):
        self.denoiser, self.error = models.load(file, torch.float64).denoiser, error
    def eval(self): return self
    def requires_grad_(self, on): return self
    def to(self, device): return self
    def __call__(self, x, sigma, labels, force_fp32):
        assert force_fp32
        given = None if labels is None else labels.argmax(1)
        return ((1 + self.error) * self.denoiser(x.double(), sigma.double(), given)).float()
'''


@pytest.fixture
def clone(tmp_path, monkeypatch):
    (tmp_path / "clone" / "torch_utils").mkdir(parents=True)
    (tmp_path / "clone" / "torch_utils" / "persistence.py").touch()
    (tmp_path / "clone" / "dnnlib").mkdir()
    (tmp_path / "clone" / "edm_stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "clone"), *sys.path])
    yield tmp_path / "clone"
    sys.modules.pop("edm_stand_in", None)


def compared(clone, tmp_path, error, **changes):
    from edm_stand_in import Official

    write(tmp_path / "m.safetensors", **changes)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"ema": Official(tmp_path / "m.safetensors", error)}))
    given = ("--official", clone, "--pickle", tmp_path / "m.pkl", "--model", tmp_path / "m.safetensors", "--levels", 3)
    return compare_edm.main([str(word) for word in given])


@pytest.mark.parametrize(("kind", "passes"), [("ddpmpp", 2), ("ncsnpp", 1), ("adm", 2)])
def test_equal_networks_agree(clone, tmp_path, capsys, kind, passes):
    assert compared(clone, tmp_path, 0.0, kind=kind) == 0
    _, _, *table, verdict = capsys.readouterr().out.splitlines()
    errors = [float(line.split("|")[5]) for line in table]
    assert len(errors) == 3 * passes
    assert 0 < max(errors) < 1e-5
    assert verdict.startswith("agree: the largest e is")


def test_networks_that_differ_are_told_apart(clone, tmp_path, capsys):
    assert compared(clone, tmp_path, 0.001, kind="ddpmpp") == 2
    assert "DIFFER: the largest e is" in capsys.readouterr().err


def test_a_folder_that_is_no_clone_is_refused(tmp_path, capsys):
    write(tmp_path / "m.safetensors")
    given = ["--official", str(tmp_path), "--pickle", str(tmp_path / "m.pkl"), "--model", str(tmp_path / "m.safetensors")]
    assert compare_edm.main(given) == 2
    assert "lacks torch_utils/persistence.py, dnnlib" in capsys.readouterr().err


def test_the_published_networks_have_the_published_sizes():
    """Counted by the published programs; EDM2's 128 weights of its uncertainty are no part of D."""
    names = "EDM CIFAR-10, DDPM++", "EDM ImageNet-64, ADM", "EDM2 ImageNet-64, S"
    counts = [paper_costs.parameters(paper_costs.network(name)) for name in names]
    assert counts == [55_733_891, 295_899_267, 280_209_381 - 128]


def test_hours_follow_from_operations(capsys):
    name = "EDM CIFAR-10, DDPM++"
    assert paper_costs.main(["--images", "3600", "--evaluations", "10", "--tflops", "0.0424", "--only", name]) == 0
    (line,) = capsys.readouterr().out.splitlines()[2:]
    assert float(line.split("|")[5]) == pytest.approx(10.0, rel=0.01)
    assert paper_costs.main(["--only", "EDM CIFAR"]) == 2
    assert "unknown network 'EDM CIFAR': did you mean 'EDM CIFAR-10, " in capsys.readouterr().err
