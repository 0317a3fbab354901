"""Every command with values that nobody should give: one clear line, no traceback, an exit code that is not 0."""

import io
import os
import subprocess
import sys
import tracemalloc

import pytest

from commandline import run_command
from steindiff.cli import app
from steindiff.errors import InputError
from steindiff.io.streams import OutputLost, guarded, say
from steindiff.run import parse_seeds

HUGE = str(10**30)
MARKUP = "[red]x[/] [/]"
SAMPLE = {"sample": "", "--model": "digits", "--nfe": "3", "--seeds": "0-1", "--outdir": "OUT"}
EVALUATE = {"evaluate": "", "--model": "digits", "--data": "digits", "--n": "4", "--runs": "heun-3", "--outdir": "OUT"}
SCORE = {"score": "", "--images": "IMAGES", "--real": "IMAGES", "--features": "cifar10"}
TRAIN = {"train": "", "--preset": "smoke", "--data": "digits", "--outdir": "OUT", "--evaluate": "0"}
CALIBRATE = {"calibrate": "", "--model": "digits", "--nfe": "3", "--out": "OUT.safetensors"}
DOCTOR = {"doctor": "", "--model": "digits"}
DEMO, DIAGNOSE, BENCH = ({name: "", "--outdir": "OUT"} for name in ("demo", "diagnose", "bench"))
CONVERT = {"convert": "", MARKUP: "OUT.safetensors"}

CASES = [
    (SAMPLE, "--seeds", "0-1000000000000", "give at most 10,000,000"),
    (SAMPLE, "--seeds", f"0-{HUGE}", "below 2^63"),
    (SAMPLE, "--seeds", HUGE, "below 2^63"),
    (SAMPLE, "--seeds", "9" * 5000, "write 0-63 or 1,2,5-10"),
    (SAMPLE, "--seeds", "-1", "write 0-63 or 1,2,5-10"),
    (SAMPLE, "--seeds", "٣", "write 0-63 or 1,2,5-10"),
    (SAMPLE, "--batch", HUGE, "at most 1,000,000,000"),
    (SAMPLE, "--batch", "-1", "--batch"),
    (SAMPLE, "--nfe", HUGE, "at most 1,000,000,000"),
    (SAMPLE, "--nfe", "999999999", "no run has more than 1000000 steps"),
    (SAMPLE, "--probes", HUGE, "--probes"),
    (SAMPLE, "--rho", "nan", "finite"),
    (SAMPLE, "--sigma_max", "inf", "sigma_max=inf"),
    (SAMPLE, "--gamma_max", "nan", "finite"),
    (SAMPLE, "--guidance", "inf", "finite"),
    (SAMPLE, "--grid", f"karras(rho={HUGE})", "strictly decreasing"),
    (SAMPLE, "--correction", f"energy(bands={HUGE})", "at most a million"),
    (SAMPLE, "--device", "meta", "choose one of cpu"),
    (SAMPLE, "--device", "hpu", "choose one of cpu"),
    (SAMPLE, "--device", "cuda:99999999999999999999", "choose one of cpu"),
    (SAMPLE, "--device", MARKUP, repr(MARKUP)),
    (SAMPLE, "--model", MARKUP, repr(MARKUP)),
    (SAMPLE, "--model", "x\0y\x1b[2J", "unknown model"),
    (SAMPLE, "--solver", MARKUP, repr(MARKUP)),
    (SAMPLE, "--correction", MARKUP, repr(MARKUP)),
    (SAMPLE, "--grid", MARKUP, repr(MARKUP)),
    (SAMPLE, "--table", MARKUP, MARKUP),
    (SAMPLE, "--frame", MARKUP, repr(MARKUP)),
    (SAMPLE, "--outdir", "/dev/null", "cannot make the folder /dev/null"),
    (SAMPLE, f"--{MARKUP}", "1", "--[red]x[/]"),
    (CALIBRATE, "--device", "meta", "choose one of cpu"),
    (CALIBRATE, "--nfe", "1-10000000", "give at most 1,000"),
    (CALIBRATE, "--trajectories", HUGE, "--trajectories"),
    (CALIBRATE, "--guidance", MARKUP, MARKUP),
    (CALIBRATE, "--out", MARKUP, MARKUP),
    (CALIBRATE, "--model", MARKUP, repr(MARKUP)),
    (DOCTOR, "--device", "meta", "choose one of cpu"),
    (DOCTOR, "--nfe", f"1-{HUGE}", "below 2^63"),
    (DOCTOR, "--images", HUGE, "--images"),
    (DOCTOR, "--model", MARKUP, repr(MARKUP)),
    (DEMO, "--nfe", HUGE, "nfe ≤ 1,000,000"),
    (DEMO, "--samples", HUGE, "at most 1,000,000,000"),
    (DEMO, "--seed", HUGE, "first_seed"),
    (DIAGNOSE, "--nfe", HUGE, "nfe ≤ 1,000,000"),
    (DIAGNOSE, "--nfe", "1-1000000000000", "whole numbers"),
    (DIAGNOSE, "--preset", MARKUP, MARKUP),
    (DIAGNOSE, "--seed", HUGE, "first_seed"),
    (BENCH, "--device", "meta", "choose one of cpu"),
    (BENCH, "--nfe", HUGE, "nfe ≤ 1,000,000"),
    (BENCH, "--nfe", "1-1000000000000", "whole numbers"),
    (BENCH, "--samples", HUGE, "at most 1,000,000,000"),
    (BENCH, "--seed", HUGE, "first_seed"),
    (BENCH, "--preset", MARKUP, repr(MARKUP)),
    (BENCH, "--config", MARKUP, MARKUP),
    (EVALUATE, "--n", HUGE, "at most 1,000,000,000"),
    (EVALUATE, "--fine-steps", HUGE, "at most 1,000,000,000"),
    (EVALUATE, "--device", "foo", "choose one of cpu"),
    (EVALUATE, "--runs", f"heun-{HUGE}", "no run has more than 1000000 steps"),
    (EVALUATE, "--data", MARKUP, "no held-out images"),
    (EVALUATE, "--model", MARKUP, repr(MARKUP)),
    (SCORE, "--n", HUGE, "at most 1,000,000,000"),
    (SCORE, "--groups", HUGE, "at most 1,000,000,000"),
    (SCORE, "--resolution", HUGE, "at most 1,000,000,000"),
    (SCORE, "--device", "meta", "choose one of cpu"),
    (SCORE, "--features", MARKUP, MARKUP),
    (SCORE, "--write-reference", MARKUP, MARKUP),
    (TRAIN, "--evaluate", HUGE, "--evaluate"),
    (TRAIN, "--set", f"steps={HUGE}", "at most 1,000,000,000"),
    (TRAIN, "--set", f"batch={HUGE}", "at most 1,000,000,000"),
    ({}, "--threads", "1000000", "this machine takes at most"),
    (TRAIN, "--set", f"{MARKUP}=1", MARKUP),
    (TRAIN, "--set", f"mults={'-' * 100_000}1", "need a value like"),
    (TRAIN, "--notes", MARKUP, MARKUP),
    (CONVERT, "--dtype", "float32", MARKUP),
]  # fmt: skip


