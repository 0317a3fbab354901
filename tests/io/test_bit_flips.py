"""A flipped bit in any kind of file that we write is named, or changes nothing that is read; older files still load."""

import random

import pytest
from faults.kinds import KINDS, seen
from recipes.sums import sums
from safetensors.torch import load_file, save_file

from steindiff import models
from steindiff.errors import InputError, ModelFileError
from steindiff.io import digests, jsons
from steindiff.io.files import read_json, read_tensors, write_json

FLIPS = 60
SEALED = [name for name, kind in KINDS.items() if kind.sealed]


def _places(size, seed):
    """Bits of a file, many of them near its ends, where headers are."""
    draw = random.Random(seed)
    first = [draw.randrange(min(size, 400)) for _ in range(FLIPS // 3)]
    last = [size - 1 - draw.randrange(min(size, 200)) for _ in range(FLIPS // 6)]
    return [(at, draw.randrange(8)) for at in first + last + [draw.randrange(size) for _ in range(FLIPS // 2)]]


def _read(kind, path):
    """What was read, or the error that says why not."""
    try:
        return seen(kind.read(path))
    except ValueError as error:
        return error


@pytest.mark.parametrize("name", SEALED)
def test_a_flipped_bit_is_refused_or_harmless(tmp_path, name):
    kind = KINDS[name]
    path = kind.make(tmp_path)
    whole, want = path.read_bytes(), seen(kind.read(path))
    allowed = ValueError if name == "fine runs" else (InputError, ModelFileError)
    refused = 0
    for at, bit in _places(len(whole), name):
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        path.write_bytes(changed)
        found = _read(kind, path)
        assert found == want or (isinstance(found, allowed) and str(found)), f"byte {at}, bit {bit}: {found!r}"
        refused += found != want
    assert refused > FLIPS / 5, "the flips must have met numbers"
    path.write_bytes(whole)
    assert seen(kind.read(path)) == want


@pytest.mark.parametrize("name", ["model", "tables", "cell", "part of a run"])
def test_the_error_names_the_damage_and_the_remedy(tmp_path, name):
    path = KINDS[name].make(tmp_path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged: its digest differs.*(fetch|remove|make)"):
        KINDS[name].read(path)


def test_a_file_of_tensors_is_covered_in_every_bit(tmp_path):
    """All bytes: no byte of a small file is without an owner."""
    path = KINDS["fine runs"].make(tmp_path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r".") as caught:
            read_tensors(path, "states")
        assert len(str(caught.value)) > 10, at


def test_files_without_a_seal_still_load(tmp_path):
    path = KINDS["model"].make(tmp_path)
    info, tensors = models.read(path)
    save_file(load_file(path), tmp_path / "old.safetensors", {"steindiff": jsons.json.dumps(info)})
    assert seen(models.read(tmp_path / "old.safetensors")) == seen((info, tensors))


def test_shipped_files_without_a_seal_are_those_of_the_list(tmp_path, monkeypatch):
    assert read_json(digests.SUMS) == sums(), "run python -m recipes.sums"
    package = tmp_path / "package"
    place = package / "models" / "digits.safetensors"
    place.parent.mkdir(parents=True)
    data = bytearray((models.store.WEIGHTS / "digits.safetensors").read_bytes())
    place.write_bytes(data)
    monkeypatch.setattr(digests, "PACKAGE", package)
    monkeypatch.setattr(digests, "_shipped", lambda: {"models/digits.safetensors": digests.sha256(place)})
    models.read(place)
    known = digests.sha256(place)
    monkeypatch.setattr(digests, "_shipped", lambda: {"models/digits.safetensors": known})
    data[-5] ^= 1
    place.write_bytes(data)
    with pytest.raises(ModelFileError, match="differs from that of the shipped file"):
        models.read(place)


def test_a_seal_is_of_values_and_not_of_their_layout(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, 2.5, None], "a": {"x": True}}, seal=True)
    assert read_json(path) == {"b": [1, 2.5, None], "a": {"x": True}}
    held = jsons.json.loads(path.read_text())
    path.write_text(jsons.json.dumps(dict(reversed(held.items()))))
    assert read_json(path) == {"b": [1, 2.5, None], "a": {"x": True}}
    path.write_text(path.read_text().replace("2.5", "2.6"))
    with pytest.raises(ValueError, match="digest differs"):
        read_json(path)
