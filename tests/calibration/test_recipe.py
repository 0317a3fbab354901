"""The recipe of the universal tables: the laws it draws, a pilot of seconds, and how it goes on after a stop."""

from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
from recipes import fit_universal
from recipes.fit_universal import LAST, Options, best, family, grids, score
from recipes.random_laws import Family, draw, guided

from steindiff.analytic import Gaussian, GaussianMixture
from steindiff.calibration import fit, renamed
from steindiff.calibration.search import resampled
from steindiff.denoisers import Guided
from steindiff.solvers import table_files, universal

D64 = torch.float64
SMALL = ["--laws", "4", "--held", "3", "--steps", "24", "--iterations", "2"]


def laws(n, seed=0, **ranges):
    generator = torch.Generator().manual_seed(seed)
    return [draw(Family(**{"dims": (2, 40), **ranges}), generator) for _ in range(n)]


# ---------------------------------------------------------------- the laws


def test_every_law_has_a_mean_variance_of_one():
    for law in laws(40):
        assert 2 <= law.dim <= 40
        assert 1 <= len(law.weights) <= 30
        assert float(law.weights.sum()) == pytest.approx(1)
        assert law.sigma_data == pytest.approx(1)


def test_a_mean_is_off_zero_by_what_the_family_says():
    for law in laws(10, off=0.0):
        assert float(law.mean.norm()) < 1e-9
        assert float(law.second_moment()) / law.dim == pytest.approx(1)
    for law in laws(10, off=1.0, offset=(0.5, 0.5)):
        assert float(law.mean.square().mean().sqrt()) == pytest.approx(0.5)


def test_a_thin_law_lies_near_a_subspace():
    for law in laws(10, thin=1.0, thickness=(1e-9, 1e-9), kept=(0.5, 0.5), mixed=0.0, off=0.0, spread=(0, 0), dims=(10, 40)):
        spread = law.weights @ (law.variances + (law.means - law.mean).square())
        half = round(law.dim / 2)
        assert float(spread[half:].sum() / spread.sum()) < 1e-6
        assert float(spread[:half].min()) > 0


def test_a_seed_is_a_sequence_of_laws():
    for mine, again, other in zip(laws(5), laws(5), laws(5, seed=1), strict=True):
        assert torch.equal(mine.variances, again.variances)
        assert torch.equal(mine.means, again.means)
        assert mine.means.shape != other.means.shape or not torch.allclose(mine.means, other.means)


def test_the_ranges_of_a_family_are_kept():
    single = laws(
        5,
        clusters=(1, 1),
        leading=(1.0, 1.0),
        tail=(1.0, 1.0),
        spread=(0, 0),
        sizes=(0, 0),
        dims=(16, 16),
        mixed=0.0,
        thin=0.0,
        off=0.0,
    )
    for law in single:
        spectrum = 1 / torch.arange(1, 17, dtype=D64)
        torch.testing.assert_close(law.variances[0], spectrum / spectrum.mean())
        assert float(law.means.norm()) == 0
    shared = laws(20, between=(0.5, 0.5), clusters=(3, 9), off=0.0)
    for law in shared:
        assert float((law.weights @ law.means.square()).mean()) == pytest.approx(0.5)
    assert all(law.sigma_data == pytest.approx(3) for law in laws(5, scale=(3.0, 3.0)))
    sizes = [float(law.variances.max()) for law in laws(60, dims=(64, 64))]
    assert min(sizes) < 6 < 40 < max(sizes), "flat laws and laws with large leading modes"


def test_a_law_is_the_mixture_of_its_numbers():
    for law in laws(4):
        full = GaussianMixture(law.weights, law.means, torch.diag_embed(law.variances))
        x = 2 * torch.randn(5, law.dim, generator=torch.Generator().manual_seed(1), dtype=D64)
        torch.testing.assert_close(law(x, 0.7), full(x, 0.7), rtol=1e-8, atol=1e-8)


def test_a_guided_law_is_classifier_free_guidance_to_its_classes():
    """Against the mixture of a class's clusters alone, image by image."""
    generator, grouped = torch.Generator().manual_seed(3), 0
    for law in laws(12, clusters=(2, 9)):
        own = guided(law, 5, (1.5, 8.0), generator)
        assert 1.5 <= own.scale <= 8
        whole = own.of(torch.arange(10) % 5)
        x = 2 * torch.randn(10, law.dim, generator=generator, dtype=D64)
        for i in range(10):
            k = own.inside[i % 5]
            grouped += int(k.sum() > 1)
            part = GaussianMixture(law.weights[k] / law.weights[k].sum(), law.means[k], torch.diag_embed(law.variances[k]))
            sigma = torch.tensor(0.7, dtype=D64)
            expected = Guided(part, law, own.scale)(x[i : i + 1], sigma)
            torch.testing.assert_close(whole(x, sigma)[i : i + 1], expected, rtol=1e-8, atol=1e-8)
    assert grouped > 0, "some classes are groups of clusters"


