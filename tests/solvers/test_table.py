"""Tables: a method of numbers alone, its runs, its files, and the choice among the shipped ones."""

import json
import math
import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from problems import MODEL, PROPERTY, gaussian, mixture, noisy_state, run
from steindiff import calibration, corrections, grids, solvers
from steindiff.analytic import GaussianMixture
from steindiff.calibration import Trajectories
from steindiff.corrections import Corrected
from steindiff.denoisers import Counter, Guided
from steindiff.divergence import Exact, Hutchinson
from steindiff.errors import InputError, ModelFileError
from steindiff.io.files import write_tensors
from steindiff.sampling import sample, steps
from steindiff.solvers import (
    DDIM,
    DPMpp2M,
    DPMpp3M,
    Grid,
    Heun,
    Row,
    Setting,
    Table,
    Tabulated,
    as_table,
    table_files,
    universal,
)
from steindiff.solvers.table import load_all, save_all

D64 = torch.float64
LEVELS = (10.0, 4.0, 1.5, 0.6, 0.2)
SMALL = Tabulated(
    LEVELS,
    (Row(0.45, ()), Row(0.4, (0.55,)), Row(0.45, (0.8, -0.2)), Row(0.4, (0.7, -0.1, 0.05))),
    (1.0, 0.9, 0.8, 1.3),
    torch.tensor([0.2, -0.1, 0.3], dtype=D64),
)
"""Four steps of three evaluations: one free, then one, two and three values."""
FEW = settings(PROPERTY, max_examples=25)
NFE = range(1, 21)
VJP = Hutchinson(method="vjp")
SETTING = Setting(sigma_max=160.0, sigma_min=0.004, sigma_data=1.0)
"""EDM's range in units of the data, which MODEL's are nearly."""
UNITS = {"sigma_max": 160.0, "sigma_min": 0.004, "sigma_data": 1.0}


def drawn(batch=6, seed=0, sigma=10.0, dtype=D64):
    return noisy_state(sigma, batch, seed).to(dtype)


def scaled_law(factor):
    return GaussianMixture(MODEL.weights, factor * MODEL.means, factor**2 * MODEL.covariances)


# ---------------------------------------------------------------- a method of numbers


@pytest.mark.parametrize("name", [*solvers.names(), "dpmpp_3m(exact=True)", "unipc_3(corrector=False)"])
@pytest.mark.parametrize("sigmas", [torch.tensor(LEVELS, dtype=D64), grids.karras(7), grids.with_zero(grids.karras(4))])
def test_the_table_of_a_method_runs_as_the_method_does(name, sigmas):
    """Noise predictions, correctors and inner stages included."""
    solver = solvers.make(name)
    table, x = as_table(solver, sigmas, name), drawn(sigma=float(sigmas[0]))
    mine, own = sample(table, MODEL, x, table.own_grid), sample(solver, MODEL, x, sigmas)
    torch.testing.assert_close(mine.x, own.x, rtol=1e-9, atol=1e-9)
    assert mine.stats.nfe == own.stats.nfe == table.nfe(table.own_grid)
    torch.testing.assert_close(sample(table, MODEL, x, nfe=int(own.stats.nfe)).x, mine.x, rtol=0, atol=0)  # it brings its grid
    assert str(table) == f"{name} of {own.stats.nfe} evaluations"


def test_the_rows_of_a_method_in_data_prediction_are_its_own():
    for solver in (DDIM(), DPMpp2M(), DPMpp3M()):
        table, grid = as_table(solver, torch.tensor(LEVELS, dtype=D64)), Grid.of(torch.tensor(LEVELS, dtype=D64))
        for i, row in enumerate(table.rows):
            own = solver.weights(grid, i)
            assert row.values == pytest.approx(own.values, rel=1e-9)
            assert row.a == pytest.approx(own.a, rel=1e-12)


def test_a_free_step_stays_one():
    solver, sigmas = solvers.make("free(dpmpp_2m)").plan(4, SETTING)
    table, x = as_table(solver, sigmas), drawn(sigma=160.0)
    assert not table.rows[0].values
    mine, own = sample(table, MODEL, x, table.own_grid), sample(solver, MODEL, x, sigmas)
    torch.testing.assert_close(mine.x, own.x, rtol=1e-9, atol=1e-9)


def test_a_method_that_evaluates_more_often_than_it_says_has_no_table():
    class Wrong(Heun):
        def nfe(self, sigmas):
            return 3

    with pytest.raises(InputError, match="has evaluated 8 times where it says 3: only a plain solver has a table"):
        as_table(Wrong(), torch.tensor(LEVELS, dtype=D64))


def test_a_method_that_forgets_its_first_state_has_no_table():
    forgetful = Tabulated((2.0, 1.0, 0.5), (Row(0.0, (1.0,)), Row(0.5, (0.5,))), (1.0, 1.0))
    with pytest.raises(InputError, match="forgets its first state"):
        as_table(forgetful, forgetful.own_grid)


def test_a_run_is_the_formula():
    """x' − m = a (x − m) + Σ w_j (D_j − m), D_j = D(x_j, q_j σ_j), written out."""
    x, m, values = drawn(), SMALL.mean, []
    y = x - m
    for sigma, q, row in zip(SMALL.levels, SMALL.told, SMALL.rows, strict=False):
        if row.values:
            values.insert(0, MODEL(y + m, torch.tensor(q * sigma, dtype=D64)) - m)
        y = row.a * y + sum(w * v for w, v in zip(row.values, values, strict=False))
    torch.testing.assert_close(sample(SMALL, MODEL, x, SMALL.own_grid).x, y + m, rtol=1e-12, atol=1e-12)


