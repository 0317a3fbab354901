"""`python -m steindiff`."""

from steindiff.cli.app import main

if __name__ == "__main__":
    main()
