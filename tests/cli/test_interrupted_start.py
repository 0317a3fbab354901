"""An interrupt while the command's libraries are imported: real processes, one line, no traceback."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steindiff.io import starting

SCRIPT = "import sys\nfrom steindiff.__main__ import main\nsys.exit(main())\n"
MAPS = Path("/proc/self/maps")


def _loading(process: subprocess.Popen[str], library: str) -> bool:
    try:
        return library in Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return False


def _interrupted(arguments, library="libtorch"):
    """Interrupt a process as soon as a library is being loaded; torch's is, long before the import of torch ends."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=-1, stderr=-1, text=True)
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
    before = signal.getsignal(signal.SIGINT)
    with starting.starting():
        within = signal.getsignal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert within is not before
