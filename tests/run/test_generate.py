"""Many images: killed anywhere and by any means, dealt out to processes, the files are those of one unbroken run."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import weakref
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from steindiff import models
from steindiff.divergence import Hutchinson
from steindiff.errors import InputError, NonFiniteError
from steindiff.io import files
from steindiff.run import Job, generate, holding, loop, output
from steindiff.run.output import PARTS, write_npz

JOB = Job("digits", tuple(range(5)), "dpmpp_2m", nfe=3, batch=2, correction="clamped", divergence=Hutchinson(method="vjp"))
MANY = replace(JOB, seeds=tuple(range(80)))


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches kill −9."""


def outcome(folder):
    """Every file of a run and what run.json says, without what depends on the clock, the machine and the command line."""
    held = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}
    about = json.loads(held.pop("run.json"))
    for name in ("time", "command", "machine", "git", "file_sha256"):
        about.pop(name)
    for stats in about["stats"]:
        stats.pop("choice")
        stats.pop("forward_equivalents")
    return held, about


def parts_in(folder):
    return sorted((folder / PARTS).glob("[0-9]*.safetensors"))


def stop_after(monkeypatch, writes):
    """Die at the rename that would complete the next file."""
    count, rename = itertools.count(), os.replace

    def replace(*args):
        if next(count) == writes:
            raise Killed
        rename(*args)

    monkeypatch.setattr(files.os, "replace", replace)


