"""The questions about universal tables: what the program says on a few small laws."""

import pytest
from recipes.fit_universal import family
from research.units import RUNG
from research.universal_questions import RULES, Options, agreement, candidates, chosen, main, members, scores

from steindiff.calibration import score

SMALL = ["--laws", "3", "--held", "2", "--others", "2", "--images", "4", "--steps", "16", "--beds", "wine_mixture"]
ONE = [*SMALL, "--nfe", "1"]


def rows(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")][2:]


def test_each_rule_takes_what_is_best_by_it():
    found = [(-3.0, 0.5, 0.2), (-2.0, 0.1, 0.3), (-1.0, 0.9, 0.1)]
    assert chosen(found) == [0, 1, 2]
    ranks = agreement(found)
    assert ranks.diag().tolist() == pytest.approx([1, 1, 1])
    assert float(ranks[0, 1]) == pytest.approx(0.5)
    assert float(ranks[0, 2]) == pytest.approx(-0.5)


def test_candidates_are_fits_in_order_and_refinements_that_do_not_lose():
    laws, held = (family(3, RUNG, seed, 16, "laws") for seed in range(2))
    found = list(candidates(Options("choice", along=(0.0,), stages=(1, 2)), 2, laws, held))
    fits = [score(table, held) for name, table in found if name.startswith("fit")]
    assert len(fits) == 21
    assert fits == sorted(fits)
    refined = [score(table, held) for name, table in found if name.startswith("refined")]
    assert len(refined) == 4
    assert refined[1] <= refined[0] <= fits[0]
    log, worst, distance = scores(found[0][1], held)
    assert log == pytest.approx(fits[0], abs=1e-4)
    assert log < 0 < worst
    assert distance > 0


def test_the_program_on_rules_shows_what_each_of_them_takes(capsys):
    assert main(["--part", "choice", *ONE, "--along", "0", "--stages", "1"]) == 0
    shown = rows(capsys.readouterr().out)
    assert [cells[0] for cells in shown] == [*RULES, "–"]
    assert "(1.00 ± 0.00)" in shown[0][-1]
    assert shown[-1][1] == "shipped"


def test_the_program_on_networks_sets_each_share_against_none(capsys):
    """Any testbed may join the family: here a cheap exact law, scored on itself."""
    assert main(["--part", "network", *ONE, "--network", "wine_mixture", "--shares", "0", "6", "--iterations", "1"]) == 0
    without, joined = rows(capsys.readouterr().out)
    assert without[:3] == ["1", "0", "+0.000 ± 0.000"]
    assert "(1.000 ± 0.000)" in without[3]
    assert joined[:2] == ["1", "6"]
    assert float(joined[3].split("(")[1].split()[0]) < 1, "six laws of nine are its own"


def test_the_program_on_many_evaluations_sets_each_table_against_the_shipped_one(capsys):
    assert main(["--part", "many", *SMALL, "--nfe", "3", "--base", "2"]) == 0
    shipped, fitted, refined = rows(capsys.readouterr().out)
    assert shipped[:4] == ["3", "shipped", "+0.000 ± 0.000", "+0.000"]
    assert "(1.00 ± 0.00)" in shipped[4]
    assert [cells[1] for cells in (fitted, refined)] == ["fit", "1 steps"]
    assert float(fitted[3]) != 0


def test_another_part_is_refused(capsys):
    assert main(["--part", "choices"]) == 2
    assert "did you mean 'choice'?" in capsys.readouterr().err


def test_laws_of_a_network_have_noise_of_their_own():
    first, second = members("wine_mixture", 2, 12)
    assert first.noise.shape == second.noise.shape == (16, 13)
    assert not (first.noise == second.noise).any()
