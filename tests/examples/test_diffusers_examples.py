"""The examples with pipelines run as they stand, on a tiny pipeline in a folder."""

import runpy
from pathlib import Path

import pytest

from research import tiny_pipelines

EXAMPLES = Path(__file__).parents[2] / "examples"
PAGE = EXAMPLES.parent / "docs" / "integrations" / "diffusers.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipelines") / "ldm"
    tiny_pipelines.make("ldm").pipe.save_pretrained(place)
    return place


def _run(name, monkeypatch, capsys, *args):
    """The lines that an example prints; it has under forty lines and stands on the page of diffusers."""
    path = EXAMPLES / name
    monkeypatch.setattr("sys.argv", [name, *map(str, args)])
    runpy.run_path(str(path), run_name="__main__")
    assert path.read_text().count("\n") < 40
    assert path.read_text().split('"""', 2)[2].strip() in PAGE.read_text()
    return capsys.readouterr().out.splitlines()


def test_a_pipeline_in_three_lines(folder, tmp_path, monkeypatch, capsys):
    (line,) = _run("diffusers_pipeline.py", monkeypatch, capsys, folder, tmp_path)
    assert line.startswith("five evaluations:")
    assert (tmp_path / "image.png").stat().st_size > 100


def test_a_table_is_calibrated_and_used_again(folder, monkeypatch, capsys):
    first, images, auto, plain = _run("calibrate_and_reuse.py", monkeypatch, capsys, folder, 8)
    assert first.startswith("calibrated table of 3 evaluations in")
    assert images == "images (2, 16, 16, 3)"
    assert auto.startswith("calibrated table of 3 evaluations: RMSE")
    assert float(auto.split()[-1]) < float(plain.split()[-1])
