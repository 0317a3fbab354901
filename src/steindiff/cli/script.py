"""How a script ends: status 0, or 2 with one line that says what to change."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from steindiff.errors import SteindiffError

__all__ = ["run_command"]


def run_command(
    parser: argparse.ArgumentParser, action: Callable[[argparse.Namespace], object], argv: Sequence[str] | None = None
) -> int:
    """Parse and act; a SteindiffError becomes one line on stderr and exit status 2."""
    try:
        action(parser.parse_args(argv))
    except SteindiffError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0
