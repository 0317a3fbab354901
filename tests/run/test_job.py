"""What a job runs: "auto", solvers with grids of their own, and a grid that the user names."""

import json
from dataclasses import replace

import pytest
import torch

from steindiff import grids, models
from steindiff.analytic import Gaussian
from steindiff.corrections import Corrected
from steindiff.denoisers import Guided
from steindiff.errors import InputError
from steindiff.run import Job, generate
from steindiff.solvers import DDIM, IPNDM, DPMpp2M, Table, Tabulated, as_table

LAW = Gaussian(torch.zeros(4), 0.25 * torch.eye(4))
AUTO = Job("cifar10_mixture", (0, 1, 2), nfe=4)


def test_auto_takes_the_universal_table_for_the_denoisers_own_scale():
    twice = Gaussian(torch.zeros(4), torch.eye(4))
    solver, sigmas = AUTO.prepare(LAW)
    assert str(solver) == "universal table of 4 evaluations"
    assert sigmas.tolist() == list(Table.universal(4).sigmas)
    scaled, doubled = replace(AUTO, sigma_max=160.0, sigma_min=0.004).prepare(twice)
    assert doubled.tolist() == pytest.approx((2 * sigmas).tolist())
    assert scaled.rows == solver.rows


def test_auto_takes_a_plain_solver_under_guidance_beyond_the_tables_and_on_a_grid_that_is_named():
    for scale, kind in ((1.0, Tabulated), (5.0, Tabulated), (20.0, DDIM)):
        assert isinstance(AUTO.prepare(Guided(LAW, LAW, scale))[0], kind)
    many, levels = replace(AUTO, nfe=60).prepare(LAW)
    assert isinstance(many, IPNDM)
    assert torch.equal(levels, grids.karras(60))
    named = {
        "steps": (replace(AUTO, nfe=None, steps=4), grids.karras(4)),
        "grid": (replace(AUTO, grid="log_snr"), grids.log_snr(4)),
        "the usual grid": (replace(AUTO, grid="karras"), grids.karras(4)),
        "zero": (replace(AUTO, to_zero=True), grids.with_zero(grids.karras(4))),
    }
    for what, (job, levels) in named.items():
        solver, sigmas = job.prepare(LAW)
        assert (solver, sigmas.tolist()) == (DPMpp2M(), levels.tolist()), what


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nfe": None, "steps": 5}, "--steps with solver 'universal', which has a grid of its own: give --nfe alone"),
        ({"grid": "karras"}, "--grid with solver"),
        ({"grid": "karras", "to_zero": True}, "--grid and --to-zero with solver"),
        ({"nfe": 400}, "take one of them, or a plain solver"),
        ({"sigma_max": 0.5}, "universal tables with 4 evaluations start between"),
    ],
)
def test_a_grid_for_a_solver_that_has_its_own_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(AUTO, solver="universal", **changes).prepare(LAW)


def test_a_tables_file_runs_on_its_own_levels_only(tmp_path):
    file = Table(as_table(DDIM(), grids.karras(3, sigma_max=40.0))).save(tmp_path / "t.safetensors")
    job = Job("digits", (0, 1), solver=f"table({file})", nfe=3)
    assert job.prepare(LAW)[1].tolist() == replace(job, sigma_max=40.0).prepare(LAW)[1].tolist()
    with pytest.raises(InputError, match=r"--sigma_max 20 with .* has 40"):
        replace(job, sigma_max=20.0).prepare(LAW)
    with pytest.raises(InputError, match="for 3 evaluations"):
        replace(job, nfe=4).prepare(LAW)


def test_a_corrected_table_runs_and_the_folder_says_what_ran(tmp_path):
    job = Job("digits", tuple(range(4)), solver="universal(sigma_data=0.5)", nfe=3, correction="clamped", batch=4)
    about = json.loads((generate(job, tmp_path) / "run.json").read_text())
    solver, sigmas = job.prepare(models.load("digits").denoiser)
    assert isinstance(solver, Corrected)
    assert about["solver"] == str(solver)
    assert about["solver"].startswith("universal table of 3 evaluations, corrected by CleanTarget(")
    assert about["sigmas"] == sigmas.tolist()
    assert (about["stats"][0]["nfe"], about["stats"][0]["vjps"]) == (3, 1)  # the rows after the first value use a history
