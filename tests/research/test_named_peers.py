"""The program that runs the named peers as baselines."""

import pytest
import torch
from research.named_peers import V3, Options, statistics, studied, tables

from research import named_peers
from steindiff.analytic import GaussianMixture
from steindiff.calibration.peers import dpm_v3
from steindiff.report.markdown import markdown
from steindiff.solvers import Statistics
from steindiff.study import testbed

LAW = GaussianMixture(torch.ones(2) / 2, torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.1 * torch.eye(2).repeat(2, 1, 1))


def test_every_peer_has_its_row_where_it_can_spend_the_budget(tmp_path, monkeypatch):
    bed = testbed.Testbed("two", LAW, event_shape=(2,), digest="two, 1")
    wanted = Options(bed="two", nfe=(8, 14), images=40, noises=16, out=tmp_path)
    constant, laws = Statistics.constant(1.0, 0.0, 0.0, (81.0, 1.0, 0.001), (2,)), []
    monkeypatch.setattr(dpm_v3, "measured", lambda law, how: laws.append(law) or constant)
    assert repr(statistics(wanted, bed)) == repr(statistics(wanted, bed)) == repr(constant)
    assert [len(law.noise) for law in laws] == [16]  # the second time they are read
    monkeypatch.setattr(named_peers, "SOLVERS", ("dpmpp_2m", "pndm", "evodiff", "restart(heun)"))
    study = studied(wanted, bed)
    energy, apart, *_, endpoint, between = tables(study)
    found = {row[0]: row[1:] for row in energy.rows}
    assert set(found) == {"dpmpp_2m", "pndm", "evodiff", "restart(heun)", V3}
    assert [found["pndm"][0], found["restart(heun)"][0]] == ["–", "–"]  # 12 and 9 evaluations at least
    assert all("±" in found[name][1] for name in found)
    assert "restart(heun)" not in {row[0] for row in endpoint.rows}
    ends = {
        cell.solver: result.values["endpoint"].value
        for cell, result in study.results.items()
        if (cell.grid, cell.nfe) == ("log_snr", 14) and "endpoint" in result.values
    }
    assert [row[0] for row in apart.rows] == [row[0] for row in between.rows] == ["evodiff − dpmpp_2m"]
    difference = float(between.rows[0][2].split(" ± ")[0].replace("−", "-"))
    assert difference == pytest.approx(ends["evodiff"] - ends["dpmpp_2m"], rel=0.05)
    assert "endpoint RMSE, log_snr, NFE" in markdown([endpoint])
