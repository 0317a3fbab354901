"""One torch thread per test process: `make test` runs one process per core."""

import matplotlib as mpl
import torch

torch.set_num_threads(1)
mpl.use("Agg")
