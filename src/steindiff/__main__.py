"""`python -m steindiff`."""

from steindiff.cli import main

if __name__ == "__main__":
    main()
