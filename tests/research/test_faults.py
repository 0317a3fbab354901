"""The suites of faults: short runs that must break no promise, and what they must notice where one is broken."""

import os
import random
import sys
import time
from dataclasses import dataclass

import pytest
from faults import fuzz, interruptions
from faults.fuzz import BARE, OTHER, REFUSED, SAME, SLOW, TRACEBACK, attacked, mutated, outcome, promised
from faults.interruptions import DIFFERENT, FAILED, Whole
from faults.kinds import KINDS, Kind
from faults.outcomes import Outcomes, page, told
from faults.runs import Case

from steindiff.errors import InputError
from steindiff.io.files import read_json
from steindiff.io.jsons import SEAL
from steindiff.report.markdown import markdown

ATTEMPTS = 25


@pytest.mark.parametrize("name", list(KINDS))
def test_damaged_files_break_no_promise(tmp_path, name):
    found = attacked((name,), tmp_path, attempts=ATTEMPTS, seconds=None, seed=1)[name]
    assert found.broken == []
    assert found.counts.total() == ATTEMPTS
    assert found.counts[REFUSED] > 0


def test_mutations_are_those_of_the_seed_and_change_the_data():
    data = bytes(range(256)) * 4
    first = [mutated(data, random.Random(seed)) for seed in range(50)]
    assert first == [mutated(data, random.Random(seed)) for seed in range(50)]
    assert sum(one != data for one in first) > 45
    assert mutated(b"", random.Random(0)) is not None


def made(read, sealed=True):
    """A kind that reads as it is told."""

    def make(folder):
        (folder / "file").write_bytes(bytes(100))
        return folder / "file"

    return Kind(make, read, sealed)


def signed(folder):
    (folder / "file").write_bytes(SEAL.encode() * 100)
    return folder / "file"


def fail(path):
    raise KeyError("weights")


def refuse(path):
    raise InputError("file is damaged: fetch it again")


def two_lines(path):
    raise InputError("damaged\nindeed")


@pytest.mark.parametrize(
    ("read", "want"),
    [(lambda path: 1, SAME), (lambda path: 2, BARE), (refuse, REFUSED), (fail, TRACEBACK), (two_lines, TRACEBACK)],
)
def test_what_an_attempt_comes_to(tmp_path, read, want):
    kind = made(read)
    assert outcome(kind, kind.make(tmp_path), "1").partition(":")[0] == want


def test_a_reader_that_hangs_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "LONGEST", 0.05)
    kind = made(lambda path: time.sleep(30))
    assert outcome(kind, kind.make(tmp_path), "1") == SLOW


def test_other_numbers_from_a_file_of_ours_break_the_promise(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "bare", made(lambda path: path.read_bytes()))
    found = attacked(("bare",), tmp_path, attempts=10, seconds=None, seed=0)["bare"]
    assert found.counts[BARE] > 5  # without a digest nobody can tell
    monkeypatch.setitem(KINDS, "signed", Kind(signed, lambda path: path.read_bytes()))
    found = attacked(("signed",), tmp_path, attempts=10, seconds=None, seed=0)["signed"]
    assert found.against == found.counts[OTHER] > 5
    assert promised(made(fail, sealed=False)) == (REFUSED, SAME, OTHER)
    assert "something else than is promised" in markdown(page({"signed": found}, fuzz.OUTCOMES, "kind"))


def test_the_time_bounds_the_rounds(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "quick", made(refuse_all_but_whole))
    began = time.monotonic()
    found = attacked(("quick",), tmp_path, attempts=1, seconds=0.3, seed=0)["quick"]
    assert 0.2 < time.monotonic() - began < 5
    assert found.counts.total() > 10


def refuse_all_but_whole(path):
    if path.read_bytes() != bytes(100):
        refuse(path)
    return 1


def test_unknown_kinds_are_named(tmp_path):
    with pytest.raises(InputError, match="did you mean 'model'"):
        attacked(("modell",), tmp_path, attempts=1, seconds=None, seed=0)
    with pytest.raises(InputError, match="did you mean 'killed'"):
        interruptions.interrupted(("sample",), ("kiled",), 1, 0)


# --- interruptions ---------------------------------------------------------------------------------------------------


