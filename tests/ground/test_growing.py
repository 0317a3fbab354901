"""The memory of a process does not grow with the steps of a run, whatever the correction."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from growing import CASES, STEPS

PROGRAM = Path(__file__).parent.parent / "growing.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_steps():
    """By less than 20 states in the last two thirds of a run; one state held a step is 100, and one correction holds it."""
    told = subprocess.run([sys.executable, PROGRAM, *CASES], capture_output=True, text=True, timeout=600)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout.splitlines()[-1])
    states = {name: end - third for name, (_, third, end) in found.items()}
    assert states.pop("leak") > 0.9 * (STEPS - STEPS // 3)
    assert {name: more for name, more in states.items() if more > 20} == {}