def test_a_study_that_nests_too_deep(tmp_path, monkeypatch, capsys):
    (tmp_path / "deep.toml").write_text(f"n = {'[' * 50_000}{']' * 50_000}")
    code, _, err = run_command(monkeypatch, capsys, "bench", "--outdir", tmp_path / "out", "--config", tmp_path / "deep.toml")
    assert code == 2, err[:500]
    assert "deep.toml is not a readable TOML file" in err


def words(given, folder):
    """The command line, with its options in their order."""
    places = {
        "OUT": str(folder / "out"),
        "OUT.safetensors": str(folder / "out.safetensors"),
        "IMAGES": str(folder / "images.npz"),
    }
    found = [places.get(word, word) for pair in given.items() for word in pair if word]
    return found if given.keys() - {"--threads"} else [*found, "models"]


@pytest.mark.parametrize(("command", "flag", "value", "said"), CASES, ids=lambda value: str(value)[:20] if value else "")
def test_a_hostile_value_is_one_clear_line(tmp_path, monkeypatch, capsys, command, flag, value, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_command(monkeypatch, capsys, *words({**command, flag: value}, tmp_path))
    assert code == 2, err
    text = " ".join((out + err).replace("│", " ").split())
    assert " ".join(said.split()) in text
    assert "Traceback" not in text
    assert "fault in steindiff" not in text
    assert "\x1b" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 or "Error" in text  # typer's own errors are in a frame


FILES = [
    (SAMPLE, "--model", ".safetensors"), (SAMPLE, "--table", ".safetensors"), (SAMPLE, "--correction", ".json"),
    (DOCTOR, "--model", ".safetensors"), (CALIBRATE, "--model", ".safetensors"), (BENCH, "--config", ".toml"),
    (EVALUATE | {"--held-out": "3"}, "--data", ".zip"), (EVALUATE, "--features", ".safetensors"),
    (SCORE, "--images", ".npz"), (SCORE, "--features", ".safetensors"), (SCORE, "--inception", ".pt"),
    ({"score": "", "--images": "IMAGES", "--features": "cifar10"}, "--features-reference", ".npz"),
    (SCORE, "--dinov2", ""), (TRAIN | {"--held-out": "3"}, "--data", ".tar"),
    (TRAIN, "--notes", ".md"), ({"convert": ""}, "PICKLE", ".pkl"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "flag", "end"), FILES, ids=[f"{next(iter(c))} {flag}" for c, flag, _ in FILES])
def test_pipes_and_devices_are_no_files(tmp_path, monkeypatch, capsys, command, flag, end):
    """A pipe that nobody writes to would be waited for, /dev/zero read, without end."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / f"pipe{end}")
    (tmp_path / f"zero{end}").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        place = str(tmp_path / f"{name}{end}")
        given = words({**command, flag: place}, tmp_path) if flag != "PICKLE" else ["convert", place, "out.safetensors"]
        code, out, err = run_command(monkeypatch, capsys, *given)
        assert code == 2, err
        assert place in out + err
        assert "Traceback" not in out + err
        assert "fault in steindiff" not in out + err


def test_a_great_range_costs_nothing():
    tracemalloc.start()
    for text in ("0-1000000000000", "0-9,5-99999999999999", ",".join(["0-9999999"] * 3)):
        with pytest.raises(InputError):
            parse_seeds(text)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped: interrupted: what is finished is kept"),
        (MemoryError("of 9 GB"), 2, "error: memory does not suffice (of 9 GB): take a smaller --batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 GB"), 2, "error: memory does not suffice"),
        (PermissionError(13, "Permission denied", MARKUP), 2, f"error: [Errno 13] Permission denied: '{MARKUP}'"),
        (
            ZeroDivisionError("[/]\nb"),
            3,
            "error: ZeroDivisionError: [/] b: this is a fault in steindiff; ",
        ),
    ],
)
def test_whatever_a_command_raises_is_one_line(monkeypatch, capsys, error, code, said):
    def fail():
        raise error

    monkeypatch.setattr("steindiff.models.names", fail)
    found, out, err = run_command(monkeypatch, capsys, "models")
    assert (found, out) == (code, "")
    assert err.startswith(said)
    assert len(err.splitlines()) == 1


def test_a_fault_shows_its_traceback_where_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr("steindiff.models.names", lambda: 1 / 0)
    monkeypatch.setenv(app.TRACEBACK, "1")
    with pytest.raises(ZeroDivisionError):
        run_command(monkeypatch, capsys, "models")


def said_to(encoding, *args, monkeypatch, **environment):
    """What a command writes to a terminal of this encoding."""
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", shown)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["steindiff", *args])
        with pytest.raises(SystemExit) as stop:
            app.main()
    assert (stop.value.code or 0) == 0
    shown.seek(0)
    return shown.read()


def test_a_poor_terminal_loses_no_text(monkeypatch):
    poor = {"TERM": "dumb", "COLUMNS": "20", "NO_COLOR": "1", "LANG": "C"}
    for args in (["--help"], ["sample", "--help"], ["doctor"]):
        found = said_to("ascii", *args, monkeypatch=monkeypatch, **poor)
        assert "\x1b" not in found
        assert len(found) > 200


class Failing(io.StringIO):
    """A stream whose other end is gone."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_streams_that_fail_lose_no_work(monkeypatch):
    """Standard error is not needed; what standard output should show is missed."""
    for gone in (None, Failing()):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", gone)
            patch.setattr(sys, "stdout", gone)
            with guarded():
                sys.stderr.write("a bar")
                sys.stderr.flush()
                with pytest.raises(OutputLost, match=r"cannot be written to \((closed|Broken pipe)\)"):
                    say("a result")


def test_letters_that_an_encoding_lacks_are_escaped(monkeypatch):
    """A name that is no text, such as '\udcff', is escaped in every encoding."""
    shown = {"ascii": r"\u03c3 \xd7 \udcff", "latin-1": r"\u03c3 × \udcff", "utf-8": r"σ × \udcff", "cp437": r"σ \xd7 \udcff"}
    for encoding, wanted in shown.items():
        terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", terminal)
        with guarded():
            say("σ × \udcff")
            sys.stdout.flush()
        assert terminal.buffer.getvalue().decode(encoding) == wanted + "\n"


def test_a_closed_or_full_output_ends_with_one_line(tmp_path):
    """Two processes at a time, as each costs seconds to start."""
    places = {"closed": ">&- <&-", "No space left on device": "> /dev/full"}
    one = "({} -m steindiff --version {} 2> {}; echo $? >> {}) &"
    said = [tmp_path / f"{i}" for i in range(2)]
    script = " ".join(one.format(sys.executable, where, *[file] * 2) for where, file in zip(places.values(), said, strict=True))
    subprocess.run(["bash", "-c", f"{script} wait"], timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    for file, reason in zip(said, places, strict=True):
        lost = f"error: standard output cannot be written to ({reason}): what was to be shown is lost"
        assert file.read_text() == f"{lost}\n2\n"
