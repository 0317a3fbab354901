"""The program about the statistics of DPM-Solver-v3."""

import torch
from research.dpm_v3_statistics import LEVELS, Options, averaged, cases, scored

from problems import MODEL
from research import dpm_v3_statistics
from steindiff.analytic import GaussianMixture
from steindiff.calibration import trajectories
from steindiff.calibration.peers import dpm_v3
from steindiff.solvers import Statistics
from steindiff.study import testbed


def noises(n, seed):
    return 80 * torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_means_over_coordinates_are_the_same_everywhere():
    linear = torch.rand(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = averaged(Statistics((9.0, 5.0, 3.0, 2.0, 1.0), linear, -linear, 2 * linear))
    assert torch.allclose(found.linear, linear.mean((1, 2))[:, None, None].expand(5, 2, 3))
    assert torch.allclose(found.offset, 2 * found.linear)


def test_statistics_that_are_data_prediction_score_as_it_does_and_noises_are_as_many_as_asked(monkeypatch):
    o, counts = Options(nfe=(3,), noises=(4, 12), images=8), []
    law = new = trajectories(MODEL, noises(8, 0), count=16)

    def measured(law, how):
        counts.append(len(law.noise))
        return Statistics.constant(1.0, 0.0, 0.0, LEVELS, (3,))

    monkeypatch.setattr(dpm_v3, "measured", measured)
    lines = [(name, scored(found, o, new, 3)) for name, found in cases(o, law)]
    assert counts == [4, 12]
    assert len(lines) == 7
    assert len({line for name, line in lines if name != "noise prediction, (0, −1, 0)"}) == 1
    assert len({line for _, line in lines}) == 2


def test_the_program_measures_on_some_noises_and_scores_on_others(monkeypatch, capsys):
    law = GaussianMixture(torch.ones(2) / 2, torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.1 * torch.eye(2).repeat(2, 1, 1))
    monkeypatch.setattr(dpm_v3_statistics, "make", lambda name: testbed.Testbed(name, law, event_shape=(2,), digest="two, 1"))
    monkeypatch.setattr(dpm_v3, "measured", lambda law, how: Statistics.constant(1.0, 0.0, 0.0, LEVELS, (2,)))
    assert dpm_v3_statistics.main(["--nfe", "3", "--noises", "4", "--images", "8"]) == 0
    assert capsys.readouterr().out.count("±") == 5
