"""The study: its grid, its files, its numbers and its resumption; alone and on two processes."""

import copy
import dataclasses
import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from commandline import run_command
from steindiff import grids, models
from steindiff.analytic import GaussianMixture
from steindiff.cli.bench import configure
from steindiff.corrections import CleanTarget, Energy
from steindiff.divergence import Exact, Hutchinson
from steindiff.errors import InputError, NonFiniteError
from steindiff.io.files import manifest, write_tensors
from steindiff.metrics import Value
from steindiff.report.study import write_report
from steindiff.solvers import DPMpp2M
from steindiff.study import run as running
from steindiff.study import store, testbed
from steindiff.study.draw import draw
from steindiff.study.grid import PRESETS, Cell, Config, read_config
from steindiff.study.measure import References, Ruler, changes, references
from steindiff.study.run import build, key_of, run_study
from steindiff.study.store import Result
from steindiff.study.testbed import digits_mixture, make, price

SMALL = Config(
    beds=("digits_mixture",),
    solvers=("dpmpp_2m", "heun"),
    grids=("karras",),
    nfe=(5,),
    corrections=("none", "clamped", "energy"),
    n=48,
    batch=24,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    found = run_study(SMALL, folder, progress=False)
    write_report(folder, found, manifest())
    return folder, list(found.results.values())


# --- the grid --------------------------------------------------------------------------------------------------------


def test_cells_are_every_combination_with_the_plain_run_first():
    cells = list(dataclasses.replace(SMALL, corrections=("clamped", "energy")).cells())
    assert len(cells) == len(set(cells)) == 6
    assert [c.correction for c in cells[:3]] == ["none", "clamped", "energy"]
    assert all(c.plain in cells for c in cells)
    assert len(list(PRESETS["paper"].cells())) == 4 * 9 * 2 * 8 * 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solvers": ["dpmp_2m"]}, "did you mean 'dpmpp_2m'"),
        ({"corrections": ["clampd"]}, "did you mean 'clamped'"),
        ({"grids": ["carras"]}, "did you mean 'karras'"),
        ({"nfe": [0]}, "nfe ≥ 1"),
        ({"nfe": ["five"]}, "whole numbers"),
        ({"n": 10}, "n ≥ 40"),
        ({"divergence": "vpj"}, "did you mean 'vjp'"),
        ({"probe_kind": "uniform"}, "choose rademacher or gaussian"),
        ({"metrics": ["enrgy"]}, "did you mean 'energy'"),
        ({"objects": {}}, "unknown entry of a study"),
        ({"n": "many"}, "need a value like 512"),
        ({"samples": 512}, "unknown entry of a study"),
        ({"beds": []}, "at least one"),
        ({"solvers": ["heun", "heun"]}, "none twice"),
    ],
)
def test_a_study_that_cannot_run_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Config().but(changes)


def test_a_file_changes_a_preset_and_flags_change_the_file(tmp_path):
    (tmp_path / "s.toml").write_text('n = 64\nsolvers = ["heun"]\n')
    study = configure("quick", tmp_path / "s.toml", {"nfe": (5, 6), "batch": 32})
    assert (study.n, study.solvers, study.nfe, study.batch) == (64, ("heun",), (5, 6), 32)
    assert study.beds == PRESETS["quick"].beds
    (tmp_path / "s.toml").write_text("n = ")
    with pytest.raises(InputError, match="not a readable TOML file"):
        read_config(tmp_path / "s.toml", Config())
    with pytest.raises(InputError, match="did you mean 'quick'"):
        configure("quik", None, {})


def test_cells_are_of_specs_and_of_objects():
    """A solver by a spec with options, a solver and a grid that are objects with labels."""
    specs = ("dpmpp_2m", "dpmpp_2m(lower_order_final=False)")
    objects = {"mine": DPMpp2M(lower_order_final=False), "even": grids.time_uniform}
    config = dataclasses.replace(
        SMALL, solvers=(*specs, "mine"), corrections=("clamped",), grids=("karras", "even"), objects=objects
    )
    bed, cells = make("digits_mixture"), list(config.cells())
    keys = {cell: key_of(cell, bed, config) for cell in cells}
    assert len(cells) == 3 * 2 * 2
    spec, mine = (Cell("digits_mixture", solver, "karras", 5, "clamped") for solver in config.solvers[1:])
    assert keys[spec] == keys[mine]  # the same solver under two names
    assert len(set(keys.values())) == 2 * 2 * 2
    solver, _ = build(mine, config)
    assert "lower_order_final=False" in repr(solver)
    assert store.place(Path("out"), spec, "k").name == "dpmpp_2m(lower_order_final=False)-karras-5-clamped-k.safetensors"
    assert configure("quick", None, {"solvers": specs, "divergence": "exact"}).solvers == specs
    with pytest.raises(InputError, match="define __repr__"):
        key_of(mine, bed, dataclasses.replace(config, objects={**objects, "mine": Nameless()}))


