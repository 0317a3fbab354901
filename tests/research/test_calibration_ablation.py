"""What an ablation of the calibration compares: each way of making a table does what its name says."""

from dataclasses import replace

import pytest
import torch
from research.calibration_variants import banded, forced, restricted
from research.units import energy_shares, projected

from exact_paths import D64, normal
from problems import MODEL
from research import calibration_ablation
from steindiff.analytic import Gaussian
from steindiff.calibration import errors, fit, run, trajectories
from steindiff.corrections.bands import Whole
from steindiff.solvers import Row

GRID = (80.0, 10.0, 1.5, 0.002)


def paths(seed, model=MODEL, d=3, n=24):
    return trajectories(model, 80 * normal(n, d, seed=seed), count=24)


@pytest.fixture(scope="module")
def law():
    return paths(0)


@pytest.fixture(scope="module")
def table(law):
    return fit([law], GRID)


def test_teacher_forcing_is_the_closed_loop_where_the_loop_is_exact_and_only_there(law, table):
    """A Gaussian with one variance is solved exactly, so that the states of a run are the flow's."""
    simple = paths(1, Gaussian(torch.zeros(3, dtype=D64), 0.3 * torch.eye(3, dtype=D64)))
    teacher, loop = forced(simple, GRID, 1e-9), fit([simple], GRID, ridge=1e-9)
    torch.testing.assert_close(run(teacher, simple), run(loop, simple), rtol=1e-4, atol=1e-5)
    assert float(errors(forced(law, GRID, 1e-3), [law])) > float(errors(table, [law]))


def test_a_run_about_another_mean_is_the_same_where_rows_sum_to_one(law):
    """Otherwise the offset counts."""
    mean = torch.tensor([0.5, -1.0, 2.0], dtype=D64)
    moved, table = calibration_ablation.about(law, mean), fit([law], GRID, free=False)
    torch.testing.assert_close(moved.ends + moved.mean, law.ends)
    affine = replace(table, rows=tuple(Row(row.a, (1 - row.a,)) for row in table.rows))
    torch.testing.assert_close(run(affine, moved) + mean, run(affine, law))
    assert float((run(table, moved) + mean - run(table, law)).abs().max()) > 1e-6


def test_a_restricted_refinement_moves_nothing_else(law, table):
    told, weights = (restricted(table, (law, paths(2)), moves, not moves, 3) for moves in (True, False))
    assert told.rows == table.rows
    assert told.told != table.told
    assert weights.told == table.told
    assert weights.rows != table.rows
    for better in (told, weights):
        assert float(errors(better, [law])) < float(errors(table, [law]))


def test_one_band_around_a_fit_changes_next_to_nothing_and_mends_another_table(law, table):
    """A fit is the least-squares row already; a table whose last row is wrong is mended in its last step."""
    torch.testing.assert_close(banded(table, Whole(), law, law, True), run(table, law), rtol=1e-2, atol=1e-2)
    wrong = replace(table, rows=(*table.rows[:-1], Row(1.5 * table.rows[-1].a, table.rows[-1].values)))
    assert law.rmse(run(wrong, law)) > 1.2 * law.rmse(run(table, law))
    assert law.rmse(banded(wrong, Whole(), law, law, True)) < 1.05 * law.rmse(run(table, law))


def test_the_energy_distance_of_pairs_is_unbiased_and_exact_for_equal_samples():
    x, noise = normal(1000, 2, seed=3), normal(1000, 2, seed=4)
    assert projected(energy_shares(x, x)).value == pytest.approx(0, abs=1e-12)
    near, far = (projected(energy_shares(moved, x)) for moved in (x + 0.1 * noise, x + 1.0))
    assert abs(near.value) < 0.02
    # E‖z + a‖ for z ~ N(0, 2) in two dimensions, a = (1, 1), less E‖z‖, twice.
    generator = torch.Generator().manual_seed(5)
    z = 2**0.5 * torch.randn(50_000, 2, generator=generator, dtype=D64)
    exact = 2 * float((z + 1).norm(dim=1).mean() - z.norm(dim=1).mean())
    assert far.value == pytest.approx(exact, abs=4 * far.se + 0.02)


def test_the_command_scores_every_variant(capsys):
    argv = ["--bed", "wine_mixture", "--nfe", "2", "--trajectories", "16", "--images", "8", "--steps", "12", "--most", "2"]
    assert calibration_ablation.main([*argv, "--parts", "start", "ridge", "numbers", "along", "counts", "moments"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "±" in line]
    names = [row[1].strip() for row in rows]
    assert len(set(names)) == len(names) == 2 + 10 + 8 + 7 + 2 + 4 + 2
    rmse = {name: float(row[2].split("±")[0]) for name, row in zip(names, rows, strict=True)}
    assert rmse["calibrated table"] < rmse["universal table"]
    assert calibration_ablation.main([*argv, "--parts", "everything"]) == 2
