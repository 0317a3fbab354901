"""Pickles of EDM networks are read as data: classes, arguments and tensors come out, and no source text of theirs is run."""

import gzip
import io
import pickle
import zipfile

import numpy
import pytest
import torch
from faults.edm_pickles import EasyDict, Persistent, dumped, grown, network, small, snapshot
from torch import nn

from steindiff.errors import InputError, ModelFileError
from steindiff.integrations.edm.description import describe
from steindiff.integrations.edm.source import Limits
from steindiff.integrations.edm.unpickle import opened


@pytest.fixture
def read(tmp_path):
    """Write bytes, read them as a network: the header's entries, and the tensors."""

    def reading(data: bytes, **limits):
        path = tmp_path / "net.pkl"
        path.write_bytes(data)
        with opened(path, Limits(**limits)) as file:
            found = describe(file.root, file.source)
            return found.info, {name: file.tensor(stored) for name, stored in found.tensors.items()}

    return reading


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_network_comes_out_whole(read, protocol):
    kwargs = {"model_channels": 16, "channel_mult": [1, 2], "embedding_type": "positional", "augment_dim": 9, "dropout": 0.13}
    net = small(classes=10, **kwargs)
    info, tensors = read(snapshot(net, protocol, loss_fn=None, dataset_kwargs=EasyDict(path="images.zip")))
    assert info == {
        "event_shape": [3, 8, 8], "precond": "EDMPrecond", "precond_kwargs": {"use_fp16": False}, "network": "SongUNet",
        "kwargs": kwargs, "label_dim": 10, "sigma_data": 0.5, "sigma_min": None, "sigma_max": None, "encoder": None,
    }  # fmt: skip
    want = net.state_dict()
    assert list(tensors) == list(want)
    assert all(torch.equal(tensors[name], want[name]) and tensors[name].dtype == want[name].dtype for name in want)


def test_a_network_alone_is_read_too(read):
    assert read(dumped(small()))[0] == read(snapshot(small()))[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_keep_their_format_their_strides_and_their_offset(read, dtype):
    whole = torch.arange(60, dtype=torch.float32).to(dtype)
    tensors = {"model.a": whole[7:13], "model.b": whole.reshape(5, 12).t(), "model.c": whole[3].clone(), "model.d": whole[:0]}
    _, got = read(snapshot(network(tensors)))
    assert all(torch.equal(got[name], tensors[name]) and got[name].dtype == dtype for name in tensors)


def test_edm2_with_its_encoder(read):
    encoder = Persistent(
        "StabilityVAEEncoder", scale=numpy.float32([0.5, 0.25]), bias=numpy.float32([1, 2]), vae_name="a/b", _vae=None
    )
    net = network({"unet.enc.8x8_conv.weight": torch.ones(2, 2).half(), "logvar_fourier.freqs": torch.ones(3).half()},
                  "Precond", "UNet", channels=4, model_channels=16, clip_act=None, outer={"logvar_channels": 32})  # fmt: skip
    info, tensors = read(dumped(EasyDict(encoder=encoder, ema=net)))
    settings = {name: info["encoder"]["settings"][name] for name in ("scale", "bias", "vae_name")}
    assert settings == {"scale": [0.5, 0.25], "bias": [1.0, 2.0], "vae_name": "a/b"}
    assert info["encoder"]["class"] == "StabilityVAEEncoder"
    assert info["precond_kwargs"] == {"use_fp16": True, "logvar_channels": 32}
    assert info["kwargs"] == {"model_channels": 16, "clip_act": None}
    assert set(tensors) == {"unet.enc.8x8_conv.weight", "logvar_fourier.freqs"}
    assert read(dumped({"encoder": Persistent("StandardRGBEncoder"), "ema": net}))[0]["encoder"] is None


def test_a_preconditioner_says_its_own_settings_and_noise_levels(read):
    net = small(precond="VPPrecond", settings={"beta_d": 19.9, "beta_min": numpy.float64(0.1), "M": 1000, "epsilon_t": 1e-5,
                                               "sigma_min": 0.001, "sigma_max": numpy.float32(152.0)})  # fmt: skip
    info, _ = read(snapshot(net))
    assert info["precond_kwargs"] == {"use_fp16": False, "beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5}
    assert (info["sigma_min"], info["sigma_max"], info["sigma_data"]) == (0.001, 152.0, None)


def test_buffers_that_are_not_part_of_the_state_are_left_out(read):
    net = small()
    net._modules["model"].register_buffer("scratch", torch.ones(2), persistent=False)
    assert "model.scratch" not in read(snapshot(net))[1]


def test_older_names_of_numpy_are_read(read):
    """Released files are of numpy 1, which has its functions in another module."""
    data = snapshot(small(settings={"sigma_max": numpy.float64(80.0)}), 3).replace(b"numpy._core", b"numpy.core")
    assert b"cnumpy.core.multiarray\nscalar\n" in data
    assert read(data)[0]["sigma_max"] == 80.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precond": "VPrecond"}, "unknown preconditioner 'VPrecond': did you mean 'VPPrecond'"),
        ({"inner": "UNet"}, "unknown network 'UNet': .*DhariwalUNet, SongUNet"),
        ({"model_chanels": 16}, "unknown argument of SongUNet .*model_chanels.*did you mean 'model_channels'"),
        ({"channel_mult": "2"}, "EDMPrecond of SongUNet is none that can be built: channel_mult='2'"),
        ({"dropout": float("nan")}, "SongUNet has dropout=nan"),
        ({"num_blocks": True}, "num_blocks=True: need a whole number"),
        ({"resolution": 0}, "img_resolution=0: need a whole number"),
        ({"channels": 65}, "in_channels=65: need a whole number"),
        ({"classes": -1}, "label_dim=-1: need a whole number"),
        ({"settings": {"img_channels": 4}}, "SongUNet has in_channels=3, where 4 fits"),
        ({"settings": {"sigma_data": "big"}}, "EDMPrecond has sigma_data='big'"),
    ],
)
def test_what_is_not_edm_is_refused_by_name(read, change, message):
    with pytest.raises(ModelFileError, match=message):
        read(snapshot(small(**change)))