@st.composite
def methods(draw):
    """Tables that a run survives: free steps anywhere, histories of any length, told levels near the own."""
    rows, known, small = [], 0, st.floats(-1.0, 1.0)
    for _ in range(draw(st.integers(1, 6))):
        free = draw(st.booleans())
        known += not free
        count = 0 if free else draw(st.integers(1, known))
        rows.append(Row(draw(small), tuple(draw(st.lists(small, min_size=count, max_size=count)))))
    told = draw(st.lists(st.floats(0.5, 2.0), min_size=len(rows), max_size=len(rows)))
    return Tabulated(tuple(torch.logspace(1, -1, len(rows) + 1, dtype=D64).tolist()), tuple(rows), tuple(told))


@given(table=methods())
@FEW
def test_a_fit_and_a_run_mean_the_same_by_a_table(table):
    """The closed loop of calibration, without the loop of `sample`, ends where `sample` ends; the count is honest."""
    x, counter = drawn(3), Counter(MODEL)
    flat = torch.zeros(2, 3, 3, dtype=D64)
    law = Trajectories(MODEL, (10.0, 0.1), torch.stack([x, x]), flat, torch.ones((), dtype=D64), torch.zeros((), dtype=D64))
    result = sample(table, counter, x, table.own_grid)
    torch.testing.assert_close(result.x, calibration.run(table, law), rtol=1e-10, atol=1e-10)
    assert result.stats.nfe == counter.calls == table.nfe(table.own_grid) == sum(bool(row.values) for row in table.rows)


@pytest.mark.parametrize("index", range(4))
def test_the_derivatives_of_a_step(index):
    """`linear` is the part that no network output carries; forward mode and the exact divergence are those of the Jacobian."""
    interval, x = Grid.of(SMALL.own_grid).interval(index), drawn(1)
    history = tuple(drawn(1, seed=j) for j in range(1, max(1, len(SMALL.rows[index].values))))

    def step(denoiser, x):
        return SMALL.step(denoiser, x, interval, history).x

    fixed = torch.autograd.functional.jacobian(lambda z: step(lambda z, s: 0.1 * drawn(1, seed=9), z)[0], x)[:, 0]
    torch.testing.assert_close(fixed, float(SMALL.linear(interval, history)) * torch.eye(3, dtype=D64), rtol=1e-12, atol=1e-12)
    jacobian = torch.autograd.functional.jacobian(lambda z: step(MODEL, z)[0], x)[:, 0]
    tangent = torch.tensor([[0.3, -1.0, 0.5]], dtype=D64)
    _, forward = torch.func.jvp(lambda z: step(MODEL, z), (x,), (tangent,))
    torch.testing.assert_close(forward, tangent @ jacobian.mT, rtol=1e-9, atol=1e-12)
    exact = Exact().through(lambda network, z: (step(network, z), None), MODEL, x, index)[0]
    torch.testing.assert_close(exact.values.flatten(), jacobian.trace()[None], rtol=1e-9, atol=1e-12)


def test_a_table_runs_in_inference_mode():
    with torch.inference_mode():
        inside = sample(SMALL, MODEL, drawn(), SMALL.own_grid).x
    torch.testing.assert_close(inside.clone(), sample(SMALL, MODEL, drawn(), SMALL.own_grid).x, rtol=0, atol=0)


@given(factor=st.floats(1e-3, 1e3))
@FEW
def test_scaling_data_and_levels_together_scales_the_result(factor):
    x, law, table = drawn(3), scaled_law(factor), SMALL.scaled(factor)
    end = sample(SMALL, MODEL, x, SMALL.own_grid).x
    torch.testing.assert_close(sample(table, law, factor * x, table.own_grid).x, factor * end, rtol=1e-12, atol=1e-12 * factor)


def test_an_image_alone_is_the_image_in_a_batch():
    x = drawn(64)
    together = sample(SMALL, MODEL, x, SMALL.own_grid).x
    for i in (0, 17, 63):
        alone = sample(SMALL, MODEL, x[i : i + 1], SMALL.own_grid).x
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-12, atol=1e-12)


def test_a_free_step_evaluates_nothing_and_the_network_is_told_the_tables_levels():
    told = []

    def network(x, sigma):
        told.append(float(sigma))
        return MODEL(x, sigma)

    calls = [event.calls for event in steps(SMALL, network, drawn(), SMALL.own_grid)]
    assert calls == [0, 1, 2, 3]
    assert told == pytest.approx([0.9 * 4.0, 0.8 * 1.5, 1.3 * 0.6], rel=1e-15)
    assert SMALL.nfe(SMALL.own_grid) == 3
    assert SMALL.for_nfe(3) == (SMALL, 4)
    assert str(SMALL) == "table of 3 evaluations"


def test_float32_follows_float64_and_keeps_its_dtype():
    x = drawn()
    single = sample(SMALL, mixture, x.float(), SMALL.own_grid).x
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), sample(SMALL, mixture, x, SMALL.own_grid).x, rtol=1e-5, atol=1e-5)


ALONE = [name for name in corrections.names() if name not in ("none", "fixed", "chain", "sparse")]


