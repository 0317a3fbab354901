"""The programs behind the open questions: laws that are averaged, classes by seed, and what a table costs."""

import math

import pytest
import torch
from research.calibration_questions import BILLED, Options, lines, of_class, pooled, reached, scored

from problems import MODEL
from research import calibration_questions
from steindiff.analytic import FactorMixture
from steindiff.calibration import fit, run, trajectories
from steindiff.noise import mix
from steindiff.solvers.calibrated import SHIPPED
from steindiff.solvers.table import load_all


def test_an_averaged_mixture_is_the_law_of_averaged_images():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    loadings = torch.randn(2, 48, 2, generator=generator, dtype=torch.float64)
    diagonal = 0.5 + torch.rand(2, 48, generator=generator, dtype=torch.float64)
    law = FactorMixture(torch.tensor([0.4, 0.6], dtype=torch.float64), means, loadings, diagonal)
    small = pooled(law, 2)
    average = torch.zeros(12, 48, dtype=torch.float64)
    for i, image in enumerate(torch.eye(48, dtype=torch.float64).reshape(48, 3, 4, 4)):
        average[:, i] = torch.nn.functional.avg_pool2d(image, 2).flatten()
    for k in range(2):
        covariance = loadings[k] @ loadings[k].T + diagonal[k].diag()
        found = small.loadings[k] @ small.loadings[k].T + small.diagonal[k].diag()
        torch.testing.assert_close(found, average @ covariance @ average.T)
        torch.testing.assert_close(small.means[k].flatten(), average @ means[k].flatten())


def test_the_seeds_of_a_class_have_it():
    seeds = of_class(7, 1000, 5)
    assert [mix(seed) % 10 for seed in seeds] == [7] * 5
    assert all(mix(seed) % 10 != 7 for seed in range(1000, seeds[-1]) if seed not in seeds)


def test_where_an_error_is_reached_between_numbers_of_evaluations():
    errors = {2: 0.4, 4: 0.1, 5: 0.05}
    assert reached(errors, 0.2) == pytest.approx(3)
    assert reached(errors, 0.1) == pytest.approx(4)
    assert reached(errors, 0.01) == math.inf
    assert reached(errors, 1.0) == 2


def test_a_line_between_two_scales_has_every_contender():
    pytest.importorskip("sklearn")
    few = Options("scales", nfe=1, bed="wine_guided_3", scales=(2.0, 3.0), between=(2.5,), trajectories=16, images=8)
    (line,) = lines(few)
    scale, ends, *scores, universal = line
    assert (scale, ends, universal) == ("2.5", "2, 3", "none")  # no table for guidance has one evaluation
    own, chained, alone, upper = (score.value for score in scores)
    assert own > 0
    assert max(chained, alone, upper) < 2 * own


def test_the_bill_has_every_shipped_table(capsys):
    assert calibration_questions.main(["--part", "cost"]) == 0
    said = capsys.readouterr().out
    for name in BILLED:
        rows = [line.split("|")[1:-1] for line in said.split(f"{name}:")[1].split("\n\n")[1].splitlines()[2:]]
        assert [int(row[0]) for row in rows] == [each.nfe for each in load_all(SHIPPED / f"{name}.safetensors")]
        assert all(int(row[1]) > 1000 for row in rows)
    assert calibration_questions.main(["--part", "prices"]) == 2


def test_every_table_is_scored_on_every_law(capsys):
    law = trajectories(MODEL, 80 * torch.randn(8, 3, dtype=torch.float64), count=16)
    table = fit([law], (80.0, 2.0, 0.002))
    scored({"it": table}, {"it": law, "again": law}, {"it": table, "again": table})
    heads, _, universal, mine = (line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines())
    assert [head.strip() for head in heads] == ["table", "on it", "on again"]
    assert universal[1:] == mine[1:]
    assert float(mine[1].split("±")[0]) == pytest.approx(law.rmse(run(table, law)), abs=1e-4)
