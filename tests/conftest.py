"""One torch thread per test process: `make test` runs one process per core."""

import matplotlib as mpl
import torch

torch.set_num_threads(1)
mpl.use("Agg")

SLOW_ROOMS = ("train", "run", "study")
"""Rooms whose tests start processes and train networks."""


def pytest_collection_modifyitems(items):
    """Slow rooms come first, so that no process works on one of them while the other has nothing left."""
    items.sort(key=lambda item: item.path.parent.name not in SLOW_ROOMS)