@pytest.mark.parametrize("rule", [*ALONE, "sparse(clamped, above=1.0)"])
def test_a_table_runs_under_every_correction(rule):
    """Finite, with an honest count: the table's evaluations, and what the correction adds."""
    table, x = Table.universal(4, **UNITS), noisy_state(160.0, 8)
    image = GaussianMixture(torch.ones(1, dtype=D64), torch.zeros(1, 1, 4, 4, dtype=D64), torch.eye(16, dtype=D64)[None])
    law = image if "bands" in rule else MODEL
    x = 160.0 * torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=D64) if "bands" in rule else x
    counter, plain = Counter(law), sample(table.solver, law, x, table.sigmas)
    corrected = sample(Corrected(table.solver, rule), counter, x, nfe=4)
    assert bool(torch.isfinite(corrected.x).all())
    assert len(corrected.trace) == len(plain.trace) == 5
    assert plain.stats.nfe == 4
    assert 4 <= corrected.stats.nfe <= counter.calls
    assert counter.calls - corrected.stats.nfe == probe_calls(table, rule, law, x)


def probe_calls(table, rule, law, x):
    """What the first look at the network costs, which no run counts."""
    counter = Counter(law)
    Corrected(table.solver, rule).init(counter, x, Grid.of(table.sigmas))
    return counter.calls


def test_a_blend_under_vjp_costs_no_evaluation_and_a_free_step_no_derivative():
    table, x = Table.universal(4, **UNITS), noisy_state(160.0, 8)
    stats = sample(Corrected(table.solver, "clamped(history=frozen)", divergence=VJP), MODEL, x, table.sigmas).stats
    assert (stats.nfe, stats.vjps, stats.jvps) == (4, 4, 0)