def stopped(writes, job, folder, **options):
    """A run that dies there."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, writes)
        with pytest.raises(Killed):
            generate(job, folder, **options)


def killed(_):
    raise Killed


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return outcome(generate(JOB, tmp_path_factory.mktemp("unbroken") / "run"))


# --- stopped and gone on with ----------------------------------------------------------------------------------------


def test_stopped_at_any_write_the_same_call_goes_on(unbroken, tmp_path, monkeypatch):
    """A record, five PNGs, three parts, grid, npz, trace and run.json: thirteen places to die at."""
    stops = 0
    for stops in itertools.count():
        folder = tmp_path / str(stops)
        with monkeypatch.context() as patch:
            stop_after(patch, stops)
            try:
                generate(JOB, folder)
                break
            except Killed:
                assert not (folder / "run.json").exists()
        generate(JOB, folder)
        assert outcome(folder) == unbroken, stops
    assert stops == 13


def test_stopped_twice_and_with_half_written_files_about(unbroken, tmp_path):
    for writes in (5, 3):
        stopped(writes, JOB, tmp_path)
    (tmp_path / f".000001-abcdef01{files.HALF}.png").write_bytes(b"half")
    (tmp_path / PARTS / f".000001-abcdef01{files.HALF}.safetensors").write_bytes(b"half")
    generate(JOB, tmp_path)
    assert outcome(tmp_path) == unbroken


def test_killed_after_the_last_word(unbroken, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(output, "remove_parts", killed)
        with pytest.raises(Killed):
            generate(JOB, tmp_path)
    assert parts_in(tmp_path)
    generate(JOB, tmp_path)
    assert outcome(tmp_path) == unbroken
    with pytest.raises(InputError, match="already holds a finished run"):
        generate(JOB, tmp_path)


def test_no_batch_is_drawn_twice(tmp_path, monkeypatch, capsys):
    drawn = []

    def counted(*args, **kwargs):
        drawn.append(args[2].shape[0])
        return sample(*args, **kwargs)

    sample = loop.sample
    monkeypatch.setattr(loop, "sample", counted)
    stopped(7, JOB, tmp_path)  # after the record, two batches of two PNGs and a part
    assert drawn == [2, 2, 1]
    generate(JOB, tmp_path, progress=True)
    assert drawn == [2, 2, 1, 1]
    assert "4/5 [00:00<" in capsys.readouterr().err  # the bar begins where the run was


COMMAND = [
    "sample", "--model", "digits", "--solver", "dpmpp_2m", "--nfe", "3", "--correction", "clamped", "--divergence", "vjp",
    "--batch", "2",
]  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(folder, seeds, *more):
    return [sys.executable, "-m", "steindiff", "--threads", "1", *COMMAND, "--seeds", seeds, "--outdir", str(folder), *more]


def launched(*words):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *words[1:]]


def wait_for_parts(process, folder, count):
    deadline = time.monotonic() + 300
    while len(parts_in(folder)) < count:
        assert time.monotonic() < deadline
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)


def finish(words):
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_killed_outright_the_command_goes_on(tmp_path):
    folder, seeds = tmp_path / "run", "0-79"
    with subprocess.Popen(command(folder, seeds), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for_parts(process, folder, 3)
        process.send_signal(signal.SIGKILL)
    kept = {part.name: part.stat().st_mtime_ns for part in parts_in(folder)}
    assert 3 <= len(kept) < 40
    assert not (folder / "run.json").exists()
    finish(command(folder, seeds))
    assert outcome(folder) == outcome(generate(MANY, tmp_path / "whole"))


# --- several processes -----------------------------------------------------------------------------------------------


def test_two_processes_make_what_one_makes_and_no_option_is_lost(tmp_path):
    """γ is a batch's, and a batch is one process's: equal to the bit."""
    options = {
        "--model": "digits", "--seeds": "998-1030", "--solver": "dpmpp_3m", "--nfe": "4", "--grid": "karras", "--rho": "6",
        "--sigma_min": "0.01", "--sigma_max": "60", "--correction": "literal", "--gamma_min": "0.1", "--gamma_max": "1.1",
        "--frame": "ve", "--divergence": "vjp", "--probes": "2", "--probe-kind": "gaussian", "--batch": "4",
        "--dtype": "float64", "--device": "cpu", "--npz": "--png", "--to-zero": "--subdirs", "--outdir": str(tmp_path / "two"),
    }  # fmt: skip
    words = [word for pair in options.items() for word in pair]
    done = finish(launched(sys.executable, "-m", "steindiff", "sample", *words))
    assert done.stdout.count("33 images in") == 1
    job = Job(
        "digits", tuple(range(998, 1031)), "dpmpp_3m", "karras(rho=6.0)", nfe=4, sigma_min=0.01, sigma_max=60, to_zero=True,
        correction="literal(gamma_min=0.1, gamma_max=1.1)", frame="ve", batch=4, dtype="float64",
        divergence=Hutchinson(probes=2, kind="gaussian", method="vjp"),
    )  # fmt: skip
    assert outcome(tmp_path / "two") == outcome(generate(job, tmp_path / "one", subdirs=True))


def test_a_worker_that_is_killed_ends_the_run_and_one_process_goes_on(tmp_path):
    folder = tmp_path / "run"
    words = launched(*command(folder, "0-79", "--no-png"))
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=said, env=ENVIRONMENT)
        wait_for_parts(process, folder, 3)
        workers = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
        os.kill(int(workers.split()[-1]), signal.SIGKILL)
        assert process.wait(120) != 0
    lines = [line for line in (tmp_path / "said").read_text().splitlines() if line.startswith("stopped:")]
    assert lines == [
        "stopped: told to end, by a launcher whose other process has died, or by the system: what is finished is kept"
    ]
    assert 3 <= len(parts_in(folder)) < 40
    assert not (folder / "run.json").exists()
    whole = generate(MANY, tmp_path / "whole", png=False)
    assert outcome(generate(MANY, folder, png=False)) == outcome(whole)
    assert sorted(p.name for p in whole.iterdir()) == ["grid.png", "run.json", "samples.npz", "trace.jsonl"]


# --- files -----------------------------------------------------------------------------------------------------------


def test_edm_layout_and_npz_in_the_order_of_the_seeds(tmp_path):
    seeds = (1000, 7, 999, 49999, 1001)
    folder = generate(replace(JOB, seeds=seeds), tmp_path, subdirs=True)
    names = ["000000/000007.png", "000000/000999.png", "001000/001000.png", "001000/001001.png", "049000/049999.png"]
    assert sorted(str(p.relative_to(folder)) for p in folder.glob("0*/*")) == names
    with np.load(folder / "samples.npz") as held:
        assert held.files == ["arr_0"]
        images = held["arr_0"]
    assert (images.shape, images.dtype) == ((5, 8, 8, 1), np.uint8)
    for seed, image in zip(seeds, images, strict=True):
        png = Image.open(folder / f"{seed - seed % 1000:06d}" / f"{seed:06d}.png")
        assert np.array_equal(np.asarray(png), image[..., 0])


def test_npz_is_numpys_and_written_a_batch_at_a_time(tmp_path):
    batches = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 6, 3), dtype=np.uint8)
    write_npz(tmp_path / "ours.npz", (12, 8, 6, 3), batches)
    np.savez_compressed(tmp_path / "theirs.npz", arr_0=batches.reshape(12, 8, 6, 3))
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "theirs.npz").read_bytes()
    tracemalloc.start()
    write_npz(tmp_path / "large.npz", (64, 512, 512, 3), (np.zeros((1, 512, 512, 3), np.uint8) for _ in range(64)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20  # of 48 MiB
    assert np.load(tmp_path / "large.npz")["arr_0"].shape == (64, 512, 512, 3)


def test_no_more_than_a_batch_is_held(tmp_path, monkeypatch):
    held, most = [], 0

    def watched(*args, **kwargs):
        nonlocal most
        result = sample(*args, **kwargs)
        held.append(weakref.ref(result))
        most = max(most, sum(ref() is not None for ref in held))
        return result

    sample = loop.sample
    monkeypatch.setattr(loop, "sample", watched)
    generate(replace(JOB, seeds=tuple(range(20))), tmp_path)
    assert len(held) == 10
    assert most <= 2


def test_the_derivative_is_chosen_once_and_not_in_every_batch(tmp_path):
    stats = json.loads((generate(JOB, tmp_path) / "run.json").read_text())["stats"]
    costs = [s["choice"][1] for s in stats]
    assert len(costs) == 3
    assert costs[0] == costs[1] == costs[2]  # measured times: no two measurements agree to the last digit
    assert all(s["forward_equivalents"] > s["nfe"] for s in stats)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path):
    """A run killed after its second batch."""
    stopped(7, JOB, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "layout", "names"),
    [
        ({"seeds": tuple(range(9))}, {}, "other seeds:"),
        ({"batch": 3, "nfe": 4}, {}, "other batch, sigmas:"),
        ({"correction": "none"}, {}, "other solver:"),
        ({"model": "cifar10_mixture"}, {}, "other model:"),
        ({"dtype": "float64"}, {}, "other dtype:"),
        ({}, {"subdirs": True}, "other subdirs:"),
        ({}, {"png": False}, "other png:"),
    ],
)
def test_another_unfinished_run_is_refused_and_stays(unbroken, begun, changes, layout, names):
    before = {p: p.read_bytes() for p in begun.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=f"not finished, with {names} go on .* another --outdir, or pass --overwrite"):
        generate(replace(JOB, **changes), begun, **layout)
    assert before == {p: p.read_bytes() for p in begun.rglob("*") if p.is_file()}
    generate(JOB, begun)
    assert outcome(begun) == unbroken


def test_overwrite_removes_the_other_run_and_nothing_else(begun):
    """Unfinished, then finished, then with a removal that is killed itself: no image of another run is left."""
    (begun / "notes.txt").write_text("mine")
    other = replace(JOB, seeds=(1, 20, 1021))
    for layout in ({}, {"subdirs": True, "npz": False}, {}):
        generate(other, begun, overwrite=True, **layout)
        kept = sorted(str(p.relative_to(begun)) for p in begun.rglob("*") if not p.is_dir())
        places = ("000000/000001", "000000/000020", "001000/001021") if layout else ("000001", "000020", "001021")
        npz = () if layout else ("samples.npz",)
        assert kept == sorted([*(f"{p}.png" for p in places), *npz, "grid.png", "trace.jsonl", "run.json", "notes.txt"])
    stopped(1, JOB, begun, overwrite=True)  # after the record that the old run is going; the next is the new one's
    assert not (begun / "000020.png").exists()
    generate(JOB, begun)
    assert len(list(begun.glob("0*.png"))) == 5


def test_a_removal_that_is_killed_leaves_no_mixture(tmp_path, monkeypatch):
    generate(replace(JOB, seeds=(1, 20)), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(holding, "remove_parts", killed)
        with pytest.raises(Killed):
            generate(JOB, tmp_path, overwrite=True)
    with pytest.raises(InputError, match="holds another run that is not finished"):
        generate(JOB, tmp_path)
    generate(JOB, tmp_path, overwrite=True)
    assert sorted(p.name for p in tmp_path.glob("0*.png")) == [f"{i:06d}.png" for i in range(5)]


@pytest.mark.parametrize("harm", ["cut", "pixel", "foreign", "moved"])
def test_a_bad_part_is_named_and_drawn_again_once_removed(unbroken, begun, tmp_path_factory, harm):
    part = parts_in(begun)[1]
    data = bytearray(part.read_bytes())
    if harm == "cut":
        part.write_bytes(data[:-10])
    elif harm == "pixel":
        data[-1] ^= 1
        part.write_bytes(data)
    elif harm == "moved":
        shutil.copy(parts_in(begun)[0], part)
    else:
        other = tmp_path_factory.mktemp("other")
        stopped(7, replace(JOB, nfe=4), other)
        shutil.copy(parts_in(other)[1], part)
    words = "is a batch of another run" if harm in ("foreign", "moved") else "is damaged"
    with pytest.raises(InputError, match=f"000001.safetensors {words}"):
        generate(JOB, begun)
    part.unlink()
    generate(JOB, begun)
    assert outcome(begun) == unbroken


def test_a_record_that_cannot_be_read(unbroken, begun):
    (begun / PARTS / "job.json").write_text('{"seeds": [0,')
    with pytest.raises(InputError, match="cannot be read"):
        generate(JOB, begun)
    generate(JOB, begun, overwrite=True)
    assert outcome(begun) == unbroken


def test_a_network_that_fails_late_leaves_what_was_finished(unbroken, tmp_path, monkeypatch):
    load = models.load

    def broken(*args, **kwargs):
        """NaN for the single image of the last batch."""
        model = load(*args, **kwargs)
        return replace(model, denoiser=lambda x, sigma: model.denoiser(x, sigma) * (float("nan") if len(x) == 1 else 1))

    with monkeypatch.context() as patch:
        patch.setattr(models, "load", broken)
        with pytest.raises(NonFiniteError, match=r"batch 2, from seed 4 on: .* NaN or infinite"):
            generate(JOB, tmp_path)
    assert len(parts_in(tmp_path)) == 2
    generate(JOB, tmp_path)
    assert outcome(tmp_path) == unbroken


LIMITED = """
import resource, sys
from steindiff.cli.app import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = ["steindiff", *sys.argv[2:]]
main()
"""


def test_a_full_disk_is_one_line_and_with_space_the_run_goes_on(unbroken, tmp_path):
    """The parts do not fit; then they do and run.json does not; then all does."""
    folder = tmp_path / "run"
    for room, file in ((1500, r".parts/000000.safetensors"), (4500, "run.json")):
        words = [sys.executable, "-c", LIMITED, str(room), *command(folder, "0-4")[3:]]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
        assert done.returncode == 2
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"error: cannot write {folder / file}: ")
        assert last.endswith(
            ", free space or choose another folder" if file == "run.json" else "; free space or choose another folder"
        )
        assert "File too large" in last
        assert "Traceback" not in done.stderr
        assert not [p for p in folder.rglob("*") if "tmp" in p.name]
    assert len(parts_in(folder)) == 3
    assert outcome(generate(JOB, folder)) == unbroken


def test_a_run_that_would_keep_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="--no-png and --no-npz"):
        generate(JOB, tmp_path / "out", png=False, npz=False)
    assert not (tmp_path / "out").exists()