class Nameless(DPMpp2M):
    __repr__ = object.__repr__


def test_a_correction_may_take_its_constants_from_the_testbeds_law():
    """`energy(moment=target)` is kept under its text, and M is that of the samples it is given."""
    objects = {"mine": Energy(moment="target", bands=4), "cap": CleanTarget(gamma_max=0.5)}
    config = dataclasses.replace(SMALL, corrections=("energy(moment=target)", "mine", "cap"), objects=objects)
    bed, clean = make("digits_mixture"), digits_mixture().sample(64, torch.Generator().manual_seed(3)).float()
    cells = [Cell("digits_mixture", "heun", "karras", 5, label) for label in config.corrections]
    assert len({key_of(cell, bed, config) for cell in cells}) == 3
    whole, bands, cap = (build(cell, config, clean=clean)[0] for cell in cells)
    assert whole.rule.moment == pytest.approx([float(clean.double().square().flatten(1).sum(1).mean())])
    assert sum(bands.rule.moment) == pytest.approx(sum(whole.rule.moment))
    assert cap.rule == CleanTarget(gamma_max=0.5)


def test_the_law_reaches_the_runs_of_a_study(tmp_path):
    config = dataclasses.replace(SMALL, solvers=("ipndm_3",), corrections=("energy(moment=target)",), metrics=("energy",))
    study = run_study(config, tmp_path, progress=False)
    plain, given = study.results.values()
    assert given.stats["vjps"] == plain.stats["vjps"] == 0  # M is known: no derivative is taken
    assert set(given.values) == set(given.changes) == set(given.excess) == {"energy"}


def test_twice_is_the_plain_solver_with_twice_the_evaluations():
    config = dataclasses.replace(SMALL, corrections=("clamped", "twice"))
    twice = Cell("digits_mixture", "heun", "karras", 5, "twice")
    assert twice in set(config.cells())
    solver, sigmas = build(twice, config)
    assert solver.nfe(sigmas) == 10
    assert repr(solver) == repr(build(dataclasses.replace(twice, nfe=10, correction="none"), config)[0])


@pytest.mark.parametrize(
    ("changes", "estimator"),
    [
        ({}, Hutchinson(method="vjp")),
        (
            {"divergence": "jvp", "probes": 4, "probe_kind": "gaussian", "sub_batch": 8},
            Hutchinson(4, "gaussian", "jvp", samples=8),
        ),
        ({"divergence": "exact"}, Exact()),
    ],
)
def test_every_estimator_of_a_divergence_is_an_entry(changes, estimator):
    config, cell = SMALL.but(changes), Cell("digits_mixture", "heun", "karras", 5, "clamped")
    assert config.estimator() == estimator
    assert repr(estimator) in repr(build(cell, config)[0])


# --- files -----------------------------------------------------------------------------------------------------------


def test_results_survive_the_disk(tmp_path):
    cell = Cell("bed", "heun", "karras", 5, "none")
    shown = torch.arange(24, dtype=torch.uint8).reshape(2, 2, 2, 3)
    result = Result(
        cell, "abc", 7, {"energy": Value(0.5, 0.1)}, {}, {"nfe": 5.0}, [{"gamma": 1.0}], [0.1], "", 1.5, shown,
        spread=torch.tensor([0.06, 0.08]), lengths={"energy": 2},
    )  # fmt: skip
    store.write(tmp_path, result)
    again = store.read(tmp_path, cell, "abc")
    assert again is not None
    assert torch.equal(again.shown, shown)
    assert torch.equal(again.spread, result.spread)
    names = {f.name for f in dataclasses.fields(Result)} - {"shown", "spread"}
    assert {name: getattr(again, name) for name in names} == {name: getattr(result, name) for name in names}
    assert store.read(tmp_path, cell, "abd") is None


@dataclasses.dataclass(frozen=True)
class Kept:
    sizes: tuple[int, ...]
    numbers: list[float]
    number: float
    costs: dict[str, float | None]