def test_a_table_that_tells_no_other_level_shares_its_evaluation_with_a_correction():
    """Energy measures at the first step from the value that the step itself uses, as with the method of the table."""
    own, x = as_table(DPMpp2M(), torch.tensor(LEVELS, dtype=D64)), drawn(16)
    runs = [sample(Corrected(s, "energy", divergence=VJP), MODEL, x, own.own_grid) for s in (own, DPMpp2M())]
    assert [(r.stats.nfe, r.stats.vjps) for r in runs] == [(4, 1)] * 2
    torch.testing.assert_close(runs[0].x, runs[1].x, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_run_is_the_run(backend):
    """The steps of a run, compiled as one function of the state; these backends need no compiler."""
    torch._dynamo.reset()
    sigmas, x = SMALL.own_grid, drawn()
    grid = Grid.of(sigmas)

    def whole(x):
        state = ()
        for i in range(grid.steps):
            x, _, state, _ = SMALL.step(gaussian, x, grid.interval(i), state)
        return x

    compiled = torch.compile(whole, backend=backend)
    torch.testing.assert_close(compiled(x), run(SMALL, gaussian, x, sigmas), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "change, message",
    [
        ({"levels": LEVELS[:-1]}, "levels=4, rows=4, told=4: n \\+ 1 ≥ 2 levels need n rows"),
        ({"told": (1.0,) * 3}, "told=3"),
        ({"levels": (10.0, 4.0, 5.0, 0.6, 0.2)}, "levels that decrease"),
        ({"levels": (*LEVELS[:-1], -0.1)}, "not negative"),
        ({"levels": (math.inf, *LEVELS[1:])}, "finite levels"),
        ({"levels": (math.nan, *LEVELS[1:])}, "finite levels"),
        ({"told": (1.0, 0.9, 0.0, 1.3)}, "finite told levels above 0"),
        ({"told": (1.0, 0.9, math.nan, 1.3)}, "finite told levels above 0"),
        ({"rows": (*SMALL.rows[:-1], Row(math.nan, (1.0,)))}, "the weights of step 3 are not finite"),
        ({"rows": (*SMALL.rows[:-1], Row(1.0, (math.inf,)))}, "the weights of step 3 are not finite"),
        ({"rows": (*SMALL.rows[:-1], Row(1.0, (0.1,) * 4))}, "values=4: step 3 has 3 values by then"),
        ({"mean": torch.tensor([math.nan])}, "the mean must be a tensor of finite numbers"),
        ({"mean": 0.5}, "the mean must be a tensor"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    "sigmas",
    [
        grids.karras(4, 0.2, 10.0),
        grids.karras(3),
        torch.tensor([*LEVELS, 0.1], dtype=D64),
        torch.tensor(LEVELS[:-1], dtype=D64),
    ],
)
def test_a_grid_that_is_not_the_tables_is_refused(sigmas):
    with pytest.raises(InputError, match=r"a table's rows are for its own grid, table\.sigmas"):
        sample(SMALL, MODEL, drawn(sigma=float(sigmas[0])), sigmas)


def test_a_grid_rounded_to_float32_is_the_tables():
    end = sample(SMALL, MODEL, drawn(), SMALL.own_grid.float()).x
    torch.testing.assert_close(end, sample(SMALL, MODEL, drawn(), SMALL.own_grid).x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("nfe", [2, 4, 0, True, 3.5])
def test_a_table_is_for_one_number_of_evaluations(nfe):
    with pytest.raises(InputError, match=r"the table is for 3 evaluations|whole number of network evaluations"):
        sample(SMALL, MODEL, drawn(), nfe=nfe)


@pytest.mark.parametrize("mean", [torch.zeros(2), torch.zeros(5, 3), torch.zeros(1, 1, 3)])
def test_a_mean_that_fits_no_event_is_refused(mean):
    with pytest.raises(InputError, match=r"the mean must be broadcastable to an event, \(3,\)"):
        sample(replace(SMALL, mean=mean), MODEL, drawn(), SMALL.own_grid)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_data_of_no_size_are_refused(factor):
    with pytest.raises(InputError, match="finite"):
        SMALL.scaled(factor)


# ---------------------------------------------------------------- files


def weights_of(solver):
    return solver.levels, solver.told, solver.rows


def test_a_table_saved_and_loaded_is_the_same_to_the_last_bit(tmp_path):
    report = {"seeds": [1, 2], "scores": {"median": 0.1}, "text": "ä"}
    path = Table(SMALL, report).save(tmp_path / "a.safetensors")
    loaded = Table.load(path)
    assert weights_of(loaded.solver) == weights_of(SMALL)
    assert torch.equal(loaded.solver.mean, SMALL.mean)
    assert loaded.report == report
    assert (loaded.nfe, loaded.sigmas.tolist()) == (3, list(LEVELS))
    x = drawn()
    assert torch.equal(sample(loaded.solver, MODEL, x, loaded.sigmas).x, sample(SMALL, MODEL, x, SMALL.own_grid).x)
    named = sample(f"table({path})", MODEL, x, nfe=3)
    assert torch.equal(named.x, sample(SMALL, MODEL, x, nfe=3).x)
    Table(SMALL, report).save(tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=64)


@st.composite
def tables(draw):
    """Any table that a file can hold."""
    n = draw(st.integers(1, 5))
    numbers = draw(st.lists(st.floats(0, 1e300), min_size=n + 1, max_size=n + 1, unique=True))
    rows, known = [], 0
    for _ in range(n):
        known += draw(st.booleans())
        count = draw(st.integers(1, known)) if known and (not rows or rows[-1].values or known == 1) else 0
        known = max(known, count) if count else 0
        rows.append(Row(draw(FINITE), tuple(draw(st.lists(FINITE, min_size=count, max_size=count)))))
    told = draw(st.lists(st.floats(1e-300, 1e300), min_size=n, max_size=n))
    mean = draw(st.none() | st.lists(FINITE, min_size=1, max_size=3).map(lambda m: torch.tensor(m, dtype=D64)))
    return Tabulated(tuple(sorted(numbers, reverse=True)), tuple(rows), tuple(told), mean)


@given(parts=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), tables(), min_size=1, max_size=3))
@FEW
def test_any_tables_go_through_a_file(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("tables") / "t.safetensors"
    table_files.save(path, {name: (solver, {"name": name}) for name, solver in parts.items()})
    loaded = table_files.load(path)
    assert loaded.keys() == parts.keys()
    for name, solver in parts.items():
        found, report = loaded[name]
        assert report == {"name": name}
        assert weights_of(found) == weights_of(solver)
        assert (found.mean is None) == (solver.mean is None)
        assert solver.mean is None or torch.equal(found.mean, solver.mean)


def test_tables_may_share_a_mean(tmp_path):
    mean = torch.zeros(1, dtype=D64).expand(3)
    two = {name: (replace(SMALL, mean=mean), {}) for name in "ab"}
    assert torch.equal(table_files.load(table_files.save(tmp_path / "t.safetensors", two))["b"][0].mean, mean)


def test_a_file_of_several_tables_is_none_of_one(tmp_path):
    path = table_files.save(tmp_path / "t.safetensors", {"a": (SMALL, {}), "b": (SMALL, {})})
    for nfe in (None, 3):
        with pytest.raises(InputError, match="tables of 3, 3 evaluations, and 2 fit"):
            Table.load(path, nfe)
    empty = table_files.save(tmp_path / "e.safetensors", {})
    with pytest.raises(InputError, match="tables of no evaluations"):
        Table.load(empty)


def test_several_tables_go_through_one_file_and_are_told_apart_by_their_evaluations(tmp_path):
    tables = [Table.universal(n) for n in (5, 3)]
    path = save_all(tmp_path / "t.safetensors", tables)
    assert [repr(table.solver) for table in load_all(path)] == [repr(table.solver) for table in tables]
    assert repr(Table.load(path, 3).solver) == repr(tables[1].solver)
    with pytest.raises(InputError, match=r"nfe=4: .* has tables of 5, 3 evaluations, and 0 fit"):
        Table.load(path, 4)


@pytest.fixture
def saved(tmp_path):
    return Table(SMALL, {"seeds": [1]}).save(tmp_path / "t.safetensors")


def test_a_truncated_file_is_refused_wherever_it_ends(saved):
    whole = saved.read_bytes()
    for size in (0, 1, 7, 8, 60, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match=r"fetch it again, or calibrate anew"):
            Table.load(saved)


def test_a_flipped_bit_is_seen_wherever_it_is(saved):
    """In the numbers, in the header, and in a report's text."""
    whole = saved.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for at in range(start, len(whole), 7):
        saved.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(ModelFileError, match="damaged: its digest differs from that in its header; fetch it again"):
            Table.load(saved)
    for at in range(0, start, 5):
        saved.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(ModelFileError, match=r"fetch it again|need a file that"):
            Table.load(saved)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(ModelFileError, match="is no readable table"):
            Table.load(path)


def test_another_programs_file_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}, {"steindiff": "no json"}, {"steindiff": "[1]"}, {"steindiff": "{}"}):
        save_file({"weight": torch.zeros(2)}, path, metadata)
        with pytest.raises(ModelFileError, match=r"fetch it again|need a file that Table\.save has written"):
            Table.load(path)
    with pytest.raises(ModelFileError, match=r"need a file that Table\.save has written"):
        Table.load(Path(solvers.__file__).parents[1] / "models" / "weights" / "digits.safetensors")


def test_nothing_in_a_file_is_executed(tmp_path):
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return marker.touch, ()

    path = tmp_path / "t.safetensors"
    for write in (lambda: path.write_bytes(pickle.dumps(Bomb())), lambda: torch.save({"table": Bomb()}, path)):
        write()
        with pytest.raises(ModelFileError):
            Table.load(path)
        with pytest.raises(ModelFileError):
            solvers.make(f"table({path})")
    assert not marker.exists()


def rewritten(path, about=None, **changed):
    """The file with other parts, under a header that names their numbers."""
    tensors = {**load_file(path), **{f"table/{name}": torch.as_tensor(value) for name, value in changed.items()}}
    header = {"format": 1, "kind": "tables", "sha256": table_files._digest(tensors), "reports": {"table": {}}}
    write_tensors(path, tensors, {**header, **(about or {})})


TOLD, WEIGHTS = torch.tensor(SMALL.told, dtype=D64), torch.zeros(4, 3, dtype=D64)


@pytest.mark.parametrize(
    "about, changed, message",
    [
        ({"kind": "network"}, {}, "format 1, kind 'network': need a file that Table.save has written"),
        ({"format": 2}, {}, "format 2, kind 'tables'"),
        ({"reports": None}, {}, "no report for each table"),
        ({"reports": [1]}, {}, "no report for each table"),
        ({"reports": {"table": 5}}, {}, "no report for each table"),
        ({"reports": {"other": {}}}, {}, "holds no usable table: .*other/levels"),
        ({"sha256": "0" * 64}, {}, "the numbers are not those"),
        ({}, {"levels": torch.tensor(LEVELS[::-1], dtype=D64)}, "levels that decrease"),
        ({}, {"levels": torch.tensor(LEVELS[:-1], dtype=D64)}, "levels=4, rows=4"),
        ({}, {"levels": torch.zeros(0, dtype=D64)}, "levels=0"),
        ({}, {"levels": torch.tensor(1.0, dtype=D64)}, "holds no usable table"),
        ({}, {"levels": torch.tensor([10, 4, 2, 1, 0])}, "a number is no float"),
        ({}, {"told": -TOLD}, "told levels above 0"),
        ({}, {"told": TOLD * math.nan}, "told levels above 0"),
        ({}, {"a": TOLD[:3]}, "holds no usable table"),
        ({}, {"a": TOLD * math.inf}, "weights of step 0 are not finite"),
        ({}, {"weights": WEIGHTS * math.nan}, "weights of step 1 are not finite"),
        ({}, {"weights": WEIGHTS[:, 0]}, "holds no usable table"),
        ({}, {"weights": WEIGHTS[:2]}, "holds no usable table"),
        ({}, {"values": torch.tensor([0, 2, 2, 3])}, "values=2: step 1 has 1 values by then"),
        ({}, {"values": torch.tensor([0, 1, 2, 7])}, r"counts \[0, 1, 2, 7\] weights in rows of 3"),
        ({}, {"values": torch.tensor([0, 1, 2, -1])}, r"counts \[0, 1, 2, -1\] weights in rows of 3"),
        ({}, {"values": torch.tensor([0.0, 1.0, 2.0, 3.0])}, "weights in rows of 3"),
        ({}, {"mean": torch.tensor([0.0, math.nan, 0.0])}, "the mean must be a tensor of finite numbers"),
    ],
)
def test_a_file_whose_parts_are_not_a_table_is_refused(saved, about, changed, message):
    rewritten(saved)
    assert weights_of(Table.load(saved).solver) == weights_of(SMALL)
    rewritten(saved, about, **changed)
    with pytest.raises(ModelFileError, match=message) as found:
        Table.load(saved)
    assert str(saved) in str(found.value)
    assert any(remedy in str(found.value) for remedy in ("fetch it again, or calibrate anew", "need a file"))


def test_a_report_keeps_its_numbers_and_loses_what_json_lacks(tmp_path):
    path = Table(SMALL, {"worst": math.inf, "pair": (1, 2)}).save(tmp_path / "t.safetensors")
    assert Table.load(path).report == {"worst": None, "pair": [1, 2]}
    json.dumps(dict(Table.load(path).report))


# ---------------------------------------------------------------- the shipped tables


@pytest.mark.parametrize("nfe", NFE)
def test_there_is_a_universal_table_for_every_number_of_evaluations(nfe):
    table, counter = Table.universal(nfe, **UNITS), Counter(MODEL)
    assert (table.nfe, len(table.sigmas)) == (nfe, nfe + 2)
    assert (float(table.sigmas[0]), float(table.sigmas[-1])) == (160.0, 0.004)
    assert table.report
    result = sample(table.solver, counter, noisy_state(160.0), table.sigmas)
    assert counter.calls == result.stats.nfe == nfe
    assert result.solver == f"universal table of {nfe} evaluations"
    named = sample("universal", MODEL, noisy_state(160.0), nfe=nfe, setting=SETTING)
    assert torch.equal(named.x, result.x)


def test_the_shipped_file_is_small_and_every_table_begins_with_a_free_step():
    assert universal.FILE.stat().st_size < 500_000
    for (rung, nfe), (solver, report) in universal.shipped().items():
        assert solver.levels[0] == rung
        assert [bool(row.values) for row in solver.rows] == [False] + [True] * nfe
        assert solver.mean is None
        json.dumps(report)


@given(s=st.floats(1e-3, 1e3))
@FEW
def test_a_universal_table_in_other_units_is_the_table(s):
    own = Table.universal(4)
    other = Table.universal(4, sigma_max=80 * s / 0.5, sigma_min=0.002 * s / 0.5, sigma_data=s)
    assert other.sigmas.tolist() == pytest.approx([s / 0.5 * level for level in own.sigmas.tolist()], rel=1e-12)
    assert other.solver.told == own.solver.told
    for mine, theirs in zip(other.solver.rows, own.solver.rows, strict=True):
        assert (mine.a, *mine.values) == pytest.approx((theirs.a, *theirs.values), rel=1e-9, abs=1e-9)


def test_on_a_gaussian_of_any_size_a_universal_table_is_near_the_flow():
    """In units of σ_data every such Gaussian is one, so that the relative error is one number."""
    gaps = []
    for s in (0.01, 0.5, 20.0):
        table = Table.universal(6, sigma_max=160 * s, sigma_min=0.004 * s, sigma_data=s)
        x = 160 * s * torch.randn(32, 5, generator=torch.Generator().manual_seed(0), dtype=D64)
        end = sample(table.solver, lambda x, sigma, s=s: gaussian(x, sigma, 0.0, s * s), x, table.sigmas).x
        gaps.append(float((end / x * 160).mean()) * math.sqrt((1 + 160.0**-2) / (1 + 0.004**2)) - 1)
    assert gaps == pytest.approx([gaps[0]] * 3, abs=1e-9)
    assert abs(gaps[0]) < 0.02


def test_a_longer_first_step_is_stretched_by_the_flow_of_a_gaussian():
    """From above or below a rung: as if the run had begun on it, with noise that a Gaussian of variance one brings there."""
    rungs = [rung for rung, nfe in universal.shipped() if nfe == 4]
    down = universal._lowest(universal.shipped()[min(rungs), 4][0]) / min(rungs)
    assert down < 1
    for factor in (1.0, 1.7, 60.0, down):
        top = min(rungs) if factor < 1 else max(rungs)
        x = top * torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=D64)
        on = Table.universal(4, sigma_max=top, sigma_min=0.004, sigma_data=1.0)
        above = Table.universal(4, sigma_max=factor * top, sigma_min=0.004, sigma_data=1.0)
        assert float(above.sigmas[0]) == factor * top
        start = x * math.sqrt((1 + (factor * top) ** 2) / (1 + top**2))
        end = sample(above.solver, MODEL, start, above.sigmas).x
        torch.testing.assert_close(end, sample(on.solver, MODEL, x, on.sigmas).x, rtol=1e-9, atol=1e-9)


