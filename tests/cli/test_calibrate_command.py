"""`steindiff calibrate` and `sample --table` as a user meets them."""

import json
import random
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from commandline import run_command
from steindiff.calibration.keeping import FIRST_SEED, kept_beside
from steindiff.io.files import read_json
from steindiff.solvers import Purpose, Table, as_table, calibrated
from steindiff.solvers import make as make_solver
from steindiff.solvers.table import load_all
from steindiff.study import calibrating
from steindiff.study.testbed import make


def run(monkeypatch, capsys, *args: str) -> tuple[int, str]:
    code, out, err = run_command(monkeypatch, capsys, *args)
    return code, out + err


def test_tables_go_to_a_file_beside_those_of_others(tmp_path, monkeypatch, capsys):
    out = tmp_path / "deep" / "wine.safetensors"
    args = ["calibrate", "--model", "wine_mixture", "--trajectories", "24", "--out", str(out)]
    code, text = run(monkeypatch, capsys, *args, "--nfe", "1,2")
    assert code == 0, text
    assert "2 evaluations: RMSE" in text
    assert "2 tables in" in text
    assert [table.nfe for table in load_all(out)] == [1, 2]
    first = Table.load(out, 1)
    assert first.report["testbed"] == "wine_mixture"
    assert first.report["first_seed"] == FIRST_SEED
    assert [path.name for path in out.parent.iterdir()] == [out.name]  # nothing is left of the work
    code, text = run(monkeypatch, capsys, *args, "--nfe", "2,3")
    assert code == 0, text
    assert sorted(table.nfe for table in load_all(out)) == [1, 2, 3]
    assert repr(Table.load(out, 1).solver) == repr(first.solver)


def test_a_killed_calibration_leaves_nothing_and_goes_on(tmp_path, monkeypatch, capsys):
    """Killed for good at two moments: a little after the fine runs, and a little after the first table."""
    args = ["calibrate", "--model", "wine_mixture", "--trajectories", "24", "--nfe", "1,2", "--out"]
    code, text = run(monkeypatch, capsys, *args, str(tmp_path / "whole.safetensors"))
    assert code == 0, text
    out, draw, killed = tmp_path / "cut.safetensors", random.Random(5), list[bool]()
    for name in ("fine.safetensors", "1.safetensors"):
        process = subprocess.Popen([sys.executable, "-m", "steindiff", *args, str(out)], stderr=subprocess.DEVNULL)
        while not list(tmp_path.rglob(name)) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(draw.uniform(0.0, 0.02))
        process.kill()
        killed.append(process.wait() != 0)
        assert not out.exists() or len(load_all(out)) == 2
    assert killed[0]
    code, text = run(monkeypatch, capsys, *args, str(out))
    assert code == 0, text
    whole, cut = (load_all(tmp_path / f"{name}.safetensors") for name in ("whole", "cut"))
    assert [repr(table.solver) for table in cut] == [repr(table.solver) for table in whole]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.safetensors", "whole.safetensors"]


