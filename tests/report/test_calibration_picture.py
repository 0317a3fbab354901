"""The picture of docs/calibration.md: what it reads in the contests, and what it draws."""

import re

import pytest
from recipes.calibration_picture import BEDS, CONTESTS, LINES, PLAIN, TWICE, curves, entries, main, strips

from steindiff.errors import InputError
from steindiff.study import testbed

TEXT = """
a: endpoint RMSE.

| NFE | calibrated | best on a grid | times as large | change |
| --- | --- | --- | --- | --- |
| 3 | 0.10 ± 0.01 | heun, karras(rho=5): 0.2 ± 0.02 | 2 | −0.1 ± 0.01 ▲ |
| 4 | 0.05 ± 0.01 | – | – | – |

| NFE | calibrated |
"""


def test_a_cell_is_an_error_and_whose_it_is():
    found = [(n, head, entry.value, entry.name) for n, head, entry in entries(TEXT, "a")]
    assert found == [(3, "calibrated", 0.10, ""), (3, PLAIN, 0.2, "heun, karras(rho=5)"), (4, "calibrated", 0.05, "")]
    assert list(entries(TEXT, "b")) == []


@pytest.mark.parametrize("name", BEDS)
def test_the_curves_are_those_of_the_contests(name):
    found, text = curves(name), CONTESTS[0].read_text(encoding="utf-8")
    assert all(set(range(3, 7)) <= set(found[head]) for head in LINES.values())
    for n, entry in found["calibrated"].items():
        assert re.search(rf"^\| {n} \| {entry.value:g}\d* ± ", text, flags=re.MULTILINE)
    for n, entry in found[TWICE].items():
        assert entry.value <= found[PLAIN][2 * n].value if 2 * n in found[PLAIN] else entry.value < found[PLAIN][n].value


def test_a_testbed_without_a_contest_is_refused():
    with pytest.raises(InputError, match="say nothing of nothing"):
        curves("nothing")


def test_a_row_is_the_same_seeds_by_one_solver():
    rows = strips(testbed.make("digits"), "ipndm_3, log_snr", 3, range(70_000, 70_002))
    plain, universal, calibrated, exact = (row.astype(float) for row in rows.values())
    assert exact.shape == (8, 17, 1)
    assert abs(calibrated - exact).mean() < abs(universal - exact).mean() < abs(plain - exact).mean()


def test_the_picture_is_a_small_png(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.calibration_picture.BEDS", {"digits": "digits"})
    assert main(["--images", "1", "--out", str(tmp_path)]) == 0
    png = (tmp_path / "calibration.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert 10_000 < len(png) < 200_000
