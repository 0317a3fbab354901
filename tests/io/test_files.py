"""Writes are whole or absent; manifests name what made them."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from steindiff.errors import InputError
from steindiff.io.files import atomic, manifest, read_tensors, sha256, writable_folder, write_json, write_tensors, write_text


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def interrupted() -> None:
        with atomic(target) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / "a.txt"
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"cannot write .*a\.txt: No space left on device; free space"):
        write_text(target, "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="who may read a file is the folder's to say there")
def test_who_may_read_a_file_is_what_the_umask_says(tmp_path):
    """Also where a library replaces the file that it is to write, as that of safetensors does."""
    for mask, mode in ((0o077, 0o600), (0o027, 0o640), (0o022, 0o644), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            write_text(tmp_path / "a.txt", "x")
            write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(3)}, {})
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_what_is_written_to_a_half_written_file_is_a_part_of_it(tmp_path):
    with atomic(tmp_path / "a.txt") as temporary:
        write_text(temporary, "inner")
        assert os.listdir(tmp_path) == [temporary.name]
    assert (tmp_path / "a.txt").read_text() == "inner"


FULL = """
import resource, sys, torch
from steindiff.errors import InputError
from steindiff.io.files import write_tensors, write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
big = {"x": torch.zeros(20_000)}
writes = {"a.txt": lambda path: write_text(path, "x" * 20_000), "a.safetensors": lambda path: write_tensors(path, big, {})}
for name, write in writes.items():
    try:
        write(f"{sys.argv[1]}/{name}")
    except InputError as error:
        print(error)
"""


def test_a_file_that_outgrows_its_room_is_a_clear_error_and_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("cannot write ") and "File too large" in line and "free space" in line for line in lines)
    assert os.listdir(tmp_path) == []


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        writable_folder(tmp_path / "file" / "below")
    with pytest.raises(InputError, match="cannot make the folder"):
        writable_folder(tmp_path / "file")


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [1.5, float("inf")], "c": Path("x"), "d": None})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [1.5, None], "c": "x", "d": None}


def test_sha256_of_known_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_manifest_says_versions_machine_and_command():
    m = manifest(seeds=[1, 2])
    assert {"steindiff", "git", "python", "torch", "numpy", "machine", "time", "command", "seeds"} <= set(m)
    json.dumps(m)


def test_tensors_come_back_with_what_is_known_about_them(tmp_path):
    path, x = tmp_path / "a.safetensors", torch.arange(6.0).reshape(2, 3)
    write_tensors(path, {"x": x.mT, "y": x}, {"value": float("nan"), "pair": (1, 2)})
    about, (y, back) = read_tensors(path, "y", "x")
    assert torch.equal(back, x.mT)
    assert torch.equal(y, x)
    assert about == {"value": None, "pair": [1, 2]}
    assert read_tensors(path)[1] == []


def _truncated(path: Path) -> None:
    write_tensors(path, {"x": torch.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(b"PK" * 100), "SafetensorError"),
        (_truncated, "SafetensorError"),
        (lambda path: save_file({"x": torch.zeros(2)}, path), "KeyError: 'steindiff'"),
        (lambda path: save_file({"x": torch.zeros(2)}, path, {"steindiff": "{half"}), "Expecting property name"),
        (lambda path: save_file({"x": torch.zeros(2)}, path, {"steindiff": "[1]"}), r"its header says \[1\]"),
        (lambda path: write_tensors(path, {"y": torch.zeros(2)}, {}), "does not contain tensor x"),
    ],
)
def test_any_other_file_is_a_value_error(tmp_path, make, reason):
    path = tmp_path / "a.safetensors"
    make(path)
    with pytest.raises(ValueError, match=reason):
        read_tensors(path, "x")


def test_a_name_that_no_file_system_takes_is_one_line(tmp_path):
    for name in ("x" * 300, "x." + "y" * 300):
        with pytest.raises(InputError, match=r"cannot write .* too long"):
            write_text(tmp_path / name, "")
    with pytest.raises(InputError, match="cannot make the folder"):
        writable_folder(tmp_path / "a\0b")
    assert not list(tmp_path.iterdir())


def test_half_a_pair_is_escaped(tmp_path):
    write_text(tmp_path / "file", "a\ud800b")
    assert (tmp_path / "file").read_bytes() == b"a\\ud800b"
