"""What can go wrong while a study runs: a full disk, a worker that dies, a device that is not there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steindiff.errors import InputError
from steindiff.io.files import HALF
from steindiff.study.grid import Config
from steindiff.study.run import run_study

FLAGS = [
    "--preset",
    "quick",
    "--beds",
    "digits_mixture",
    "--solvers",
    "dpmpp_2m",
    "--nfe",
    "5",
    "--samples",
    "48",
    "--batch",
    "24",
]
LIMITED = """
import resource, sys
from steindiff.cli.app import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv = ["steindiff", *sys.argv[2:]]
main()
"""


def _bench(outdir, *more, room=None):
    """The command in a process of its own, with so much room for each file."""
    start = ["-m", "steindiff"] if room is None else ["-c", LIMITED, str(room)]
    return subprocess.run(
        [sys.executable, *start, "bench", *FLAGS, *more, "--outdir", str(outdir)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _cells(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("cells/*/*.safetensors")}


def test_a_full_disk_loses_nothing_that_was_finished(tmp_path):
    """Files of 100 kB fit the references and the cells, and not the page with its pictures; files of 10 kB fit nothing."""
    none = _bench(tmp_path / "a", room=10_000)
    assert none.returncode == 2
    assert "error: cannot write" in none.stderr
    assert "free space" in none.stderr
    assert not [p for p in (tmp_path / "a").rglob("*") if p.is_file()]
    some = _bench(tmp_path / "b", room=100_000)
    assert some.returncode == 2, some.stderr
    assert "error: cannot write" in some.stderr
    held = _cells(tmp_path / "b")
    assert len(held) == 4
    done = _bench(tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert _cells(tmp_path / "b") == held  # none was run again
    assert (tmp_path / "b" / "report.html").stat().st_size > 100_000


def test_a_worker_that_dies_ends_the_run_and_the_next_goes_on(tmp_path):
    more = ["--solvers", "dpmpp_2m,heun,ipndm_3,unipc_3", "--nfe", "5,6,8,10,12", "--outdir", str(tmp_path)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "steindiff", "bench", *FLAGS, *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, *launcher], env=env, stderr=subprocess.PIPE, text=True) as run:
        while len(_cells(tmp_path)) < 3 and run.poll() is None:
            time.sleep(0.05)
        os.kill(_worker(run.pid, rank=1), signal.SIGKILL)
        errors = run.communicate(timeout=120)[1]
    assert run.returncode != 0
    assert "SIGKILL" in errors
    held = _cells(tmp_path)
    assert 3 <= len(held) < 80
    assert not list(tmp_path.rglob(f"*{HALF}*"))
    done = _bench(tmp_path, *more)
    assert done.returncode == 0, done.stderr
    after = _cells(tmp_path)
    assert len(after) == 80
    assert {name: after[name] for name in held} == held


def _worker(launcher, rank):
    """The process of that rank below torchrun's."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            ours = f"RANK={rank}".encode() in (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == launcher and ours:
            return int(place.name)
    raise AssertionError(f"no process of rank {rank} below {launcher}")


def test_a_device_that_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="device 'cuda:77' cannot be used"):
        run_study(Config(beds=("digits_mixture",)), tmp_path, device="cuda:77", progress=False)
    assert not list(tmp_path.rglob("*.safetensors"))