def test_what_is_read_has_the_types_of_what_was_kept(tmp_path):
    """A tuple is a list in JSON, and a number that is not finite is null."""
    for made in (Kept((1, 2), [0.5, math.nan], math.nan, {"vjp": None}), Kept((), [], math.inf, {})):
        first = store.kept(tmp_path, "kept", {"n": len(made.sizes)}, Kept, "it is made again", partial(copy.copy, made))
        again = store.kept(tmp_path, "kept", {"n": len(made.sizes)}, Kept, "it is made again", pytest.fail)
        assert first.sizes == made.sizes
        assert (again.sizes, again.costs) == (made.sizes, made.costs)
        assert math.isnan(again.number)
        assert [math.isfinite(x) for x in again.numbers] == [math.isfinite(x) for x in made.numbers]


def test_no_result_is_written_through_a_link(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "run" / "cells").mkdir(parents=True)
    (tmp_path / "run" / "cells" / "bed").symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match=r"1 file in the way .*: cells/bed;"):
        store.write(tmp_path / "run", Result(Cell("bed", "heun", "karras", 5, "none"), "abc", 7))
    assert not list((tmp_path / "theirs").iterdir())


def test_foreign_and_half_written_results_are_refused(tmp_path):
    cell = Cell("bed", "heun", "karras", 5, "none")
    store.write(tmp_path, Result(cell, "abc", 7))
    path = store.place(tmp_path, cell, "abc")
    whole = path.read_bytes()
    store.place(tmp_path, cell, "xyz").write_bytes(whole)
    with pytest.raises(InputError, match="it holds abc"):
        store.read(tmp_path, cell, "xyz")
    path.write_bytes(whole[:-3])
    with pytest.raises(InputError, match="remove it, and the cell is run again"):
        store.read(tmp_path, cell, "abc")


# --- testbeds and numbers --------------------------------------------------------------------------------------------


def test_the_key_is_of_all_that_determines_a_cell():
    bed, cell = make("digits_mixture"), Cell("digits_mixture", "dpmpp_2m", "karras", 5, "clamped")
    base = key_of(cell, bed, SMALL)
    others = [
        key_of(dataclasses.replace(cell, **{name: value}), bed, SMALL)
        for name, value in (("solver", "heun"), ("grid", "log_snr"), ("nfe", 6), ("correction", "literal"))
    ]
    others += [
        key_of(cell, bed, dataclasses.replace(SMALL, **{k: v}))
        for k, v in (("n", 64), ("batch", 12), ("first_seed", 1), ("probes", 2))
    ]
    others.append(key_of(cell, dataclasses.replace(bed, digest="other"), SMALL))
    assert len({base, *others}) == 10
    assert key_of(cell, bed, dataclasses.replace(SMALL, nfe=(5, 6))) == base


def test_the_key_does_not_depend_on_threads():
    before = torch.get_num_threads()
    digests = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        digests.add(make("digits_mixture").digest)
    torch.set_num_threads(before)
    assert len(digests) == 1


def test_references_are_made_once_and_read_again(tmp_path, monkeypatch):
    bed = make("digits_mixture")
    made = references(bed, range(40), tmp_path)
    assert made.endpoints.shape == made.floor.shape == (40, 1, 8, 8)
    assert len(made.target) == 160
    monkeypatch.setattr("steindiff.study.measure._exact", None)
    again = references(bed, range(40), tmp_path)
    assert torch.equal(again.target, made.target)
    assert again.how == made.how
    (file,) = (tmp_path / "references").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="remove it, and they are made again"):
        references(bed, range(40), tmp_path)


def test_a_perfect_sampler_is_at_the_floor_and_a_shifted_one_is_not():
    bed = make("digits_mixture")
    law = digits_mixture()
    draws = [law.sample(400, torch.Generator().manual_seed(s)).float() for s in range(4)]
    ruler = Ruler(bed, References(draws[0], draws[1], draws[2], "test"))
    floor, shifted = ruler.measure(draws[3], paired=False), ruler.measure(draws[3] + 0.3, paired=False)
    assert "endpoint" not in floor.values
    for name in ("energy", "sliced", "frechet", "spectrum"):
        assert shifted.values[name].value > floor.values[name].value + 4 * shifted.values[name].se, name
    assert shifted.values["precision"].value < floor.values["precision"].value
    skewed = GaussianMixture(torch.tensor([0.55, *[0.05] * 9]).double(), law.means, law.covariances)
    lopsided = ruler.measure(skewed.sample(400, torch.Generator().manual_seed(9)).float(), paired=False)
    off = lopsided.values["components"]
    assert abs(off.value - 0.45) < 4 * off.se + 0.02  # ½ Σ |w − w'| = 0.55 − 0.1
    change = changes(shifted, floor)
    assert change["energy"].value == pytest.approx(shifted.values["energy"].value - floor.values["energy"].value)


