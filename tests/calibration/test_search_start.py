"""Where a refinement starts."""

from dataclasses import replace

import torch

from problems import mixture
from steindiff.calibration import search, trajectories
from steindiff.solvers import Setting
from steindiff.solvers.universal import entries

SETTING = Setting(80.0, 0.002, 0.5)


def test_under_guidance_it_starts_as_without():
    """A refinement from a table for guidance ends farther away, so that none of them is a start."""
    noise = 80 * torch.randn(48, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fitted, held = (trajectories(mixture, part, 80.0, 0.002, count=48) for part in noise.split(24))
    guided = replace(SETTING, guidance=5.0)
    found, plain = (search.start([fitted], [held], 4, setting) for setting in (guided, SETTING))
    assert (found.levels, found.rows) == (plain.levels, plain.rows)
    assert found.levels != entries(4, guided)[0].levels
