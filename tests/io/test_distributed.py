"""One batch over two processes gives the single process's γ, η and images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import two_processes
from steindiff.io import processes

SCRIPT = Path(two_processes.__file__)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
"""A process that aborts says where."""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def script():
    return two_processes


@pytest.mark.parametrize("name", ["clamped", "heun", "energy"])
def test_two_processes_give_what_one_gives(both, script, name):
    alone = script.summary(script.run(name, range(script.BATCH), processes.alone))
    torch.testing.assert_close(
        torch.tensor(both[0][name]["x"] + both[1][name]["x"]), torch.tensor(alone["x"]), rtol=1e-9, atol=1e-9
    )
    for part in both:
        for mine, whole in zip(part[name]["trace"], alone["trace"], strict=True):
            assert mine["reason"] == whole["reason"]
            assert mine["numbers"].keys() == whole["numbers"].keys()
            for key, value in whole["numbers"].items():
                assert mine["numbers"][key] == pytest.approx(value, rel=1e-9, nan_ok=True)
    # A share by itself decides otherwise, so the agreement is not by chance.
    share = script.summary(script.run(name, range(7), processes.alone))
    decided = "eta_raw" if name == "energy" else "gamma_raw"
    pairs = zip(share["trace"], alone["trace"], strict=True)
    assert any(a["numbers"][decided] != pytest.approx(b["numbers"][decided], abs=1e-6) for a, b in pairs)


def test_shares_are_blocks_that_cover_the_batch(both):
    assert both[0]["seeds"] + both[1]["seeds"] == list(range(13))
    assert (len(both[0]["seeds"]), len(both[1]["seeds"])) == (7, 6)
    assert processes.share(5) == range(5)
    assert (processes.rank(), processes.world_size(), processes.active()) == (0, 1, False)
    x = torch.randn(3, 2)
    assert processes.gather(x) is x


def test_a_network_that_fails_on_one_process_leaves_none_waiting(both):
    assert both[0]["failure"] == ""
    assert "NaN or infinite" in both[1]["failure"]


def test_no_thread_of_the_group_outlives_it(both):
    """A thread that runs on into the interpreter's end may abort the process there, with all its work done."""
    if not both[0]["threads"]:
        pytest.skip("threads have names on Linux only")
    assert [part["left"] for part in both] == [[], []]