# --- the run ---------------------------------------------------------------------------------------------------------


def test_every_cell_has_numbers_and_a_report(study):
    folder, results = study
    assert len(results) == 6
    for r in results:
        assert not r.failure
        assert r.n == 48
        assert set(r.values) >= {
            "energy",
            "frechet",
            "sliced",
            "spectrum",
            "precision",
            "recall",
            "coverage",
            "components",
            "endpoint",
        }
        assert set(r.changes) == (set() if r.cell.correction == "none" else set(r.values))
        assert r.stats["nfe"] == 5
        assert len(r.trace) == (3 if r.cell.solver == "heun" else 5)
        assert r.shown.shape == (12, 8, 8, 1)
    assert (folder / "report.md").stat().st_size > 1000
    assert (folder / "report.html").stat().st_size > 1000


def test_changes_are_those_of_the_values(study):
    _, results = study
    plain = {r.cell: r for r in results}
    for r in results:
        for name, change in r.changes.items():
            assert change.value == pytest.approx(
                r.values[name].value - plain[r.cell.plain].values[name].value, rel=1e-6, abs=1e-9
            )


def test_a_study_goes_on_without_loss_or_repeat(study, tmp_path, monkeypatch):
    """Some cells are removed: only these are run, with the same numbers; of their group the plain run serves again."""
    folder, results = study
    files = sorted((folder / "cells").rglob("*.safetensors"))
    assert len(files) == 6
    before = {f: f.stat().st_mtime_ns for f in files}
    gone = [f for f in files if "heun" in f.name and "energy" in f.name]
    gone[0].unlink()
    ran = []

    def watched(cell, config, setting, *rest):
        ran.extend([str(cell)] if rest else [])  # without a price it is only described, for its key
        return build(cell, config, setting, *rest)

    monkeypatch.setattr(running, "build", watched)
    again = run_study(SMALL, folder, progress=False).results.values()
    assert ran == ["digits_mixture heun karras 5 none", "digits_mixture heun karras 5 energy"]
    assert [r.values for r in again] == [r.values for r in results]
    assert [r.changes for r in again] == [r.changes for r in results]
    assert all(f.stat().st_mtime_ns == before[f] for f in files if f not in gone)
    ran.clear()
    run_study(SMALL, folder, progress=False)
    assert ran == []


def test_a_derivative_is_priced_once_in_a_study(tmp_path, monkeypatch):
    bed, seeds = make("digits_mixture"), SMALL.seeds[:24]
    first = price(bed, seeds, tmp_path)
    assert 0 < first.cost("vjp") < 50
    monkeypatch.setattr(testbed, "choose", lambda *_, **__: pytest.fail("measured again"))
    assert price(bed, seeds, tmp_path) == first
    (file,) = (tmp_path / "prices").iterdir()
    (key,) = re.findall("[0-9a-f]{16}", file.name)
    head = {"format": store.FORMAT, "key": key, "tensors": []}
    for wrong in ({}, {"kept": {}}, {"kept": head}, {"kept": head, "method": "vjp"}, {"kept": {**head, "key": "other"}}):
        write_tensors(file, {}, wrong)
        with pytest.raises(InputError, match="remove it, and it is measured again"):
            price(bed, seeds, tmp_path)
    file.write_text("{half")
    with pytest.raises(InputError, match="remove it, and it is measured again"):
        price(bed, seeds, tmp_path)


def test_a_diverged_run_is_a_result_and_not_an_end():
    bed = testbed.Testbed("broken", lambda x, sigma: x * float("nan") if sigma < 1 else x / (1 + sigma**2), (1, 8, 8), "digest")
    solver, sigmas = build(Cell("broken", "ddim", "karras", 5, "none"), SMALL)
    drawn = draw(solver, bed, sigmas, SMALL.seeds, batch=24)
    assert drawn.x is None
    assert "NaN or infinite" in drawn.failure
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        _ = drawn.samples


