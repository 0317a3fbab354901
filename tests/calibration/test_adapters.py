"""Networks of other parametrisations: a calibration through an adapter is that of the law, over the range of its schedule."""

from dataclasses import replace

import pytest
import torch

from exact_paths import normal
from problems import MODEL
from steindiff.calibration import Options, Settings, calibrate, trajectories
from steindiff.denoisers import FromEps, FromFlow, FromV, FromX0
from steindiff.identity import network_of
from steindiff.sampling import sample
from steindiff.schedules import DiscreteBetas, RectifiedFlow, VPCosine, VPLinear
from steindiff.solvers import Setting, calibrated

QUICK = Options(steps=24, settings=Settings(iterations=4, along=0.2))
PREDICTIONS = {
    FromEps: lambda x, clean, alpha, sigma: (x - alpha * clean) / sigma,
    FromV: lambda x, clean, alpha, sigma: alpha * (x - alpha * clean) / sigma - sigma * clean,
    FromX0: lambda x, clean, alpha, sigma: clean,
    FromFlow: lambda x, clean, alpha, sigma: (x - alpha * clean) / sigma - clean,
}
CASES = [
    (FromEps, VPLinear(), 157.0, 0.006),
    (FromX0, VPCosine(), 80.0, 0.002),
    (FromEps, DiscreteBetas.linear(), 157.0, 0.011),
    (FromV, DiscreteBetas.scaled_linear(), 14.6, 0.03),
    (FromFlow, RectifiedFlow(), 1000.0, 0.002),
]
"""An adapter, its schedule, and the first and last noise levels; that of the flow is nearly pure noise, t = 0.999."""


def adapted(adapter, schedule):
    """The exact law's network in this parametrisation."""

    def network(x, t):
        s = schedule.ratio(t)[:, None]
        alpha = schedule.alpha_of(s)
        return PREDICTIONS[adapter](x, MODEL(x / alpha, s[:, 0]), alpha, alpha * s)

    return adapter(network, schedule)


@pytest.mark.parametrize(("adapter", "schedule", "first", "last"), CASES)
def test_an_adapter_changes_nothing_but_rounding(adapter, schedule, first, last):
    noise, how = first * normal(32, 3), {"sigma_max": first, "sigma_min": last, "options": QUICK}
    denoiser = adapted(adapter, schedule)
    table, plain = calibrate(denoiser, noise, 2, **how), calibrate(MODEL, noise, 2, **how)
    assert (table.solver.levels[0], table.solver.levels[-1]) == (first, last)
    assert table.solver.purpose == plain.solver.purpose
    assert table.report["gate"]["kept"] == table.solver.name == "calibrated table"
    for mine, theirs in zip(table.solver.rows, plain.solver.rows, strict=True):
        assert (mine.a, *mine.values) == pytest.approx((theirs.a, *theirs.values), rel=1e-4, abs=1e-6)
    assert table.solver.told == pytest.approx(plain.solver.told, rel=1e-4)


def test_a_table_of_a_flow_is_found_and_gains_on_new_noise(tmp_path, monkeypatch):
    adapter, schedule, first, last = CASES[-1]
    denoiser, ends = adapted(adapter, schedule), {"sigma_max": first, "sigma_min": last}
    table = calibrate(denoiser, first * normal(64, 3), 2, options=replace(QUICK, steps=64), **ends)
    table.save(tmp_path / "flow.safetensors")
    monkeypatch.setenv(calibrated.VARIABLE, str(tmp_path))
    exact = trajectories(MODEL, first * normal(64, 3, seed=9), first, last)
    setting = Setting(first, last, network=network_of(denoiser), event=(3,))
    found = sample("auto", denoiser, exact.noise, nfe=2, setting=setting)
    assert found.solver == "calibrated table of 2 evaluations"
    assert exact.rmse(found.x) < exact.rmse(sample("universal", denoiser, exact.noise, nfe=2, setting=setting).x)
    assert torch.equal(found.x, sample(table.solver, denoiser, exact.noise, table.sigmas).x)
