"""A calibration by two processes: each evaluates half of the images, and the table is the one of a single process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steindiff.solvers.table import load_all

WORDS = ["calibrate", "--model", "digits", "--nfe", "2", "--trajectories", "16"]
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def calibrated(folder: Path, *launcher: str):
    """The table, and what the command said."""
    out = folder / "table.safetensors"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "-m", "steindiff", *WORDS, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return load_all(out), done.stdout


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return calibrated(tmp_path_factory.mktemp("one")), calibrated(tmp_path_factory.mktemp("two"), *LAUNCHER)


def test_two_processes_make_the_table_of_one(both):
    """A network rounds a batch of another size otherwise; a refinement makes 0.2 % of that, which its errors do not show."""
    ([one], _), ([two], said) = both
    assert one.solver.told != (1.0,) * len(one.solver.told)
    for ours, theirs in ((one.solver.told, two.solver.told), (one.solver.levels, two.solver.levels)):
        assert ours == pytest.approx(theirs, rel=0.02)
    assert one.report["gate"]["rmse"] == pytest.approx(two.report["gate"]["rmse"], rel=0.01)
    assert one.report["key"] == two.report["key"]
    assert said.count("2 evaluations:") == 1


def test_the_bill_counts_each_image_once(both):
    ([one], _), ([two], _) = both
    assert one.report["cost"] == two.report["cost"]
