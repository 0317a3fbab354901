"""One batch over two processes gives the single process's γ, η and images."""

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

import two_processes
from commandline import run_command
from steindiff.diagnostics.setup import configure, configure_shift
from steindiff.diagnostics.shift import run_shift
from steindiff.diagnostics.study import run_diagnose
from steindiff.errors import InputError
from steindiff.io import processes
from steindiff.io.files import sha256
from tiny_inception import Tiny, save

SCRIPT = Path(two_processes.__file__)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
"""A process that aborts says where."""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torch.manual_seed(0)
    save(folder / "tiny.pt", Tiny())
    two_processes.small_mixture(folder / "mixture.safetensors")
    for name, seed, n in (("images", 0, 30), ("real", 1, 70)):
        np.savez(folder / f"{name}.npz", arr_0=np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) | {"folder": folder} for rank in range(2)]


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


@pytest.mark.parametrize("case", two_processes.BATCHES)
def test_a_run_of_a_study_is_that_of_one_process(both, script, case):
    """To the bit where whole batches are dealt out, and by their statistics where one is divided."""
    alone, (count, batch) = script.drawn(case, together=False), script.BATCHES[case]
    whole = count // (2 * batch) * 2 * batch  # images whose batches are dealt out
    for part in both:
        found = part["drawn"][case]
        assert found["x"][:whole] == alone["x"][:whole]
        torch.testing.assert_close(torch.tensor(found["x"]), torch.tensor(alone["x"]), rtol=1e-6, atol=1e-6)
        # Each has the trace of the first batch that it had a part of; the report is made of the first process's.
        assert len(found["gamma"]) == len(alone["gamma"])
        assert all(found["stats"][name] == alone["stats"][name] for name in ("nfe", "jvps", "vjps"))
        assert found["seen"] <= alone["seen"] * (-(-count // 2)) / count
    first = both[0]["drawn"][case]["gamma"]
    assert first == (alone["gamma"] if whole else pytest.approx(alone["gamma"], rel=1e-6))


def test_each_of_two_processes_evaluates_half_of_a_calibrations_images(both, script):
    alone = script.fitted()
    for part in both:
        assert part["fitted"]["rmse"] == pytest.approx(alone["rmse"], rel=1e-3)
        assert part["fitted"]["seen"] < 0.52 * alone["seen"]


def test_works_are_dealt_out_and_a_failure_is_everybodys(both):
    for part in both:
        assert part["dealt"] == {
            "found": [[i, i % 2] for i in range(5)],
            "none": [],
            "failure": "the second of three",
        }


def test_a_score_is_shared_out_and_its_numbers_are_those_of_one_process(both, script):
    folder = both[0]["folder"]
    alone = script.scored(folder, folder / "alone.npz")
    for part in both:
        for mine, whole in zip(part["score"]["numbers"], alone["numbers"], strict=True):
            assert mine == pytest.approx(whole, rel=1e-6)
    seen = [part["score"]["seen"] for part in both]
    assert max(seen) < 0.6 * alone["seen"]  # all but the noise by which its dimension is known
    note = json.loads((folder / "reference.npz.json").read_text())
    assert note["reference_sha256"] == sha256(folder / "reference.npz")


def test_an_evaluation_is_drawn_together_and_measured_once(both, script, tmp_path):
    assert both[0]["quality"] == pytest.approx(script.quality(tmp_path, together=False), rel=1e-2)
    assert both[1]["quality"] == []


ENVIRONMENTS = {
    "no rank": ({"WORLD_SIZE": "2"}, "lacks RANK: start the processes by torchrun, or unset WORLD_SIZE"),
    "no address": ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500"}, "lacks MASTER_ADDR"),
    "no number": ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE='two': need a whole number"),
    "no rank of it": ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_PORT": "1", "MASTER_ADDR": "x"}, "ranks are below WORLD_SIZE"),
    "no port": ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "70000", "MASTER_ADDR": "x"}, "need a port"),
}


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_an_environment_that_no_launcher_makes_is_refused(monkeypatch, case):
    environment, said = ENVIRONMENTS[case]
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said), processes.joined():
        pass


def test_processes_that_do_not_come_are_not_waited_for_without_end(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "_MEETING", timedelta(seconds=1))
    with pytest.raises(InputError, match=rf"the 2 processes did not meet at 127.0.0.1:{port} "), processes.joined():
        pass
    assert not processes.active()


def test_a_demo_is_drawn_together_and_written_once(both, script, tmp_path):
    alone = script.shown(both[0]["folder"] / "mixture.safetensors", tmp_path / "demo")
    assert both[0]["demo"] == pytest.approx(alone, rel=1e-3)
    assert len(alone) > 3
    assert both[1]["demo"] == both[0]["demo"]
    assert sorted(os.listdir(both[0]["folder"] / "demo")) == sorted(os.listdir(tmp_path / "demo"))


def test_each_of_two_processes_measures_and_draws_half_of_a_study(both, script, tmp_path):
    alone = script.reported(both[0]["folder"] / "mixture.safetensors", tmp_path)
    assert alone["pictures"] > 8
    assert alone["measured"] == 10  # eight runs, other samples of the law, and the exact flow's
    assert [part["study"]["measured"] for part in both] == [5, 5]
    drawn = [part["study"]["pictures"] for part in both]
    assert sum(drawn) == alone["pictures"]
    assert max(drawn) <= 0.6 * alone["pictures"]
    made, figures = both[0]["folder"] / "study" / "figures", tmp_path / "figures"
    assert sorted(path.name for path in made.iterdir()) == sorted(path.name for path in figures.iterdir())


LAUNCHED = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: run_diagnose(configure("quick", models=("digits",)), folder),
        lambda folder: run_shift(configure_shift(models=("digits",)), folder),
    ],
)
def test_what_is_not_shared_out_is_refused_on_every_process(monkeypatch, tmp_path, call):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"processes='2': .*diagnos.* runs in one process: start it without torchrun"):
        call(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_that_is_not_shared_out_says_so(monkeypatch, capsys, tmp_path):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    code, _, error = run_command(monkeypatch, capsys, "diagnose", "--outdir", tmp_path / "out")
    assert (code, error) == (
        2,
        "error: processes='2': steindiff diagnose runs in one process: start it without torchrun or accelerate\n",
    )


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
