"""Testbeds in units of σ_data, and what is measured on them."""

import pytest
import torch
from research.units import RUNG, InUnits, energy, law, relative

from exact_paths import isotropic, normal
from problems import MODEL
from research import universal_questions
from steindiff.calibration import trajectories
from steindiff.metrics import energy_distance
from steindiff.metrics.distances import root_of_mean
from steindiff.sampling import sample
from steindiff.solvers import Setting, universal
from steindiff.study import testbed

D64 = torch.float64


def test_a_denoiser_in_units_is_that_of_the_divided_data():
    x = normal(5, 3)
    there = InUnits(isotropic(0.3), 0.5)
    torch.testing.assert_close(there(x, torch.tensor(2.0, dtype=D64)), isotropic(1.2)(x, 2.0))


def test_a_table_runs_on_a_testbed_in_units_as_it_does_in_the_testbeds_own():
    bed, seeds = testbed.make("wine_mixture"), range(90_000, 90_008)
    unit = bed.setting.sigma_data
    here, table = law("wine_mixture", seeds, steps=24), universal.shipped()[RUNG, 4][0]
    own = universal.entry(4, Setting(RUNG * unit, 0.004 * unit, unit))[0]
    ends = sample(own, bed.denoiser, here.noise * unit, own.own_grid).x / unit
    squares = relative(table, here)
    torch.testing.assert_close(squares, (ends - here.ends).double().square().mean(1) / here.variance, rtol=1e-3, atol=1e-8)
    root, se = root_of_mean(squares)
    assert root == pytest.approx(float((ends - here.ends).square().mean()) ** 0.5 / here.variance**0.5, rel=1e-3)
    assert 0 < se < root


def test_the_energy_distance_of_ends_to_themselves_is_zero_and_else_it_is_unbiased():
    """Over many draws, against the estimate from independent sets."""
    table = universal.shipped()[RUNG, 1][0]
    paired, independent = [], []
    for seed in range(20):
        mine, other = (trajectories(MODEL, RUNG * normal(32, 3, seed=k), RUNG, 0.004, count=16) for k in (seed, 1000 + seed))
        paired.append(float(energy(table, mine).mean()))
        ends = sample(table, MODEL, mine.noise, table.own_grid).x
        apart = torch.cdist(other.ends, other.ends).sum() / (32 * 31)
        independent.append(float(energy_distance(ends, other.ends).value / apart))
    gap = torch.tensor(paired).mean() - torch.tensor(independent).mean()
    assert abs(gap) < 4 * torch.tensor(independent).std() / 20**0.5
    assert torch.tensor(paired).mean() > 0.01
    assert torch.tensor(paired).std() < torch.tensor(independent).std(), "pairs of the same noise are nearer"


def test_the_program_on_moments_compares_four_tables(capsys):
    small = ["--laws", "3", "--others", "2", "--images", "4", "--steps", "16", "--beds", "wine_mixture", "--nfe", "2"]
    assert universal_questions.main(["--part", "moments", *small]) == 0
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [cells[1].strip() for cells in lines[2:]] == ["fit", "fit, matched", "shipped", "shipped, matched"]
    fit, matched = lines[2], lines[3]
    change = float(matched[3].split("±")[0])
    assert change == pytest.approx(float(matched[2]) - float(fit[2]), abs=2e-3)
    assert [cells[3].strip() == "–" for cells in lines[2:]] == [True, False, True, False]