def attempted(tmp_path, monkeypatch, script, whole):
    """One attempt on a command that is a line of Python; nothing happens to it at first."""
    case = Case(())
    monkeypatch.setattr(Case, "line", lambda self, folder, processes=1: [sys.executable, "-c", script, str(folder)])
    monkeypatch.setitem(interruptions._ACTIONS, "killed", lambda *arguments: None)
    (tmp_path / "run").mkdir()
    return interruptions.attempt(case, "killed", tmp_path / "run", Whole(whole, 1.0, 10), random.Random(0))[0]


WRITE = "import sys, pathlib; pathlib.Path(sys.argv[1], 'a.json').write_text('{\"n\": 1}')"


@pytest.mark.parametrize(
    ("script", "whole", "want"),
    [
        (WRITE, {"a.json": {"n": 1}}, interruptions.SAME),
        (WRITE, {"a.json": {"n": 2}}, DIFFERENT),
        (WRITE, {"a.json": {"n": 1}, "b.json": {}}, DIFFERENT),
        (WRITE.replace("a.json", ".a-12345678.steindiff-half.json"), {}, interruptions.LITTER),
        ("raise SystemExit(2)", {}, FAILED),
    ],
)
def test_what_an_interrupted_command_comes_to(tmp_path, monkeypatch, script, whole, want):
    assert attempted(tmp_path, monkeypatch, script, whole) == want


@pytest.mark.parametrize(("seconds", "want"), [(0.0, interruptions.LATE), (60.0, interruptions.SAME)])
def test_a_command_that_ended_before_the_fault_has_not_survived_it(tmp_path, monkeypatch, seconds, want):
    """The command writes its file, and is killed while it then sleeps, if it does."""
    script = f"{WRITE}; import time; pathlib.Path(sys.argv[1], '../again').exists() or time.sleep({seconds})"
    case, folder = Case(()), tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(Case, "line", lambda self, folder, processes=1: [sys.executable, "-c", script, str(folder)])
    kill = interruptions.killed

    def killed(*arguments):
        label = kill(*arguments)
        (tmp_path / "again").touch()
        return label

    monkeypatch.setitem(interruptions._ACTIONS, "killed", killed)
    whole = Whole({"a.json": {"n": 1}}, 1.0, 10)
    assert interruptions.attempt(case, "killed", folder, whole, random.Random(0))[0] == want


@pytest.mark.skipif(os.name != "posix", reason="limits are those of POSIX")
@pytest.mark.parametrize(
    ("fault", "script", "want"),
    [
        ("file limit", "file = open(sys.argv[1] + '/a', 'wb'); file.write(bytes(99)); file.close()", interruptions.LOUD),
        ("file limit", "file = open(sys.argv[1] + '/a', 'wb'); file.write(bytes(0)); file.close()", interruptions.LATE),
        ("open files", "many = [open('/dev/null') for _ in range(9)]", interruptions.LOUD),
        ("open files", "sys.exit('error: too few')", None),
    ],
)
def test_a_limit_is_in_force_while_the_command_runs(tmp_path, monkeypatch, fault, script, want):
    """A traceback is what a command of ours never shows."""
    line = [sys.executable, "-c", f"import sys; {script}", str(tmp_path)]
    monkeypatch.setattr(Case, "line", lambda self, folder, processes=1: line)
    assert interruptions._ACTIONS[fault](Case(()), tmp_path, Whole({}, 1.0, 10, 20), random.Random(0)) == want


def test_the_results_count_the_outcomes(tmp_path):
    @dataclass
    class Options:
        seed: int = 0

    found = Outcomes()
    for _ in range(3):
        found.add(interruptions.SAME, "", interruptions.PROMISED)
    told(tmp_path, "Faults", [], Options(), {"sample": found})
    assert read_json(tmp_path / "results.json")["found"]["sample"]["counts"] == {interruptions.SAME: 3}


def test_outcomes_that_are_not_promised_are_kept_in_words():
    found = Outcomes()
    for i in range(8):
        found.add(FAILED if i else interruptions.SAME, f"attempt {i}", interruptions.PROMISED)
    assert (found.against, len(found.broken)) == (7, 5)
    assert "attempt 1" in found.broken[0]


@pytest.mark.slow
@pytest.mark.parametrize("fault", interruptions.FAULTS)
def test_sample_survives_every_fault(fault):
    assert interruptions.interrupted(("sample",), (fault,), 1, 3)[f"sample, {fault}"].broken == []