def test_guidance_to_the_only_cluster_of_a_class_is_a_gaussian_far_out():
    """Where only one cluster explains a state, guidance to it changes nothing."""
    (law,) = laws(1, clusters=(2, 2), between=(0.8, 0.8), dims=(20, 20))
    own = guided(law, 2, (5.0, 5.0), torch.Generator().manual_seed(0))
    k = own.inside.double().argmax(1)
    single = Gaussian(law.means[k[0]], law.variances[k[0]].diag())
    x = law.means[k] + 0.01
    torch.testing.assert_close(own(x, torch.tensor(0.01))[:1], single(x[:1], 0.01), rtol=1e-6, atol=1e-6)


def test_many_runs_of_a_guided_law_are_evaluated_at_once_each_image_with_its_class():
    odd = [law for law in family(8, 160.0, 0, 8, "laws", (1.0, 5.0)) if 256 % len(law.noise)]
    assert odd, "the images of a law need not fill a batch of the network"
    law, runs = odd[0], 300 // len(odd[0].noise) + 1
    alone = law.denoise(law.noise, 2.0)
    for own in law.denoise(law.noise.expand(runs, *law.noise.shape), 2.0):
        torch.testing.assert_close(own, alone)


# ---------------------------------------------------------------- the choice


@pytest.mark.parametrize("nfe", [2, 4])
def test_every_grid_runs_from_the_rung_to_the_last_level(nfe):
    found = list(grids(nfe, 160.0))
    assert len(set(found)) == len(found) >= 9
    for levels in found:
        assert len(levels) == nfe + 2
        assert (levels[0], levels[-1]) == (160.0, LAST)
        assert all(s > t for s, t in pairwise(levels))


def test_the_best_table_is_scored_on_laws_that_it_was_not_fitted_to():
    options = Options(work=None, iterations=2)
    fitted, held, others = (family(3, 40.0, seed, 16, "laws") for seed in range(3))
    table = best(5, 40.0, fitted, held, options)
    assert table.nfe(table.own_grid) == 5
    rough = best(5, 40.0, fitted, held, replace(options, iterations=0))
    assert score(table, held) <= score(rough, held)
    about = fit_universal.report(table, others, options, 1.23)
    assert about["family"] == asdict(Family())
    assert about["settings"]["iterations"] == 2
    assert 0 < about["scores"]["median"] <= about["scores"]["worst"] < 1


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def pilot(tmp_path_factory):
    """A folder with the tables of two numbers of evaluations."""
    work = tmp_path_factory.mktemp("universal")
    assert fit_universal.main(["--work", str(work), "--nfe", "1,3", *SMALL]) == 0
    return work


def numbers(path):
    return {name: (solver.levels, solver.told, solver.rows) for name, (solver, _) in table_files.load(path).items()}


def test_a_pilot_writes_a_file_for_each_table(pilot):
    assert sorted(path.name for path in pilot.iterdir()) == ["160-01.safetensors", "160-03.safetensors"]
    (name, (solver, about)), *rest = table_files.load(pilot / "160-03.safetensors").items()
    assert (name, rest) == ("160/3", [])
    assert solver.nfe(solver.own_grid) == 3
    assert (solver.levels[0], solver.levels[-1]) == (160.0, LAST)
    assert about["settings"]["laws"] == 4
    assert about["family"] == {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(Family()).items()}
    assert {"steindiff", "torch", "scores", "seconds"} <= about.keys()


def test_tables_for_guidance_are_made_by_the_same_command(tmp_path, monkeypatch):
    assert fit_universal.main(["--work", str(tmp_path), "--nfe", "1", *SMALL]) == 0
    for scale in ("2", "4.5"):
        assert fit_universal.main(["--work", str(tmp_path), "--nfe", "1", "--guidance", scale, *SMALL]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "160-01-2.safetensors",
        "160-01-4.5.safetensors",
        "160-01.safetensors",
    ]
    out = tmp_path / "all.safetensors"
    assert fit_universal.main(["--work", str(tmp_path), "--out", str(out)]) == 0
    entries = table_files.load(out)
    assert list(entries) == ["160/1", "160/1/2", "160/1/4.5"]
    assert [about["settings"]["guidance"] for _, about in entries.values()] == [1, 2, 4.5]
    assert entries["160/1/2"][0].rows != entries["160/1/4.5"][0].rows
    assert entries["160/1/2"][1]["images"]["dims"] == [256, 3072]