def test_other_files_are_refused_with_what_they_are(read, tmp_path):
    good, archive = snapshot(small()), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", "x")
    legacy = io.BytesIO()
    torch.save({"a": torch.ones(2)}, legacy, _use_new_zipfile_serialization=False)
    others = {
        "no network under 'ema', but 'G', 'G_ema'": dumped({"G": small(), "G_ema": small()}),
        "no network under 'ema', but nothing": dumped({}),
        "no network under 'ema', but 'ema'": dumped({"ema": [1]}),
        "a zip archive": archive.getvalue(),
        "a file of torch.save": legacy.getvalue(),
        "compressed by gzip": gzip.compress(good),
        "a page of the web": b"<!DOCTYPE html><html>Not found</html>",
        "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\n",
        "is no pickle, or an empty file": b"",
        "is no pickle": b"PICKLE"[1:],
        "pickle protocol 2 ": pickle.dumps({"a": 1}, 2),
        "and 4 bytes after it": good + b"more",
    }
    for message, data in others.items():
        with pytest.raises(ModelFileError, match=message):
            read(data)
    with pytest.raises(InputError, match=r"cannot read .*: No such file"), opened(tmp_path / "none.pkl"):
        pass
    with pytest.raises(InputError, match="need a file on a disk, not a folder"), opened(tmp_path):
        pass


def test_a_truncated_file_is_refused_wherever_it_ends(read):
    good = snapshot(small())
    for end in [*range(2, 200), *range(200, len(good), 97), len(good) - 1]:
        with pytest.raises(ModelFileError, match=r"truncated|takes a value where|ends with values"):
            read(good[:end])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"file_bytes": 1000}, "more than the 1,000 that a network may have"),
        ({"operations": 100}, "more than 100 operations"),
        ({"text_bytes": 100}, "more than 100 bytes of text"),
        ({"tensors": 4}, "more than 4 tensors"),
        ({"modules": 4}, "more than 4 modules"),
        ({"depth": 1}, "more than 1 deep"),
    ],
)
def test_every_limit_is_kept(read, limits, message):
    with pytest.raises(ModelFileError, match=message):
        read(snapshot(small()), **limits)


def test_a_tree_of_modules_must_be_one(read):
    broken = {
        "has no _parameters": lambda net: net._modules["model"].__dict__.pop("_parameters"),
        "model.x is no module": lambda net: net._modules["model"]._modules.update(x=torch.ones(1)),
        "model.x is no tensor": lambda net: net._modules["model"]._parameters.update(x="text"),
        "has the name 'a/b'": lambda net: net._modules["model"]._buffers.update({"a/b": torch.ones(1)}),
        "no network 'model' inside": lambda net: net._modules.pop("model"),
    }
    for message, breaking in broken.items():
        net = small()
        breaking(net)
        with pytest.raises(ModelFileError, match=message):
            read(snapshot(net))


def test_a_tree_that_doubles_at_every_level_is_refused(read):
    """Forty references to one module each: 2^40 modules in a file of a few kB."""
    module: nn.Module = Persistent("Linear")
    for _ in range(40):
        outer = Persistent("Linear")
        outer._modules.update(a=module, b=module)
        module = outer
    net = grown(small(), {})
    net._modules["model"]._modules["bomb"] = module
    with pytest.raises(ModelFileError, match=r"modules|deep"):
        read(snapshot(net), depth=100, modules=2000)
