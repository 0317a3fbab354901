"""A solver with its own grid against the best of the others: who meets whom, pairs, losing cells, and the report."""

import dataclasses
import math

import pytest
import torch

from steindiff import solvers
from steindiff.analytic import GaussianMixture
from steindiff.metrics import EnergyTarget, ManifoldTarget, Value, jackknife
from steindiff.metrics.fid.inception_score import InceptionScore
from steindiff.report.study import write_report
from steindiff.solvers import Tabulated
from steindiff.solvers.multistep import Row
from steindiff.study import testbed
from steindiff.study.contest import DOUBLED, Rivals, best_of, contenders, duel, duels, on_grids, on_levels, rivals_of
from steindiff.study.grid import OWN, PLAIN, PRESETS, Cell, Config
from steindiff.study.run import run_study
from steindiff.study.store import Result

ANGLES = torch.linspace(0, 5.5, 8)
MEANS = torch.stack([ANGLES.cos(), ANGLES.sin()], 1) / 2
RING = GaussianMixture(torch.full((8,), 1 / 8), MEANS, 0.01 * torch.eye(2).repeat(8, 1, 1))
BED = testbed.Testbed("ring", RING, (2,), "ring, version 1")
WILD = Tabulated((80.0, 1.0, 0.002), (Row(1.0, ()), Row(0.1, (0.9,))), (1.0, 1.0))
CONFIG = Config(
    beds=("ring",), solvers=("ddim", "dpmpp_2m", "free(ddim)", "universal", "wild"), grids=("karras", "log_snr"), nfe=(1, 4),
    corrections=(PLAIN,), n=64, batch=64, metrics=("energy", "precision", "endpoint"), objects={"wild": WILD},
)  # fmt: skip


def against(solvers):
    return Rivals("the others", solvers)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contest")
    found = run_study(CONFIG, folder, beds=[BED], progress=False)
    write_report(folder, found)
    return folder, found


def test_published_methods_on_a_tables_levels_are_no_contenders(study):
    _, found = study
    assert contenders(found) == ["universal", "wild"]
    assert on_grids(found) == ["ddim", "dpmpp_2m"]
    assert on_levels(found) == ["free(ddim)"]
    assert [d.cell.nfe for d in duels(found, "ring", "wild", "energy", against(["ddim"]))] == [1]


def test_the_best_is_that_of_every_grid_and_of_each_metric_alone(study):
    _, found = study
    for metric, best in (("endpoint", min), ("precision", max)):
        runs = [Cell("ring", s, g, 4, PLAIN) for s in ("ddim", "dpmpp_2m") for g in CONFIG.grids]
        wanted = best(found.results[c].values[metric].value for c in [*runs, Cell("ring", "free(ddim)", OWN, 4, PLAIN)])
        chosen = best_of(found, "ring", 4, metric, ["ddim", "dpmpp_2m", "free(ddim)"])
        assert chosen is not None
        assert chosen.values[metric].value == wanted


def test_a_change_is_that_of_pairs(study):
    """The same number as the statistics themselves give, and much narrower than that of independent runs."""
    _, found = study
    fought = duel(found, Cell("ring", "universal", OWN, 4, PLAIN), "energy", against(["dpmpp_2m"]))
    assert fought.own is not None
    assert fought.other is not None
    assert fought.change is not None
    a, b = fought.own.values["energy"], fought.other.values["energy"]
    assert fought.change.value == pytest.approx(a.value - b.value)
    assert 0 < fought.change.se < 0.9 * math.hypot(a.se, b.se)
    bare = dataclasses.replace(fought.own, spread=torch.empty(0), lengths={})
    assert bare.minus(fought.other, "energy").se == pytest.approx(math.hypot(a.se, b.se))
    ended = duel(found, Cell("ring", "universal", OWN, 4, PLAIN), "endpoint", against(["ddim"]))
    assert ended.ratio == pytest.approx(ended.other.values["endpoint"].value / ended.own.values["endpoint"].value)
    assert (ended.verdict, ended.ratio > 1) == ("win", True)


def test_a_contender_without_numbers_or_without_rivals_is_said_so(study):
    _, found = study
    cell = Cell("ring", "universal", OWN, 4, PLAIN)
    failed = dataclasses.replace(found, results={**found.results, cell: Result(cell, "k", 0, failure="NaN")})
    assert duel(failed, cell, "energy", against(["ddim"])).verdict == "diverged"
    assert duel(found, cell, "energy", against([])).verdict == "missing"
    assert math.isnan(duel(found, cell, "energy", against([])).ratio)


