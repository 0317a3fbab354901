"""The wheel in an empty environment, without the repository: commands run, and types and extras are found."""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TORCH = "torch==2.13.0"
"""Without this pin pip may fetch gigabytes of CUDA."""

pytestmark = pytest.mark.slow


def _run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run without what would show the repository to Python."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH", "VIRTUAL_ENV")}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=kept, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Iterator[Path]:
    """The folder of commands of an environment that has the wheel and its extra `cli`."""
    folder = tmp_path_factory.mktemp("installation")
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, ROOT]
    assert _run(*build, cwd=folder).returncode == 0
    venv.create(folder / "env", with_pip=True)
    (wheel,) = folder.glob("*.whl")
    for what in (TORCH, f"{wheel}[cli]"):
        pip = [folder / "env" / "bin" / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", what]
        done = _run(*pip, cwd=folder)
        assert done.returncode == 0, done.stderr
    yield folder / "env" / "bin"
    shutil.rmtree(folder)  # a gigabyte


def test_the_package_is_that_of_the_environment(installed, tmp_path):
    done = _run(installed / "python", "-c", "import steindiff; print(steindiff.__file__)", cwd=tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)


def test_commands_run(installed, tmp_path):
    assert _run(installed / "steindiff", "--version", cwd=tmp_path).stdout.startswith("steindiff 0.")
    for command in ("sample", "demo", "calibrate", "bench"):
        done = _run(installed / "steindiff", command, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = _run(
        installed / "steindiff", "sample", "--model", "digits", "--nfe", "5", "--seeds", "0-7", "--outdir", "five", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "five").rglob("0*.png")]) == 8


def test_a_missing_extra_is_one_line(installed, tmp_path):
    done = _run(installed / "steindiff", "train", "--preset", "smoke", "--data", "digits", "--outdir", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'steindiff[" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_types_are_found_from_outside(installed, tmp_path):
    program = Path(__file__).with_name("user_program.py")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", installed / "python", program]
    done = _run(*mypy, cwd=tmp_path)
    assert done.stdout == "Success: no issues found in 1 source file\n"


def test_the_demo_runs(installed, tmp_path):
    done = _run(installed / "steindiff", "demo", "--samples", "64", "--outdir", "demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"report.md", "report.html", "cifar10.png"} <= {path.name for path in (tmp_path / "demo").iterdir()}
