"""One run a folder: locks that end with their process, foreign files that stay, and half-written files that go."""

import json
import multiprocessing
import os
import time
from contextlib import suppress

import filelock
import pytest

from steindiff.errors import FolderWarning, InputError
from steindiff.io import files, folders
from steindiff.io.files import write_text
from steindiff.io.folders import LOCK, RECORD, Claim, begins, claimed, locked, locked_file, refuse

CLAIM = Claim("demo", ("report.md", "figures/*"), ("cells/*",), begins("report.md", "# steindiff demo"))
HALF = f".report-abcdef01{files.HALF}.md"


FORK = multiprocessing.get_context("fork")
"""Processes without an import of torch of their own: they only take and give locks."""
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def _hold(folder, ready):
    with locked(folder):
        ready.set()
        time.sleep(60)


@pytest.fixture
def other(tmp_path):
    """Another process that has the folder."""
    ready = FORK.Event()
    process = FORK.Process(target=_hold, args=(tmp_path / "run", ready), daemon=True)
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused_and_one_that_was_killed_is_not_in_the_way(tmp_path, other):
    with (
        pytest.raises(InputError, match=f"is in use by process {other.pid} on .* choose another folder"),
        locked(tmp_path / "run"),
    ):
        pass
    other.kill()
    other.join()
    assert (tmp_path / "run" / LOCK).exists()  # it is stale
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path / "run") == []


def test_a_folder_may_be_locked_again_inside_and_by_another_spelling(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with locked("run"), locked(tmp_path / "run" / ".." / "run"):
        with locked(tmp_path / "link"):
            (tmp_path / "run" / "mine").write_text("")
        assert (tmp_path / "run" / LOCK).exists()
    assert os.listdir(tmp_path / "run") == ["mine"]


def test_what_was_made_for_nothing_goes(tmp_path):
    with pytest.raises(InputError, match="bad"), locked(tmp_path / "a" / "b"):
        raise InputError("bad")
    assert not (tmp_path / "a").exists()
    (tmp_path / "was").mkdir()
    with locked(tmp_path / "was"):
        pass
    assert (tmp_path / "was").is_dir()


def _take_turns(folder, had):
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        with suppress(InputError), locked(folder):
            (folder / "mark").touch(exist_ok=False)
            had.value += 1
            (folder / "mark").unlink()


def test_two_processes_never_have_it_together(tmp_path):
    """The lock's file is removed and made again all the time; neither ever sees the other one's mark."""
    counts = [FORK.Value("i", 0) for _ in range(2)]
    both = [FORK.Process(target=_take_turns, args=(tmp_path, count), daemon=True) for count in counts]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert min(count.value for count in counts) > 0


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def none(self, *args, **kwargs):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    with pytest.warns(FolderWarning, match="without locks: nothing keeps a second run away"), locked(tmp_path) as folder:
        (folder / "file").write_text("")
    assert os.listdir(tmp_path) == ["file"]


def test_a_lock_is_never_taken_through_a_link(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match="cannot lock the folder"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_a_file_has_its_own_lock(tmp_path):
    others = [f".a-abcdef01{files.HALF}.md", f".a-b-abcdef01{files.HALF}.npz"]
    for name in (f".a-abcdef01{files.HALF}.npz", *others):
        (tmp_path / name).write_text("half")
    with locked_file(tmp_path / "a.npz") as path, locked_file(tmp_path / "b.npz"):
        path.write_text("")
        assert len(list(tmp_path.glob(".*.lock"))) == 2
    assert sorted(os.listdir(tmp_path)) == [*others, "a.npz"]


# --- foreign files ---------------------------------------------------------------------------------------------------


def _write(folder, text="# steindiff demo"):
    write_text(folder / "report.md", text)
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "a.png").write_text(text)


def test_foreign_files_are_listed_and_stay(tmp_path):
    (tmp_path / "report.md").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"1 file in the way .*: report.md; move"), claimed(tmp_path, CLAIM):
        _write(tmp_path)
    assert (tmp_path / "report.md").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "report.md"]


