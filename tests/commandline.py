"""The command line in this process."""

import sys

from steindiff.cli.app import main


def run_command(monkeypatch, capsys, *args) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `steindiff ARGS`."""
    monkeypatch.setattr(sys, "argv", ["steindiff", *map(str, args)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