def test_the_same_seed_makes_the_same_tables_and_another_seed_others(pilot, tmp_path):
    for seed, same in (("0", True), ("1", False)):
        work = tmp_path / seed
        assert fit_universal.main(["--work", str(work), "--nfe", "1", "--seed", seed, *SMALL]) == 0
        assert (numbers(work / "160-01.safetensors") == numbers(pilot / "160-01.safetensors")) == same


def test_a_table_may_stand_on_the_levels_of_a_finished_one(tmp_path, capsys):
    few = ["--work", str(tmp_path), "--rung", "40", *SMALL[:-1], "0"]
    assert fit_universal.main([*few, "--nfe", "3"]) == 0
    assert fit_universal.main([*few, "--nfe", "11", "--base", "3"]) == 0
    short, long = (next(iter(table_files.load(tmp_path / f"40-{n:02d}.safetensors").values()))[0] for n in (3, 11))
    fitted = family(4, 40.0, 0, 24, "laws")
    assert long.rows == renamed(fit(fitted, resampled(short.levels, 11), history=4), fitted).rows
    assert fit_universal.main([*few, "--nfe", "12", "--base", "5"]) == 2
    assert "there is no" in capsys.readouterr().err


def test_a_table_may_end_at_another_level(tmp_path):
    few = ["--work", str(tmp_path), "--rung", "14.6", *SMALL[:-1], "0"]
    assert fit_universal.main([*few, "--nfe", "3"]) == 0
    assert fit_universal.main([*few, "--nfe", "3,4", "--base", "3", "--last", "0.03"]) == 0
    usual, short = (table_files.load(tmp_path / f"14.6-03{end}.safetensors") for end in ("", "-to-0.03"))
    assert list(short) == ["14.6/3/to 0.03"]
    (table, about), ((base, _),) = short["14.6/3/to 0.03"], usual.values()
    levels = (*base.levels[:-1], 0.03)
    laws = family(4, 14.6, 0, 24, "laws", last=0.03)
    expected = renamed(fit(laws, resampled(levels, 3)), laws)
    assert (table.levels, table.rows) == (expected.levels, expected.rows)
    assert table.levels[-1] == pytest.approx(0.03)
    assert about["settings"]["last"] == laws[0].levels[-1] == 0.03
    out = tmp_path / "all.safetensors"
    assert fit_universal.main(["--work", str(tmp_path), "--out", str(out)]) == 0
    assert list(table_files.load(out)) == ["14.6/3", "14.6/3/to 0.03", "14.6/4/to 0.03"]


def test_a_stopped_run_makes_what_is_missing_only(pilot, tmp_path):
    kept = tmp_path / "160-01.safetensors"
    kept.write_bytes((pilot / "160-01.safetensors").read_bytes())
    before = kept.stat().st_mtime_ns
    assert fit_universal.main(["--work", str(tmp_path), "--nfe", "1-2", *SMALL]) == 0
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "160-02.safetensors").exists()


def test_all_finished_tables_make_one_file_that_the_solver_reads(pilot, tmp_path, monkeypatch):
    out = tmp_path / "universal.safetensors"
    assert fit_universal.main(["--work", str(pilot), "--out", str(out)]) == 0
    assert numbers(out) == {**numbers(pilot / "160-01.safetensors"), **numbers(pilot / "160-03.safetensors")}
    monkeypatch.setattr(universal, "FILE", out)
    universal.by_end.cache_clear()
    try:
        assert sorted(universal.shipped()) == [(160.0, 1), (160.0, 3)]
        solver, about = universal.entry(3)
        assert solver.levels[0] == 160.0 * 0.5
        assert about["settings"]["laws"] == 4
        assert str(tmp_path.parent) not in out.read_bytes().decode("latin-1"), "no folder of this machine"
    finally:
        universal.by_end.cache_clear()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--out", "x.safetensors"], "holds no finished table: fit some first"),
        (["--nfe", "0", *SMALL], "at least one evaluation"),
        (["--nfe", "a", *SMALL], "a"),
        (["--rung", "0.5"], "--rung 0.5: must be at least 1"),
        (["--guidance", "0.5"], "--guidance 0.5: must be at least 1"),
        (["--laws", "0"], "--laws 0: must be at least 1"),
    ],
)
def test_what_no_table_can_be_made_of_is_refused(tmp_path, capsys, options, message):
    assert fit_universal.main(["--work", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