def test_the_nearest_rung_is_taken(monkeypatch):
    """Of the rungs 10, 40 and 160: half a rung reaches down, and between two the logarithm decides."""
    rows = (Row(0.2, ()), *(Row(0.2, (0.8,)) for _ in range(4)))
    own = Tabulated((160.0, 32.0, 8.0, 2.0, 0.4, 0.004), rows, (1.0,) * 5)
    tables = {rung: own.scaled(rung / 160.0) for rung in (10.0, 40.0, 160.0)}
    monkeypatch.setattr(universal, "by_end", lambda: {0.004: {(rung, 4): (table, {}) for rung, table in tables.items()}})
    for top, rung in ((5.0, 10), (10, 10), (19, 10), (21, 40), (40, 40), (79, 40), (81, 160), (160, 160), (1e5, 160)):
        solver, _ = universal.entry(4, Setting(top, 1e-9, 1.0))
        assert solver.levels[0] == top
        assert solver.levels[1:-1] == tables[rung].levels[1:-1]
    with pytest.raises(InputError, match="universal tables with 4 evaluations start between 5 and"):
        universal.entry(4, Setting(4.9, 0.004, 1.0))


@pytest.mark.parametrize(
    "guidance, scale",
    [(0.0, 1), (1.0, 1), (1.01, 2), (2.0, 2), (2.8, 2), (2.9, 4), (5.6, 4), (5.7, 8), (7.5, 8), (8 * math.sqrt(2), 8)],
)
def test_the_nearest_scale_of_guidance_is_taken(guidance, scale):
    own = universal.entry(4, Setting(guidance=scale))
    near = universal.entry(4, Setting(guidance=guidance))
    assert near[0].rows == own[0].rows
    assert near[0].told == own[0].told
    assert own[1]["settings"].get("guidance", 1) == scale
    assert Table.universal(4, guidance=guidance).solver.rows == own[0].rows


