"""The examples run as they stand, and the README shows this one."""

import itertools
import math
import runpy
from pathlib import Path

import pytest
import torch
from recipes import pages

import steindiff as sd
from edm_files import SMALL, write

ROOT = Path(__file__).parents[2]


def test_quickstart_runs_and_is_the_one_in_the_readme(capsys):
    path = ROOT / "examples" / "quickstart.py"
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert all("5 evaluations" in line for line in lines)
    *plain, universal, auto = [float(line.split("RMSE to the exact flow ")[1].split(":")[0]) for line in lines]
    assert len(plain) == 3
    assert 0 < auto < universal < min(plain)
    assert lines[-2].endswith("universal table of 5 evaluations")
    assert lines[-1].endswith("calibrated table of 5 evaluations")
    body = path.read_text().split('"""', 2)[2].strip()
    assert body in (ROOT / "README.md").read_text()


def test_the_corrected_run_is_the_one_in_the_docs(capsys):
    path = ROOT / "examples" / "corrected.py"
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert "5 NFE" in lines[-1]
    body = path.read_text().split('"""', 2)[2].strip()
    assert body in (ROOT / "docs" / "correction.md").read_text()


def test_the_loop_beside_the_correction_is_the_one_in_the_docs(capsys):
    path = ROOT / "examples" / "beside_a_loop.py"
    end = runpy.run_path(str(path), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == 6
    body = path.read_text().split('"""', 2)[2].strip()
    assert body in (ROOT / "docs" / "correction.md").read_text()
    assert len(path.read_text().splitlines()) < 25
    noise = sd.initial_noise(seeds=range(64), event_shape=(1, 8, 8))
    solver = sd.Corrected("dpmpp_2m(lower_order_final=False)", "clamped(mode=tweedie)")
    inside = sd.sample(solver, end["model"].denoiser, noise, sd.grids.karras(6))
    torch.testing.assert_close(end["x"], inside.x, rtol=1e-3, atol=1e-3)
    assert [r.reason for r in end["stein"].trace] == [r.reason for r in inside.trace]


def test_a_testbed_of_ones_own_runs_and_is_the_one_in_the_docs(tmp_path, capsys, monkeypatch):
    path = ROOT / "examples" / "own_testbed.py"
    monkeypatch.setattr("sys.argv", ["own_testbed.py", str(tmp_path)])
    runpy.run_path(str(path), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == 2 * 2 * 2
    assert (tmp_path / "report.html").is_file()
    assert path.read_text().split('"""', 2)[2].strip() in (ROOT / "docs" / "bench.md").read_text()


def _run(name, capsys):
    """The lines that an example prints; it is under thirty lines long and stands in docs/extending.md."""
    path = ROOT / "examples" / name
    runpy.run_path(str(path), run_name="__main__")
    text = path.read_text()
    assert text.count("\n") <= 30
    assert text.split('"""', 2)[2].strip() in (ROOT / "docs" / "extending.md").read_text()
    return capsys.readouterr().out.splitlines()


def test_a_correction_of_ones_own_remembers_and_chains(capsys):
    alone, chained = _run("own_correction.py", capsys)
    shifts = [float(s) for s in alone.partition("]")[0].strip("[").split(",")]
    assert shifts[0] == 0  # nothing to remember yet
    assert min(shifts[1:]) > 0
    assert alone.endswith("5 NFE")
    assert chained.endswith("5 NFE")


def test_a_solver_of_ones_own_is_of_second_order(capsys):
    errors = [float(line.split()[-1]) for line in _run("own_solver.py", capsys)]
    for coarse, fine in itertools.pairwise(errors):
        assert 1.75 < math.log2(coarse / fine) < 2.25


def test_the_testbed_of_ones_own_stands_on_the_page_too():
    text = (ROOT / "examples" / "own_testbed.py").read_text()
    assert text.split('"""', 2)[2].strip() in (ROOT / "docs" / "extending.md").read_text()


@pytest.mark.parametrize("path", pages.pages())
def test_generated_numbers_are_those_of_the_shipped_tables(path):
    assert path.read_text() == pages.pages()[path], "python -m recipes.pages brings the page up to date"


def test_twenty_lines_stand_alone_and_on_the_page(capsys):
    path = ROOT / "examples" / "twenty_lines.py"
    runpy.run_path(str(path), run_name="__main__")
    found = [float(v) for v in capsys.readouterr().out.split("[")[1].split("]")[0].split(",")]
    assert found == pytest.approx([0.50, 0.44], abs=0.04)
    body = path.read_text().split('"""', 2)[2].strip()
    assert "steindiff" not in body
    assert body in (ROOT / "docs" / "universal.md").read_text()
    assert len([line for line in body.splitlines() if line and '"""' not in line]) <= 20


@pytest.mark.parametrize("nfe", pages.COUNTS)
def test_the_printed_tables_end_where_the_solver_ends(nfe, capsys):
    printed, example = {}, runpy.run_path(str(ROOT / "examples" / "twenty_lines.py"))
    exec((ROOT / "docs" / "universal.md").read_text().split("<!-- coefficients -->\n```python")[1].split("```")[0], printed)
    x, denoiser = torch.randn(64, 2, generator=torch.Generator().manual_seed(1)), example["denoiser"]
    if nfe == pages.SHOWN:
        assert example["STEPS"] == printed["TABLES"][nfe]
    example["sample"].__globals__["STEPS"] = printed["TABLES"][nfe]
    calls = sd.denoisers.Counter(denoiser)
    ours = sd.sample("universal", denoiser, 80 * x, nfe=nfe)
    torch.testing.assert_close(example["sample"](calls, x, 0.5), ours.x, rtol=0, atol=1e-5)
    assert calls.calls == ours.stats.nfe == nfe


def test_the_calls_on_the_page_of_the_universal_solver_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    law = sd.analytic.Gaussian(torch.zeros(3), 0.25 * torch.eye(3))
    page = (ROOT / "docs" / "universal.md").read_text()
    names = {"denoiser": law, "x": 80 * torch.randn(8, 3)}
    exec(page.split("## How to use it\n\n```python")[1].split("```")[0], names)
    assert sd.solvers.Table.load("table.safetensors").nfe == 5
    names |= {"mine": [(law, names["x"])], "others": [(law, 80 * torch.randn(8, 3))], "sigmas": [80.0, 10.0, 1.0, 0.002]}
    exec("from steindiff.calibration" + page.split("```python\nfrom steindiff.calibration")[1].split("```")[0], names)
    assert names["table"].nfe(names["table"].own_grid) == 2


def test_a_checkpoint_of_edm_is_calibrated_and_sampled(tmp_path, capsys, monkeypatch):
    """On a tiny network with weights by a rule; the page shows the program as it stands."""
    path = ROOT / "examples" / "edm_checkpoint.py"
    write(tmp_path / "tiny.safetensors", "ddpmpp", kwargs=SMALL | {"channel_mult": [1], "attn_resolutions": []})
    monkeypatch.setattr("sys.argv", [path.name, str(tmp_path / "tiny.safetensors"), str(tmp_path / "five.png")])
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("5 evaluations, RMSE to the exact flow ") for line in lines)
    assert (tmp_path / "five.png").stat().st_size > 100
    assert path.read_text().count("\n") < 40
    assert path.read_text().split('"""', 2)[2].strip() in (ROOT / "docs" / "integrations" / "edm.md").read_text()


def test_a_plain_network_runs_is_calibrated_and_is_on_its_page(capsys):
    path, page = ROOT / "examples" / "plain_network.py", (ROOT / "docs" / "integrations" / "plain.md").read_text()
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert all("5 evaluations" in line for line in lines)
    plain, auto, calibrated = (float(line.split()[-1]) for line in lines)
    assert calibrated < auto < plain
    assert path.read_text().split('"""', 2)[2].strip() in page
    assert path.read_text().count("\n") < 40