def test_ones_own_files_are_written_anew_until_somebody_changes_them(tmp_path):
    for text in ("first", "second"):
        with claimed(tmp_path, CLAIM):
            _write(tmp_path, text)
    assert (tmp_path / "report.md").read_text() == "second"
    (tmp_path / "figures" / "a.png").write_text("mine")
    (tmp_path / "figures" / "b.png").write_text("mine")
    with pytest.raises(InputError, match=r"2 files in the way .*: figures/a.png, figures/b.png;"), claimed(tmp_path, CLAIM):
        _write(tmp_path)
    with pytest.raises(InputError, match=r"report\.md"), claimed(tmp_path, Claim("bench", CLAIM.files)):
        _write(tmp_path)


def test_after_a_kill_what_there_is_is_ones_own(tmp_path):
    """No finally runs: as after kill −9, the record says that the command had begun."""
    folders._admit(tmp_path, CLAIM)
    (tmp_path / "report.md").write_text("half a report")
    with claimed(tmp_path, CLAIM):
        _write(tmp_path)
    assert json.loads((tmp_path / RECORD).read_text())["demo"]["open"] is False


def test_what_a_command_wrote_under_another_name_stays_its_own(tmp_path):
    """A training whose model has another name each time: each file is remembered, whatever was written since."""
    for name in ("a.md", "b.md", "a.md"):
        with claimed(tmp_path, Claim("train", (name,))):
            write_text(tmp_path / name, name)
    assert sorted(json.loads((tmp_path / RECORD).read_text())["train"]["files"]) == ["a.md", "b.md"]


def test_a_run_of_an_earlier_version_is_gone_on_with(tmp_path):
    _write(tmp_path)
    with claimed(tmp_path, CLAIM):
        _write(tmp_path)


def test_a_claim_that_wrote_nothing_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="bad"), claimed(tmp_path / "run", CLAIM):
        raise InputError("bad")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["{half", "[]", '{"demo": 3}', '{"demo": {"open": false, "files": 1}}'])
def test_a_record_that_says_nothing_protects(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(InputError, match=r"report\.md"), claimed(tmp_path, CLAIM):
        _write(tmp_path)


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "a.png").write_text("theirs")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "figures").symlink_to(tmp_path / "theirs")
    (tmp_path / "run" / "report.md").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"2 files in the way .*: figures, report.md"), claimed(tmp_path / "run", CLAIM):
        _write(tmp_path / "run")
    assert (tmp_path / "theirs" / "a.png").read_text() == "theirs"
    (tmp_path / "run" / "report.md").unlink()
    (tmp_path / "theirs" / "a.png").unlink()
    (tmp_path / "run" / "cells").symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match=r"2 files in the way .*: cells, figures;"), claimed(tmp_path / "run", CLAIM):
        _write(tmp_path / "run")
    assert not list((tmp_path / "theirs").iterdir())


def test_half_written_files_are_swept_and_no_others(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / HALF).write_text("half")
    room = tmp_path / "run" / "cells" / "digits"
    room.mkdir(parents=True)
    (tmp_path / "run" / "cells" / "link").symlink_to(tmp_path / "elsewhere")
    others = (".notes.tmp.md", ".notes-20240101.tmp", ".notes-20240101.tmp.md", f"x-abcdef01{files.HALF}.md")
    kept = [*(room / name for name in others), tmp_path / "run" / "theirs" / HALF]
    (tmp_path / "run" / "theirs").mkdir()
    for path in (room / HALF, tmp_path / "run" / HALF, *kept):
        path.write_text("half")
    later = room / HALF.replace("abcd", "dcba")
    later.write_text("being written")
    os.utime(later, (time.time() + 60,) * 2)
    with claimed(tmp_path / "run", CLAIM):
        pass
    assert not (room / HALF).exists()
    assert not (tmp_path / "run" / HALF).exists()
    assert all(path.exists() for path in (*kept, later, tmp_path / "elsewhere" / HALF))


def test_the_half_of_a_file_that_has_a_lock_is_its_writers(tmp_path):
    half = tmp_path / f".my model-abcdef01{files.HALF}.npz"
    with locked_file(tmp_path / "my model.npz"):
        half.write_text("being written")
        with locked(tmp_path):
            assert half.exists()
    with locked(tmp_path):
        assert not half.exists()


def test_a_long_list_is_counted(tmp_path):
    with pytest.raises(InputError, match=r"12 files in the way .*: 00, 01, 02, 03, 04, …; move"):
        refuse(tmp_path, [f"{i:02d}" for i in range(12)])