def test_every_scale_of_guidance_has_the_same_tables_and_other_numbers():
    assert universal.GUIDED.stat().st_size < 500_000
    counts = {scale: sorted(nfe for _, nfe in known) for scale, known in universal.guided().items()}
    assert sorted(counts) == [2, 4, 8]
    assert counts[2] == counts[4] == counts[8]
    for known in universal.guided().values():
        for (rung, nfe), (solver, report) in known.items():
            assert solver.levels[0] == rung
            assert [bool(row.values) for row in solver.rows] == [False] + [True] * nfe
            assert solver.rows != universal.shipped()[rung, nfe][0].rows
            json.dumps(report)


@pytest.mark.parametrize(
    "nfe, guidance, message",
    [
        (4, 11.4, "guidance=11.4: there are universal tables up to a scale of 11.3; take a lower one, or a plain solver"),
        (4, math.inf, "guidance=inf: there are universal tables up to"),
        (4, math.nan, "guidance=nan: there are universal tables up to"),
        (2, 5.0, "nfe=2: there are universal tables for 3, 4, .* evaluations under guidance of 5; take one of them"),
        (20, 1.5, "nfe=20: there are universal tables for 3, 4, .* evaluations under guidance of 1.5; take one of them"),
    ],
)
def test_guidance_without_a_table_is_refused(nfe, guidance, message):
    with pytest.raises(InputError, match=message):
        Table.universal(nfe, guidance=guidance)


