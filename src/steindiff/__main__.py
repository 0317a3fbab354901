"""`python -m steindiff`, and the command `steindiff`; without its libraries it says in one line how to install them."""

import sys

from steindiff.errors import MissingLibraryError, needs
from steindiff.io.starting import starting

try:
    with starting(), needs("cli", "the command line"):
        from steindiff.cli.app import main
except MissingLibraryError as error:
    sys.exit(f"error: {error}")

__all__ = ["main"]

if __name__ == "__main__":
    main()
