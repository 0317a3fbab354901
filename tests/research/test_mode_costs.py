"""What a mode costs: the predicted count is what a run takes and is billed, on solvers of one and of two evaluations a step."""

import pytest
import torch
from benchmarks.modes import Price, main, measure, modes, row_of
from benchmarks.timing import Quartiles

from steindiff.analytic import Gaussian
from steindiff.io.files import read_json
from steindiff.noise import initial_noise


def options(tmp_path, *more):
    return ["--outdir", str(tmp_path), "--batch", "2", "--rounds", "1", "--nfe", "3", *more]


def test_the_count_of_products_by_mode():
    """Of 9 evaluations, Heun spends 4 above σ = 1 and 5 at and below it."""
    spent, price = [(80.0, 2), (10.0, 2), (1.0, 2), (0.3, 2), (0.05, 1)], Price(0.5, 0.25)
    rows = {row.name: row for row in (row_of(mode, spent, price, 1.0, Quartiles.of([1.0, 3.0, 2.0])) for mode in modes(1.0))}
    counts = {name: (row.products, row.recorded, row.counted) for name, row in rows.items()}
    assert counts == {
        "plain": (0, 0, 1.0),
        "full, k = 1": (9, 9, 1.5),
        "full, k = 2": (18, 9, 2.0),
        "full, k = 5": (45, 9, 3.5),
        "adaptive, k = 5, probes at σ ≤ 1": (25, 5, 1 + 12.5 / 9),
        "sparse, k = 5, active at σ > 1": (20, 4, 1 + 10 / 9),
        "analytical": (0, 0, 1.0),
        "tweedie (ours)": (0, 0, 1.0),
    }
    assert rows["full, k = 5"].with_recording == 3.75
    assert rows["plain"].measured == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_a_run_is_billed_what_the_count_predicts(solver):
    """The products that a run takes are those of the count, at every level and in every mode."""
    law, x = Gaussian(torch.zeros(3), 0.25 * torch.eye(3)), initial_noise(range(2), (3,))
    rows = measure(solver, law, x, nfe=9, rounds=1, threshold=1.0, price=Price(0.7, 0.2))
    counts = {row.name: row.products for row in rows}
    assert counts["full, k = 5"] == 45 == counts["adaptive, k = 5, probes at σ ≤ 1"] + counts["sparse, k = 5, active at σ > 1"]
    for row in rows:
        assert row.billed == pytest.approx(row.counted), row.name


def test_the_command_writes_its_tables(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        assert main(options(tmp_path, "--solvers", "ddim")) == 0
    finally:
        torch.set_num_threads(threads)
    study, text = read_json(tmp_path / "study.json"), (tmp_path / "table.md").read_text(encoding="utf-8")
    assert [row["name"] for row in study["results"]["ddim"]] == [mode.name for mode in modes(1.0)]
    assert study["price"]["product"] > 0
    assert "### digits, ddim" in text
    assert text in capsys.readouterr().out