def test_the_first_step_is_never_shorter_than_a_fifth_of_its_level(monkeypatch):
    late = Tabulated((160.0, 100.0, 8.0, 0.004), (Row(0.6, ()), Row(0.1, (0.9,)), Row(0.0, (1.0,))), (1.0,) * 3)
    monkeypatch.setattr(universal, "by_end", lambda: {0.004: {(160.0, 2): (late, {})}})
    assert universal.entry(2, Setting(125.0, 0.004, 1.0))[0].levels[0] == 125.0
    with pytest.raises(InputError, match="start between 125 and"):
        universal.entry(2, Setting(124.0, 0.004, 1.0))


def test_the_last_level_is_reached_by_the_noise_that_the_last_evaluation_sees():
    x, ends = noisy_state(160.0), {}
    for sigma_min in (0.0, 0.004, 0.02):
        table, seen = Table.universal(5, **{**UNITS, "sigma_min": sigma_min}), []
        assert float(table.sigmas[-1]) == sigma_min
        for event in steps(table.solver, MODEL, x, table.sigmas):
            seen.append((event.x_before, event.step.denoised))
        ends[sigma_min] = event.step.x
    before, denoised = seen[-1]
    told = float(table.sigmas[-2]) * table.solver.told[-1]
    for sigma_min in (0.004, 0.02):
        noise = sigma_min * (before - denoised) / told
        torch.testing.assert_close(ends[sigma_min] - ends[0.0], noise, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("nfe", range(1, 21))
def test_stable_diffusions_own_range_is_served(nfe):
    """From 14.6 down to 0.03, which is above the last evaluations of long tables that end at 0.004."""
    table = Table.universal(nfe, sigma_max=14.6, sigma_min=0.03, sigma_data=1.0)
    assert (table.nfe, float(table.sigmas[0]), float(table.sigmas[-1])) == (nfe, 14.6, 0.03)
    levels = table.sigmas.tolist()
    assert all(a > b for a, b in pairwise(levels))
    assert table.report["settings"].get("last", 0.004) == (0.03 if nfe >= 10 else 0.004)


@pytest.mark.parametrize("nfe", range(1, 21))
@pytest.mark.parametrize(
    "ends, sigma_data",
    [((83.8, 0.0388), 1.0), ((157.4, 0.01), 1.0), ((157.4, 0.01), 0.5), ((152.2, 0.0105), 0.5), ((1000.0, 0.001), 1.0)],
    ids=["latents of LDM", "latents under DDPM", "pixels under DDPM", "VP", "a flow"],
)
def test_ranges_that_people_have_are_served(nfe, ends, sigma_data):
    table = Table.universal(nfe, *ends, sigma_data=sigma_data)
    assert (table.nfe, float(table.sigmas[0]), float(table.sigmas[-1])) == (nfe, *ends)
    assert all(a > b for a, b in pairwise(table.sigmas.tolist()))


def test_of_two_last_levels_the_nearest_that_may_end_there_is_taken(monkeypatch):
    rows = (Row(0.2, ()), *(Row(0.2, (0.8,)) for _ in range(4)))
    ends = ((0.05, 0.004), (0.1, 0.03))
    low, high = (Tabulated((14.6, 8.0, 2.0, 0.4, *last), rows, (1.0,) * 5) for last in ends)
    known = {solver.levels[-1]: {(14.6, 4): (solver, {})} for solver in (low, high)}
    monkeypatch.setattr(universal, "by_end", lambda: known)
    for end, taken in ((0.0, low), (0.004, low), (0.016, low), (0.018, high), (0.03, high), (0.05, high)):
        solver, _ = universal.entry(4, Setting(14.6, end, 1.0))
        assert (solver.levels[-2], solver.levels[-1]) == (taken.levels[-2], end)
    with pytest.raises(InputError, match=r"sigma_min=0.051: the last level of this table can lie between 0 and 0.05"):
        universal.entry(4, Setting(14.6, 0.051, 1.0))


def test_the_mean_of_the_data_may_be_told():
    m, x = torch.tensor([5.0, -5.0, 2.0], dtype=D64), noisy_state(160.0)

    def there(x, sigma):
        return m + MODEL(x - m, sigma)

    table = Table.universal(4, **UNITS)
    moved = Table.universal(4, **UNITS, mean=m)
    end, shifted = sample(table.solver, MODEL, x, table.sigmas).x, sample(moved.solver, there, x + m, moved.sigmas).x
    torch.testing.assert_close(shifted, end + m, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("nfe", [0, -1, 21, True, 4.0, 3.5, "4", None])
def test_a_number_of_evaluations_without_a_table_is_refused(nfe):
    with pytest.raises(InputError, match=r"there are universal tables for 1, 2, .*, 20 evaluations; take one of them"):
        Table.universal(nfe)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sigma_max": 1.0}, r"sigma_max/sigma_data = 2: universal tables with 4 evaluations start between"),
        ({"sigma_max": 1e7}, "and 1e\\+06; check sigma_data, or take a plain solver"),
        ({"sigma_data": 50.0}, "check sigma_data"),
        ({"sigma_max": math.nan}, "need 0 ≤ sigma_min < sigma_max < inf"),
        ({"sigma_max": math.inf}, "need 0 ≤ sigma_min < sigma_max < inf"),
        ({"sigma_min": math.nan}, "need 0 ≤ sigma_min < sigma_max < inf"),
        ({"sigma_min": -0.1}, "need 0 ≤ sigma_min < sigma_max < inf"),
        ({"sigma_min": 10.0}, "sigma_min=10.0: the last level of this table can lie between 0 and"),
        ({"sigma_data": 0.0}, "need a positive standard deviation"),
        ({"sigma_data": math.nan}, "need a positive standard deviation"),
        ({"mean": torch.tensor(math.nan)}, "the mean must be a tensor of finite numbers"),
    ],
)
def test_noise_levels_without_a_table_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Table.universal(4, **options)