def test_the_report_names_every_losing_cell(study):
    folder, found = study
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "## universal, on its own grid, against the best of the others" in text
    assert "best on a grid | times as large | change | best after a free step | times as large | change |" in text
    wild = text.partition("## wild, on its own grid")[2]
    fought = duel(found, Cell("ring", "wild", OWN, 1, PLAIN), "endpoint", against([*on_grids(found), *on_levels(found)]))
    assert fought.verdict == "loss"  # its first step leaves the state as large as it was
    assert f"- ring, NFE 1, endpoint RMSE: {fought.own.values['endpoint'].value:.3g}"[:30] in wild
    assert "best corrected" not in text  # there is none
    assert (folder / "metrics" / "universal-contest.md").is_file()
    assert (folder / "figures" / "universal-contest.png").is_file()


def test_a_study_of_tables_alone_has_no_contest(tmp_path):
    config = dataclasses.replace(CONFIG, solvers=("universal",), nfe=(4,), n=40, metrics=("endpoint",))
    write_report(tmp_path, run_study(config, tmp_path, beds=[BED], progress=False))
    assert "against the best of the others" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_preset_has_every_testbed_and_number_of_evaluations():
    preset = PRESETS["universal"]
    cells = list(preset.cells())
    assert len(cells) == 5 * (12 * 4 + 8 + 1) * 13
    assert {c.nfe for c in cells if c.solver == "universal"} == {*range(1, 11), 12, 16, 20}
    assert all(preset.solver(label) for label in preset.solvers)


def pairs():
    """Every kind of statistic, of two runs that start from the same noise."""
    generator = torch.Generator().manual_seed(0)
    noise, target = torch.randn(80, 3, generator=generator), torch.randn(120, 3, generator=generator)
    x, y = noise + 0.3, 1.3 * noise
    energy, near = EnergyTarget(target), ManifoldTarget(target)
    scores = torch.rand(10, generator=generator).double()
    return {
        "shares": (energy.shares(x), energy.shares(y)),
        "replicates": tuple(jackknife(lambda a, b: float(a.mean() - b.mean()), z, target) for z in (x, y)),
        "halves": (near.compare(x).coverage, near.compare(y).coverage),
        "scores": (InceptionScore(scores, 100), InceptionScore(scores.flip(0), 100)),
    }


@pytest.mark.parametrize("kind", ["shares", "replicates", "halves", "scores"])
def test_the_norm_of_a_spread_is_the_standard_error(kind):
    a, b = pairs()[kind]
    assert float(a.spread.norm()) == pytest.approx(a.value.se)
    assert Value(a.value.value - b.value.value, float((a.spread - b.spread).norm())) == pytest.approx(a.minus(b))


def test_a_contender_meets_those_before_it_and_others_with_twice_its_evaluations(tmp_path):
    config = dataclasses.replace(CONFIG, solvers=("ddim", "universal", "auto"), nfe=(2, 4), n=40, metrics=("endpoint",))
    found = run_study(config, tmp_path, beds=[BED], progress=False)
    assert [(kind.title, list(kind.solvers), kind.times) for kind in rivals_of(found, "auto")] == [
        ("best on a grid", ["ddim"], 1), ("universal", ["universal"], 1), (DOUBLED, ["ddim"], 2),
    ]  # fmt: skip
    doubled = rivals_of(found, "universal")[-1]
    two, four = duels(found, "ring", "universal", "endpoint", doubled)
    assert two.other.cell.nfe == 4
    assert two.other is best_of(found, "ring", 4, "endpoint", ["ddim"])
    assert four.verdict == "missing"  # the study has no run of 8
    write_report(tmp_path, found)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"Against the {DOUBLED}." in text


def test_a_networks_own_tables_run_where_there_are_any(tmp_path, monkeypatch):
    """A testbed without a table has no such run; it is no failure."""
    other = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 0.1 * torch.eye(2)[None])
    beds = [BED, testbed.Testbed("round", other, (2,), "round, version 1")]
    solver, sigmas = solvers.make("dpmpp_2m").plan(4)
    purpose = solvers.Purpose.of(RING, (2,))
    own = dataclasses.replace(solvers.as_table(solver, sigmas, "calibrated table"), purpose=purpose)
    solvers.Table(own).save(tmp_path / "tables" / "ring.safetensors")
    monkeypatch.setenv("STEINDIFF_TABLES", str(tmp_path / "tables"))
    config = dataclasses.replace(
        CONFIG, beds=("ring", "round"), solvers=("ddim", "dpmpp_2m", "calibrated"), nfe=(2, 4), n=40, metrics=("endpoint",)
    )
    found = run_study(config, tmp_path, beds=beds, progress=False)
    ran = [cell for cell in found.results if cell.solver == "calibrated"]
    assert [(cell.bed, cell.nfe) for cell in ran] == [("ring", 4)]
    same = found.results[Cell("ring", "dpmpp_2m", "karras", 4, PLAIN)]
    assert found.results[ran[0]].values["endpoint"].value == pytest.approx(same.values["endpoint"].value, rel=1e-4)
    assert [d.cell.nfe for d in duels(found, "ring", "calibrated", "endpoint", against(["ddim"]))] == [4]
    assert not duels(found, "round", "calibrated", "endpoint", against(["ddim"]))
    write_report(tmp_path, found)
