"""`steindiff convert`: a pickle becomes a model file that is the network in it, whole or not at all."""

import os
import sys

import pytest
import torch
from faults.edm_pickles import Persistent, dumped, network, snapshot
from safetensors.torch import load_file

import edm_files
from commandline import run_command
from steindiff import models
from steindiff.errors import InputError, ModelFileError
from steindiff.integrations.edm import convert
from steindiff.io.files import sha256
from steindiff.models import loading, store
from steindiff.models.networks import EDMPrecond, UNet, UNetConfig

X, SIGMA = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(0.7)


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *args: run_command(monkeypatch, capsys, "convert", *args)


def pickled(kind, dtype=torch.float32, change=lambda tensors: tensors, **more):
    """The pickle of a tiny network of every kind, and its description and tensors."""
    about = edm_files.description(kind)
    tensors = change({name: tensor.to(dtype) for name, tensor in edm_files.tensors(about).items()})
    ends = {"sigma_min": about["sigma_min"], "sigma_max": about["sigma_max"]} if about["sigma_max"] else {}
    net = network(tensors, about["precond"], about["network"], classes=about["label_dim"], settings=ends, **about["kwargs"])
    return snapshot(net, **more), about, tensors


@pytest.fixture
def pickle(tmp_path):
    """A file with a tiny network."""
    path = tmp_path / "tiny.pkl"
    path.write_bytes(pickled("ddpmpp")[0])
    return path


@pytest.mark.parametrize("kind", edm_files.KINDS)
def test_a_converted_network_is_the_network(tmp_path, kind):
    """The file that the same tensors and description make without a pickle gives the same denoiser, to the bit."""
    data, _, tensors = pickled(kind)
    (tmp_path / "tiny.pkl").write_bytes(data)
    edm_files.write(tmp_path / "want.safetensors", kind)
    want, made = models.load(tmp_path / "want.safetensors"), convert(tmp_path / "tiny.pkl", tmp_path / "got.safetensors")
    assert torch.equal(made.model.denoiser(X, SIGMA), want.denoiser(X, SIGMA))
    got = models.load(tmp_path / "got.safetensors")
    assert torch.equal(got.denoiser(X, SIGMA), want.denoiser(X, SIGMA))
    assert (got.classes, got.noise_range, got.event_shape) == (want.classes, want.noise_range, want.event_shape)
    assert got.path == made.model.path == tmp_path / "got.safetensors"
    assert made.numbers == sum(t.numel() for t in tensors.values())
    stored = load_file(got.path)
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name], tensors[name]) for name in tensors)


def test_the_command_says_what_it_wrote(tmp_path, pickle, command):
    code, out, err = command(pickle, tmp_path / "tiny.safetensors", "--name", "mine")
    assert (code, err) == (0, "")
    assert "EDMPrecond of SongUNet" in out
    assert "(float32 in the pickle), images of 3×8×8, 10 classes, any noise level" in out
    assert models.load(tmp_path / "tiny.safetensors").name == "mine"


def test_large_models_are_one_file_and_the_header_has_the_hash_of_the_pickle(tmp_path, pickle, monkeypatch):
    monkeypatch.setattr(store, "PART_BYTES", 1000)
    info = convert(pickle, tmp_path / "tiny.safetensors").model.info
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["tiny.safetensors"]
    assert info["source"] == {
        "file": "tiny.pkl", "bytes": pickle.stat().st_size, "sha256": sha256(pickle), "dtype": "float32",
    }  # fmt: skip