def test_a_testbed_of_ones_own(tmp_path):
    """In a few lines: a law, its name and a digest."""
    from steindiff.analytic import Gaussian

    law = Gaussian(torch.zeros(4), torch.diag(torch.tensor([0.1, 0.2, 0.5, 1.0])))
    config = dataclasses.replace(SMALL, beds=("mine",), solvers=("dpmpp_2m",), corrections=("none",))
    (result,) = run_study(config, tmp_path, beds=[testbed.Testbed("mine", law, (4,), "v1")], progress=False).results.values()
    assert set(result.values) >= {"energy", "endpoint"}
    assert "spectrum" not in result.values


def test_the_commands_corrections_are_specs_with_commas_in_them(tmp_path, monkeypatch, capsys):
    asked = []

    def stop(config, *_, **__):
        asked.append(config)
        raise InputError("asked")

    monkeypatch.setattr(running, "run_study", stop)
    rules = ("fast_km", "adaptive", "sparse(clamped, above=1.0)", "sparse(clamped, steps=(0, 4))", "self_consistent(eta=0.5)")
    args = ["bench", "--beds", "digits_mixture", "--solvers", "dpmpp_2m", "--nfe", "5", "--corrections", ",".join(rules)]
    assert run_command(monkeypatch, capsys, *args, "--outdir", tmp_path)[0] == 2
    assert asked[0].corrections == rules
    bed, cells = make("digits_mixture"), list(asked[0].cells())
    solvers = {cell.correction: repr(build(cell, asked[0])[0]) for cell in cells}
    assert "Sparse" in solvers["sparse(clamped, steps=(0, 4))"]
    assert len(set(solvers.values())) == 1 + len(rules)
    assert len({key_of(cell, bed, asked[0]) for cell in cells}) == len(cells) == 6


def test_two_processes_give_the_single_processs_numbers(study, tmp_path):
    _, results = study
    flags = [
        "bench", "--preset", "quick", "--beds", "digits_mixture", "--solvers", "dpmpp_2m,heun", "--nfe", "5",
        "--corrections", "none,clamped,energy", "--samples", "48", "--batch", "24", "--outdir", str(tmp_path),
    ]  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "steindiff", *flags]
    done = subprocess.run(launcher, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    bed = make("digits_mixture")
    for r in results:
        other = store.read(tmp_path, r.cell, key_of(r.cell, bed, SMALL))
        assert other is not None
        for name in ("energy", "endpoint", "sliced"):
            assert other.values[name].value == pytest.approx(r.values[name].value, rel=1e-3, abs=1e-4)
        assert [t["gamma"] for t in other.trace] == [t["gamma"] for t in r.trace]  # each has had a batch
    drawn = {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    write_report(tmp_path, run_study(SMALL, tmp_path, progress=False))  # nothing is run again
    assert drawn == {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()}


def test_a_model_by_any_path_and_cells_by_any_name_are_the_same_cells(tmp_path, monkeypatch):
    """Another spelling of a path, a link, a copy under another name: nothing is run again, and nothing is an error."""
    tensors = {
        "weights": torch.ones(2) / 2, "means": torch.tensor([[-0.5] * 4, [0.5] * 4]),
        "loadings": torch.full((2, 4, 1), 0.1), "log_diagonal": torch.full((2, 4), -3.0),
    }  # fmt: skip
    file = models.save(tmp_path / "m.safetensors", tensors, {"kind": "factor_mixture", "name": "m", "event_shape": [4]})[0]
    (tmp_path / "other.safetensors").symlink_to(file)
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(SMALL, solvers=("ddim",), corrections=("none",), metrics=("endpoint",))
    spellings = (str(file), "m.safetensors", "./m.safetensors", "x/../m.safetensors", "other.safetensors")
    found, files = [], set[str]()
    for spelling in spellings:
        study = run_study(dataclasses.replace(config, beds=(spelling,)), tmp_path / "study", progress=False)
        ((cell, result),) = study.results.items()
        assert cell.bed == result.cell.bed == spelling
        assert study.bed(spelling) is not None
        found.append(result.values["endpoint"])
        files |= {p.name for p in (tmp_path / "study" / "cells").rglob("*.safetensors")}
    assert len(set(found)) == len(files) == 1
    both = run_study(dataclasses.replace(config, beds=spellings[:2]), tmp_path / "study", progress=False)
    assert len(both.results) == 2
