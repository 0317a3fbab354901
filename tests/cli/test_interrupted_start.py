"""An interrupt or too little of the machine, while libraries are imported and later: real processes, one line, no traceback."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steindiff.io import starting

SCRIPT = "import sys\nfrom steindiff.__main__ import main\nsys.exit(main())\n"
MAPS = Path("/proc/self/maps")


def _heard():
    """A child hears interrupts, also where this process was started in the background, which ignores them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _loading(process: subprocess.Popen[str], library: str) -> bool:
    try:
        return library in Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return False


def _interrupted(arguments, library="libtorch"):
    """Interrupt a process as soon as a library is being loaded; torch's is, long before the import of torch ends."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=-1, stderr=-1, text=True, preexec_fn=_heard)
    end = time.monotonic() + 60
    while process.poll() is None and not _loading(process, library) and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.skipif(not MAPS.exists(), reason="says by /proc how far an import is")
@pytest.mark.parametrize("how", ["module", "script"])
def test_one_line_and_the_code_of_an_interrupt(tmp_path, how):
    (tmp_path / "steindiff").write_text(SCRIPT)
    arguments = ["-m", "steindiff"] if how == "module" else [tmp_path / "steindiff"]
    assert _interrupted([*arguments, "--help"]) == (130, "", starting.LINE)


@pytest.mark.skipif(not MAPS.exists(), reason="says by /proc how far an import is")
def test_a_program_that_imports_the_package_gets_its_exception():
    program = "try:\n    import steindiff\nexcept BaseException as error:\n    print('mine')\n"
    assert _interrupted(["-c", program])[:2] == (0, "mine\n")


def _limited(limit, *arguments, program=("-m", "steindiff")):
    """Exit code and standard error under a limit of the shell."""
    line = ["sh", "-c", f'ulimit {limit} && exec "$@"', "sh", sys.executable, *program, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems set no bound on a process's memory")
def test_too_little_memory_for_the_libraries_is_one_line():
    code, error = _limited("-v 100000", "--version")
    assert code == 2
    assert error.startswith("error: a library cannot be loaded (")
    assert error.endswith("): give the process more memory (ulimit -v, ulimit -n)\n")
    assert len(error.splitlines()) == 1
    code, error = _limited("-v 100000", program=("-c", "import steindiff"))
    assert (code, error.startswith("Traceback")) == (1, True)


@pytest.mark.skipif(not MAPS.exists(), reason="how many files an import needs at once is Linux's")
def test_too_few_open_files_are_one_line_and_the_run_goes_on(tmp_path):
    command = ["sample", "--model", "digits", "--solver", "ddim", "--nfe", "1", "--seeds", "0-3", "--outdir", tmp_path / "run"]
    code, error = _limited("-n 6", *command)
    assert code == 2, error
    last = error.replace("\r", "\n").splitlines()[-1]
    assert last.startswith("error: ")
    assert last.endswith("; let this process open more files (ulimit -n)")
    assert "Traceback" not in error
    assert _limited("-n 32", *command)[0] == 0
    assert (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    "argv, original, ours",
    [
        (["/usr/bin/steindiff", "demo"], ["python", "/usr/bin/steindiff", "demo"], True),
        (["C:\\bin\\steindiff.exe"], ["python", "x"], sys.platform == "win32"),
        (["-m", "demo"], ["python", "-u", "-m", "steindiff", "demo"], True),
        (["-m", "steindiff"], ["python", "-m", "pytest", "steindiff"], False),
        (["/packages/steindiff/__main__.py", "demo"], ["python", "-m", "steindiff", "demo"], True),
        (["/packages/pytest/__main__.py"], ["python", "-m", "pytest"], False),
        (["train.py"], ["python", "train.py", "-m", "steindiff"], False),
        ([], ["python"], False),
    ],
)
def test_which_process_is_the_command(monkeypatch, argv, original, ours):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert starting.is_program() is ours


def test_the_handler_of_an_interrupt_is_put_back(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["steindiff"])
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with starting.starting():
            within = signal.getsignal(signal.SIGINT)
        after = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with starting.starting():
            ignored = signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, found)
    assert after is signal.default_int_handler
    assert within not in (signal.default_int_handler, signal.SIG_IGN)
    assert ignored is signal.SIG_IGN, "what starts a command in the background wants no interrupts for it"
