"""Every command that writes: a second launch in a folder is one line, and what the command has not written stays."""

import multiprocessing
import os
import time
from contextlib import suppress

import pytest
import torch

from commandline import run_command
from steindiff.analytic import Gaussian
from steindiff.calibration import calibrations
from steindiff.calibration.keeping import keeping
from steindiff.diagnostics.setup import configure, configure_shift
from steindiff.diagnostics.shift import run_shift
from steindiff.diagnostics.study import run_diagnose
from steindiff.errors import InputError, ModelFileError
from steindiff.io.files import HALF, write_tensors
from steindiff.io.folders import LOCK, claimed, locked, locked_file
from steindiff.metrics import JudgeFiles
from steindiff.models.datasets import load_digits
from steindiff.models.networks import UNetConfig
from steindiff.report import demo, diagnose, evaluate, study
from steindiff.study.demo import run_demo
from steindiff.study.judge import judge_images
from steindiff.study.judging import Job
from steindiff.train.loop import train
from steindiff.train.plan import Options
from steindiff.train.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
FORK = multiprocessing.get_context("fork")
WHERE = {
    "sample": (["--model", "digits", "--nfe", "1", "--solver", "ddim", "--seeds", "0-1", "--overwrite"], "000001.png"),
    "bench": (["--beds", "digits_mixture", "--solvers", "ddim", "--nfe", "2", "--samples", "40"], "report.html"),
    "demo": ([], "correction-digits.png"),
    "diagnose": (["--model", "digits", "--nfe", "2"], "results.json"),
    "evaluate": (["--model", "digits", "--data", "digits", "--n", "8"], "quality.md"),
    "score": (["--images", "nowhere", "--real", "nowhere", "--features", "cifar10", "--overwrite"], "score.json"),
    "train": (["--preset", "smoke", "--data", "digits", "--name", "mine", "--overwrite"], "mine.safetensors"),
}
"""What a command is asked, and a file that would be in its way."""


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")
    }


@pytest.mark.parametrize("command", WHERE)
def test_a_file_in_the_way_is_listed_before_any_work(tmp_path, monkeypatch, capsys, command):
    words, name = WHERE[command]
    (tmp_path / name).write_text("mine")
    code, out, error = run_command(monkeypatch, capsys, command, *words, "--outdir", tmp_path)
    assert code == 2, out + error
    said = " ".join(error.split())
    assert f"1 file in the way that this run has not written, or not so: {name}; move or remove them, or choose" in said
    assert tree(tmp_path) == {name: b"mine"}


def test_a_file_that_is_no_model_and_no_table_is_not_replaced(tmp_path, monkeypatch, capsys):
    file = tmp_path / "theirs.safetensors"
    file.write_text("mine")
    for words in (["convert", tmp_path / "no.pkl", file, "--overwrite"], ["calibrate", "--model", "digits", "--out", file]):
        code, _, error = run_command(monkeypatch, capsys, *words)
        assert (code, file.read_text()) == (2, "mine")
        assert "theirs.safetensors" in error
    assert os.listdir(tmp_path) == [file.name]


def _hold(folder, file, ready):
    with locked(folder), locked_file(file), locked_file(file.with_suffix(".npz")):
        ready.set()
        time.sleep(300)


def test_a_second_launch_of_any_command_is_one_line(tmp_path, monkeypatch, capsys):
    folder, file, ready = tmp_path / "run", tmp_path / "model.safetensors", FORK.Event()
    other = FORK.Process(target=_hold, args=(folder, file, ready), daemon=True)
    other.start()
    assert ready.wait(60)
    try:
        commands = [[command, *words, "--outdir", folder] for command, (words, _) in WHERE.items()]
        commands += [["convert", tmp_path / "no.pkl", file], ["calibrate", "--model", "digits", "--out", file]]
        for words in commands:
            code, _, error = run_command(monkeypatch, capsys, *words)
            assert code == 2, (words, error)
            line = error.strip().splitlines()[-1]
            assert f" is in use by process {other.pid} on " in line, words
            assert "wait until that run ends, stop it, or " in line
        data, held = load_digits()
        judging = Job((JudgeFiles("classifier", "cifar10"),), real="nowhere", write_reference=file.with_suffix(".npz"))
        network, recipe = UNetConfig(channels=8, mults=(1, 2), blocks=1, attention=(1,), heads=1, groups=4), Recipe(batch=8)
        for call in (
            lambda: judge_images(judging),
            lambda: run_demo(folder, nfe=5, samples=64, first_seed=0),
            lambda: run_diagnose(configure("quick", models=("digits",)), folder),
            lambda: run_shift(configure_shift(models=("digits",)), folder),
            lambda: train(data, held, network, recipe, folder, Options(cpu=True)),
        ):
            with pytest.raises(InputError, match=f" is in use by process {other.pid} on .*: wait until that run ends"):
                call()
        for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=f"by process {other.pid} on .*: this is one of several processes"), locked(folder):
            pass
        assert tree(tmp_path) == {}
    finally:
        other.kill()
        other.join()


