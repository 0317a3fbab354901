"""The examples are short, run as they stand, and stand on the pages as they run."""

import ast
import itertools
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import pages

import steindiff as sd
from edm_files import SMALL, write

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "integrations").glob("*.md")]


def _text(paths) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_says_what_it_shows_stands_on_a_page_and_is_run(path):
    text = _text([path])
    assert text.count("\n") < 40
    said = ast.get_docstring(ast.parse(text)) or ""
    assert len(said.split()) > 5
    assert said.endswith(".")
    assert text.split('"""', 2)[2].strip() in _text(PAGES), "a page shows the program as it stands"
    assert f'"{path.name}"' in _text((ROOT / "tests").rglob("test_*.py")), "a test runs it, and checks what it prints"


def _run(name, capsys) -> tuple[list[str], dict[str, Any]]:
    """The lines that an example prints, and its variables."""
    end = runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    return capsys.readouterr().out.splitlines(), end


def test_quickstart_ends_nearer_with_tables(capsys):
    lines, _ = _run("quickstart.py", capsys)
    assert all("5 evaluations" in line for line in lines)
    *plain, universal, auto = [float(line.split("RMSE to the exact flow ")[1].split(":")[0]) for line in lines]
    assert len(plain) == 3
    assert 0 < auto < universal < min(plain)
    assert lines[-2].endswith("universal table of 5 evaluations")
    assert lines[-1].endswith("calibrated table of 5 evaluations")


def test_a_run_is_corrected(capsys):
    lines, _ = _run("corrected.py", capsys)
    assert len(lines) == 6
    assert "5 NFE" in lines[-1]


def test_the_correction_beside_a_loop_is_the_one_within(capsys):
    lines, end = _run("beside_a_loop.py", capsys)
    assert len(lines) == 6
    noise = sd.initial_noise(seeds=range(64), event_shape=(1, 8, 8))
    solver = sd.Corrected("dpmpp_2m(lower_order_final=False)", "clamped(mode=tweedie)")
    inside = sd.sample(solver, end["model"].denoiser, noise, sd.grids.karras(6))
    torch.testing.assert_close(end["x"], inside.x, rtol=1e-3, atol=1e-3)
    assert [r.reason for r in end["stein"].trace] == [r.reason for r in inside.trace]


def test_a_testbed_of_ones_own_is_studied(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["own_testbed.py", str(tmp_path)])
    lines, _ = _run("own_testbed.py", capsys)
    assert len(lines) == 2 * 2 * 2
    assert (tmp_path / "report.html").is_file()


def test_a_correction_of_ones_own_remembers_and_chains(capsys):
    (alone, chained), _ = _run("own_correction.py", capsys)
    shifts = [float(s) for s in alone.partition("]")[0].strip("[").split(",")]
    assert shifts[0] == 0  # nothing to remember yet
    assert min(shifts[1:]) > 0
    assert alone.endswith("5 NFE")
    assert chained.endswith("5 NFE")


def test_a_solver_of_ones_own_is_of_second_order(capsys):
    lines, _ = _run("own_solver.py", capsys)
    for coarse, fine in itertools.pairwise(float(line.split()[-1]) for line in lines):
        assert 1.75 < math.log2(coarse / fine) < 2.25


@pytest.mark.parametrize("path", pages.pages())
def test_generated_numbers_are_those_of_the_shipped_tables(path):
    assert path.read_text() == pages.pages()[path], "python -m recipes.pages brings the page up to date"


def test_twenty_lines_stand_alone(capsys):
    (line,), _ = _run("twenty_lines.py", capsys)
    found = [float(v) for v in line.split("[")[1].split("]")[0].split(",")]
    assert found == pytest.approx([0.50, 0.44], abs=0.04)
    body = _text([ROOT / "examples" / "twenty_lines.py"]).split('"""', 2)[2]
    assert "steindiff" not in body
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
    """On a tiny network with weights by a rule."""
    write(tmp_path / "tiny.safetensors", "ddpmpp", kwargs=SMALL | {"channel_mult": [1], "attn_resolutions": []})
    monkeypatch.setattr("sys.argv", ["edm_checkpoint.py", str(tmp_path / "tiny.safetensors"), str(tmp_path / "five.png")])
    lines, _ = _run("edm_checkpoint.py", capsys)
    assert len(lines) == 3
    assert all(line.startswith("5 evaluations, RMSE to the exact flow ") for line in lines)
    assert (tmp_path / "five.png").stat().st_size > 100


def test_a_plain_network_is_calibrated(capsys):
    lines, _ = _run("plain_network.py", capsys)
    assert all("5 evaluations" in line for line in lines)
    plain, auto, calibrated = (float(line.split()[-1]) for line in lines)
    assert 2 * calibrated < auto < plain / 2
