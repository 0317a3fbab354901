"""Files and folders of other users: what may not be read, written or locked is named in one line, and stays whole."""

import fcntl
import json
import os
import shutil
import stat

import numpy as np
import pytest
import torch

from commandline import run_command
from ordinary import NOBODY, permissions_hold
from steindiff import models
from steindiff.calibration.keeping import keeping
from steindiff.errors import AccessError, InputError
from steindiff.io import packed
from steindiff.io.files import HALF, atomic, read_json, read_tensors, read_text, write_json, write_tensors, write_text
from steindiff.io.folders import LOCK, RECORD, Claim, claimed, locked
from steindiff.models import store
from steindiff.run import Job, generate
from steindiff.run.holding import PARTS
from steindiff.solvers.dpm_v3_statistics import Statistics
from steindiff.study import store as cells
from steindiff.study.grid import Cell
from steindiff.train import checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
needs_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files to another user")
JOB = Job("digits", (0, 1, 2), "ddim", nfe=1, batch=2)
CELL = Cell("bed", "heun", "karras", 5, "none")


@pytest.fixture(autouse=True)
def ordinary():
    with permissions_hold():
        yield


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- what may not be read --------------------------------------------------------------------------------------------


def _checkpoint(path):
    identity = {"recipe": {"steps": 3}, "unet": {}}
    checkpoint.save_checkpoint(path, checkpoint.Checkpoint(1, 1.0, identity, {}, {}, {}, {}))


def _zip(path):
    with open(path, "wb") as file:
        np.savez(file, a=np.zeros(3))


def _model(path):
    shutil.copy(store.WEIGHTS / "digits.safetensors", path)


READERS = {
    "a.json": (lambda path: write_json(path, {"a": 1}), read_json),
    "a.txt": (lambda path: write_text(path, "a"), read_text),
    "a.safetensors": (lambda path: write_tensors(path, {"x": torch.zeros(3)}, {}), read_tensors),
    "a.npz": (_zip, lambda path: packed.read_npz(path, ["a"])),
    "b.npz": (_zip, packed.names_of),
    "a.zip": (_zip, lambda path: list(packed.members(path, lambda name: True))),
    "checkpoint.pt": (_checkpoint, checkpoint.steps_of),
    "model.safetensors": (_model, models.load),
    "statistics.safetensors": (Statistics.constant(1, 0, 0, (2.0, 1.0), (3,)).save, Statistics.load),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, name):
    write, read = READERS[name]
    write(tmp_path / name)
    read(tmp_path / name)
    os.chmod(tmp_path / name, 0)
    with pytest.raises(AccessError) as caught:
        read(tmp_path / name)
    assert (
        str(caught.value) == f"{tmp_path / name} cannot be read: Permission denied; change its permissions, or ask its owner to"
    )


def test_a_cell_that_may_not_be_read_is_not_to_be_removed_and_one_that_may_not_be_written_serves(tmp_path):
    cells.write(tmp_path, cells.Result(CELL, "abc", 7))
    path = cells.place(tmp_path, CELL, "abc")
    os.chmod(path, 0o400)
    found = cells.read(tmp_path, CELL, "abc")
    assert found is not None
    assert found.n == 7
    os.chmod(path, 0)
    with pytest.raises(AccessError, match=r"cannot be read: Permission denied; change its permissions"):
        cells.read(tmp_path, CELL, "abc")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_whose_list_may_not_be_read_stays(tmp_path, overwrite):
    generate(JOB, tmp_path)
    before = tree(tmp_path)
    os.chmod(tmp_path / "run.json", 0)
    with pytest.raises(AccessError, match=r"run\.json cannot be read"):
        generate(JOB, tmp_path, overwrite=overwrite)
    os.chmod(tmp_path / "run.json", 0o600)
    assert tree(tmp_path) == before


def test_a_record_that_may_not_be_read_is_not_replaced(tmp_path):
    """Else what another command has written would become a stranger's."""
    with claimed(tmp_path, Claim("bench", ("a.md",))):
        (tmp_path / "a.md").write_text("a")
    os.chmod(tmp_path / RECORD, 0)
    with pytest.raises(AccessError, match=r"steindiff\.json cannot be read"), claimed(tmp_path, Claim("demo", ("b.md",))):
        pass
    os.chmod(tmp_path / RECORD, 0o600)
    assert list(read_json(tmp_path / RECORD)) == ["bench"]


# --- what may not be written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["run", "run/below"])
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path, monkeypatch, capsys, place):
    (tmp_path / "run").mkdir(mode=0o555)
    for command in (
        ["sample", "--model", "digits", "--nfe", "1", "--overwrite", "--outdir", tmp_path / place],
        ["bench", "--outdir", tmp_path / place],
        ["train", "--preset", "smoke", "--data", "digits", "--overwrite", "--outdir", tmp_path / place],
        ["calibrate", "--model", "digits", "--out", tmp_path / place / "a.safetensors"],
    ):
        code, _, error = run_command(monkeypatch, capsys, *command)
        assert code == 2
        assert len(error.splitlines()) == 1
        assert "is not writable: change its permissions" in error or "Permission denied; choose another folder" in error
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("room", [PARTS, "000000"])
def test_a_run_that_stops_at_a_folder_within_goes_on_when_it_may(tmp_path, room):
    (tmp_path / room).mkdir()
    os.chmod(tmp_path / room, 0o555)
    with pytest.raises(InputError, match=f"the folder .*{room} is not writable: change its permissions"):
        generate(JOB, tmp_path, subdirs=True)
    os.chmod(tmp_path / room, 0o755)
    generate(JOB, tmp_path, subdirs=True)
    assert (tmp_path / "run.json").exists()