def test_what_a_kill_leaves_is_swept_by_the_next_call(tmp_path, pickle, monkeypatch):
    """Until the model has been loaded, all that there is of it is one file that the folder's sweep knows."""
    seen = []
    load = loading.load
    monkeypatch.setattr(loading, "load", lambda path: seen.extend(tmp_path.iterdir()) or load(path))
    convert(pickle, tmp_path / "tiny.safetensors")
    (half,) = [path for path in seen if path != pickle and path.suffix != ".lock"]
    half.write_text("of a killed call")
    convert(pickle, tmp_path / "tiny.safetensors", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["tiny.pkl", "tiny.safetensors"]


def test_float16_halves_the_parameters_and_leaves_the_buffers(tmp_path):
    (tmp_path / "tiny.pkl").write_bytes(pickled("adm")[0])
    made = convert(tmp_path / "tiny.pkl", tmp_path / "half.safetensors", dtype="float16")
    stored = load_file(made.model.path)
    assert {name for name, t in stored.items() if t.dtype != torch.float16} >= {"u"}
    assert {t.dtype for name, t in stored.items() if name.endswith(("weight", "bias"))} == {torch.float16}
    full = convert(tmp_path / "tiny.pkl", tmp_path / "full.safetensors").model
    near = made.model.denoiser(X, SIGMA) - full.denoiser(X, SIGMA)
    assert 0 < float(near.abs().max()) < 1e-2


def test_half_precision_pickles_stay_so_and_may_be_widened(tmp_path):
    (tmp_path / "tiny.pkl").write_bytes(pickled("edm2", torch.float16)[0])
    kept, wide = (convert(tmp_path / "tiny.pkl", tmp_path / f"{n}.safetensors", dtype=n).model for n in (None, "float32"))
    assert {t.dtype for t in load_file(kept.path).values()} == {torch.float16}
    assert torch.float32 in {t.dtype for t in load_file(wide.path).values()}
    assert kept.info["source"]["dtype"] == wide.info["source"]["dtype"] == "float16"
    assert torch.equal(kept.denoiser(X, SIGMA), wide.denoiser(X, SIGMA))


def _with(name, value):
    def change(tensors):
        first = next(iter(tensors))
        return {**tensors, (name or first): value(tensors[name or first])}

    return change


@pytest.mark.parametrize(
    ("change", "dtype", "message"),
    [
        (_with(None, lambda t: t * float("nan")), None, "values of model.* are not finite in the file"),
        (_with(None, lambda t: t * 1e9), "float16", r"are not finite as torch.float16, whose range they leave: choose float32"),
        (_with(None, lambda t: t[:1]), None, "does not hold the network that it describes: .*size mismatch"),
        (lambda t: dict(list(t.items())[1:]), None, "does not hold the network that it describes: .*Missing key"),
        (
            lambda t: t | {"model.more.weight": torch.ones(1)},
            None,
            "does not hold the network that it describes: .*Unexpected key",
        ),
    ],
)
def test_what_is_no_network_leaves_nothing_behind(tmp_path, change, dtype, message):
    path, out = tmp_path / "tiny.pkl", tmp_path / "out" / "tiny.safetensors"
    path.write_bytes(pickled("ddpmpp")[0])
    old = convert(path, out).model.sha256
    path.write_bytes(pickled("ddpmpp", change=change)[0])
    with pytest.raises(ModelFileError, match=message):
        convert(path, out, dtype=dtype, overwrite=True)
    assert [p.name for p in out.parent.iterdir()] == ["tiny.safetensors"]
    assert models.load(out).sha256 == old


def test_nothing_is_overwritten_unasked(tmp_path, pickle, command):
    out = tmp_path / "tiny.safetensors"
    state = EDMPrecond(UNet(UNetConfig(channels=16, heads=1)), 0.5).state_dict()
    about = {
        "kind": "edm_unet",
        "name": "old",
        "event_shape": [1, 8, 8],
        "sigma_data": 0.5,
        "unet": {"channels": 16, "heads": 1},
    }
    parts = store.save(out, state, about, part_bytes=100_000)
    code, _, err = command(pickle, out)
    assert code == 2
    assert "exists: give another name, or --overwrite" in err
    assert models.load(out).name == "old"
    assert command(pickle, out, "--overwrite")[0] == 0
    assert models.load(out).name == "tiny"
    assert not any(part.exists() for part in parts)


def test_bad_options_are_named(tmp_path, pickle, command):
    (tmp_path / "folder.safetensors").mkdir()
    for args, message in (
        ((tmp_path / "none.pkl", tmp_path / "a.safetensors"), "cannot read"),
        ((pickle, tmp_path / "a.pt"), "model files end in .safetensors"),
        ((pickle, tmp_path / "a.safetensors", "--dtype", "int8"), "choose one of float16, float32"),
        ((pickle, pickle / "a.safetensors"), "cannot make the folder"),
        ((pickle, tmp_path / "folder.safetensors"), "Is a directory; name another file"),
    ):
        code, _, err = command(*args)
        assert code == 2
        assert message in err
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["folder.safetensors"]
    with pytest.raises(InputError, match=r"is a pickle, which is a program: steindiff convert tiny.pkl tiny.safetensors"):
        models.load(pickle)


def test_a_foreign_name_is_an_error_of_one_line(tmp_path, command):
    path = tmp_path / "bad.pkl"
    path.write_bytes(dumped({"ema": os.system}))
    code, out, err = command(path, tmp_path / "a.safetensors")
    assert (code, out) == (2, "")
    assert "it asks for posix.system" in err
    assert err.count("\n") == 1


PERSISTENCE = """
import sys, types
def _reconstruct_persistent_obj(meta):
    module = types.ModuleType("made_of_source")
    exec(meta["module_src"], module.__dict__)
    made = module.__dict__[meta["class_name"]]
    made.__module__ = "made_of_source"
    obj = made.__new__(made)
    obj.__dict__.update(meta["state"])
    return obj
"""
SOURCE = """
import torch
class Base(torch.nn.Module):
    pass
class EDMPrecond(Base):
    pass
class SongUNet(Base):
    pass
class Linear(Base):
    pass
open({canary!r}, "w").close()
"""


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A stand-in of the official code on the path, which runs the source text of a pickle."""
    (tmp_path / "official" / "torch_utils").mkdir(parents=True)
    (tmp_path / "official" / "torch_utils" / "persistence.py").write_text(PERSISTENCE)
    monkeypatch.syspath_prepend(tmp_path / "official")
    yield tmp_path / "canary"
    for name in ("torch_utils", "torch_utils.persistence"):
        sys.modules.pop(name, None)


def test_a_trusted_pickle_is_run_with_a_warning_and_gives_the_same_file(tmp_path, command, official):
    about = edm_files.description("ddpmpp")
    source = SOURCE.format(canary=str(official))
    net = network(edm_files.tensors(about), classes=10, source=source, **about["kwargs"])
    for module in net.modules():
        if isinstance(module, Persistent):
            module.meta["module_src"] = source
    (tmp_path / "tiny.pkl").write_bytes(snapshot(net))
    code, _, err = command(tmp_path / "tiny.pkl", tmp_path / "inert.safetensors")
    assert (code, err, official.exists()) == (0, "", False)
    code, _, err = command(tmp_path / "tiny.pkl", tmp_path / "run.safetensors", "--trust-pickle")
    assert (code, official.exists()) == (0, True)
    assert "--trust-pickle runs the program in" in err
    assert (tmp_path / "run.safetensors").read_bytes() == (tmp_path / "inert.safetensors").read_bytes()


def test_a_trusted_pickle_needs_the_official_code(tmp_path, pickle):
    with pytest.raises(InputError, match="needs the module torch_utils: put a clone of NVIDIA's repository on PYTHONPATH"):
        convert(pickle, tmp_path / "a.safetensors", trust=True)
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x04garbage")
    with pytest.raises(ModelFileError, match="its own code fails: "):
        convert(tmp_path / "bad.pkl", tmp_path / "a.safetensors", trust=True)
    with pytest.raises(InputError, match="cannot read"):
        convert(tmp_path / "none.pkl", tmp_path / "a.safetensors", trust=True)