@pytest.mark.parametrize("claim", [demo.CLAIM, diagnose.CLAIM, evaluate.CLAIM, study.CLAIM], ids=lambda claim: claim.command)
def test_what_a_kill_left_half_written_is_swept_from_every_room(tmp_path, claim):
    rooms = [tmp_path, *(tmp_path / room.replace("*", "digits") for room in claim.rooms)]
    for room in rooms:
        room.mkdir(parents=True, exist_ok=True)
        (room / f".fine-abcdef01{HALF}.safetensors").write_text("half")
    with claimed(tmp_path, claim):
        assert not list(tmp_path.rglob(f".*{HALF}.*"))


# --- the folder where a calibration keeps what is finished -----------------------------------------------------------


def test_of_a_calibrations_folder_only_its_own_files_go(tmp_path):
    out, theirs = tmp_path / "out.safetensors", tmp_path / "theirs"
    (theirs / ("b" * 16)).mkdir(parents=True)
    write_tensors(theirs / ("b" * 16) / "5.safetensors", {}, {})
    for mine in (True, False):
        with keeping(out) as work:
            job = work / ("a" * 16)
            write_tensors(job / "fine.safetensors", {}, {})
            write_tensors(job / "5.safetensors", {}, {})
            (job / f".6-abcdef01{HALF}.safetensors").write_text("half")
            (job / LOCK).write_text("{}")  # of a kill
            if mine:
                (work / "notes.txt").write_text("mine")
                (job / "7.safetensors").write_text("mine")
                (work / ("b" * 16)).symlink_to(theirs / ("b" * 16))
        left = (
            {str(p.relative_to(work)) for p in work.rglob("*") if not p.is_dir() or p.is_symlink()} if work.exists() else set()
        )
        assert left == ({"notes.txt", f"{'a' * 16}/7.safetensors", "b" * 16} if mine else set())
        for path in (work / "notes.txt", job / "7.safetensors", work / ("b" * 16)) if mine else ():
            path.unlink()
    assert not work.exists()
    assert (theirs / ("b" * 16) / "5.safetensors").exists()


def test_a_calibrations_folder_is_no_link_and_its_file_no_other(tmp_path):
    (tmp_path / ".out.parts").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"\.out\.parts is no folder of a calibration"), keeping(tmp_path / "out.safetensors"):
        pass
    (tmp_path / "mine.safetensors").write_text("mine")
    with pytest.raises(ModelFileError, match="no readable table"), keeping(tmp_path / "mine.safetensors"):
        pass


def test_a_stopped_calibration_keeps_its_folder_whatever_the_name_of_the_file(tmp_path):
    out = tmp_path / f"{'x' * 240}.safetensors"
    with suppress(InputError), keeping(out) as work:
        write_tensors(work / ("a" * 16) / "fine.safetensors", {}, {})
        raise InputError("stopped")
    assert (work / ("a" * 16) / "fine.safetensors").exists()


LAW = Gaussian(torch.zeros(3), torch.diag(torch.tensor([0.3, 0.2, 0.1])))


def _calibrate(work, began, seed=0):
    def denoiser(x, sigma):
        began.set()
        time.sleep(0.05 * (began is not DONE))
        return LAW(x, sigma)

    noise = 80 * torch.randn(64, 3, generator=torch.Generator().manual_seed(seed))
    return calibrations(denoiser, noise, [2], network="law", work=work)


DONE = FORK.Event()


def test_two_calibrations_of_one_kind_in_one_folder(tmp_path):
    """The second is refused; tables of other noise may be made beside the first."""
    began = FORK.Event()
    other = FORK.Process(target=_calibrate, args=(tmp_path, began), daemon=True)
    other.start()
    assert began.wait(60)
    try:
        with pytest.raises(InputError, match=f" is in use by process {other.pid} on "):
            _calibrate(tmp_path, DONE)
        assert [table.nfe for table in _calibrate(tmp_path, DONE, seed=1)] == [2]
    finally:
        other.kill()