def test_a_guided_network_has_a_table_of_its_scale(tmp_path, monkeypatch, capsys):
    out = tmp_path / "tables" / "guided.safetensors"
    bed = make("digits_classes_guided_3")
    (table,) = calibrating.calibrate_bed(bed, [1], 8)
    kept_beside(out, [table])
    assert table.solver.purpose.guidance == 3.0
    monkeypatch.setenv(calibrated.VARIABLE, str(out.parent))
    code, text = run(
        monkeypatch, capsys, "sample", "--model", "digits_classes", "--class", "7", "--guidance", "3", "--nfe", "1", "--seeds",
        "0-1", "--outdir", str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 0, text
    assert read_json(tmp_path / "out" / "run.json")["solver"] == str(table.solver)


def test_scales_between_two_that_have_tables_are_served(tmp_path, monkeypatch, capsys):
    """The largest scale comes first, and the tables of each are the starts of the next; here they are stand-ins."""
    out, calls = tmp_path / "tables" / "guided.safetensors", []

    def made(bed, nfe, trajectories, *, starts, **how):
        calls.append((bed.setting.guidance, [table.solver.purpose.guidance for table in starts]))
        solver, sigmas = make_solver("ddim").plan(1)
        purpose = Purpose.of(bed.denoiser, bed.event_shape)
        report = {"gate": {"rmse": 0.1, "others": {"ddim": 0.2}, "best": "ddim", "images": 2, "kept": "it"}, "seconds": 1.0}
        return [Table(replace(as_table(solver, sigmas), purpose=purpose), report)]

    monkeypatch.setattr(calibrating, "calibrate_bed", made)
    args = ["calibrate", "--model", "digits_classes", "--guidance", "2,5,3", "--nfe", "1", "--out", str(out)]
    code, text = run(monkeypatch, capsys, *args)
    assert code == 0, text
    assert calls == [(5.0, []), (3.0, [5.0]), (2.0, [3.0])]
    assert "guidance 3, 1 evaluations: RMSE" in text
    assert sorted(table.solver.purpose.guidance for table in load_all(out)) == [2.0, 3.0, 5.0]
    monkeypatch.setenv(calibrated.VARIABLE, str(out.parent))
    common = ["--model", "digits_classes", "--class", "7", "--nfe", "1", "--seeds", "0-1", "--solver", "calibrated"]
    for scale, ran in (("2.5", 0), ("9.5", 2)):
        code, text = run(monkeypatch, capsys, "sample", *common, "--guidance", scale, "--outdir", str(tmp_path / scale))
        assert code == ran, text
    assert "are for 2, 3, 5, and serve what lies between" in text
    assert "between w = 2 and 3" in read_json(tmp_path / "2.5" / "run.json")["solver"]


def test_sample_takes_the_tables_of_a_file(tmp_path, monkeypatch, capsys):
    shipped = calibrated.SHIPPED / "digits.safetensors"
    for name, extra in (("table", ["--table", str(shipped)]), ("auto", [])):
        code, text = run(
            monkeypatch,
            capsys,
            "sample",
            "--model",
            "digits",
            "--nfe",
            "4",
            "--seeds",
            "0-3",
            "--outdir",
            str(tmp_path / name),
            *extra,
        )
        assert code == 0, text
    about = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("table", "auto")]
    assert [run["solver"] for run in about] == ["calibrated table of 4 evaluations"] * 2
    assert (tmp_path / "table" / "samples.npz").read_bytes() == (tmp_path / "auto" / "samples.npz").read_bytes()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("calibrate --model digits --out t.json", "tables are .safetensors files"),
        ("calibrate --model nothing --out t.safetensors", "nothing"),
        ("calibrate --model digits_classes --guidance 2,x --out t.safetensors", "need scales with commas between"),
        ("calibrate --model digits_classes --guidance 0 --out t.safetensors", "need finite scales above 0"),
        ("calibrate --model digits --guidance 2 --out t.safetensors", "has no null class"),
        ("calibrate --model digits --trajectories 4 --nfe 2 --out t.safetensors", "needs 8 trajectories or more"),
        ("calibrate --model digits --nfe 0 --out t.safetensors", "whole numbers of evaluations, from 1"),
        ("sample --model digits_classes --class 1 --nfe 4 --outdir o --table DIGITS", "calibrated for network"),
        ("sample --model digits --nfe 14 --outdir o --table DIGITS", "has tables of 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 evaluations"),
        ("sample --model digits --nfe 4 --outdir o --table missing.safetensors", "is no readable table"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    words = args.replace("DIGITS", str(calibrated.SHIPPED / "digits.safetensors")).split()
    code, text = run(monkeypatch, capsys, *words)
    assert code == 2
    assert message in text
    assert not list(tmp_path.glob("*.safetensors"))
