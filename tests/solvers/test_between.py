"""Scales of guidance between two tables: served by what lies between them, refused outside, and found by auto."""

import math
from dataclasses import replace

import pytest
import torch

from problems import MODEL
from steindiff import grids, solvers
from steindiff.denoisers import Guided
from steindiff.errors import InputError
from steindiff.sampling import sample
from steindiff.solvers import Auto, Purpose, Row, Setting, Table, Tabulated, as_table, calibrated
from steindiff.solvers.between import RATIO, between
from steindiff.solvers.table import save_all

PURPOSE = Purpose.of(Guided(MODEL, MODEL, 2.0), (3,))


def table(scale: float, told: float = 1.0, turned: float = 0.0, name: str = "calibrated table") -> Tabulated:
    """Two evaluations after a free step."""
    rows = (Row(0.2, ()), Row(0.1 - turned, (0.9,)), Row(0.01 - turned / 10, (1.2, -0.21)))
    purpose = replace(PURPOSE, guidance=scale)
    return Tabulated((80.0, 16.0, 1.0, 0.002), rows, (1.0, told, told), name=name, purpose=purpose)


def guided(scale: float) -> Guided:
    return Guided(MODEL, MODEL, scale)


def start() -> torch.Tensor:
    return 80 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_between_two_of_the_same_it_is_the_same():
    own = table(2.0, 0.9)
    middle = between(own, replace(own, purpose=replace(PURPOSE, guidance=3.0)), 2.5)
    for mine, theirs in zip(middle.rows, own.rows, strict=True):
        assert (mine.a, *mine.values) == pytest.approx((theirs.a, *theirs.values), rel=1e-12)
    assert middle.told == pytest.approx(own.told, rel=1e-12)
    assert middle.levels == pytest.approx(own.levels, rel=1e-12)
    assert middle.purpose.guidance == 2.5


def test_states_are_linear_in_the_logarithm_of_the_scale():
    """With the values held fixed, every state of the run lies on the line between the states of its neighbours."""
    low, high = table(2.0, 0.8), table(4.0, 1.2, 0.05)
    middle = between(low, high, math.sqrt(8.0))
    fixed = lambda x, sigma: torch.full_like(x, 0.3)  # noqa: E731
    ends = [sample(t.anyway("network", "guidance"), fixed, start(), t.own_grid).x for t in (low, middle, high)]
    torch.testing.assert_close(ends[1], (ends[0] + ends[2]) / 2)
    assert middle.told[1] == pytest.approx(math.sqrt(0.8 * 1.2))


def test_one_method_on_two_grids_gives_one_between():
    first, second = (
        replace(
            as_table(solvers.make("ddim"), grids.karras(4, 0.002, 80.0, rho), "calibrated table"),
            purpose=replace(PURPOSE, guidance=w),
        )
        for rho, w in ((5.0, 2.0), (7.0, 3.0))
    )
    middle = between(first, second, 2.5)
    inner = zip(first.levels[1:-1], middle.levels[1:-1], second.levels[1:-1], strict=True)
    assert all(s < m < t or s > m > t for s, m, t in inner)
    near = sample(middle.anyway("guidance"), MODEL, start(), middle.own_grid).x
    exact = sample("ipndm_3", MODEL, start(), grids.karras(200)).x
    assert (near - exact).square().mean().sqrt() < 0.5


@pytest.mark.parametrize(
    ("low", "high", "scale", "reason"),
    [
        (table(2.0), table(2.0 * RATIO + 0.1), 3.0, "only a ratio up to 2.5 is"),
        (table(2.0), table(3.0), 3.5, "not served between them"),
        (table(2.0), table(3.0, name="ddim on karras"), 2.5, "they are of different kinds"),
        (table(2.0), replace(as_table(solvers.make("ddim"), grids.karras(2), "calibrated table"),
                             purpose=replace(PURPOSE, guidance=3.0)), 2.5, "they are of different kinds"),
        (table(2.0), table(4.0, turned=0.2 + 1e-9), math.sqrt(8.0), "their weights are too different"),
    ],
)  # fmt: skip
def test_tables_that_have_nothing_between_them_are_named(low, high, scale, reason):
    with pytest.raises(InputError, match=rf"{reason}.*calibrate one for it"):
        between(low, high, scale)


def test_auto_and_calibrated_serve_a_range_of_scales(tmp_path, monkeypatch):
    path = save_all(tmp_path / "t.safetensors", [Table(table(w)) for w in (2.0, 3.0, 5.0, 20.0)])
    monkeypatch.setenv(calibrated.VARIABLE, str(tmp_path))
    ran = sample("auto", guided(4.0), start(), nfe=2)
    assert ran.solver == "calibrated table, between w = 3 and 5, of 2 evaluations"
    assert sample("calibrated", guided(4.0), start(), nfe=2).solver == ran.solver
    assert sample(f"calibrated({str(path)!r})", guided(2.2), start(), nfe=2).stats.nfe == 2
    assert sample("auto", guided(3.0), start(), nfe=2).solver == "calibrated table of 2 evaluations"
    for scale, message in ((1.5, "are for 2, 3, 5, 20, and serve"), (30.0, "in this range"), (10.0, "only a ratio up to")):
        setting = Setting.of(guided(scale), event=(3,))
        assert not str(Auto().for_nfe(2, setting)[0]).startswith("calibrated")
        for name in ("calibrated", f"calibrated({str(path)!r})"):
            with pytest.raises(InputError, match=message):
                sample(name, guided(scale), start(), nfe=2)
    insisted = f"calibrated({str(path)!r}, anyway=guidance)"
    assert sample(insisted, guided(30.0), start(), nfe=2).stats.nfe == 2
