"""The types of the API: a user's program under strict mypy, which finds the faults of another."""

from pathlib import Path

import torch
import user_program
from mypy import api

ROOT = Path(__file__).parents[2]
FAULTY = """
import steindiff as sd
from torch import Tensor

def wrong(x: Tensor) -> int:
    return sd.sample("auto", lambda y, s: y, x, nfe="five").x
"""


def _mypy(program: Path) -> tuple[str, int]:
    """What mypy says of a program with this project's strict settings and its cache, which `make check` fills."""
    said, _, status = api.run(["--config-file", str(ROOT / "pyproject.toml"), str(program)])
    return said, status


def test_a_users_program_runs(tmp_path):
    for end in user_program.main(tmp_path):
        assert end.isfinite().all()
        assert end.dtype == torch.float32


def test_strict_types_hold_in_a_users_program_and_faults_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MYPYPATH", "src")
    assert _mypy(Path(user_program.__file__)) == ("Success: no issues found in 1 source file\n", 0)
    (tmp_path / "fault.py").write_text(FAULTY)
    said, status = _mypy(tmp_path / "fault.py")
    assert status == 1
    assert 'Incompatible return value type (got "Tensor", expected "int")' in said
    assert 'Argument "nfe" to "sample" has incompatible type "str"' in said
