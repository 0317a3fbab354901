"""Solvers with grids of their own in the study and in `evaluate`: their cells, keys, plans and reports."""

import dataclasses

import pytest
import torch

from steindiff import grids, models
from steindiff.analytic import GaussianMixture
from steindiff.errors import InputError
from steindiff.models.datasets import load_digits
from steindiff.report.evaluate import blocks, write
from steindiff.report.markdown import markdown
from steindiff.report.study import write_report
from steindiff.solvers import DDIM, IPNDM, DPMpp2M, Setting, Table, Tabulated, as_table
from steindiff.solvers.multistep import Row
from steindiff.study import testbed
from steindiff.study.evaluate import evaluate
from steindiff.study.evaluation import Run, Settings
from steindiff.study.grid import OWN, PLAIN, Cell, Config
from steindiff.study.run import build, key_of, run_study

ANGLES = torch.linspace(0, 5.5, 8)
MEANS = torch.stack([ANGLES.cos(), ANGLES.sin()], 1) / 2
RING = GaussianMixture(torch.full((8,), 1 / 8), MEANS, 0.01 * torch.eye(2).repeat(8, 1, 1))
BED = testbed.Testbed("ring", RING, (2,), "ring, version 1")
CONFIG = Config(
    beds=("ring",), solvers=("dpmpp_2m", "universal", "auto"), grids=("karras", "log_snr"), nfe=(3, 60),
    corrections=(PLAIN, "clamped"), n=48, batch=24, metrics=("energy", "endpoint"),
)  # fmt: skip


def table(first: float = 0.5, mean: torch.Tensor | None = None) -> Tabulated:
    """Two steps from EDM's first level to its last."""
    return Tabulated((80.0, 1.0, 0.002), (Row(first, ()), Row(0.1, (0.9,))), (1.0, 1.0), mean)


def test_a_solver_with_its_own_grid_has_one_run_for_each_nfe_that_it_can_spend():
    cells = list(CONFIG.cells())
    assert len(cells) == 2 * 2 * 2 + 2 + 4  # the universal table has no grid of 60 evaluations
    assert [c for c in cells if c.solver == "universal"] == [Cell("ring", "universal", OWN, 3, c) for c in (PLAIN, "clamped")]
    assert CONFIG.used_grids == ("karras", "log_snr", OWN)
    assert CONFIG.solvers_on(OWN) == ("universal", "auto")
    assert dataclasses.replace(CONFIG, solvers=("universal",)).used_grids == (OWN,)
    twice = dataclasses.replace(CONFIG, solvers=("universal",), nfe=(5, 20), corrections=("twice",))
    assert [(c.nfe, c.correction) for c in twice.cells()] == [(5, PLAIN), (5, "twice"), (20, PLAIN)]  # and none of 40


def test_a_testbeds_guidance_decides_which_tables_there_are():
    """A study goes on where one of its testbeds has no table: there is one of 12 evaluations without guidance only."""
    cell, guided = Cell("ring", "universal", OWN, 12, PLAIN), Setting(guidance=2.0)
    assert CONFIG.runs_on(cell, Setting())
    assert not CONFIG.runs_on(cell, guided)
    assert CONFIG.runs_on(dataclasses.replace(cell, nfe=8), guided)
    assert CONFIG.runs_on(dataclasses.replace(cell, solver="auto"), guided)


def test_a_study_that_cannot_have_such_runs_is_refused():
    with pytest.raises(InputError, match="universal has no run with so many"):
        dataclasses.replace(CONFIG, solvers=("universal",), nfe=(60,))
    with pytest.raises(InputError, match="own is what a solver's own grid is called"):
        dataclasses.replace(CONFIG, grids=(OWN,), objects={OWN: grids.karras})


def test_it_plans_for_the_testbeds_own_scale():
    cell = Cell("ring", "universal", OWN, 3, PLAIN)
    own = build(cell, CONFIG, BED.setting)[1]
    assert torch.equal(own, Table.universal(3, sigma_data=RING.sigma_data).sigmas)
    assert not torch.equal(own, build(cell, CONFIG)[1])
    kinds = [type(build(Cell("ring", "auto", OWN, nfe, PLAIN), CONFIG, BED.setting)[0]) for nfe in (3, 60)]
    assert kinds == [Tabulated, IPNDM]


def test_keys_are_of_a_tables_numbers_and_not_of_its_name(tmp_path):
    means = [torch.zeros(1, 40, 40) for _ in range(2)]
    means[1][0, 20, 20] = 1e-6  # torch does not print what is in the middle
    tables = {"a": table(), "b": table(0.6), "c": table(mean=means[0]), "d": table(mean=means[1]), "again": table()}
    file = Table(table()).save(tmp_path / "t.safetensors")
    config = dataclasses.replace(CONFIG, solvers=(*tables, f"table({file})"), nfe=(1,), objects=tables)
    a, *others, again, named = (key_of(cell, BED, config) for cell in config.cells() if cell.correction == PLAIN)
    assert a == again == named
    assert len({a, *others}) == 4


def test_a_study_of_them_runs_and_is_reported(tmp_path):
    study = run_study(CONFIG, tmp_path, beds=[BED], progress=False)
    assert set(study.results) == set(CONFIG.cells())
    assert {r.stats["nfe"] for c, r in study.results.items() if c.solver == "universal"} == {3}
    universal, auto = (study.results[Cell("ring", s, OWN, 3, PLAIN)] for s in ("universal", "auto"))
    assert universal.values == auto.values
    assert universal.key == auto.key
    write_report(tmp_path, study)
    text = (tmp_path / "report.md").read_text()
    assert "ring, grid own: energy distance" in text
    assert "--beds ring --solvers universal,auto --nfe 3,60" in text
    assert (tmp_path / "figures" / "ring-own-nfe.png").is_file()


def test_evaluate_plans_them_for_the_model(tmp_path):
    file = Table(as_table(DDIM(), grids.karras(4))).save(tmp_path / "ddim.safetensors")
    settings = Settings(n=8, runs=("universal-3", "auto-60", "dpmpp_2m-3", f"table({file})-4"))
    universal, auto, plain, ddim = (Run.of(name, settings, BED.setting) for name in settings.runs)
    assert [run.nfe for run in (universal, auto, plain, ddim)] == [3, 60, 3, 4]
    assert torch.equal(universal.sigmas, Table.universal(3, sigma_data=RING.sigma_data).sigmas)
    assert (auto.solver, plain.solver) == (IPNDM(4), DPMpp2M())
    assert torch.equal(ddim.sigmas, grids.karras(4))
    with pytest.raises(InputError, match="for 4 evaluations"):
        Settings(runs=(f"table({file})-5",))


def test_an_evaluation_says_whose_levels_are_others(tmp_path):
    train, held = load_digits()
    settings = Settings(n=8, runs=("universal-2", "ddim-2"), features="none")
    found = evaluate(models.load("digits"), train, held, settings, tmp_path, progress=False)
    assert [(row.name, row.nfe, row.failure) for row in found.rows] == [("universal-2", 2, ""), ("ddim-2", 2, "")]
    write(tmp_path, found)
    assert "with ρ = 7, but for `universal-2`, whose solvers choose their own; `fine`" in (tmp_path / "quality.md").read_text()
    plain = dataclasses.replace(found, rows=found.rows[1:])
    assert "with ρ = 7; `fine`" in markdown(blocks(plain))
