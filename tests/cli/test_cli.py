"""The command line as a user meets it: real runs into a folder, and every kind of bad input."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import steindiff
from commandline import run_command
from steindiff import models
from steindiff.errors import InputError
from steindiff.io.files import HALF, plain
from steindiff.io.images import to_uint8
from steindiff.run import parse_seeds


def run(monkeypatch, capsys, *args: str) -> tuple[int, str]:
    code, out, err = run_command(monkeypatch, capsys, *args)
    return code, out + err


def test_sample_writes_everything(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    code, text = run(
        monkeypatch, capsys, "sample", "--model", "digits", "--nfe", "5", "--seeds", "0-9,20", "--batch", "8",
        "--solver", "dpmpp_2m", "--correction", "clamped", "--outdir", str(out), "--subdirs",
    )  # fmt: skip
    assert code == 0, text
    assert sorted(p.name for p in (out / "000000").glob("*.png")) == [f"{i:06d}.png" for i in [*range(10), 20]]
    images = np.load(out / "samples.npz")["arr_0"]
    assert images.shape == (11, 8, 8, 1)
    assert np.array_equal(np.asarray(Image.open(out / "000000" / "000020.png")), images[-1, ..., 0])
    trace = [json.loads(line) for line in (out / "trace.jsonl").read_text().splitlines()]
    assert [(t["batch"], t["index"]) for t in trace] == [(b, i) for b in (0, 1) for i in range(5)]
    assert all(0 < t["gamma"] <= 1 for t in trace)
    about = json.loads((out / "run.json").read_text())
    assert about["job"]["seeds"] == [*range(10), 20]
    assert about["model"]["sha256"] == models.load("digits").sha256
    assert about["stats"][0]["nfe"] == 5
    assert about["stats"][0]["vjps"] == 2  # the first step and the last depend on x alone
    assert [t["source"] for t in trace[:5]] == ["full", "tweedie", "tweedie", "tweedie", "full"]
    assert about["stats"][0]["forward_equivalents"] > 5
    assert (out / "grid.png").is_file()
    assert not list(out.rglob(f"*{HALF}*"))


def test_the_command_line_and_python_give_the_same_image(tmp_path, monkeypatch, capsys):
    code, text = run(
        monkeypatch, capsys, "sample", "--model", "digits", "--steps", "6", "--seeds", "3,5", "--outdir", str(tmp_path)
    )
    assert code == 0, text
    x = steindiff.initial_noise([5], (1, 8, 8))
    result = steindiff.sample("dpmpp_2m", models.load("digits").denoiser, x, steindiff.grids.karras(6))
    image = np.asarray(Image.open(tmp_path / "000005.png")).astype(int)
    assert np.abs(image - to_uint8(result.x)[0, ..., 0]).max() <= 1  # another batch size may round the last bit differently


def test_a_frozen_table_makes_images_independent_of_their_batch(tmp_path, monkeypatch, capsys):
    (tmp_path / "gamma.json").write_text("[1.0, 0.9, 0.9, 1.1, 1.0]")
    for name, seeds in (("a", "0-3"), ("b", "3")):
        args = ["--model", "digits", "--solver", "dpmpp_2m", "--nfe", "5", "--seeds", seeds, "--outdir", str(tmp_path / name)]
        code, text = run(monkeypatch, capsys, "sample", *args, "--correction", str(tmp_path / "gamma.json"))
        assert code == 0, text
    a, b = (np.asarray(Image.open(tmp_path / n / "000003.png")).astype(int) for n in "ab")
    assert np.abs(a - b).max() <= 1
    assert json.loads((tmp_path / "b" / "run.json").read_text())["stats"][0]["vjps"] == 0


def test_a_flag_and_an_option_of_a_spec_say_the_same(tmp_path, monkeypatch, capsys):
    ways = {"flag": ["--rho", "5"], "spec": ["--grid", "karras(rho=5)"], "both": ["--rho", "5", "--grid", "karras(rho=6)"]}
    for name, way in ways.items():
        args = ["--model", "digits", "--nfe", "4", "--seeds", "0-3", "--outdir", str(tmp_path / name)]
        assert run(monkeypatch, capsys, "sample", *args, *way)[0] == 0
    sigmas = [json.loads((tmp_path / name / "run.json").read_text())["sigmas"] for name in ways]
    assert sigmas[0] == sigmas[1] == sigmas[2] == steindiff.grids.karras(4, rho=5).tolist()


def test_some_steps_only_are_corrected_by_a_spec(tmp_path, monkeypatch, capsys):
    args = ["--model", "digits", "--solver", "dpmpp_2m", "--nfe", "5", "--seeds", "0-3", "--outdir", str(tmp_path)]
    code, text = run(monkeypatch, capsys, "sample", *args, "--correction", "sparse(adaptive, above=1.0)")
    assert code == 0, text
    trace = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert [t["reason"] == "inactive" for t in trace] == [t["sigma"] <= 1 for t in trace] == [False] * 3 + [True] * 2
    assert json.loads((tmp_path / "run.json").read_text())["stats"][0]["vjps"] == 0  # analytical there


def test_guidance_to_a_class_is_that_of_the_model(tmp_path, monkeypatch, capsys):
    args = ["--model", "digits_classes", "--class", "7", "--guidance", "3", "--seeds", "0-3", "--dtype", "float64"]
    code, text = run(monkeypatch, capsys, "sample", *args, "--nfe", "6", "--outdir", str(tmp_path / "a"))
    assert code == 0, text
    about = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (about["solver"], about["job"]["guidance"]) == ("calibrated table of 6 evaluations", 3.0)
    assert (about["stats"][0]["nfe"], about["stats"][0]["forward_equivalents"]) == (6, 12)
    model = models.load("digits_classes", dtype=torch.float64)
    x = steindiff.initial_noise(range(4), model.event_shape, dtype=torch.float64)
    wanted = steindiff.sample("auto", model.guided(torch.tensor(7), 3.0), x, nfe=6).x
    assert np.array_equal(np.load(tmp_path / "a" / "samples.npz")["arr_0"], to_uint8(wanted))
    code, text = run(monkeypatch, capsys, "sample", *args, "--nfe", "6", "--guidance", "4", "--outdir", str(tmp_path / "c"))
    assert code == 0, text
    between = "calibrated table, between w = 3 and 5, of 6 evaluations"
    assert json.loads((tmp_path / "c" / "run.json").read_text())["solver"] == between
    code, text = run(monkeypatch, capsys, "sample", *args, "--nfe", "7", "--outdir", str(tmp_path / "b"))
    assert code == 0, text
    assert json.loads((tmp_path / "b" / "run.json").read_text())["solver"] == "universal table of 7 evaluations"


def test_without_guidance_a_class_costs_one_forward(tmp_path, monkeypatch, capsys):
    args = ["--model", "digits_classes", "--class", "7", "--seeds", "0-3", "--nfe", "4", "--outdir", str(tmp_path / "a")]
    assert run(monkeypatch, capsys, "sample", *args)[0] == 0
    about = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (about["solver"], about["stats"][0]["forward_equivalents"]) == ("universal table of 4 evaluations", 4)


BAD = {
    "unknown solver": (["--solver", "dpmp_2m"], "did you mean 'dpmpp_2m'"),
    "unknown model": (["--model", "digit"], "did you mean 'digits'"),
    "unknown grid": (["--grid", "karas"], "did you mean 'karras'"),
    "grid option": (["--grid", "log_snr(rho=5)"], "log_snr takes no options"),
    "grid exponent": (["--grid", "karras(rho=-1)"], "need rho > 0"),
    "unknown correction": (["--correction", "clampd"], "did you mean 'clamped'"),
    "steps and nfe": (["--steps", "5"], "exactly one of --steps and --nfe"),
    "seeds": (["--seeds", "5-2"], "write 0-63 or 1,2,5-10"),
    "seed twice": (["--seeds", "1,1"], "none twice"),
    "sigma order": (["--sigma_min", "100"], "need 0 ≤ sigma_min < sigma_max"),
    "bounds": (["--correction", "literal", "--gamma_max", "-1"], "gamma_min ≤ gamma_max"),
    "bounds without rule": (["--correction", "noise_consistent", "--gamma_max", "1"], "only the paper's rule takes bounds"),
    "class": (["--class", "3"], "leave --class out"),
    "null class": (["--model", "digits_classes", "--class", "10"], "has classes 0 to 9"),
    "guidance to nothing": (["--model", "digits_classes", "--guidance", "3"], "name it by --class"),
    "guidance of a model without classes": (["--class", "3", "--guidance", "3"], "the model digits has no classes"),
    "guidance": (["--model", "digits_classes", "--class", "3", "--guidance", "nan"], "finite scale of guidance"),
    "dtype": (["--dtype", "float16"], "float32 or float64"),
    "device": (["--device", "cuda:77"], "cannot be used"),
    "frame": (["--frame", "vp", "--correction", "clamped"], "model or ve"),
    "table": (["--correction", "missing.json"], "is not a gamma table"),
    "probes": (["--probes", "0"], "probes"),
    "nothing kept": (["--no-png", "--no-npz"], "no image would be kept"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_writes_nothing(tmp_path, monkeypatch, capsys, case):
    args, message = BAD[case]
    base = {"--model": "digits", "--nfe": "5", "--outdir": str(tmp_path / "out"), "--seeds": "0-3"}
    base |= dict(zip(args[::2], args[1::2], strict=True))
    code, text = run(monkeypatch, capsys, "sample", *[word for pair in base.items() for word in pair])
    assert code != 0
    assert message in " ".join(text.split())
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


def test_unwritable_output_and_finished_runs_are_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    args = ["sample", "--model", "digits", "--nfe", "3", "--seeds", "0-3"]
    code, text = run(monkeypatch, capsys, *args, "--outdir", str(tmp_path / "file"))
    assert code != 0
    assert "cannot make the folder" in text
    assert run(monkeypatch, capsys, *args, "--outdir", str(tmp_path / "a"))[0] == 0
    code, text = run(monkeypatch, capsys, *args, "--outdir", str(tmp_path / "a"))
    assert code != 0
    assert "already holds a finished run" in " ".join(text.split())
    assert run(monkeypatch, capsys, *args, "--outdir", str(tmp_path / "a"), "--overwrite")[0] == 0


def test_a_failing_network_leaves_no_finished_run(tmp_path, monkeypatch, capsys):
    """NaN weights: the error names step and σ, exit code 2, nothing written."""
    good = models.load("digits")
    path = tmp_path / "broken.safetensors"
    tensors = {k: torch.full_like(v, float("nan")) for k, v in models.read(good.path)[1].items()}
    models.save(path, tensors, good.info)
    args = ["--model", str(path), "--solver", "dpmpp_2m", "--nfe", "3", "--outdir", str(tmp_path / "out")]
    code, text = run(monkeypatch, capsys, "sample", *args)
    assert code == 2
    assert "NaN or infinite at step 0, sigma = 80" in " ".join(text.split())
    assert not (tmp_path / "out").exists()


def test_help_and_models_run_as_a_process_without_a_terminal():
    for args, word in ((["--help"], "demo"), (["sample", "--help"], "--nfe"), (["models"], "cifar10_mixture")):
        done = subprocess.run([sys.executable, "-m", "steindiff", *args], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert word in done.stdout


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
def test_seed_lists_round_trip(seeds):
    assert parse_seeds(",".join(map(str, seeds))) == tuple(seeds)


@given(st.text(alphabet="0123456789,-ab ", max_size=8))
def test_any_text_is_seeds_or_a_clear_error(text):
    try:
        seeds = parse_seeds(text) if len(text) < 6 else (0,)
        assert all(isinstance(s, int) and s >= 0 for s in seeds)
    except InputError as error:
        assert "write 0-63" in str(error)  # noqa: PT017


def test_the_trace_is_valid_json_whatever_the_numbers(tmp_path, monkeypatch, capsys):
    """An inactive or plain step has NaN fields, a still one an infinite raw γ: null, on either side of zero."""
    args = ["--model", "digits", "--solver", "dpmpp_2m", "--nfe", "5", "--seeds", "0-7", "--outdir", str(tmp_path)]
    assert run(monkeypatch, capsys, "sample", *args, "--correction", "energy")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    assert rows[0]["noise_ratio"] is None
    assert plain({"a": [float("-inf"), float("inf"), 1.0]}) == {"a": [None, None, 1.0]}
