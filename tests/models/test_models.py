"""Embedded models load, denoise and say where they come from; anything else is refused without executing it."""

import functools
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from steindiff import models, schedules
from steindiff.analytic import FactorMixture
from steindiff.denoisers import schedule_of
from steindiff.divergence.products import Options, dot, linearise
from steindiff.errors import InputError, ModelFileError
from steindiff.models.networks import EDMPrecond, UNet, UNetConfig
from steindiff.models.store import WEIGHTS


def test_the_embedded_models_are_small_and_have_cards():
    assert set(models.names()) >= {"digits", "cifar10_mixture"}
    for name in models.names():
        assert (WEIGHTS / f"{name}.md").is_file()
    assert (WEIGHTS / "cifar10_mixture.safetensors").stat().st_size <= 4_000_000
    assert all(p.stat().st_size <= 16 * 2**20 for p in WEIGHTS.glob("*.safetensors"))
    assert sum(p.stat().st_size for p in WEIGHTS.glob("*.safetensors")) <= 48 * 2**20


@pytest.mark.parametrize("name", ["digits", "cifar10_mixture"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_embedded_models_denoise(name, dtype):
    """Close to the identity at low noise; at high noise D tends to the data mean, a constant."""
    model = models.load(name, dtype=dtype)
    x = 0.5 * torch.randn(4, *model.event_shape, generator=torch.Generator().manual_seed(0), dtype=dtype).clamp(-1, 1)
    low = model.denoiser(x, torch.tensor(0.002, dtype=dtype))
    assert low.dtype == dtype
    assert low.shape == x.shape
    assert float((low - x).abs().max()) < 0.1
    far = model.denoiser(80 * torch.randn(4, *model.event_shape, generator=torch.Generator().manual_seed(1), dtype=dtype),
                         torch.tensor(80.0, dtype=dtype))  # fmt: skip
    assert float(far.abs().max()) < 2
    assert float((far - far.mean(0)).abs().mean()) < 0.15
    assert schedule_of(model.denoiser) == schedules.VE()
    assert len(model.sha256) == 64
    assert model.info["recipe"]


def test_embedded_models_denoise_better_than_doing_nothing():
    """Against the digits themselves: at σ = 0.5 the network removes most of the noise."""
    from sklearn.datasets import load_digits

    clean = torch.tensor(load_digits().images[:256], dtype=torch.float32)[:, None] / 8 - 1
    noisy = clean + 0.5 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    denoised = models.load("digits").denoiser(noisy, torch.tensor(0.5))
    assert float((denoised - clean).square().mean()) < 0.35 * float((noisy - clean).square().mean())


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_kernels_have_their_channels_side_by_side_and_images_do_not(name):
    """The layout is one of time alone: the numbers agree to rounding, and D lies as x does."""
    model = models.load(name)
    kernels = [p for p in model.denoiser.parameters() if p.ndim == 4 and min(p.shape) > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    x = torch.randn(3, *model.event_shape, generator=torch.Generator().manual_seed(0))
    found = model.denoiser(x, torch.tensor(0.5))
    assert found.is_contiguous()
    plain = model.denoiser.to(memory_format=torch.contiguous_format)
    assert not any(p.is_contiguous(memory_format=torch.channels_last) for p in kernels if p.shape[-1] > 1)
    torch.testing.assert_close(found, plain(x, torch.tensor(0.5)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_networks_as_loaded_have_every_derivative(name):
    """Whatever the layout of their kernels: backward, forward, of several probes at once, of torch's own making, and by σ."""
    model = models.load(name, dtype=torch.float64)
    net, s = model.denoiser, torch.tensor(0.8, dtype=torch.float64)
    x, *probes = torch.randn(3, 2, *model.event_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)

    def squares(method, batched):
        products = linearise(method, lambda z: (net(z, s), None), x, Options(batched=batched))
        return torch.stack([dot(v, product) for v, product in products.pairs(probes)])

    backward = squares("vjp", False)
    for method, batched in (("vjp", True), ("jvp", False), ("jvp", True)):
        near(squares(method, batched), backward)
    near(dot(probes[0], torch.func.jvp(lambda z: net(z, s), (x,), (probes[0],))[1]), backward[0])
    h = 1e-5
    slope = torch.func.jvp(lambda t: net(x, t), (s,), (torch.ones_like(s),))[1]
    torch.testing.assert_close(slope, (net(x, s + h) - net(x, s - h)) / (2 * h), rtol=1e-5, atol=1e-6)


def test_unknown_names_suggest(tmp_path):
    with pytest.raises(InputError, match="did you mean 'digits'"):
        models.load("digit")
    with pytest.raises(InputError, match="no model file at"):
        models.load(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="float32 or float64"):
        models.load("digits", dtype=torch.float16)


def test_save_and_load_round_trip(tmp_path):
    tensors = {
        "weights": torch.tensor([0.25, 0.75]), "means": torch.randn(2, 4), "loadings": torch.randn(2, 4, 1),
        "log_diagonal": torch.randn(2, 4),
    }  # fmt: skip
    path = tmp_path / "small.safetensors"
    models.save(path, tensors, {"kind": "factor_mixture", "name": "small", "event_shape": [1, 2, 2]})
    model = models.load(path, dtype=torch.float64)
    direct = FactorMixture(
        tensors["weights"].double(), tensors["means"].double().reshape(2, 1, 2, 2), tensors["loadings"].double(),
        tensors["log_diagonal"].double().exp(),
    )  # fmt: skip
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    assert torch.equal(model.denoiser(x, torch.tensor(0.3)), direct.denoise(x, torch.tensor(0.3)))
    with pytest.raises(InputError, match="lacks"):
        models.save(path, tensors, {"kind": "factor_mixture"})


def _corruptions(good: bytes):
    return {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "garbage": b"\xff" * 500,
        "pickle": pickle.dumps({"weights": 1}),
    }


@pytest.mark.parametrize("kind", ["truncated", "empty", "garbage", "pickle"])
def test_corrupted_files_are_refused(tmp_path, kind):
    good = (WEIGHTS / "digits.safetensors").read_bytes()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(_corruptions(good)[kind])
    with pytest.raises(ModelFileError, match="not a readable safetensors file"):
        models.load(path)


def test_foreign_and_inconsistent_files_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ModelFileError, match="no 'steindiff' description"):
        models.load(path)
    save_file({"a": torch.zeros(2)}, path, {"steindiff": json.dumps({"format": 99, "kind": "edm_unet"})})
    with pytest.raises(ModelFileError, match="reads format 1"):
        models.load(path)
    info, _ = models.read(WEIGHTS / "digits.safetensors")
    tensors = load_file(WEIGHTS / "digits.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path, {"steindiff": json.dumps(info)})
    with pytest.raises(ModelFileError, match="does not hold what its description says"):
        models.load(path)
    save_file({f"network.{name}": tensor for name, tensor in tensors.items()}, path, {"steindiff": json.dumps(info)})
    with pytest.raises(ModelFileError, match=r"Missing key.* … .*; make or fetch it again") as refused:
        models.load(path)
    assert len(str(refused.value)) < 600 + len(str(path))  # and not the names of all tensors
    assert "\n" not in str(refused.value)


PARTS = {"kind": "edm_unet", "name": "big", "event_shape": [1, 8, 8], "sigma_data": 0.5, "unet": {"channels": 16, "heads": 1}}


def _state(seed):
    torch.manual_seed(seed)
    return EDMPrecond(UNet(UNetConfig(channels=16, heads=1)), 0.5).state_dict()


def test_large_models_lie_in_parts_and_load_whole(tmp_path):
    whole, path = tmp_path / "whole.safetensors", tmp_path / "big.safetensors"
    models.save(whole, _state(0), PARTS)
    files = models.save(path, _state(0), PARTS, part_bytes=100_000)
    assert len(files) > 2
    assert not path.exists()
    assert all(f.stat().st_size < 110_000 for f in files)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    want = models.load(whole).denoiser(x, torch.tensor(0.5))
    for name in (path, files[1]):
        model = models.load(name)
        assert torch.equal(model.denoiser(x, torch.tensor(0.5)), want)
        assert model.name == "big"
    assert models.load(path).sha256 == models.load(files[0]).sha256 != models.load(whole).sha256


def test_parts_that_are_missing_mixed_or_cut_are_refused(tmp_path):
    path = tmp_path / "big.safetensors"
    files = models.save(path, _state(0), PARTS, part_bytes=100_000)
    kept = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(ModelFileError, match=f"{len(files) - 1} of {len(files)} parts"):
        models.load(path)
    files[1].write_bytes(kept[:-100])
    with pytest.raises(ModelFileError, match="may be truncated"):
        models.load(path)
    other = models.save(tmp_path / "other" / "big.safetensors", _state(1), PARTS, part_bytes=100_000)
    files[1].write_bytes(other[1].read_bytes())
    with pytest.raises(ModelFileError, match="parts of different models"):
        models.load(path)
    with pytest.raises(InputError, match="more than the 1,000 of a part"):
        models.save(path, _state(0), PARTS, part_bytes=1000)


@pytest.mark.parametrize("event_shape", [[3, 8, 8], [1, 7, 8], [64]])
def test_a_description_whose_images_do_not_fit_the_network_is_refused(tmp_path, event_shape):
    models.save(tmp_path / "odd.safetensors", _state(0), {**PARTS, "event_shape": event_shape})
    with pytest.raises(ModelFileError, match="for a network of 1 channels"):
        models.load(tmp_path / "odd.safetensors")


def test_parts_of_another_program_stay(tmp_path):
    """transformers and diffusers name the parts of a model alike."""
    theirs = tmp_path / "model-00001-of-00002.safetensors"
    save_file({"weight": torch.zeros(2)}, theirs)
    before = theirs.read_bytes()
    for bytes_of_part in (10**9, 100_000):
        with pytest.raises(InputError, match=rf"1 file in the way .*: {theirs.name}; .* give another name"):
            models.save(tmp_path / "model.safetensors", _state(0), PARTS, part_bytes=bytes_of_part)
    assert [path.name for path in tmp_path.iterdir()] == [theirs.name]
    assert theirs.read_bytes() == before


def test_a_new_model_replaces_the_parts_of_the_old(tmp_path):
    path = tmp_path / "big.safetensors"
    old = models.save(path, _state(0), PARTS, part_bytes=100_000)
    assert models.save(path, _state(1), PARTS) == [path]
    assert not any(p.exists() for p in old)
    models.load(path)
    models.save(path, _state(1), PARTS, part_bytes=100_000)
    assert not path.exists()
    models.load(path)
