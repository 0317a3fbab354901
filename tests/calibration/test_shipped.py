"""The shipped tables are what the recipe of this checkout makes."""

import json
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
from recipes.calibrate_models import HOW, TRAJECTORIES
from recipes.fit_universal import BAND, COMMAND, FULL, Options, best, family
from recipes.random_laws import GUIDED, Family

from steindiff.solvers import Table, universal
from steindiff.solvers.calibrated import SHIPPED
from steindiff.solvers.table import load_all
from steindiff.study.calibrating import calibrate_bed
from steindiff.study.testbed import make

OWN = ("work", "out", "nfe", "rung", "guidance", "least", "first", "base", "last")
"""What tables of one command differ in."""
DEFAULTS = {name: value for name, value in asdict(Options(work=None)).items() if name not in OWN}
FEWER = {**DEFAULTS, "laws": 96, "held": 64}
COMMANDS = {(160.0, False): DEFAULTS, (160.0, True): DEFAULTS, (14.6, False): {**FEWER, "iterations": 10}, (14.6, True): FEWER}
"""The settings of each rung's command, as the recipe's help has it, for few and for many evaluations."""
UNDER_GUIDANCE = {**DEFAULTS, "laws": 40, "held": 24}
CHOSEN: dict[tuple[float, float, int], tuple[float, float]] = {
    **{(2, 160.0, nfe): (1, 0.4) for nfe in range(6, 11)},
    **{(4, 160.0, nfe): (2, 0.4) for nfe in range(6, 10)},
    (4, 160.0, 10): (2, 0),
    **{(scale, 14.6, nfe): (scale / 2, 0) for scale in (4, 8) for nfe in range(6, 11)},
}
"""The lowest scale of the laws and the first level of the tables that have others than 1 and the best of several."""


def test_every_shipped_table_is_of_this_family_with_these_settings():
    tables = [(end, *key, about) for end, known in universal.by_end().items() for key, (_, about) in known.items()]
    for end, rung, nfe, about in tables:
        usual = end == universal.LAST
        assert about["family"] == json.loads(json.dumps(asdict(Family()))), (end, rung, nfe)
        command = COMMANDS[rung, nfe > FULL] if usual else FEWER
        assert {name: about["settings"][name] for name in DEFAULTS} == command, (end, rung, nfe)
        assert about["settings"].get("base", 0) == (0 if usual and (rung != 14.6 or nfe <= FULL) else 8), (end, rung, nfe)
        assert about["settings"].get("last", universal.LAST) == end
        assert about["settings"]["rung"] == rung
        assert about["command"] == COMMAND
        assert "/work" not in json.dumps(about)


def test_higher_last_levels_have_the_tables_that_the_usual_one_lacks():
    ends = universal.by_end()
    assert sorted(ends) == [0.004, 0.03, 0.04]
    assert sorted(ends[0.03]) == [(14.6, nfe) for nfe in range(10, 21)]
    assert sorted(ends[0.04]) == [(160.0, nfe) for nfe in range(11, 21)]


def test_every_table_for_guidance_is_of_these_families_with_these_settings():
    usual, images = json.loads(json.dumps([asdict(family) for family in GUIDED]))
    for scale, tables in universal.guided().items():
        for (rung, nfe), (_, about) in tables.items():
            assert (about["family"], about["images"]) == (usual, images), (scale, nfe)
            least, first = about["settings"].get("least", 1), about["settings"].get("first", 0)
            assert about["scales"] == [least, scale * BAND]
            assert (least, first) == CHOSEN.get((scale, rung, nfe), (1, 0)), (scale, rung, nfe)
            assert {name: about["settings"][name] for name in DEFAULTS} == UNDER_GUIDANCE, (scale, nfe)
            assert (about["settings"]["rung"], about["settings"]["guidance"]) == (rung, scale)
            assert about["command"] == COMMAND
            assert "/work" not in json.dumps(about)


@pytest.mark.parametrize("known", [*universal.by_end().values(), *universal.guided().values()])
def test_tables_of_more_evaluations_have_smaller_errors(known):
    """On the recipe's third set of laws, which took no part in a fit or a choice."""
    for rung, least in {(rung, about["settings"].get("least", 1)) for (rung, _), (_, about) in known.items()}:
        same = [(nfe, about) for (r, nfe), (_, about) in known.items() if r == rung and nfe <= FULL]
        reports = {nfe: about for nfe, about in same if about["settings"].get("least", 1) == least}
        scores = [reports[nfe]["scores"]["mean_log"] for nfe in sorted(reports)]
        assert all(b < a + 0.1 for a, b in pairwise(scores)), (rung, scores)


@pytest.mark.slow
@pytest.mark.parametrize("nfe", [1, 3])
def test_the_recipe_makes_the_shipped_numbers_again(nfe):
    """To rounding, which a refinement of many steps amplifies."""
    shipped, _ = universal.shipped()[160.0, nfe]
    options = replace(Options(work=None), rung=160.0)
    torch.set_num_threads(options.threads)
    seeds = [1_000_000 * options.seed + i for i in range(2)]
    laws, held = (
        family(n, 160.0, seed, options.steps, "laws") for n, seed in zip((options.laws, options.held), seeds, strict=True)
    )
    table = best(nfe, 160.0, laws, held, options)
    numbers = [[n for row in t.rows for n in (row.a, *row.values)] for t in (table, shipped)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-2, abs=1e-3)
    assert table.told == pytest.approx(shipped.told, rel=1e-2)
    assert table.levels == pytest.approx(shipped.levels, rel=2e-2)


def test_a_shipped_calibrated_table_is_what_its_recipe_makes(tmp_path):
    """The cheapest one, anew: to rounding, which machines and threads differ in."""
    (made,) = calibrate_bed(make("digits"), [1], TRAJECTORIES["digits"], options=HOW)
    shipped = Table.load(SHIPPED / "digits.safetensors", 1)
    assert made.solver.purpose == shipped.solver.purpose
    assert made.report["key"] == shipped.report["key"]
    for mine, theirs in zip(made.solver.rows, shipped.solver.rows, strict=True):
        assert (mine.a, *mine.values) == pytest.approx((theirs.a, *theirs.values), rel=2e-3)
    assert made.report["gate"]["rmse"] == pytest.approx(shipped.report["gate"]["rmse"], rel=1e-3)


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.safetensors")))
def test_the_shipped_calibrated_tables_passed_their_gate(name):
    for table in load_all(SHIPPED / f"{name}.safetensors"):
        seen = table.report["gate"]
        assert seen["kept"] == table.solver.name == "calibrated table"
        assert seen["rmse"] < min(seen["others"].values())
        assert "/" not in str(table.report["command"]), "folders of the machine that made it are nobody's business"