def test_a_damaged_shipped_file_is_said_to_be(tmp_path, monkeypatch):
    broken = tmp_path / "universal.safetensors"
    broken.write_bytes(universal.FILE.read_bytes()[:-5])
    monkeypatch.setattr(universal, "FILE", broken)
    universal.by_end.cache_clear()
    try:
        for use in (lambda: Table.universal(4), lambda: sample("auto", mixture, noisy_state(80.0), nfe=4)):
            with pytest.raises(ModelFileError, match="fetch it again"):
                use()
    finally:
        universal.by_end.cache_clear()


# ---------------------------------------------------------------- the solvers by name


def test_auto_takes_the_table_and_elsewhere_the_best_published_choice():
    x = noisy_state(80.0)
    assert sample("auto", mixture, x, nfe=4).solver == "universal table of 4 evaluations"
    beyond = sample("auto", mixture, x, nfe=25)
    assert (beyond.solver, beyond.stats.nfe) == (str(solvers.make("ipndm_4")), 25)
    low = sample("auto", mixture, noisy_state(0.5), nfe=4, setting=Setting(sigma_max=0.5))
    assert low.solver == str(solvers.make("ipndm_4"))
    assert torch.equal(low.x, sample("ipndm_4", mixture, noisy_state(0.5), grids.karras(4, sigma_max=0.5)).x)
    for scale in (1.2, 2.0, 3.0, 5.0, 7.5, 11.3):
        guided = sample("auto", Guided(mixture, mixture, scale), x, nfe=4)
        assert guided.solver == "universal table of 4 evaluations", scale
        assert torch.equal(guided.x, sample("universal", Guided(mixture, mixture, scale), x, nfe=4).x)


@pytest.mark.parametrize(
    "nfe, setting, name",
    [
        (2, Setting(guidance=1.2), "ddim"),
        (2, Setting(guidance=7.5), "ddim"),
        (40, Setting(guidance=2.0), "ipndm_4"),
        (40, Setting(guidance=5.0), "ipndm_2"),
        (10, Setting(guidance=15.0), "ddim"),
        (17, Setting(guidance=15.0), "ddim"),
        (18, Setting(guidance=15.0), "ipndm_2"),
        (5, Setting(sigma_max=0.5, guidance=3.0), "ddim"),
        (6, Setting(sigma_max=0.5, guidance=3.0), "ipndm_2"),
        (3, Setting(sigma_max=0.5, guidance=2.0), "ipndm_4"),
    ],
)
def test_under_guidance_without_a_table_auto_takes_what_breaks_least(nfe, setting, name):
    """Of few evaluations DDIM, and above w = 2 a method of low order."""
    assert solvers.make("auto").for_nfe(nfe, setting) == (solvers.make(name), nfe)


@pytest.mark.parametrize("name", ["auto", "universal"])
def test_a_solver_that_plans_takes_no_grid(name):
    with pytest.raises(InputError, match=f"the solver '{name}' has a grid for each number of evaluations: give nfe="):
        sample(name, mixture, drawn(), torch.tensor(LEVELS, dtype=D64))
    with pytest.raises(InputError, match="give nfe="):
        solvers.make(name).nfe(torch.tensor(LEVELS))


@pytest.mark.parametrize("name", ["auto", "universal", "ddim", "heun"])
@pytest.mark.parametrize("nfe", [0, -2, True, 2.5, "4"])
def test_what_is_no_number_of_evaluations_is_refused(name, nfe):
    with pytest.raises(InputError, match="need a whole number of network evaluations, at least one"):
        sample(name, mixture, noisy_state(80.0), nfe=nfe)


@pytest.mark.parametrize("name", ["auto", "universal"])
def test_the_size_of_the_data_may_be_told_by_the_name(name):
    x = noisy_state(80.0)
    told = sample(f"{name}(sigma_data=0.25)", mixture, x, nfe=4)
    assert torch.equal(told.x, sample(name, mixture, x, nfe=4, setting=Setting(sigma_data=0.25)).x)
    assert not torch.equal(told.x, sample(name, mixture, x, nfe=4).x)
    for bad in ("0", "-1", "inf", "'x'"):
        with pytest.raises(InputError, match=r"standard deviation|takes sigma_data"):
            solvers.make(f"{name}(sigma_data={bad})")
