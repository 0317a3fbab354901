"""Extractors on tiny models of the published signatures, made here; nothing is downloaded."""

import hashlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steindiff.errors import InputError, ModelFileError
from steindiff.io.files import sha256
from steindiff.io.images import to_uint8
from steindiff.metrics import SampleMoments
from steindiff.metrics.fid import extractors
from steindiff.metrics.fid.extractors import Dinov2, dinov2, inception
from steindiff.metrics.fid.inception_score import inception_score
from tiny_inception import Tiny, save


class Other(nn.Module):
    def forward(self, img: Tensor) -> Tensor:
        return img


def _images(n: int, channels: int = 3, side: int = 8) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(n)) * 2.2 - 1.1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.manual_seed(0)
    network = Tiny()
    return network, save(tmp_path_factory.mktemp("inception") / "tiny.pt", network)


def test_inception_features_and_probabilities(tiny):
    network, path = tiny
    extractor = inception(path, batch=3)
    x = _images(7)
    pixels = torch.from_numpy(to_uint8(x)).permute(0, 3, 1, 2)
    features = extractor(x)
    assert features.dtype == torch.float64
    torch.testing.assert_close(features, network(pixels, return_features=True).double())
    assert torch.equal(extractor(pixels), features)
    p = extractor.probabilities(x)
    torch.testing.assert_close(p, network(pixels, no_output_bias=True).detach().double())
    assert inception_score(p, splits=2).value.value > 1
    assert extractor.sha256 == sha256(path)
    assert (extractor.name, extractor.resize) == ("inception", "inside the network")


def test_grey_images_become_rgb_and_moments_stream(tiny):
    extractor = inception(tiny[1])
    grey = _images(6, channels=1)
    torch.testing.assert_close(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))
    whole, streamed = SampleMoments.of(extractor(grey)), extractor.moments(grey.split(4))
    assert streamed.n == 6
    torch.testing.assert_close(streamed.covariance, whole.covariance)
    with pytest.raises(InputError, match="no images came"):
        extractor.moments([])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 3, 8, 8), "N ≥ 1"),
        (torch.zeros(2, 2, 8, 8), "need \\(N, 1 or 3"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "need uint8"),
        (torch.full((2, 3, 8, 8), float("nan")), "diverged"),
    ],
)
def test_images_of_another_kind_are_refused(tiny, x, message):
    with pytest.raises(InputError, match=message):
        inception(tiny[1])(x)


def test_files_that_are_not_inception_are_refused(tiny, tmp_path):
    with pytest.raises(InputError, match="nothing is downloaded here"):
        inception(tmp_path / "none.pt")
    with pytest.raises(InputError, match="batch=0"):
        inception(tiny[1], batch=0)
    with pytest.raises(ModelFileError, match="does not take no_output_bias, return_features"):
        inception(save(tmp_path / "other.pt", Other()))
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    (tmp_path / "half.pt").write_bytes(tiny[1].read_bytes()[:500])
    (tmp_path / "text.pt").write_text("hello")
    for name in ("weights.pt", "half.pt", "text.pt"):
        with pytest.raises(ModelFileError, match="is not TorchScript"):
            inception(tmp_path / name)


def test_dinov2_sees_normalised_images_of_224_pixels():
    seen = []

    def network(pixel_values: Tensor) -> SimpleNamespace:
        seen.append(pixel_values)
        return SimpleNamespace(last_hidden_state=torch.stack([pixel_values.mean((2, 3)), pixel_values.amax((2, 3))], 1))

    extractor = Dinov2(network, "0" * 64, torch.device("cpu"), 2)
    flat = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None].expand(3, 3, 20, 30)
    got = extractor(flat)
    assert [tuple(x.shape) for x in seen] == [(2, 3, 224, 224), (1, 3, 224, 224)]
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in extractors.IMAGENET)
    expected = (torch.tensor([0.0, 128 / 255, 1.0], dtype=torch.float64)[:, None] - mean) / std
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    seen.clear()
    edge = torch.zeros(1, 3, 448, 448, dtype=torch.uint8)
    edge[..., 224:] = 255
    extractor(edge)
    row = seen[0][0, 0, 100] * 0.229 + 0.485
    assert float(row.min()) < -0.01  # bicubic, not clipped


def test_dinov2_folders_are_checked(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"lacks config.json or \*.safetensors"):
        dinov2(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    with pytest.raises(InputError, match="lacks config"):
        dinov2(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        with pytest.raises(InputError, match="pip install transformers"):
            dinov2(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14
    )
    network = transformers.Dinov2Model(config).eval()
    place = tmp_path_factory.mktemp("dinov2")
    network.save_pretrained(place)
    return network, place


def test_a_tiny_dinov2_of_transformers(folder):
    network, place = folder
    extractor = dinov2(place, batch=2)
    x = _images(3)
    got = extractor(x)
    assert got.shape == (3, 16)
    pixels = torch.from_numpy(to_uint8(x)).permute(0, 3, 1, 2).float()
    large = F.interpolate(pixels, (224, 224), mode="bicubic", antialias=True) / 255
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in extractors.IMAGENET)
    with torch.no_grad():
        out = network(pixel_values=(large - mean) / std)
    torch.testing.assert_close(got, out.pooler_output.double(), rtol=1e-4, atol=1e-5)
    names = ("config.json", "model.safetensors")
    text = "".join(f"{name} {sha256(place / name)}\n" for name in names)
    assert extractor.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_folder_of_another_model_or_without_weights_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    _, place = folder
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((place / name).read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    dropped = min(tensors)
    save_file({k: v for k, v in tensors.items() if k != dropped}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFileError, match="lacks 1 of the model's weights"):
        dinov2(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(ModelFileError, match="not a readable DINOv2 model"):
        dinov2(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    with pytest.raises(ModelFileError, match=r"DINOv2 model|'vit' model"):
        dinov2(tmp_path)
