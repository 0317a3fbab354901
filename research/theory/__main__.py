"""`python -m research.theory`."""

import sys

from research.theory.page import main

sys.exit(main())
