"""The classifier behind the feature distances: its file, its card, refusals, and the script that trains it."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from recipes import train_classifier
from torch import nn

from steindiff import models
from steindiff.errors import InputError, ModelFileError
from steindiff.io.files import sha256
from steindiff.metrics import load_features
from steindiff.metrics.features import KIND, WEIGHTS, Classifier, ClassifierConfig
from steindiff.models import store

TINY = ClassifierConfig(side=16, stem=4, widths=(4, 6, 8), classes=3)


@pytest.fixture(scope="module")
def script():
    return train_classifier


def tiny_file(path: Path, **info: object) -> Path:
    torch.manual_seed(0)
    described = {"kind": KIND, "name": "tiny", "event_shape": [3, 16, 16], "classifier": dataclasses.asdict(TINY), **info}
    store.save(path, Classifier(TINY).state_dict(), described, kinds=(KIND,))
    return path


def images(n: int, side: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(side)) * 2 - 1


def test_shipped_features():
    features = load_features("cifar10")
    path = WEIGHTS / "cifar10_classifier.safetensors"
    assert features.sha256 == sha256(path)
    assert path.stat().st_size < 2_000_000
    assert not any(p.requires_grad for p in features.network.parameters())
    for side in (16, 32):
        got = features(images(3, side))
        assert got.shape == (3, features.count) == (3, 128)
        assert got.dtype == torch.float64
        assert float(got.min()) >= 0
        assert features.info["accuracy"][str(side)][0] > 0.8


def test_the_card_states_what_the_file_says():
    info, _ = store.read(WEIGHTS / "cifar10_classifier.safetensors", kinds=(KIND,))
    card = (WEIGHTS / "cifar10_classifier.md").read_text(encoding="utf-8")
    for share, se in info["accuracy"].values():
        assert f"{100 * share:.2f} ± {100 * se:.2f} %" in card
    for part in info["recipe"]["data"].values():
        assert part["sha256"] in card
    assert "/work" not in json.dumps(info) + card


def test_features_do_not_depend_on_batches_and_halves_are_enlarged(tmp_path):
    features = load_features(tiny_file(tmp_path / "tiny.safetensors"))
    x = images(7, 16)
    parts = dataclasses.replace(features, batch=2)(x)
    torch.testing.assert_close(parts, features(x), rtol=1e-5, atol=1e-6)
    small = images(2, 8)
    large = nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(features(small), features(large), rtol=1e-6, atol=1e-7)
    assert not features(x.requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images(2, 16, channels=1), "resize the images, or leave"),
        (images(2, 24), r"\(3, 24, 24\)"),
        (images(2, 16)[0], "need floating point"),
        (images(2, 16).byte(), "need floating point"),
    ],
)
def test_images_of_another_kind_are_refused(tmp_path, x, message):
    with pytest.raises(InputError, match=message):
        load_features(tiny_file(tmp_path / "tiny.safetensors"))(x)


def test_what_is_not_a_classifier_is_refused(tmp_path):
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        load_features("cifar")
    with pytest.raises(InputError, match="no features file at"):
        load_features(tmp_path / "none.safetensors")
    with pytest.raises(ModelFileError, match="kinds classifier"):
        load_features(models.load("digits").path)
    path = tiny_file(tmp_path / "tiny.safetensors")
    with pytest.raises(ModelFileError, match="kind 'classifier'"):
        models.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="truncated"):
        load_features(path)
    for wrong in ({"widths": [4, 6, 9]}, {"widths": [4, 6]}, {"unknown": 1}):
        described = {**dataclasses.asdict(TINY), **wrong}
        with pytest.raises(ModelFileError, match="does not hold what its description says"):
            load_features(tiny_file(path, classifier=described))


def test_folding_keeps_the_function(script):
    torch.manual_seed(0)
    net = Classifier(TINY, nn.BatchNorm2d).train()
    for _ in range(10):
        net(torch.randn(16, 3, 16, 16) * 2 + 0.3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias)
    x = images(5, 16)
    torch.testing.assert_close(script.folded(net)(x), net.eval()(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="not followed by a batch normalisation"):
        script.folded(Classifier(TINY))


def test_augmentation_shifts_and_mirrors(script):
    x = images(200, 8)
    got = script.augmented(x, 1, torch.Generator().manual_seed(0))
    windows = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect").unfold(2, 8, 1).unfold(3, 8, 1)  # (n, C, 3, 3, 8, 8)
    both = torch.stack([windows, windows.flip(-1)])
    found = (both == got[None, :, :, None, None]).all(-1).all(-1).all(2)  # (2, n, 3, 3)
    assert bool(found.any(dim=(0, 2, 3)).all())
    assert bool(found.any(1).all())  # every shift, and both ways round, occur


def test_halving_is_what_a_saved_image_keeps(script):
    white = torch.ones(1, 3, 2, 2)
    white[0, :, 0, 0] = -1
    assert script.halved(white).flatten().tolist() == pytest.approx([2 * 191 / 255 - 1] * 3)  # 191.25 of 255


def folder(place: Path, n: int, classes: int = 2, side: int = 32) -> Path:
    """Dark and bright images by class, which a network can tell apart."""
    g = torch.Generator().manual_seed(n)
    for i in range(n):
        (place / str(i % classes)).mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 100, (side, side, 3), generator=g) + 120 * (i % classes)
        Image.fromarray(pixels.byte().numpy()).save(place / str(i % classes) / f"{i}.png")
    return place


def test_script_from_images_to_features(script, tmp_path, capsys):
    train, test, out = (
        folder(tmp_path / "train", 48),
        folder(tmp_path / "test", 20),
        tmp_path / "out" / "tiny_classifier.safetensors",
    )
    args = ["--data", str(train), "--test", str(test), "--out", str(out), "--epochs", "4", "--batch", "12", "--precision", "no"]
    assert script.main(args) == 0
    said = capsys.readouterr().out
    features = load_features(out)
    assert features.name == "tiny"
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    share, se = features.info["accuracy"]["16"]
    assert f"16×16: {100 * share:.2f} ± {100 * se:.2f} %" in said
    assert share > 0.8
    assert features.info["recipe"]["epochs"] == 4
    assert "command" not in features.info["recipe"]
    assert features.info["classes"] == ["0", "1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--epochs", "0"], "at least 1"),
        (["--small", "1"], r"in \[0, 1\)"),
        (["--precision", "int8"], "bf16 or no"),
        (["--out", "x.pt"], "ends with .safetensors"),
        (["--batch", "100"], "more than the 48"),
        (["--test", "three"], "need 0, 1"),
        (["--data", "small"], "need 32×32"),
        (["--data", "none"], "no such folder"),
    ],
)
def test_script_refuses(script, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "train", 48)
    folder(tmp_path / "test", 4)
    folder(tmp_path / "three", 6, classes=3)
    folder(tmp_path / "small", 4, side=16)
    args = ["--data", "train", "--test", "test", "--out", "x.safetensors", *change]
    assert script.main(args) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "x.safetensors").exists()
