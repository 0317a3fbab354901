"""The examples run as they stand, and the README shows this one."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_quickstart_runs_and_is_the_one_in_the_readme(capsys):
    path = ROOT / "examples" / "quickstart.py"
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert "5 NFE" in lines[-1]
    body = path.read_text().split('"""', 2)[2].strip()
    assert body in (ROOT / "README.md").read_text()


def test_a_testbed_of_ones_own_runs_and_is_the_one_in_the_docs(tmp_path, capsys, monkeypatch):
    path = ROOT / "examples" / "own_testbed.py"
    monkeypatch.setattr("sys.argv", ["own_testbed.py", str(tmp_path)])
    runpy.run_path(str(path), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == 2 * 2 * 2
    assert (tmp_path / "report.html").is_file()
    assert path.read_text().split('"""', 2)[2].strip() in (ROOT / "docs" / "bench.md").read_text()


def test_readme_names_only_what_exists():
    """Every path the README links to is there."""
    import re

    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
