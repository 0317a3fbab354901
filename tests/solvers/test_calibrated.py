"""Tables of one network: refused elsewhere, insisted upon by name, and found by auto."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from problems import MODEL, noisy_state
from steindiff import solvers
from steindiff.analytic import GaussianMixture
from steindiff.denoisers import EpsilonScaled, Guided, Labelled, is_conditioned
from steindiff.errors import InputError, ModelFileError
from steindiff.io.files import HALF, read_tensors, write_tensors
from steindiff.sampling import sample
from steindiff.solvers import DDIM, Auto, Purpose, Row, Setting, Table, Tabulated, as_table, calibrated, table_files
from steindiff.solvers.table import save_all

OTHER = GaussianMixture(MODEL.weights, MODEL.means + 0.2, MODEL.covariances)
HERE = Setting.of(MODEL, event=(3,))


def table(nfe=4, purpose=None, sigma_min=0.002):
    solver, sigmas = solvers.make("dpmpp_2m").plan(nfe, Setting(sigma_min=sigma_min))
    return Table(
        replace(as_table(solver, sigmas, "calibrated table"), purpose=purpose or Purpose.of(MODEL, (3,))), {"nfe": nfe}
    )


def start(batch=4, event=3):
    return 80 * torch.randn(batch, event, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_table_serves_the_network_it_was_made_for():
    own = table()
    assert sample(own.solver, MODEL, start(), own.sigmas).stats.nfe == 4
    assert sample(own.solver, lambda x, sigma: MODEL(x, sigma), start(), own.sigmas).stats.nfe == 4


@pytest.mark.parametrize(
    ("purpose", "denoiser", "named"),
    [
        (None, OTHER, "network"),
        (Purpose.of(Guided(MODEL, MODEL, 3.0), (3,)), MODEL, "guidance"),
        (Purpose.of(MODEL, (1, 3)), MODEL, "event"),
    ],
)
def test_anything_else_is_refused_by_name_and_can_be_insisted_upon(purpose, denoiser, named):
    own = table(purpose=purpose)
    with pytest.raises(InputError, match=rf"calibrated for {named} .* insist with table\.anyway\('{named}'\)"):
        sample(own.solver, denoiser, start(), own.sigmas)
    assert sample(own.anyway(named).solver, denoiser, start(), own.sigmas).stats.nfe == 4
    with pytest.raises(InputError, match="unknown part of a purpose 'shape'"):
        own.anyway("shape")


def test_a_network_with_its_labels_bound_is_another_one(tmp_path, monkeypatch):
    plain, bound = Purpose.of(MODEL, (3,)), Purpose.of(Guided(MODEL, MODEL, 1.0), (3,))
    monkeypatch.setenv("STEINDIFF_TABLES", str(tmp_path))
    save_all(tmp_path / "t.safetensors", [table(4, plain), table(6, bound)])
    for denoiser, mine, other in ((MODEL, 4, 6), (Guided(MODEL, MODEL, 1.0), 6, 4)):
        setting = Setting.of(denoiser, event=(3,))
        assert calibrated.found(mine, setting).purpose.network == plain.network
        assert calibrated.found(other, setting) is None
        with pytest.raises(InputError, match=r"calibrated for conditioned .* table\.anyway\('conditioned'\)"):
            sample((own := table(4, bound if other == 6 else plain)).solver, denoiser, start(), own.sigmas)
    unknown = Setting(network=plain.network, event=(3,))
    assert calibrated.found(4, unknown) is not None
    assert calibrated.found(6, unknown) is not None


def test_whether_labels_are_bound_is_seen_through_wrappers():
    def network(x, sigma, labels=None):
        return x

    labels = torch.zeros(4, dtype=torch.int64)
    for denoiser in (partial(network, labels=labels), Labelled(network, labels), EpsilonScaled(Guided(MODEL, MODEL, 2.0), 1.0)):
        assert is_conditioned(denoiser)
    for denoiser in (network, MODEL, partial(network, labels=None), EpsilonScaled(MODEL, 1.0)):
        assert not is_conditioned(denoiser)


def test_a_file_keeps_the_purpose(tmp_path):
    own = table(purpose=Purpose.of(Guided(MODEL, MODEL, 3.0), (3,)))
    loaded = Table.load(own.save(tmp_path / "t.safetensors"))
    assert loaded.solver.purpose == own.solver.purpose
    assert Table.load(Table(own.solver.anyway("network"), {}).save(tmp_path / "u.safetensors")).solver.purpose.network is None


MALFORMED = ["x", {"network": 3}, {"event": "abc"}, {"guidance": "1"}, {"conditioned": "yes"}, {"wrong": 1}, {"event": 3}]


@pytest.mark.parametrize("purpose", MALFORMED)
def test_a_file_with_a_malformed_purpose_is_refused(tmp_path, purpose):
    path = table().save(tmp_path / "t.safetensors")
    about, _ = read_tensors(path)
    name = next(iter(about["reports"]))
    write_tensors(path, load_file(path), {**about, "purposes": {name: purpose}})
    with pytest.raises(ModelFileError, match="holds no usable table"):
        Table.load(path)


def test_auto_takes_the_networks_own_table_before_the_universal_one(tmp_path, monkeypatch):
    save_all(tmp_path / "own.safetensors", [table(4), table(5)])
    assert str(Auto().for_nfe(4, HERE)[0]) == "universal table of 4 evaluations"
    monkeypatch.setenv(calibrated.VARIABLE, str(tmp_path))
    assert str(Auto().for_nfe(4, HERE)[0]) == "calibrated table of 4 evaluations"
    assert sample("auto", MODEL, start(), nfe=5).solver == "calibrated table of 5 evaluations"
    elsewhere = [
        replace(HERE, sigma_min=0.01), replace(HERE, sigma_max=90.0), replace(HERE, event=(1, 3)), replace(HERE, guidance=1.5),
        replace(HERE, network="0" * 16), replace(HERE, event=None),
    ]  # fmt: skip
    assert {str(Auto().for_nfe(4, setting)[0]) for setting in elsewhere} == {"universal table of 4 evaluations"}
    assert str(Auto().for_nfe(6, HERE)[0]) == "universal table of 6 evaluations"


def test_a_folder_of_the_setting_comes_first(tmp_path, monkeypatch):
    for name, solver in (("near", DDIM()), ("far", solvers.make("ipndm_3"))):
        own = replace(as_table(solver, solver.plan(4)[1]), purpose=Purpose.of(MODEL, (3,)))
        Table(own).save(tmp_path / name / "t.safetensors")
    monkeypatch.setenv(calibrated.VARIABLE, str(tmp_path / "far"))
    near = replace(HERE, folders=(str(tmp_path / "near"),))
    assert len(calibrated.found(4, HERE).rows[-1].values) > 1
    assert len(calibrated.found(4, near).rows[-1].values) == 1


def test_a_file_that_changes_is_read_again(tmp_path):
    setting, path = replace(HERE, folders=(str(tmp_path),)), tmp_path / "t.safetensors"
    assert calibrated.found(4, setting) is None
    table(4).save(path)
    assert calibrated.found(4, setting) is not None
    table(5).save(path)
    assert calibrated.found(4, setting) is None


def test_by_name_it_takes_a_file(tmp_path):
    path = save_all(tmp_path / "t.safetensors", [table(4), table(6), table(6, Purpose.of(Guided(MODEL, MODEL, 3.0), (3,)))])
    solver = f"calibrated({str(path)!r})"
    assert sample(solver, MODEL, start(), nfe=6).solver == "calibrated table of 6 evaluations"
    assert sample(solver, Guided(MODEL, MODEL, 3.0), start(), nfe=6).stats.nfe == 6
    with pytest.raises(InputError, match=r"nfe=5: .* has tables of 4, 6 evaluations"):
        sample(solver, MODEL, start(), nfe=5)
    with pytest.raises(InputError, match="calibrated for network"):
        sample(solver, OTHER, start(), nfe=4)
    with pytest.raises(InputError, match="guidance 3: the calibrated tables are for 1, and serve what lies between"):
        sample(solver, Guided(MODEL, MODEL, 3.0), start(), nfe=4)
    assert (
        sample(f"calibrated({str(path)!r}, anyway=network+guidance)", Guided(OTHER, OTHER, 3.0), start(), nfe=4).stats.nfe == 4
    )


def test_without_a_table_it_says_how_to_make_one():
    with pytest.raises(InputError, match=r"no calibrated table of 4 evaluations for network \w{16}.*steindiff calibrate"):
        sample("calibrated", MODEL, noisy_state(80.0), nfe=4)


def test_a_damaged_file_in_a_folder_is_named(tmp_path):
    (tmp_path / "t.safetensors").write_bytes(b"no table")
    with pytest.raises(ModelFileError, match=r"t\.safetensors is no readable table"):
        calibrated.found(4, replace(HERE, folders=(str(tmp_path),)))


def test_what_a_killed_process_has_left_is_no_table(tmp_path):
    (tmp_path / f".t-abcdef01{HALF}.safetensors").write_bytes(b"half a ta")
    table(4).save(tmp_path / "t.safetensors")
    assert calibrated.found(4, replace(HERE, folders=(str(tmp_path),))) is not None


def test_the_shipped_tables_have_a_purpose():
    for path in calibrated.SHIPPED.glob("*.safetensors"):
        for solver, report in table_files.load(path).values():
            assert solver.purpose is not None
            assert solver.purpose.network is not None
            assert report["gate"]["kept"]


def test_a_run_to_zero_is_served_by_a_table_that_ends_above_it(tmp_path, monkeypatch):
    monkeypatch.setenv("STEINDIFF_TABLES", str(tmp_path))
    path, x = table().save(tmp_path / "four.safetensors"), start()
    last = []
    above = sample("calibrated", MODEL, x, nfe=4, on_step=last.append).x
    noise = (last[-1].x_before - last[-1].step.denoised) / last[-1].interval.sigma
    assert sample(f"calibrated({path})", MODEL, x, nfe=4).stats.nfe == 4
    for spec in ("auto", "calibrated", f"calibrated({path})"):
        below = sample(spec, MODEL, x, nfe=4, setting=replace(HERE, sigma_min=0.0))
        assert below.solver == "calibrated table of 4 evaluations"
        assert below.stats.nfe == 4
        assert below.trace[-1].sigma_next == 0
        torch.testing.assert_close(above - below.x, 0.002 * noise, rtol=1e-9, atol=1e-12)
    with pytest.raises(InputError, match=r"sigma_min=60\.0: the last level of this table can lie between 0 and"):
        table().solver.ended(60.0)
    free = Tabulated((2.0, 1.0), (Row(0.5, ()),), (1.0,))
    with pytest.raises(InputError, match="the last step evaluates nothing"):
        free.ended(0.0)