def test_a_folder_that_seems_writable_and_is_not(tmp_path, monkeypatch):
    """As on servers that take root for nobody."""
    monkeypatch.setattr(os, "access", lambda *_, **__: True)
    os.chmod(tmp_path, 0o555)
    with pytest.raises(InputError, match=r"cannot lock the folder .* \(Permission denied\): change its permissions, or choose"):
        locked(tmp_path).__enter__()


# --- locks -----------------------------------------------------------------------------------------------------------


def _lock(path, mode, held):
    """The lock of another process, whose file may not be written; it is held or left."""
    path.write_text(json.dumps({"pid": 7, "host": "there", "since": "noon"}))
    file = open(path)  # noqa: SIM115
    if held:
        fcntl.flock(file, fcntl.LOCK_EX)
    os.chmod(path, mode)
    return file


def test_a_lock_that_may_be_read_and_not_written_is_held_or_goes(tmp_path):
    """As another user's is, by a umask of 022."""
    with _lock(tmp_path / LOCK, 0o444, held=True):
        with pytest.raises(InputError, match=r"in use by process 7 on there since noon: wait until that run ends"):
            locked(tmp_path).__enter__()
        assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("held", [False, True])
def test_a_lock_that_may_not_even_be_read_is_never_removed(tmp_path, held):
    """Nobody can tell whether a run has it."""
    with (
        _lock(tmp_path / LOCK, 0, held),
        pytest.raises(InputError, match=r"cannot lock the folder .*: the user \w+ has left .*; ask its owner to remove it"),
    ):
        locked(tmp_path).__enter__()
    assert (tmp_path / LOCK).exists()


def test_who_may_write_to_a_folder_may_lock_it(tmp_path):
    before = os.umask(0o077)
    try:
        for mode, want in ((0o755, 0o600), (0o775, 0o666), (0o1777, 0o666)):
            os.chmod(tmp_path, mode)
            with locked(tmp_path):
                assert stat.S_IMODE((tmp_path / LOCK).stat().st_mode) == want
    finally:
        os.umask(before)


@needs_root
def test_in_a_folder_where_each_removes_his_own_the_rest_stays(tmp_path):
    """A lock and half a file of another user, in a folder such as /tmp."""
    folder, half = tmp_path / "run", f".a-abcdef01{HALF}.md"
    folder.mkdir()
    for name in (LOCK, half):
        (folder / name).write_text("")
        os.chmod(folder / name, 0o644)
        os.chown(folder / name, NOBODY, NOBODY)
    os.chmod(folder, 0o1777)
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(InputError, match=r"cannot lock the folder .*; ask its owner to remove it once no run is there"):
        locked(folder).__enter__()
    os.chown(folder / LOCK, 0, 0)
    with locked(folder):
        pass
    assert os.listdir(folder) == [half]


@needs_root
def test_long_work_asks_whether_its_file_can_be_replaced(tmp_path, monkeypatch):
    """In a folder such as /tmp another user's file stays, which a rename would only say at the end."""
    folder, mine = tmp_path / "shared", 1234
    folder.mkdir()
    tables = folder / "tables.safetensors"
    shutil.copy(store.WEIGHTS.parents[1] / "solvers" / "universal.safetensors", tables)
    os.chown(tables, NOBODY, NOBODY)
    os.chmod(folder, 0o1777)
    before = tree(folder)
    monkeypatch.setattr(os, "geteuid", lambda: mine)
    refused = pytest.raises(
        InputError, match=r"tables.safetensors is another user's, and in .*shared only its owner can replace"
    )
    with refused, keeping(tables):
        pytest.fail("the work has begun")
    with refused, atomic(tables):
        pytest.fail("the file is being written")
    assert tree(folder) == before
    os.chown(tables, mine, mine)
    with atomic(tables) as temporary:
        temporary.write_text("mine")
    assert tables.read_text() == "mine"


@needs_root
def test_a_run_goes_on_in_a_folder_of_two_users(tmp_path, monkeypatch):
    """Another user's run was killed; this one may write to the folders, and not to the files."""
    whole, run = generate(JOB, tmp_path / "whole"), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("steindiff.run.output.Output.finish", lambda *_, **__: (_ for _ in ()).throw(InputError("stopped")))
        with pytest.raises(InputError, match="stopped"):
            generate(JOB, run)
    (run / PARTS / "000001.safetensors").unlink()
    (run / LOCK).write_text("{}")
    for path in (run, *run.rglob("*")):
        os.chmod(path, 0o777 if path.is_dir() else 0o444)
        os.chown(path, NOBODY, NOBODY)
    generate(JOB, run)
    names = sorted(name for name in tree(whole) if name != "run.json")
    assert [tree(run)[name] for name in names] == [tree(whole)[name] for name in names]
    assert not (run / PARTS).exists()
